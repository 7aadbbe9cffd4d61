"""Why a student learns: the parts of the loss and of its gradient, as the paper takes them apart.

Everything is summed on the device and read only where a line is logged.
"""

from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from ban_hf.training.comparison import (
    AGREEMENT,
    CONFIDENCE,
    DARK_KNOWLEDGE,
    GROUND_TRUTH,
    LABEL_LOSS,
    SQUARED_CONFIDENCE,
    TEACHER_KL,
)


class StepStatistics(NamedTuple):
    """Sums over all items of an optimizer step, of all micro-batches and processes."""

    items: Tensor
    mass: Tensor  # of the objective's item weights


class LossParts:
    """Means over optimizer steps of what `BANTrainer` logs beside the loss.

    With q and p the softmax of student and teacher and `*` the label, a step's mean over items of

    - `ground_truth_term`: q_* - p_*, the gradient at the label (eq. 7, first sum);
    - `dark_knowledge_term`: sum_{i != *} |q_i - p_i|, the gradient off the label. Its signed sum,
      the second sum of eq. 7, is always minus the first, since p and q both sum to one; so the
      magnitude is what tells something;
    - `teacher_agreement`: % of items with the same argmax;
    - `teacher_confidence`: max_j p_j;

    and `effective_sample_size`, n (mean w)^2 / mean w^2 with w = max_j p_j and n the items of a
    step: what is left of the batch when items count by their teacher's confidence (eq. 9, 10).
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self.items: Tensor | None = None  # (), of all steps, the same on every process
        self.sums: Tensor | None = None  # (COLUMNS,), shares of each process
        self.has_labels = False

    def add_step(self, step: StepStatistics) -> None:
        """Add an optimizer step."""
        self.items = step.items if self.items is None else self.items + step.items
        self.steps += 1

    @torch.no_grad()
    def add(self, shares: Tensor, *, has_labels: bool) -> None:
        """Add a micro-batch: what it adds to the step's means.

        Shapes: `(COLUMNS,)` of `comparison`, with the objective, whichever it is, for `TEACHER_KL`.
        """
        self.sums = shares if self.sums is None else self.sums + shares
        self.has_labels = has_labels

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, over all processes."""
        if self.sums is None or self.items is None:
            return {}
        sums = torch.cat([accelerator.reduce(self.sums, reduction="sum"), self.items.reshape(1)])
        *columns, items = (sums / self.steps).tolist()
        confidence, squared = columns[CONFIDENCE], max(1e-30, columns[SQUARED_CONFIDENCE])
        means = {
            "teacher_loss": columns[TEACHER_KL],
            "teacher_agreement": 100 * columns[AGREEMENT],
            "teacher_confidence": confidence,
            "effective_sample_size": items * confidence**2 / squared,
        }
        if self.has_labels:
            means |= {
                "label_loss": columns[LABEL_LOSS],
                "ground_truth_term": columns[GROUND_TRUTH],
                "dark_knowledge_term": columns[DARK_KNOWLEDGE],
            }
        self._reset()
        return means
