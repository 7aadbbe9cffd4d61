"""The loss of an optimizer step, and the statistics that are logged beside it.

The micro-batches and processes of a step each give a share of its loss; the shares add up to the
loss of one large batch.

For a vocabulary of 10,000 words the logits of a step are as large as the network. What is computed
from them is computed a few rows at a time, in one pass that stays in the processor's cache: the
losses of label and teacher as one cross-entropy against the mixed target, its gradient, and what
`BANTrainer` logs.

Notation as in `objectives`: z, t logits of student and teacher, q = softmax(z), p = softmax(t), `*`
the label's index. An item with weight 0 does not count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.autograd.function import once_differentiable

from ban_hf.errors import BANError
from ban_hf.objectives import OBJECTIVES, check_logits, item_weights
from ban_hf.tasks.base import Items, label_cross_entropy
from ban_hf.training.arguments import BANTrainingArguments

CHUNK = 2**19  # logits at a time: 2 MB in float32


class ItemStatistics(NamedTuple):
    """What is measured of each item, or the sums over some items; each `(N,)` or `()`.

    Without a teacher there is the label loss alone, without labels the last four; the others are 0.
    """

    label_loss: Tensor  # -log q_*
    ground_truth: Tensor  # q_* - p_*
    dark_knowledge: Tensor  # sum_{i != *} |q_i - p_i|
    teacher_kl: Tensor  # KL(p || q)
    agreement: Tensor  # 1 where the teacher's argmax is one of the student's
    confidence: Tensor  # max_j p_j
    squared_confidence: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> "ItemStatistics":
        """Views of a tensor `(..., COLUMNS)`, by name."""
        return cls(*columns.unbind(-1))


COLUMNS = len(ItemStatistics._fields)


class StepTotals(NamedTuple):
    """Sums over all items of an optimizer step, of all micro-batches and processes; each `()`."""

    items: Tensor  # of their weights
    mass: Tensor  # of the objective's item weights


@dataclass(frozen=True)
class TeacherBatch:
    """The teacher's items of a micro-batch.

    Attributes:
        items: with the teacher's logits, and the labels of the batch.
        first_item: place of the first one in the optimizer step.
    """

    items: Items
    first_item: int


@dataclass(frozen=True)
class StepLoss:
    """The loss of an optimizer step, of which each micro-batch gives a share.

    Args:
        args: of the training.
        totals: of all items of the step, of all micro-batches and processes.
        step: the number of the step; `dkpp` draws its permutations from it.
    """

    args: BANTrainingArguments
    totals: StepTotals
    step: int

    def share(self, student: Tensor, teacher: TeacherBatch, statistics: "LossStatistics") -> Tensor:
        """What the items of a micro-batch add to the loss of the step: `()`.

        Args:
            student: its logits `(N, C)`.
            teacher: of the same micro-batch.
            statistics: what the items add to the log is added to them.

        Raises:
            BANError: if `label_weight` needs labels, and there are none.
        """
        args, items = self.args, teacher.items
        label_weight = args.known_label_weight
        if label_weight and items.labels is None:
            raise BANError(
                f"label_weight={label_weight} needs labels, but train_dataset has none: "
                "add a 'labels' column, or set label_weight=0 (BAN)."
            )
        if args.objective == "kd" and args.temperature == 1 and not args.label_smoothing_factor:
            total, sums = mixed_cross_entropy(
                student, items, teacher_weight=args.teacher_weight, label_weight=label_weight
            )  # (), (COLUMNS,)
            loss, shares = total / self.totals.items, sums / self.totals.items
        else:
            teacher_loss, label_loss = self._terms(student, teacher)
            loss = args.teacher_weight * teacher_loss + label_weight * label_loss
            columns = item_statistics(student, items.logits, items.labels, items.weights)
            shares = columns.sum(0) / self.totals.items  # (COLUMNS,)
            named = ItemStatistics.of(shares)
            named.teacher_kl.copy_(teacher_loss.detach())
            named.label_loss.copy_(label_loss.detach())
        statistics.add(shares, has_labels=items.labels is not None)
        return loss

    def _terms(self, student: Tensor, teacher: TeacherBatch) -> tuple[Tensor, Tensor]:
        """The shares of the objective and of the label cross-entropy in the step's means."""
        args, items = self.args, teacher.items
        losses = OBJECTIVES[args.objective](
            student,
            items.logits,
            items.labels,
            temperature=args.temperature,
            generator=self._generator(teacher.first_item, student.shape[1]),
        )  # (N,)
        # The objective is a mean over these items, the ignored ones too, by their weights.
        mass = item_weights(args.objective, items.logits, args.temperature).mean()
        teacher_loss = (losses * items.weights).sum() * mass / self.totals.mass
        if items.labels is None:
            return teacher_loss, torch.zeros_like(teacher_loss)
        smoothing = args.label_smoothing_factor
        losses = label_cross_entropy(student, items.labels, items.weights, smoothing)  # (N,)
        return teacher_loss, losses.sum() / self.totals.items

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


def step_totals(objective: str, batches: Sequence[TeacherBatch], temperature: float) -> StepTotals:
    """The totals of the micro-batches of a process."""
    counts = [batch.items.weights.sum() for batch in batches]  # each ()
    total = sum(counts[1:], counts[0])  # ()
    if objective != "cwtm":  # the only one whose items do not all count for one
        return StepTotals(total, total)
    masses = [
        (b.items.weights * item_weights(objective, b.items.logits, temperature)).sum()
        for b in batches
    ]  # each ()
    return StepTotals(total, sum(masses[1:], masses[0]))


class LossStatistics:
    """Means over optimizer steps of what `BANTrainer` logs beside the loss.

    With q and p the softmax of student and teacher and `*` the label, the mean of a step over its
    items of

    - `ground_truth_term`: q_* - p_*, the gradient at the label (eq. 7, first sum);
    - `dark_knowledge_term`: sum_{i != *} |q_i - p_i|, the gradient off the label. Its signed sum,
      the second sum of eq. 7, is always minus the first, since p and q both sum to one; so the
      magnitude is what tells something;
    - `teacher_agreement`: % of items with the same argmax;
    - `teacher_confidence`: max_j p_j;

    and `effective_sample_size`, n (mean w)^2 / mean w^2 with w = max_j p_j and n the items of a
    step: what is left of the batch when items count by their teacher's confidence (eq. 9, 10).

    Everything is summed on the device and read only where a line is logged.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self.items: Tensor | None = None  # (), of all steps, the same on every process
        self.sums: Tensor | None = None  # (COLUMNS,), shares of each process
        self.has_labels = False

    def add_step(self, step: StepTotals) -> None:
        """Add an optimizer step."""
        self.items = step.items if self.items is None else self.items + step.items
        self.steps += 1

    @torch.no_grad()
    def add(self, shares: Tensor, *, has_labels: bool) -> None:
        """Add what a micro-batch adds to the means of its step.

        Shapes: `(COLUMNS,)` of `ItemStatistics`; `teacher_kl` is the loss of the objective.
        """
        self.sums = shares if self.sums is None else self.sums + shares
        self.has_labels = has_labels

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means since the last call, over all processes."""
        if self.sums is None or self.items is None:
            return {}
        sums = torch.cat([accelerator.reduce(self.sums, reduction="sum"), self.items.reshape(1)])
        *columns, items = (sums / self.steps).tolist()
        mean = dict(zip(ItemStatistics._fields, columns, strict=True))
        squared = max(1e-30, mean["squared_confidence"])
        means = {
            "teacher_loss": mean["teacher_kl"],
            "teacher_agreement": 100 * mean["agreement"],
            "teacher_confidence": mean["confidence"],
            "effective_sample_size": items * mean["confidence"] ** 2 / squared,
        }
        if self.has_labels:
            means |= {
                "label_loss": mean["label_loss"],
                "ground_truth_term": mean["ground_truth"],
                "dark_knowledge_term": mean["dark_knowledge"],
            }
        self._reset()
        return means


def mixed_cross_entropy(
    student_logits: Tensor, teacher: Items, *, teacher_weight: float, label_weight: float
) -> tuple[Tensor, Tensor]:
    """The loss of BAN and BAN+L, summed over the items that count, in one pass.

    Formula: sum_s w_s (teacher_weight KL(p_s || q_s) - label_weight log q_{*,s}) with w_s the
    item's weight: up to the teacher's entropy a cross-entropy against the target
    teacher_weight p + label_weight onehot(y).
    Gradient: of an item with respect to z,
    w_s (teacher_weight (q - p) + label_weight (q - onehot(y))).
    Shapes: logits `(N, C)`; result `()`, and `(COLUMNS,)`, the sum of `item_statistics`.
    Requires: labels, unless label_weight is 0.
    Relations: equals `kd` and the label cross-entropy, weighted, summed and masked; the gradient is
    computed with the loss and takes the memory that autograd would need for it.
    Reference: Furlanello et al. 2018, eq. 2-4.
    """
    loss, sums = _MixedCrossEntropy.apply(
        student_logits,
        teacher.logits.detach(),
        teacher.labels,
        teacher.weights,
        teacher_weight,
        label_weight,
    )
    return loss, sums


@torch.no_grad()
def item_statistics(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor | None,
    weights: Tensor,
) -> Tensor:
    """The `ItemStatistics` of each item times its weight, as columns.

    Shapes: `(N, C)`, `(N, C)`, `(N,)`, `(N,)` to `(N, COLUMNS)`.
    """
    parts = []
    for z, t, y, w in _chunks(student_logits, teacher_logits, labels, weights):
        logq = _log_softmax(z)  # (n, C)
        if t is None:
            columns = _label_column(logq, y, w)  # (n, COLUMNS)
        else:
            logp = _log_softmax(t)  # (n, C)
            p = logp.exp()  # (n, C)
            columns = _columns(logq, logp, p, logq.exp().sub_(p), y, w)  # (n, COLUMNS)
        parts.append(columns)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class _MixedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None,
        weights: Tensor,
        teacher_weight: float,
        label_weight: float,
    ) -> tuple[Tensor, Tensor]:
        check_logits(student_logits, teacher_logits)
        gradients, sums = torch.empty_like(student_logits), []  # (N, C), each (COLUMNS,)
        for z, t, y, w, gradient in _chunks(
            student_logits, teacher_logits, labels, weights, gradients
        ):
            logq, logp = _log_softmax(z), _log_softmax(t)  # (n, C), (n, C)
            q, p = logq.exp(), logp.exp()  # (n, C), (n, C)
            gap = q - p  # (n, C)
            sums.append(_columns(logq, logp, p, gap, y, w).sum(0))  # (COLUMNS,)
            if teacher_weight != 1:
                gap.mul_(teacher_weight)
            if label_weight and y is not None:
                gap.add_(q, alpha=label_weight)
                gap.scatter_add_(1, y[:, None], gap.new_full((len(y), 1), -label_weight))
            gap.mul_(w[:, None])
            gradient.copy_(gap)
        total = sum(sums[1:], sums[0])  # (COLUMNS,)
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(total)
        named = ItemStatistics.of(total)
        loss = teacher_weight * named.teacher_kl  # ()
        return (loss + label_weight * named.label_loss if label_weight else loss), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return gradients * grad_loss.to(gradients.dtype), None, None, None, None, None


def _chunks(student_logits: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Matching rows of all tensors, `CHUNK` logits at a time; None stays None."""
    n, c = student_logits.shape
    rows = max(1, CHUNK // c)
    for start in range(0, max(n, 1), rows):  # one empty chunk where there are no rows
        part = slice(start, start + rows)
        yield student_logits[part], *(x if x is None else x[part] for x in others)


def _log_softmax(logits: Tensor) -> Tensor:
    """As in `objectives`: in float32 at least, finite for every finite logit; without a graph."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limit = torch.finfo(logits.dtype).max * 2**-20
    return logits.clamp(-limit, limit).log_softmax(1)


def _columns(
    logq: Tensor, logp: Tensor, p: Tensor, gap: Tensor, labels: Tensor | None, weights: Tensor
) -> Tensor:
    """The columns of some rows, of log q, log p, p and q - p: `(n, C)` each, to `(n, COLUMNS)`."""
    best, argmax = logp.max(1, keepdim=True)  # (n, 1), (n, 1)
    # The student's argmax, without looking for its place, which costs as much as a softmax.
    agrees = logq.gather(1, argmax) == logq.amax(1, keepdim=True)  # (n, 1)
    confidence = best.exp()  # (n, 1)
    divergence = torch.linalg.vecdot(p, logp - logq)[:, None]  # (n, 1)
    of_teacher = [divergence, agrees, confidence, confidence * confidence]
    if labels is None:
        of_label = [p.new_zeros(len(p), 3)]
    else:
        at = labels[:, None]  # (n, 1)
        at_label = gap.gather(1, at)  # (n, 1)
        off_label = gap.abs().sum(1, keepdim=True) - at_label.abs()  # (n, 1)
        of_label = [-logq.gather(1, at), at_label, off_label]
    return torch.cat([*of_label, *of_teacher], 1).mul_(weights[:, None])  # (n, COLUMNS)


def _label_column(logq: Tensor, labels: Tensor | None, weights: Tensor) -> Tensor:
    """The columns of some rows with the label loss alone: `(n, C)` to `(n, COLUMNS)`."""
    columns = logq.new_zeros(len(logq), COLUMNS)  # (n, COLUMNS)
    if labels is not None:
        label_loss = -(logq.gather(1, labels[:, None])[:, 0] * weights)  # (n,)
        ItemStatistics.of(columns).label_loss.copy_(label_loss)
    return columns
