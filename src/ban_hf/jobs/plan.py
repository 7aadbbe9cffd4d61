"""What a family would take of time and disk, said before it is trained (`--plan`).

Some real steps and evaluations, with labels and with a teacher, are timed by the trainer that would
train, with the same arguments and data, and thrown away. Nothing is written where the run would be.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel

from ban_hf.data import ImageViews, TokenWindows
from ban_hf.jobs.cost import (
    Footprint,
    Length,
    Networks,
    duration,
    occasions,
    shortages,
    step_time,
)
from ban_hf.jobs.family import CONTROL
from ban_hf.jobs.pace import throw_away, time_training
from ban_hf.jobs.siblings import CACHE, TEACHER, check_several
from ban_hf.lineage.disk import format_bytes, free_bytes
from ban_hf.lineage.record import RECORD, generation_folders
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.performance import describe
from ban_hf.training.trainer import BANTrainer


def plan_families(
    family: Mapping[str, Any],
    args: BANTrainingArguments,
    *,
    generations: int,
    control: bool,
    control_from: Sequence[str],
    teacher: str | None,
    report: Mapping[str, Any],
) -> None:
    """Time some steps, and print what `run_families` would take of the same arguments.

    What stands finished is not counted. The teacher of a sequence that goes on from somebody's
    generation is not loaded: it is taken to be as large as its students.
    """
    own, *others = args.each_objective().values()
    if others:
        check_several(args, generations, has_controls=bool(control or control_from))
        own.teacher_cache = args.teacher_cache or str(Path(args.output_dir) / CACHE)
    labels, students = _folders(args, generations, control, teacher)
    measured = [Path(folder) / "generation-0" for folder in control_from]  # which are finished
    finished = [f for f in (*labels, *students, *measured) if (f / RECORD).is_file()]
    networks = Networks.count(labels, students, finished, cached=own.teacher_cache is not None)
    lines = [f"Plan of {report['title']}; nothing is trained."]
    if networks.missing:
        lines += _estimate(family, own, networks)
    else:
        lines.append(f"All {networks.finished} networks stand finished in {args.output_dir}.")
    if PartialState().is_main_process:
        print("\n".join(lines), flush=True)
    PartialState().wait_for_everyone()


def _folders(
    args: BANTrainingArguments, generations: int, control: bool, teacher: str | None
) -> tuple[list[Path], dict[Path, Path]]:
    """Where the label-trained networks of a run stand, and its students with their teachers."""
    base, names = Path(args.output_dir), list(args.each_objective())
    homes = [base / name for name in names] if len(names) > 1 else [base]
    is_shared = teacher is not None or len(homes) > 1  # and copied to each home
    origin = base / (TEACHER if is_shared else "") / "generation-0"
    labels = [] if teacher else [origin]
    if control and generations:
        others = range(1, max(2, generations))
        labels += [base / CONTROL / str(number) / "generation-0" for number in others]
    students: dict[Path, Path] = {}
    for home in homes:
        first = min(generation_folders(home), default=0)
        numbers = range(first + 1, first + generations + 1)
        chain = [origin, *(home / f"generation-{number}" for number in numbers)]
        students |= dict(zip(chain[1:], chain, strict=False))
    return labels, students


def _estimate(
    family: Mapping[str, Any], args: BANTrainingArguments, networks: Networks
) -> list[str]:
    """Time both kinds of training; the lines that say what they come to."""
    with tempfile.TemporaryDirectory(prefix="ban_hf_plan_") as folder:
        brief = throw_away(args, folder)
        labels, trainer = time_training(family, brief, None)
        length, student = _length(trainer, args), labels
        if networks.students:
            student, _ = time_training(family, brief, family["model_init"](1))
    batch, data = trainer.get_total_train_batch_size(args), family["train_dataset"]
    items = f"x {data.window} words" if isinstance(data, TokenWindows) else "images"
    paces = {"with labels": labels} | ({"with a teacher": student} if networks.students else {})
    steps = [f"{step_time(pace.step)} {kind}" for kind, pace in paces.items()]
    whole = [f"{duration(length.seconds(pace))} {kind}" for kind, pace in paces.items()]
    timed = [f"{pace.steps} steps {kind}" for kind, pace in paces.items()]
    on = describe(trainer.model, trainer.args, fast=trainer.args.fast)
    return [
        f"An estimate from {' and '.join(timed)}, on this machine as busy as it is now:",
        f"  networks    {_count(networks)}",
        f"  of each     {length.epochs} epochs, {length.steps} steps of {batch} {items}",
        f"  on          {on}; processes: {args.world_size}",
        f"  a step      {', '.join(steps)}",
        f"  a network   {', '.join(whole)}; its evaluations are included",
        f"  altogether  {duration(networks.seconds(length, labels, student))}",
        *_disk(args, networks, length, trainer, data),
    ]


def _length(trainer: BANTrainer, args: BANTrainingArguments) -> Length:
    """Of a whole training with these arguments, as `Trainer` counts it."""
    epochs, *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    return Length(steps, epochs, occasions(args.eval_strategy, args.eval_steps, steps, epochs))


def _count(networks: Networks) -> str:
    """The networks in words."""
    controls = " (the controls among them)" if networks.labels > 1 else ""
    kinds = {
        f"with labels{controls}": networks.labels,
        "with a teacher": networks.students,
        "with a teacher whose outputs are kept by then": networks.replaying,
    }
    named = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
    return named + (f"; {networks.finished} stand finished" if networks.finished else "")


def _disk(
    args: BANTrainingArguments,
    networks: Networks,
    length: Length,
    trainer: BANTrainer,
    data: ImageViews | TokenWindows,
) -> list[str]:
    """What is needed of each disk, and a warning where that is not there."""
    footprint = Footprint.of(trainer.model, trainer.optimizer, args)
    parts = {
        "networks": (networks.missing + networks.copies) * footprint.weights,
        "ensemble": footprint.ensembles(networks.taught),
        "checkpoints": footprint.checkpoints(args, length.steps, length.epochs),
    }
    needs = {Path(args.output_dir): sum(parts.values())}
    if args.teacher_cache is not None:
        one = _cache_bytes(args, data, trainer.model, length.epochs)
        needs[Path(args.teacher_cache)] = networks.caches * one
        parts["teacher_cache"] = networks.caches * one
    named = ", ".join(f"{name} {format_bytes(number)}" for name, number in parts.items() if number)
    free = format_bytes(free_bytes(Path(args.output_dir)))
    disk = f"  disk        {format_bytes(sum(parts.values()))} at most: {named}; {free} are free"
    return [disk, *shortages(needs)]


def _cache_bytes(
    args: BANTrainingArguments,
    data: ImageViews | TokenWindows,
    model: PreTrainedModel,
    epochs: int,
) -> int:
    """Of what one teacher says: logits of each view of an image, the hidden state of a word."""
    if isinstance(data, TokenWindows):
        numbers = len(data) * data.window * model.get_output_embeddings().in_features
    else:
        numbers = len(data) * model.config.num_labels * (epochs if data.augment else 1)
    return int(numbers * np.dtype(args.teacher_cache_dtype).itemsize)
