"""Why a student learns: the parts of the loss and of its gradient, as the paper takes them apart.

Everything is summed on the device and read only where a line is logged.
"""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ban_hf.objectives import confidence


class StepStatistics(NamedTuple):
    """Sums over all items of an optimizer step, of all micro-batches and processes."""

    items: Tensor
    mass: Tensor  # of the objective's item weights
    confidence: Tensor
    squared_confidence: Tensor

    @staticmethod
    def sums(teacher_logits: Tensor, weights: Tensor) -> Tensor:
        """The statistics of some of the step's items, for adding up: `(N, C)`, `(N,)` to `(4,)`."""
        c = confidence(teacher_logits).float()  # (N,)
        items = torch.full_like(c[0], len(c))
        return torch.stack([items, weights.float().sum(), c.sum(), c.square().sum()])


class LossParts:
    """Means over optimizer steps of what `BANTrainer` logs beside the loss.

    With q and p the softmax of student and teacher and `*` the label, a step's mean over items of

    - `ground_truth_term`: q_* - p_*, the gradient at the label (eq. 7, first sum);
    - `dark_knowledge_term`: sum_{i != *} |q_i - p_i|, the gradient off the label. Its signed sum,
      the second sum of eq. 7, is always minus the first, since p and q both sum to one; so the
      magnitude is what tells something;
    - `teacher_agreement`: % of items with the same argmax;
    - `teacher_confidence`: max_j p_j;

    and `effective_sample_size`, (sum w)^2 / sum w^2 with w = max_j p_j, in items per step: what is
    left of the batch when items count by their teacher's confidence (eq. 9, 10).
    """

    NAMES = ("teacher_loss", "teacher_agreement")
    LABEL_NAMES = ("label_loss", "ground_truth_term", "dark_knowledge_term")
    STEP_NAMES = ("teacher_confidence", "effective_sample_size")

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self.step_sums: Tensor | None = None  # (2,), the same on every process
        self.item_sums: Tensor | None = None  # (2,) or with labels (5,), shares of each process

    def add_step(self, step: StepStatistics) -> None:
        """Add an optimizer step's teacher statistics."""
        mean_confidence = step.confidence / step.items
        sample_size = step.confidence**2 / step.squared_confidence
        sums = torch.stack([mean_confidence, sample_size])  # (2,)
        self.step_sums = sums if self.step_sums is None else self.step_sums + sums
        self.steps += 1

    @torch.no_grad()
    def add(
        self,
        teacher_loss: Tensor,
        label_loss: Tensor | None,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None,
        items: Tensor,
    ) -> None:
        """Add a micro-batch's share of a step of `items` items."""
        agree = (student_logits.argmax(1) == teacher_logits.argmax(1)).sum() * 100 / items
        parts = [teacher_loss.detach(), agree]
        if labels is not None and label_loss is not None:
            gap = student_logits.float().softmax(1) - teacher_logits.float().softmax(1)  # (N, C)
            at_label = gap.gather(1, labels[:, None])  # (N, 1)
            off_label = gap.abs().sum() - at_label.abs().sum()
            parts += [label_loss.detach(), at_label.sum() / items, off_label / items]
        sums = torch.stack([part.float() for part in parts])
        self.item_sums = sums if self.item_sums is None else self.item_sums + sums

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, over all processes."""
        if self.step_sums is None or self.item_sums is None:
            return {}
        item_sums = accelerator.reduce(self.item_sums, reduction="sum")
        values = torch.cat([item_sums, self.step_sums]) / self.steps
        names = self.NAMES + (self.LABEL_NAMES if len(item_sums) > 2 else ()) + self.STEP_NAMES
        self._reset()
        return dict(zip(names, values.tolist(), strict=True))
