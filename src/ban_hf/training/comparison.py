"""Student and teacher side by side, in chunks that stay in the cache: losses and their diagnosis.

For a vocabulary of 10,000 words the logits of a step are as large as the network. What is computed
from them is computed a few rows at a time, in one pass: the losses of label and teacher as one
cross-entropy against the mixed target, its gradient, and what `BANTrainer` logs.

Notation as in `objectives`: z, t logits, q = softmax(z), p = softmax(t), `*` the label's index.
Labels are `IGNORED` (-100) where an item does not count.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ban_hf.data.windows import IGNORED
from ban_hf.objectives import check_logits

CHUNK = 2**19  # logits at a time: 2 MB in float32

#: The columns of what is compared: without a teacher the first only, without labels the last four.
LABEL_LOSS = 0  # -log q_*
GROUND_TRUTH = 1  # q_* - p_*
DARK_KNOWLEDGE = 2  # sum_{i != *} |q_i - p_i|
TEACHER_KL = 3  # KL(p || q)
AGREEMENT = 4  # whether the teacher's argmax is one of the student's
CONFIDENCE = 5  # max_j p_j
SQUARED_CONFIDENCE = 6
COLUMNS = 7


def mixed_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    *,
    teacher_weight: float,
    label_weight: float,
) -> tuple[Tensor, Tensor]:
    """The loss of BAN and BAN+L, summed over the items that count, in one pass.

    Formula: sum_s teacher_weight KL(p_s || q_s) - label_weight log q_{*,s}, which is, up to the
    teacher's entropy, a cross-entropy against the target teacher_weight p + label_weight onehot(y).
    Gradient: of an item with respect to z, teacher_weight (q - p) + label_weight (q - onehot(y)).
    Shapes: logits `(N, C)`, labels `(N,)`; result `()`, and `(COLUMNS,)`, the sum of what `compare`
    gives of each item.
    Requires: labels, unless label_weight is 0.
    Relations: equals `kd` and the label cross-entropy, weighted, summed and masked; the gradient is
    computed with the loss and takes the memory that autograd would need for it.
    Reference: Furlanello et al. 2018, eq. 2-4.
    """
    loss, sums = _MixedCrossEntropy.apply(
        student_logits, teacher_logits.detach(), labels, teacher_weight, label_weight
    )
    return loss, sums


@torch.no_grad()
def compare(student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor | None) -> Tensor:
    """What is logged of each item, the columns above: `(N, C)`, `(N, C)`, `(N,)` to `(N, COLUMNS)`.

    Rows of items that do not count are zero; so are columns that need a teacher or labels where
    there are none.
    """
    parts = []
    for z, t, y in _chunks(student_logits, teacher_logits, labels):
        logq = _log_softmax(z)  # (n, C)
        targets = Targets.of(y)
        if t is None:
            columns = _label_columns(logq, targets)  # (n, COLUMNS)
        else:
            logp = _log_softmax(t)  # (n, C)
            p = logp.exp()  # (n, C)
            columns = _compare_rows(logq, logp, p, logq.exp().sub_(p), targets)  # (n, COLUMNS)
        parts.append(columns)
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class Targets(NamedTuple):
    """The labels of some rows: where they are, and which of them count."""

    at: Tensor  # (n, 1) int64, 0 where it does not count
    counts: Tensor  # (n, 1) bool

    @classmethod
    def of(cls, labels: Tensor | None) -> "Targets | None":
        """Of labels `(n,)`, if there are any."""
        if labels is None:
            return None
        labels = labels[:, None]  # (n, 1)
        return cls(labels.clamp(min=0), labels != IGNORED)


class _MixedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None,
        teacher_weight: float,
        label_weight: float,
    ) -> tuple[Tensor, Tensor]:
        check_logits(student_logits, teacher_logits)
        gradients, sums = torch.empty_like(student_logits), []  # (N, C), each (COLUMNS,)
        for z, t, y, gradient in _chunks(student_logits, teacher_logits, labels, gradients):
            logq, logp = _log_softmax(z), _log_softmax(t)  # (n, C), (n, C)
            q, p, targets = logq.exp(), logp.exp(), Targets.of(y)  # (n, C), (n, C)
            gap = q - p  # (n, C)
            sums.append(_compare_rows(logq, logp, p, gap, targets).sum(0))  # (COLUMNS,)
            if teacher_weight != 1:
                gap.mul_(teacher_weight)
            if label_weight and targets is not None:
                gap.add_(q, alpha=label_weight)
                gap.scatter_add_(1, targets.at, gap.new_full(targets.at.shape, -label_weight))
            if targets is not None:
                gap.mul_(targets.counts)
            gradient.copy_(gap)
        total = sum(sums[1:], sums[0])  # (COLUMNS,)
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(total)
        loss = teacher_weight * total[TEACHER_KL]  # ()
        return (loss + label_weight * total[LABEL_LOSS] if label_weight else loss), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return gradients * grad_loss.to(gradients.dtype), None, None, None, None


def _chunks(student_logits: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Matching rows of all tensors, `CHUNK` logits at a time; None stays None."""
    n, c = student_logits.shape
    rows = max(1, CHUNK // c)
    for start in range(0, max(n, 1), rows):  # one chunk of nothing, where there is nothing
        part = slice(start, start + rows)
        yield student_logits[part], *(x if x is None else x[part] for x in others)


def _log_softmax(logits: Tensor) -> Tensor:
    """As in `objectives`: in float32 at least, finite for every finite logit; without a graph."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limit = torch.finfo(logits.dtype).max * 2**-20
    return logits.clamp(-limit, limit).log_softmax(1)


def _compare_rows(
    logq: Tensor, logp: Tensor, p: Tensor, gap: Tensor, targets: Targets | None
) -> Tensor:
    """The columns of some rows, of log q, log p, p and q - p: `(n, C)` each, to `(n, COLUMNS)`."""
    best, argmax = logp.max(1, keepdim=True)  # (n, 1), (n, 1)
    # The student's argmax, without looking for its place, which costs as much as a softmax.
    agrees = logq.gather(1, argmax) == logq.amax(1, keepdim=True)  # (n, 1)
    confidence = best.exp()  # (n, 1)
    divergence = torch.linalg.vecdot(p, logp - logq)[:, None]  # (n, 1)
    ours = [divergence, agrees, confidence, confidence * confidence]
    if targets is None:
        return torch.cat([p.new_zeros(len(p), 3), *ours], 1)
    at_label = gap.gather(1, targets.at)  # (n, 1)
    off_label = gap.abs().sum(1, keepdim=True) - at_label.abs()  # (n, 1)
    columns = torch.cat([-logq.gather(1, targets.at), at_label, off_label, *ours], 1)
    return columns.mul_(targets.counts)  # (n, COLUMNS)


def _label_columns(logq: Tensor, targets: Targets | None) -> Tensor:
    """The columns of some rows with the label loss alone: `(n, C)` to `(n, COLUMNS)`."""
    columns = logq.new_zeros(len(logq), COLUMNS)  # (n, COLUMNS)
    if targets is not None:
        columns[:, LABEL_LOSS] = -(logq.gather(1, targets.at) * targets.counts)[:, 0]
    return columns
