"""What a training takes of time and disk: arithmetic, and how it is said in words."""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from ban_hf.lineage.disk import existing_parent, format_bytes, free_bytes

#: What a step with a teacher costs, in steps with labels, where it was not measured: the teacher's
#: forward pass is a third of a step. On two cores it was 1.27 (Wide-ResNet) to 1.37 (LSTM).
STUDENT_STEP = 1.3
SMALL_FILES = 30_000  # bytes of a checkpoint's random state, schedule, arguments and log


def seconds_now(device: torch.device) -> float:
    """A clock that is read when the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Footprint:
    """Bytes on disk of a network, and of a checkpoint of its training."""

    weights: int
    checkpoint: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, args: TrainingArguments) -> "Footprint":
        """Of a training whose optimizer has made a step, and so has its state."""
        # Tied weights are saved once.
        tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
        weights = sum(tensor.nbytes for tensor in tensors.values())
        states = [value for state in optimizer.state.values() for value in state.values()]
        state = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
        return cls(weights, weights + SMALL_FILES + (0 if args.save_only_model else state))

    def checkpoints(self, args: TrainingArguments, steps: int, epochs: float) -> int:
        """Of the checkpoints of a training where they are most.

        The new one is written before an old one is removed, and `load_best_model_at_end` keeps the
        best one beside the last.
        """
        saves = occasions(args.save_strategy, args.save_steps, steps, epochs)
        limit = args.save_total_limit
        if limit is None or limit < 1:
            return saves * self.checkpoint
        kept = max(limit, 2) if args.load_best_model_at_end else limit
        return min(saves, kept + 1) * self.checkpoint

    def ensembles(self, students: Sequence[int]) -> int:
        """Of the ensembles of families with so many students each."""
        return ensemble_members(students) * self.weights


@dataclass(frozen=True)
class Pace:
    """Seconds that one kind of training takes: with labels, or with a teacher."""

    step: float
    evaluation: float  # a pass over the validation set
    test: float  # a pass over the test set
    steps: int  # that were timed


@dataclass(frozen=True)
class Length:
    """Of the training of one network."""

    steps: int
    epochs: int
    evaluations: int

    def seconds(self, pace: Pace) -> float:
        """With its evaluations, and the test at its end."""
        return self.steps * pace.step + self.evaluations * pace.evaluation + pace.test


@dataclass(frozen=True)
class Networks:
    """Those of a run, by what they cost: how many are to be trained, and how many stand finished.

    Attributes:
        labels: trained on labels.
        students: whose teacher is asked.
        replaying: students who read what another student of their teacher has asked; they cost what
            labels cost.
        copies: teachers from elsewhere, which are copied beside their students.
        caches: 1 where the outputs of the first teacher, which others share, are still to be kept.
        finished: networks that are there.
        taught: students of each family, finished or not.
    """

    labels: int
    students: int
    replaying: int
    copies: int
    caches: int
    finished: int
    taught: tuple[int, ...]

    @classmethod
    def count(
        cls,
        labels: Sequence[Path],
        students: Mapping[Path, Path],
        finished: Collection[Path],
        *,
        cached: bool,
    ) -> "Networks":
        """Count them.

        Args:
            labels: folders of the networks that are trained on labels.
            students: folders of the others, in the order of their training, and of their teachers.
            finished: those of all these folders that stand there.
            cached: whether what a teacher says is kept for its other students.
        """
        asked = {teacher for folder, teacher in students.items() if folder in finished}
        missing = {f: teacher for f, teacher in students.items() if f not in finished}
        new = set(missing.values()) - asked
        replaying = len(missing) - len(new) if cached else 0
        homes = [folder.parent for folder in students]
        return cls(
            labels=sum(folder not in finished for folder in labels),
            students=len(missing) - replaying,
            replaying=replaying,
            copies=sum(teacher.parent != f.parent for f, teacher in missing.items()),
            caches=int(cached and next(iter(students.values()), None) in new),
            finished=len(finished),
            taught=tuple(homes.count(home) for home in dict.fromkeys(homes)),
        )

    @property
    def missing(self) -> int:
        return self.labels + self.students + self.replaying

    def seconds(self, length: Length, labels: Pace, student: Pace) -> float:
        """Until all is trained, and measured once more for the report."""
        measured = self.missing + self.finished + ensemble_members(self.taught)
        return (
            (self.labels + self.replaying) * length.seconds(labels)
            + self.students * length.seconds(student)
            + measured * labels.test
        )


def ensemble_members(students: Sequence[int]) -> int:
    """Networks in the ensembles of families with so many students: one is with its teacher."""
    return sum(max(2, number) for number in students if number)


def occasions(strategy: str, every: float | None, steps: int, epochs: float) -> int:
    """How often a training evaluates, or saves: at most, where only the best are saved.

    Args:
        strategy: `no`, `epoch`, `steps` or `best`.
        every: steps in between, or a fraction of them all.
        steps: of the training.
        epochs: of the training.
    """
    if strategy == "no":
        return 0
    if strategy != "steps":
        return math.ceil(epochs)
    every = every or 1
    return math.ceil(steps / (every if every >= 1 else math.ceil(steps * every)))


def shortages(needs: Mapping[Path, int]) -> list[str]:
    """A sentence for each disk that has less room than the folders on it need.

    Args:
        needs: bytes by folder, which need not be there yet.
    """
    on_disk: dict[int, int] = {}
    lines = []
    for folder, number in needs.items():
        disk = existing_parent(folder).stat().st_dev
        on_disk[disk] = on_disk.get(disk, 0) + number
        if on_disk[disk] > free_bytes(folder):
            lines.append(
                f"Warning: the disk does not suffice: {format_bytes(on_disk[disk])} are needed and "
                f"{format_bytes(free_bytes(folder))} free at {folder}."
            )
    return lines


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def step_time(seconds: float) -> str:
    """Seconds of a step in words, which may be few."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
