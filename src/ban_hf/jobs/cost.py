"""What the missing jobs of a run will take of time and disk, before they are run (`--plan`).

Some real steps and evaluations, with labels and with a teacher, are timed by the trainer that would
train, with the same arguments and data, and thrown away. Nothing is written where the run would be.
"""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ban_hf.data.windows import TokenWindows
from ban_hf.jobs.job import Job, Setup
from ban_hf.jobs.progress import (
    Footprint,
    count_events,
    format_duration,
    format_step,
    seconds_now,
)
from ban_hf.jobs.training import check_trained, is_done, make_trainer
from ban_hf.lineage.files import existing_parent, format_bytes, free_bytes
from ban_hf.training.arguments import BANTrainingArguments, describe
from ban_hf.training.trainer import BANTrainer

WARM_UP, TIMED = 3, 20  # steps
SECONDS = 30.0  # that the timed steps may take; if they would take longer there are fewer
BATCHES = 4  # of an evaluation


@dataclass(frozen=True)
class Pace:
    """Seconds that one kind of training takes: `with labels`, or `with a teacher`."""

    kind: str
    steps: int  # that were timed
    step: float
    evaluation: float  # a pass over the validation set
    test: float  # a pass over the test set

    def network(self, steps: int, evaluations: int) -> float:
        """A whole training, with its evaluations and the test at its end."""
        return steps * self.step + evaluations * self.evaluation + self.test


@dataclass(frozen=True)
class Counts:
    """The missing jobs of a run by what they cost."""

    labels: int  # networks that are trained on labels
    students: int  # whose teacher runs
    replaying: int  # that read what it has put out for another student: they cost what labels cost
    ensembles: int  # networks in the missing ensembles, each of which is saved once more
    copies: int  # teachers that are copied beside their students
    finished: int  # networks that need not be trained

    @classmethod
    def of(cls, jobs: Sequence[Job], home: Path, *, cached: bool) -> "Counts":
        """Count a graph in order; `cached`: a teacher's outputs are kept for its other students."""
        networks = [job for job in jobs if not job.members]
        missing = [job for job in networks if not is_done(job, home)]
        taught = [(job, teacher) for job in missing for teacher in job.teachers]
        known = {t.folder for job in networks if job not in missing for t in job.teachers}
        replaying = 0
        for _, teacher in taught:
            replaying += cached and teacher.folder in known
            known.add(teacher.folder)
        ensembles = [job for job in jobs if job.members and not is_done(job, home)]
        return cls(
            labels=sum(not job.teachers for job in missing),
            students=len(taught) - replaying,
            replaying=replaying,
            ensembles=sum(len(job.members) for job in ensembles),
            copies=sum(Path(j.folder).parent != Path(t.folder).parent for j, t in taught),
            finished=len(networks) - len(missing),
        )

    @property
    def missing(self) -> int:
        """Networks to train."""
        return self.labels + self.students + self.replaying

    def seconds(self, of_labels: float, of_student: float, of_test: float) -> float:
        """Of all: of a network with labels and one with a teacher, and of a test of one network."""
        replayed = (self.labels + self.replaying) * of_labels
        return replayed + self.students * of_student + self.ensembles * of_test

    def __str__(self) -> str:
        kinds = {
            f"with labels{' (the controls among them)' if self.labels > 1 else ''}": self.labels,
            "with a teacher": self.students,
            "with a teacher whose outputs are kept by then": self.replaying,
        }
        named = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number)
        return named + (f"; {self.finished} are finished" if self.finished else "")


def plan(
    jobs: Sequence[Job],
    home: Path,
    setup: Setup,
    args: BANTrainingArguments,
    *,
    teacher_cache: Path | None = None,
    title: str,
) -> str:
    """Time some steps, and say what the missing jobs of a graph would take.

    The teacher of a sequence that continues from another generation is not loaded: it is taken to
    be as large as its students. `teacher_cache` is the folder of the first teacher's outputs, if
    they are kept.
    """
    counts = Counts.of(jobs, home, cached=teacher_cache is not None)
    heading = f"Plan of {title}; nothing is trained."
    if not counts.missing:
        return f"{heading}\nAll {counts.finished} networks are finished in {home}."
    with tempfile.TemporaryDirectory(prefix="ban_hf_plan_") as folder:
        brief = _thrown_away(args, folder)
        trainer, labels = _time_training(setup, brief, "with labels", None)
        loader = trainer.get_train_dataloader()
        epochs, *_, steps = trainer.set_initial_training_values(args, loader)
        paces = [labels]
        if counts.students:
            paces.append(_time_training(setup, brief, "with a teacher", setup.model_init(1))[1])
    evaluations = count_events(args.eval_strategy, args.eval_steps, steps, epochs)
    seconds = [pace.network(steps, evaluations) for pace in paces]
    total = counts.seconds(seconds[0], seconds[-1], labels.test)
    data, model = setup.train_dataset, trainer.model
    batch = trainer.get_total_train_batch_size(args)
    items = f"x {data.window} words" if isinstance(data, TokenWindows) else "images"
    timed = " and ".join(f"{pace.steps} steps {pace.kind}" for pace in paces)
    each = [f"{format_step(pace.step)} {pace.kind}" for pace in paces]
    whole = [f"{format_duration(s)} {p.kind}" for s, p in zip(seconds, paces, strict=True)]
    how = describe(model, trainer.args)
    footprint = Footprint.of(model, trainer.optimizer, args)
    parts = {
        "networks": (counts.missing + counts.copies) * footprint.weights,
        "ensemble": counts.ensembles * footprint.weights,
        "checkpoints": footprint.checkpoints(args, steps, epochs),
    }
    needs = {home: sum(parts.values())}
    if teacher_cache is not None and counts.students:
        parts["teacher_cache"] = _cache_bytes(args, data, model, epochs)
        needs[teacher_cache] = parts["teacher_cache"]
    lines = [
        heading,
        f"An estimate from {timed}, on this machine as busy as it is now:",
        f"  networks    {counts}",
        f"  of each     {epochs} epochs, {steps} steps of {batch} {items}",
        f"  on          {how}; processes: {args.world_size}",
        f"  a step      {', '.join(each)}",
        f"  a network   {', '.join(whole)}; its evaluations are included",
        f"  altogether  {format_duration(total)}",
        *_disk(parts, needs),
    ]
    return "\n".join(lines)


def _disk(parts: Mapping[str, int], needs: Mapping[Path, int]) -> list[str]:
    """What is needed of each disk, and a warning where it has less."""
    named = ", ".join(f"{name} {format_bytes(number)}" for name, number in parts.items() if number)
    free = {folder: free_bytes(folder) for folder in needs}
    first = format_bytes(next(iter(free.values())))
    lines = [
        f"  disk        {format_bytes(sum(parts.values()))} at most: {named}; {first} are free"
    ]
    on_disk: dict[int, int] = {}
    for folder, number in needs.items():
        disk = existing_parent(folder).stat().st_dev
        on_disk[disk] = on_disk.get(disk, 0) + number
        if on_disk[disk] > free[folder]:
            lines.append(
                f"Warning: the disk does not suffice: {format_bytes(on_disk[disk])} are needed and "
                f"{format_bytes(free[folder])} free at {folder}."
            )
    return lines


def _cache_bytes(args: BANTrainingArguments, data: Any, model: PreTrainedModel, epochs: int) -> int:
    """Of one teacher's outputs: logits of each view of an image, the hidden state of a word."""
    if isinstance(data, TokenWindows):
        numbers = len(data) * data.window * model.get_output_embeddings().in_features
    else:
        numbers = len(data) * model.config.num_labels * (epochs if data.augment else 1)
    return int(numbers * np.dtype(args.teacher_cache_dtype).itemsize)


# Timing


def _thrown_away(args: BANTrainingArguments, folder: str) -> BANTrainingArguments:
    """The arguments of a training that is short, silent, and leaves nothing."""
    args = copy.copy(args)
    args.output_dir, args.max_steps = folder, WARM_UP + TIMED
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.eval_on_start = args.load_best_model_at_end = args.push_to_hub = False
    args.report_to, args.disable_tqdm = [], True
    args.teacher_cache = None  # what is timed is a teacher that runs
    return args


def _time_training(
    setup: Setup, args: BANTrainingArguments, kind: str, teacher: PreTrainedModel | None
) -> tuple[BANTrainer, Pace]:
    """Train a fresh network for some steps, and evaluate it on some of the test set."""
    set_seed(args.seed)
    clock, model = StepClock(), setup.model_init(0)
    trainer = make_trainer(model, setup, args, teacher=teacher, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    check_trained(trainer.state.global_step)
    evaluation = _time_pass(trainer, setup.eval_dataset)
    test = _time_pass(trainer, setup.test_dataset)
    return trainer, Pace(kind, clock.steps, clock.step, evaluation, test)


class StepClock(TrainerCallback):
    """Times some steps of a training after the first few, and ends it."""

    def __init__(self) -> None:
        self.steps = TIMED  # as long as these do not take too long

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP - 1:
            self.began = seconds_now(args.device)
        elif state.global_step == WARM_UP:
            affordable = int(SECONDS / max(1e-6, seconds_now(args.device) - self.began))
            # All processes must end at the same step.
            self.steps = broadcast_object_list([min(TIMED, max(2, affordable))])[0]
            self.began = seconds_now(args.device)
        elif state.global_step == WARM_UP + self.steps:
            self.step = (seconds_now(args.device) - self.began) / self.steps
            control.should_training_stop = True


def _time_pass(trainer: BANTrainer, dataset: Any) -> float:
    """Seconds of an evaluation: from a few batches, after one that warms up."""
    if dataset is None:
        return 0.0
    args = trainer.args
    batch = args.eval_batch_size * args.world_size
    parts = [Subset(dataset, range(min(len(dataset), n * batch))) for n in (1, BATCHES)]
    trainer.evaluate(parts[0])
    began = seconds_now(args.device)
    trainer.evaluate(parts[1])
    return (seconds_now(args.device) - began) * len(dataset) / len(parts[1])
