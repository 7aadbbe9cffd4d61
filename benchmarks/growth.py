"""How does the cost grow: with the batch, the classes, the students of a teacher, the data?

    python -m benchmarks.growth [--rounds 3] [--quick]

The networks are tiny, since the question is how the cost grows, not how large it is. Each panel has
one thing that grows. Both axes are logarithmic: a slope of one is a cost in proportion.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from transformers import PreTrainedModel, Trainer

from ban_hf import BANTrainer, collate, create_classifier, train_generations
from benchmarks import report
from benchmarks.mixed_cross_entropy import LABELS, ONE_PASS, SEPARATE, loss_times
from benchmarks.timing import interleave, median, timed
from benchmarks.trainers import WARM_UP, arguments, as_form, silent
from benchmarks.workloads import CLASSES, images

SIZE = 16  # of the images
ALONE, ONLINE, CACHED = "labels alone", "teacher asked", "teacher cached"
COLORS = {
    ALONE: report.GREY,
    ONLINE: report.ORANGE,
    CACHED: report.BLUE,
    LABELS: report.GREY,
    SEPARATE: report.ORANGE,
    ONE_PASS: report.BLUE,
}
LOSS_ITEMS = 128  # a batch of images; a few rows of a text


@dataclass(frozen=True)
class Growth:
    """What was measured of one thing that grows: seconds of each form at each point."""

    name: str
    what: str
    points: Sequence[int]
    seconds: dict[str, list[float]]


def network(seed: int) -> PreTrainedModel:
    """A small convolutional network."""
    torch.manual_seed(seed)
    return create_classifier("cifar_wrn_10_1", num_labels=CLASSES, image_size=SIZE)


def trainer(form: str, batch: int, count: int, folder: str) -> Trainer:
    """A student's, on so many images."""
    data = images(count, SIZE, CLASSES, augment=True).to(report.device())
    more = {"teacher_cache": folder} if form == CACHED else {}
    args = arguments(batch, fast=True, **more)
    teacher = None if form == ALONE else network(0)
    given = {"train_dataset": data, "data_collator": collate}
    return silent(BANTrainer(network(1), args, teacher=teacher, **given))


def filled(form: str, batch: int, count: int, folder: str) -> Trainer:
    """Likewise, its teacher's cache filled before."""
    made = trainer(form, batch, count, folder)
    if form == CACHED:
        made.fill_teacher_cache()
    return made


def batch_size(rounds: int, points: Sequence[int], folder: Path) -> Growth:
    """Seconds of a step."""
    seconds: dict[str, list[float]] = {form: [] for form in (ALONE, ONLINE, CACHED)}
    for batch in points:
        forms = {
            form: as_form(
                filled(form, batch, batch * (WARM_UP + 3), str(folder / f"batch-{batch}"))
            )
            for form in seconds
        }
        for form, times in interleave(forms, rounds).items():
            seconds[form].append(median(times))
    return Growth("images in a batch", "ms of a step", points, seconds)


def dataset_size(rounds: int, points: Sequence[int], folder: Path) -> Growth:
    """Seconds of a whole training of one epoch, what is done before its first step included."""
    seconds: dict[str, list[float]] = {form: [] for form in (ALONE, ONLINE, CACHED)}
    for count in points:
        forms = {
            form: timed(filled(form, 128, count, str(folder / f"data-{count}")).train, "cpu")
            for form in seconds
        }
        for form, times in interleave(forms, rounds).items():
            seconds[form].append(median(times))
    return Growth("images in an epoch", "ms of an epoch", points, seconds)


def students(rounds: int, points: Sequence[int], folder: Path) -> Growth:
    """Seconds of the first k students of one teacher, the first of whom fills the cache."""
    totals: dict[str, list[list[float]]] = {ONLINE: [], CACHED: []}
    for index in range(rounds):
        sums = {form: [0.0] for form in totals}
        for _ in range(max(points)):
            for form, so_far in sums.items():
                made = trainer(form, 64, 64 * 6, str(folder / f"students-{index}"))
                started = time.perf_counter()
                made.train()
                so_far.append(so_far[-1] + time.perf_counter() - started)
        for form, so_far in sums.items():
            totals[form].append([so_far[k] for k in points])
    seconds = {form: [median([c]) for c in zip(*t, strict=True)] for form, t in totals.items()}
    return Growth("students of one teacher", "ms of all of them", points, seconds)


def generations(rounds: int, points: Sequence[int], folder: Path) -> Growth:
    """Seconds of a whole family, its records and its ensemble included."""

    def family(count: int) -> None:
        args = arguments(64, seed=next(seeds))
        args.output_dir = tempfile.mkdtemp(dir=folder)
        data = images(64 * 6, SIZE, CLASSES, augment=True).to(report.device())
        given = {"train_dataset": data, "data_collator": collate}
        train_generations(network, args, generations=count, **given)

    seeds = iter(range(1000))
    forms = {str(count): timed(partial(family, count), "cpu") for count in points}
    times = interleave(forms, rounds)
    seconds = {ONLINE: [median(times[str(count)]) for count in points]}
    return Growth("generations after the first", "ms of the family", points, seconds)


def loss(name: str, rounds: int, points: Sequence[int], _: Path) -> Growth:
    """Seconds of loss and gradient."""
    seconds: dict[str, list[float]] = {form: [] for form in (SEPARATE, ONE_PASS, LABELS)}
    for classes in points:
        for form, times in loss_times(LOSS_ITEMS, classes, rounds).items():
            seconds[form].append(median(times))
    return Growth(name, f"ms of loss and gradient, {LOSS_ITEMS} items", points, seconds)


Measure = Callable[[int, Sequence[int], Path], Growth]
GROWTHS: list[tuple[Measure, Sequence[int], Sequence[int]]] = [
    (batch_size, (16, 64, 256), (2, 4)),
    (partial(loss, "classes"), (10, 100, 1_000, 10_000), (10, 100)),
    (partial(loss, "words of a vocabulary"), (1_000, 10_000, 50_000), (100, 1_000)),
    (students, (1, 2, 4, 8), (1, 2)),
    (generations, (1, 2, 4), (1, 2)),
    (dataset_size, (256, 1_024, 4_096), (128, 256)),
]  # what is measured, at which points, and at which quickly


def rows_of(growth: Growth) -> list[list[str]]:
    """A row a form: milliseconds at each point, and how often the last is the first."""
    grown = growth.points[-1] / growth.points[0]
    return [
        [
            form,
            *(f"{1000 * value:,.1f}" for value in values),
            f"{values[-1] / values[0]:.1f}",
            grown,
        ]
        for form, values in growth.seconds.items()
    ]


def draw(growths: Sequence[Growth]) -> Figure:
    """A panel a thing that grows."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, growth in zip(figure.subplots(2, 3).flat, growths, strict=True):
        draw_panel(axes, growth)
    return figure


def draw_panel(axes: Axes, growth: Growth) -> None:
    """One of them, its axes logarithmic: a slope of one is a cost in proportion."""
    for form, values in growth.seconds.items():
        values = [1000 * value for value in values]
        axes.plot(growth.points, values, marker="o", color=COLORS[form], label=form)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(growth.points, [f"{point:,}" for point in growth.points])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.minorticks_off()
    axes.set_ylim(axes.get_ylim()[0] / 1.5, axes.get_ylim()[1] * 1.5)
    axes.set_xlabel(growth.name)
    axes.set_ylabel(growth.what)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


def main() -> None:
    options = report.parse(report.parser(__doc__, rounds=3))
    growths = []
    with tempfile.TemporaryDirectory() as folder:
        for measure, points, quickly in GROWTHS:
            growths.append(
                measure(options.rounds, quickly if options.quick else points, Path(folder))
            )
    parts = [
        f"Medians of {options.rounds} interleaved rounds, in milliseconds. The networks are tiny "
        f"(`cifar_wrn_10_1`, images of {SIZE} pixels). The cache of a teacher was filled "
        "before, but of the students the first fills it.",
    ]
    for growth in growths:
        head = [growth.what, *(f"{p:,}" for p in growth.points)]
        parts.append(f"## {growth.name.capitalize()}")
        parts.append(
            report.table([*head, "last / first", "the same of what grows"], rows_of(growth))
        )
    numbers = {"growths": [vars(growth) for growth in growths]}
    report.write("growth", options, "How the cost grows", parts, numbers, draw(growths))


if __name__ == "__main__":
    main()
