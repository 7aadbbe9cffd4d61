"""What does an optimizer step cost, by hand, by `Trainer`, by a peer, and by `BANTrainer`?

    python -m benchmarks.step [--models LSTM-650 ...] [--rounds 9] [--quick]

Each form trains a student of its own for an epoch of a few steps, in turn with the others, round
after round in one process; the first steps of an epoch are not counted. The figures to read are the
ratios of the medians to the hand-written loop in float32, to that loop at its best, and to labels
alone in the same number format. Memory is the peak of a process that trains in that form alone,
network, teacher and optimizer included. A cached teacher was asked before, all of it.
"""

import argparse
import gc
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import Trainer, TrainingArguments

from ban_hf import BANTrainer
from benchmarks import report
from benchmarks.handwritten import HandWritten
from benchmarks.peer import TorchDistill
from benchmarks.timing import Form, PeakMemory, Times, in_fresh_process, interleave, median, ratio
from benchmarks.trainers import WARM_UP, NaiveDistiller, arguments, as_form
from benchmarks.workloads import CLASSES, MEAN, STD, WORKLOADS, Workload

BY_HAND, AT_ITS_BEST = "by hand, float32", "by hand, at its best"
PER_IMAGE, OUR_DATA = "Trainer, labels, image by image", "Trainer, labels, our data"
NAIVE, PEER = "Trainer that asks a teacher", "torchdistill"
PLAIN, FAST, CACHED = "BANTrainer, not fast", "BANTrainer, fast", "BANTrainer, fast, cached"
LABELS = "BANTrainer, fast, labels alone"
FORMS = (BY_HAND, AT_ITS_BEST, PER_IMAGE, OUR_DATA, NAIVE, PEER, PLAIN, FAST, CACHED, LABELS)
BASES = (BY_HAND, AT_ITS_BEST, LABELS)
OF_IMAGES = {PER_IMAGE, PEER}  # what texts have no like of
QUICK_BATCH = 4
DIFFERENT_ENCODED = 512  # images that are encoded; more are these again


def make(workload: Workload, name: str, steps: int, folder: str) -> Form:
    """A form by its name, with networks and data of its own."""
    device, epoch = report.device(), steps + WARM_UP
    data = workload.data(epoch, device)
    given = {"train_dataset": data, "data_collator": workload.collator}
    if name in (BY_HAND, AT_ITS_BEST):
        return HandWritten(workload, data, device, at_its_best=name == AT_ITS_BEST)
    if name == PEER:
        return TorchDistill(workload, data, device)
    if name == PER_IMAGE:
        loading = {"dataloader_num_workers": workers(), "dataloader_pin_memory": workers() > 0}
        args = arguments(workload.batch, TrainingArguments, **loading)
        encoded = image_by_image(workload.batch * epoch, workload.size)
        return as_form(Trainer(workload.network(1), args, train_dataset=encoded))
    if name == OUR_DATA:
        args = arguments(workload.batch, TrainingArguments)
        return as_form(Trainer(workload.network(1), args, **given))
    teacher = workload.network(0).eval().requires_grad_(False)
    if name == NAIVE:
        asking = {"teacher": teacher, "label_weight": workload.label_weight}
        args = arguments(workload.batch, TrainingArguments)
        return as_form(NaiveDistiller(workload.network(1), args, **asking, **given))
    more: dict[str, Any] = {"fast": name != PLAIN, "label_weight": workload.label_weight}
    if name == CACHED:
        more["teacher_cache"] = folder
    student, args = workload.network(1), arguments(workload.batch, **more)
    trainer = BANTrainer(student, args, teacher=None if name == LABELS else teacher, **given)
    if name == CACHED:
        trainer.fill_teacher_cache()
    return as_form(trainer)


def workers() -> int:
    """Processes that decode images: none beside a network that itself takes every core."""
    return 0 if report.device().type == "cpu" else min(8, os.cpu_count() or 1)


def image_by_image(count: int, size: int) -> datasets.Dataset:
    """Encoded images, each decoded, cropped, flipped and normalised as it is asked for."""
    few = min(count, DIFFERENT_ENCODED)
    pixels = torch.randint(0, 256, (few, size, size, 3), dtype=torch.uint8).numpy()
    columns = {"image": list(pixels), "label": [i % CLASSES for i in range(few)]}
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    encoded = datasets.Dataset.from_dict(columns, datasets.Features(kinds))
    return encoded.select([i % few for i in range(count)]).with_transform(transform)


def transform(items: dict[str, list]) -> dict[str, list]:
    """The usual augmentation, image by image, as in the examples of `transformers`."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    views = []
    for image in items["image"]:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(image.height, image.width, 3).permute(2, 0, 1)  # (3, H, W)
        padded = F.pad((pixels / 255 - mean) / std, (4, 4, 4, 4))  # (3, H + 8, W + 8)
        top, left = torch.randint(0, 9, (2,)).tolist()
        view = padded[:, top : top + image.height, left : left + image.width]
        views.append(view.flip(2) if torch.rand(()) < 0.5 else view)
    return {"pixel_values": views, "labels": items["label"]}


def names_of(workload: Workload) -> list[str]:
    """The forms that a workload has."""
    return [name for name in FORMS if not (workload.is_text and name in OF_IMAGES)]


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or why a package that it needs is not there."""
    try:
        return call(), None
    except ImportError as error:
        return None, str(error)


def memory_of(model: str, batch: int, name: str, steps: int) -> float:
    """Peak of memory, in MiB, of one training in a form; run in a process of its own."""
    workload = replace(WORKLOADS[model], batch=batch)
    with tempfile.TemporaryDirectory() as folder:
        torch.zeros(1, device=report.device())
        peak = PeakMemory(report.device())
        form = make(workload, name, steps, folder)
        with peak:
            form()
        return peak.mib


def measure(model: str, workload: Workload, steps: int, rounds: int) -> dict[str, Any]:
    """Times and memory of every form of a workload; what could not be run says why."""
    forms, missing, memory = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names_of(workload):
            build = partial(make, workload, name, steps, os.path.join(folder, "cache"))
            form, why = attempt(build)
            if form is None:
                missing[name] = why
            else:
                forms[name] = form
        times = interleave(forms, rounds)
    del form, build
    done = list(forms)
    forms.clear()
    gc.collect()
    for name in done:
        memory[name] = in_fresh_process(memory_of, model, workload.batch, name, 1)
    return {"seconds_per_step": times, "peak_mib": memory, "missing": missing}


def rows_of(workload: Workload, measured: dict[str, Any]) -> list[list[str]]:
    """The table of a workload."""
    times: Times = measured["seconds_per_step"]
    rows = []
    for name in names_of(workload):
        if name in measured["missing"]:
            rows.append([name, f"not run: {measured['missing'][name]}", *[""] * 6])
            continue
        seconds, row = median(times[name]), [name]
        row += [f"{1000 * seconds:.1f}", f"{workload.batch / seconds:,.0f}"]
        for base in BASES:
            row.append(f"{ratio(times, name, base)[0]:.2f}")
            if base == BY_HAND:
                row.append(report.spread(*ratio(times, name, base)[1:]))
        rows.append([*row, f"{measured['peak_mib'][name]:,.0f}"])
    return rows


def draw(measured: dict[str, dict[str, Any]]) -> Figure:
    """A panel a workload."""
    rows = math.ceil(len(measured) / 2)
    figure = Figure(figsize=(12, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, min(2, len(measured)), squeeze=False).flat
    for axes, (model, results) in zip(panels, measured.items(), strict=False):
        axes.set_title(model, fontsize=11)
        draw_panel(axes, results["seconds_per_step"])
    for axes in figure.axes[len(measured) :]:
        axes.set_axis_off()
    return figure


def draw_panel(axes: Axes, times: Times) -> None:
    """The ratio of each form to the hand-written loop, with its quartiles; ours in blue."""
    names = list(times)[::-1]
    ratios = [ratio(times, name, BY_HAND) for name in names]
    colors = [report.BLUE if name.startswith("BANTrainer") else report.GREY for name in names]
    axes.barh(names, [middle for middle, _, _ in ratios], color=colors, height=0.7)
    for at, (middle, low, high) in enumerate(ratios):
        axes.plot([low, high], [at, at], color="black", linewidth=1.2)
        label = axes.text(max(middle, high) + 0.03, at, f"{middle:.2f}", va="center", fontsize=9)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.axvline(1, zorder=0, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, 1.15 * max(high for _, _, high in ratios) + 0.1)
    axes.set_xlabel("time per step, by hand in float32 = 1")
    axes.spines[["top", "right"]].set_visible(False)


def options_given() -> argparse.Namespace:
    """The options, with the workloads that this machine can run."""
    parser = report.parser(__doc__, rounds=9)
    parser.add_argument("--models", nargs="+", choices=list(WORKLOADS), help="by default all")
    parser.add_argument("--steps", type=int, help="timed in a round: 4, on a GPU 60")
    options = report.parse(parser)
    on_gpu = report.device().type == "cuda"
    options.steps = options.steps or (2 if options.quick else 60 if on_gpu else 4)
    runnable = [name for name, workload in WORKLOADS.items() if on_gpu or not workload.on_gpu_only]
    options.models = options.models or runnable
    return options


def main() -> None:
    options = options_given()
    workloads = {name: WORKLOADS[name] for name in options.models}
    if options.quick:
        workloads = {name: replace(one, batch=QUICK_BATCH) for name, one in workloads.items()}
    measured = {
        name: measure(name, workload, options.steps, options.rounds)
        for name, workload in workloads.items()
    }
    for kind, is_text in (("images", False), ("texts", True)):
        chosen = {name: measured[name] for name in measured if workloads[name].is_text == is_text}
        if chosen:
            write(f"step_{kind}", options, workloads, chosen)


def write(
    name: str,
    options: argparse.Namespace,
    workloads: dict[str, Workload],
    measured: dict[str, dict[str, Any]],
) -> None:
    """The table of each workload, and one figure."""
    head = [
        "form", "ms per step", "items per second", "to by hand, float32", "its quartiles",
        "to by hand, at its best", "to labels alone", "peak memory, MiB",
    ]  # fmt: skip
    parts = [
        f"Medians of {options.rounds} interleaved rounds of {options.steps} steps. An item is an "
        "image or a window of text. Ratios are those of the medians, quartiles those of the "
        "rounds' ratios; memory is a process's own, beyond its imports.",
    ]
    for model, results in measured.items():
        workload = workloads[model]
        what = f"windows of {workload.size} words" if workload.is_text else f"{workload.size} px"
        parts.append(f"## {model}, batch {workload.batch}, {what}")
        parts.append(report.table(head, rows_of(workload, results)))
    title = "What an optimizer step costs"
    report.write(name, options, title, parts, {"models": measured}, draw(measured))


if __name__ == "__main__":
    main()
