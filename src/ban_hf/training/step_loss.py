"""The loss of an optimizer step, in the shares that its micro-batches and processes add up to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ban_hf.data.windows import IGNORED
from ban_hf.errors import BANError
from ban_hf.objectives import OBJECTIVES, item_weights
from ban_hf.tasks.items import counted
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.comparison import LABEL_LOSS, TEACHER_KL, compare, mixed_cross_entropy
from ban_hf.training.diagnosis import LossParts, StepStatistics


@dataclass(frozen=True)
class Taught:
    """What the teacher says of a micro-batch."""

    logits: Tensor  # (N, C)
    labels: Tensor | None  # (N,)
    first_item: int  # the first one's place in the optimizer step


@dataclass(frozen=True)
class StepLoss:
    """An optimizer step's loss, of which each micro-batch gives a share.

    Args:
        args: of the training.
        statistics: of all items of the step, of all micro-batches and processes.
        step: the number of the step, from which `dkpp` draws.
    """

    args: BANTrainingArguments
    statistics: StepStatistics
    step: int

    def share(self, student: Tensor, taught: Taught, parts: LossParts) -> Tensor:
        """What some items `(N, C)` add to the loss; what they add to its `parts` is noted there."""
        args, label_weight = self.args, self.args.label_weight or 0.0
        if label_weight and taught.labels is None:
            raise BANError(
                f"label_weight={label_weight} needs labels, but train_dataset has none: "
                "add a 'labels' column, or set label_weight=0 (BAN)."
            )
        if args.objective == "kd" and args.temperature == 1 and not args.label_smoothing_factor:
            total, sums = mixed_cross_entropy(
                student,
                taught.logits,
                taught.labels,
                teacher_weight=args.teacher_weight,
                label_weight=label_weight,
            )  # (), (COLUMNS,)
            loss, shares = total / self.statistics.items, sums / self.statistics.items
        else:
            teacher_loss, label_loss = self._terms(student, taught)
            loss = args.teacher_weight * teacher_loss + label_weight * label_loss
            items = compare(student, taught.logits, taught.labels)  # (N, COLUMNS)
            shares = items.sum(0) / self.statistics.items  # (COLUMNS,)
            shares[TEACHER_KL], shares[LABEL_LOSS] = teacher_loss.detach(), label_loss.detach()
        parts.add(shares, has_labels=taught.labels is not None)
        return loss

    def _terms(self, student: Tensor, taught: Taught) -> tuple[Tensor, Tensor]:
        """The shares of the objective and of the label cross-entropy in the step's means."""
        args, counts = self.args, counted(taught.labels, student)  # (N,)
        losses = OBJECTIVES[args.objective](
            student,
            taught.logits,
            None if taught.labels is None else taught.labels.clamp(min=0),
            temperature=args.temperature,
            generator=self._generator(taught.first_item, student.shape[1]),
        )  # (N,)
        # The objective is a mean over these items, the ignored ones too, by their weights.
        mass = item_weights(args.objective, taught.logits, args.temperature).mean()
        teacher_loss = (losses * counts).sum() * mass / self.statistics.mass
        if taught.labels is None:
            return teacher_loss, torch.zeros_like(teacher_loss)
        losses = label_losses(student, taught.labels, args.label_smoothing_factor)  # (N,)
        return teacher_loss, losses.sum() / self.statistics.items

    def _generator(self, first_item: int, num_classes: int) -> torch.Generator | None:
        """Noise for `dkpp` that depends on the seed, the step, and an item's place in the step.

        An item's place does not depend on how a step is cut into micro-batches and processes. The
        rows of the items before this micro-batch are drawn and dropped.
        """
        if self.args.objective != "dkpp":
            return None
        # On the CPU, whose stream does not depend on how it is cut; it heeds 32 bits of a seed.
        generator = torch.Generator()
        seed = np.random.SeedSequence([self.args.seed, self.step])
        generator.manual_seed(int(seed.generate_state(1)[0]))
        torch.rand(first_item, num_classes - 1, generator=generator)
        return generator


def step_statistics(objective: str, taught: Sequence[Taught], temperature: float) -> StepStatistics:
    """Of the micro-batches of a process."""
    items = [_count(part) for part in taught]  # each ()
    total = sum(items[1:], items[0])  # ()
    if objective != "cwtm":  # whose items alone do not all count for one
        return StepStatistics(total, total)
    masses = [
        (counted(t.labels, t.logits) * item_weights(objective, t.logits, temperature)).sum()
        for t in taught
    ]  # each ()
    return StepStatistics(total, sum(masses[1:], masses[0]))


def _count(taught: Taught) -> Tensor:
    """Items that count: `()`."""
    if taught.labels is None:
        return torch.full((), float(len(taught.logits)), device=taught.logits.device)  # ()
    return (taught.labels != IGNORED).sum().float()  # ()


def label_losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The label cross-entropy of each item, zero where it does not count: `(N, C)` to `(N,)`."""
    return F.cross_entropy(
        logits.float(), labels, reduction="none", label_smoothing=label_smoothing
    )
