"""What does our own code cost per step, beyond `transformers.Trainer`?

    python -m benchmarks.overhead [--rounds 20] [--quick]

A network of 4,788 parameters takes next to no time, so that what is left of a step is code. It is
trained by `Trainer` on labels, by a `Trainer` whose `compute_loss` runs a teacher and takes the
Kullback-Leibler divergence, and by `BANTrainer`, which also measures what it logs. Read the
difference to the second, in milliseconds. `--profile` lists what our functions take.
"""

import argparse
import cProfile
import pstats
import tempfile
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from ban_hf import BANTrainer, ImageViews, collate
from benchmarks import report
from benchmarks.timing import difference, interleave, median
from benchmarks.trainers import NaiveDistiller, arguments, as_form
from benchmarks.workloads import CLASSES, Tiny, images

BATCH = 128
TASK = "image-classification"  # of a class that no Auto class knows
LABELS, LABELS_OURS = "Trainer, labels", "BANTrainer, labels"
NAIVE, OURS = "Trainer with a teacher", "BANTrainer"
OURS_BOTH, CACHED = "BANTrainer, labels and teacher", "BANTrainer, cached teacher"
COMPARED = ((LABELS_OURS, LABELS), (OURS, NAIVE), (OURS_BOTH, NAIVE), (CACHED, NAIVE))


def trainers(steps: int, folder: str) -> dict[str, Trainer]:
    """A trainer of each kind, with data of its own; the cache is filled."""

    def given() -> dict:
        return {"train_dataset": data(steps), "data_collator": collate}

    made = {
        LABELS: Trainer(Tiny(), arguments(BATCH, TrainingArguments), **given()),
        LABELS_OURS: BANTrainer(Tiny(), arguments(BATCH), task=TASK, **given()),
        NAIVE: NaiveDistiller(
            Tiny(),
            arguments(BATCH, TrainingArguments),
            teacher=Tiny().eval().requires_grad_(False),
            label_weight=0.0,
            **given(),
        ),
        OURS: BANTrainer(Tiny(), arguments(BATCH), teacher=Tiny(), task=TASK, **given()),
        OURS_BOTH: BANTrainer(
            Tiny(), arguments(BATCH, label_weight=1.0), teacher=Tiny(), task=TASK, **given()
        ),
        CACHED: BANTrainer(
            Tiny(), arguments(BATCH, teacher_cache=folder), teacher=Tiny(), task=TASK, **given()
        ),
    }
    made[CACHED].fill_teacher_cache()
    return made


def data(steps: int) -> ImageViews:
    """An epoch of so many steps, on the device."""
    return images(BATCH * steps, Tiny.SIZE, CLASSES).to(report.device())


def profile(trainer: Trainer, steps: int) -> str:
    """The time of our own functions in a training, those within them included."""
    profiler = cProfile.Profile()
    profiler.runcall(trainer.train)
    rows = []
    for (file, line, name), (_, calls, _, seconds, _) in pstats.Stats(profiler).stats.items():
        if "ban_hf" in file and calls >= steps - 1:
            rows.append((1000 * seconds / steps, f"{Path(file).name}:{line} {name}"))
    rows = [(name, f"{ms:.3f}") for ms, name in sorted(rows, reverse=True)]
    return report.table(["our function", "ms per step, profiled"], rows)


def main() -> None:
    parser = report.parser(__doc__, rounds=20)
    parser.add_argument("--steps", type=int, default=200, help="of a round")
    parser.add_argument("--profile", action="store_true", help="also list our functions")
    options: argparse.Namespace = report.parse(parser)
    steps = min(options.steps, 50) if options.quick else options.steps
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(steps, str(Path(folder) / "cache"))
        forms = {name: as_form(trainer) for name, trainer in made.items()}
        times = interleave(forms, options.rounds, warm_up=1)
        profiled = [profile(made[OURS], steps)] if options.profile else []
    differences = {ours: difference(times, ours, base) for ours, base in COMPARED}
    bases = dict(COMPARED)
    rows = []
    for name in forms:
        row = [name, f"{1000 * median(times[name]):.2f}"]
        if name in differences:
            more, low, high = (1000 * seconds for seconds in differences[name])
            row += [f"{more:+.2f}", f"{low:+.2f} to {high:+.2f}", bases[name]]
        rows.append([*row, *[""] * (5 - len(row))])
    head = ["training", "ms per step", "more, ms", "its quartiles", "than"]
    report.write(
        "overhead",
        options,
        "What our own code costs per step",
        [
            f"A perceptron of {sum(p.numel() for p in Tiny().parameters()):,} parameters, batch "
            f"{BATCH}, {CLASSES} classes. Medians of {options.rounds} interleaved rounds of "
            f"{steps} steps.",
            report.table(head, rows),
            *profiled,
        ],
        {"seconds_per_step": times},
    )


if __name__ == "__main__":
    main()
