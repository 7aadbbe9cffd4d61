"""The loss of an optimizer step, the statistics that are logged beside it, and a guard of both.

For a vocabulary of 10,000 words the logits of a step are as large as the network. What is computed
from them is computed a few rows at a time, in one pass that stays in the processor's cache: the
losses of label and teacher as one cross-entropy against the mixed target, its gradient, and what
`BANTrainer` logs.

Notation as in `objectives`: z, t logits of student and teacher, q = softmax(z), p = softmax(t), `*`
the label's index. An item with weight 0 does not count.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ban_hf.errors import BANError
from ban_hf.objectives import (
    OBJECTIVES,
    check_logits,
    check_objective,
    confidence,
    item_weights,
    kd,
    label_losses,
    log_softmax,
)
from ban_hf.tasks.base import Items
from ban_hf.tasks.losses import label_terms
from ban_hf.training.arguments import BANTrainingArguments

CHUNK = 2**19  # logits at a time: 2 MB in float32
NEVER = torch.iinfo(torch.int64).max


class ItemStatistics(NamedTuple):
    """What is measured of each item, `(N,)`, or its sum over some; the first three need labels."""

    label_loss: Tensor  # -log q_*, of items that have labels
    ground_truth_term: Tensor  # q_* - p_*
    dark_knowledge_term: Tensor  # sum_{i != *} |q_i - p_i|
    teacher_loss: Tensor  # `kd`: KL(p || q), for numbers (z - t)^2; in the log the objective
    teacher_agreement: Tensor  # 1 where the teacher's argmax is one of the student's
    teacher_confidence: Tensor  # max_j p_j; see `objectives.confidence`
    squared_confidence: Tensor

    @classmethod
    def of(cls, columns: Tensor) -> "ItemStatistics":
        """Views of a tensor `(..., COLUMNS)`, by name."""
        return cls(*columns.unbind(-1))


COLUMNS = len(ItemStatistics._fields)


class StepLoss:
    """The loss of an optimizer step, of which each micro-batch gives a share, and its statistics.

    The shares of all micro-batches of all processes add up to the loss of one large batch. Of items
    in several groups it is the mean over the groups, each with a denominator of its own.

    With q and p the softmax of student and teacher and `*` the label, what is logged are the means
    over the items of a step, and over the steps since the last line, of

    - `ground_truth_term`: q_* - p_*, the gradient at the label (eq. 7, first sum);
    - `dark_knowledge_term`: sum_{i != *} |q_i - p_i|, the gradient off the label. Its signed sum,
      the second sum of eq. 7, is always minus the first, since p and q both sum to one; so the
      magnitude is what tells something;
    - `teacher_agreement`: % of items with the same argmax;
    - `teacher_confidence`: max_j p_j;

    and `effective_sample_size`, n (mean w)^2 / mean w^2 with w = max_j p_j and n the items of a
    step: what is left of the batch when items count by their teacher's confidence (eq. 9, 10).
    Items that are not one class have no terms of eq. 7, and their agreement is that of the labels
    which both find true or not; numbers have neither agreement nor confidence.
    Everything is summed on the device and read only where a line is logged.
    """

    def __init__(self, args: BANTrainingArguments, accelerator: Accelerator) -> None:
        self.args, self.accelerator = args, accelerator
        self.forget()

    def forget(self) -> None:
        """Begin to sum up for another line of the log, and let go of the last step's items."""
        self.batches: Sequence[Items] = ()
        self._steps = 0
        self._items: Tensor | None = None  # (), of all steps, the same on every process
        self._sums: Tensor | None = None  # (COLUMNS,), shares of each process

    def begin(self, batches: Sequence[Items], step: int, batch_size: int) -> None:
        """Begin an optimizer step.

        Args:
            batches: the teacher's items of this process's micro-batches.
            step: its number; `dkpp` draws its permutations from it.
            batch_size: rows of a whole micro-batch.
        """
        self._step, self._batch_size = step, batch_size
        first = batches[0]
        check_objective(self.args.objective, first.activation)
        counts = [items.by_group(items.weights) for items in batches]  # (G,) each
        masses = counts
        if self.args.objective == "cwtm":  # the only one whose items do not all count for one
            masses = [x.by_group(x.weights * self._item_weights(x)) for x in batches]  # (G,) each
        texts = [x.transcripts.weights.sum().view(1) for x in batches if x.transcripts is not None]
        sums = [reduce(torch.add, part) for part in (counts, masses, texts) if part]
        totals = torch.cat(sums)  # (2 G,), or one more
        if self.accelerator.num_processes > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        # A group without items in this step does not count. It cannot be a loss of its own.
        self._groups = (totals[: first.groups] > 0).sum().clamp(min=1)  # ()
        totals = totals.clamp(min=1e-9)
        items, mass = totals[: 2 * first.groups].view(2, -1)  # (G,), (G,): of the whole step
        self._ratio = items / mass  # (G,)
        self.batches = [self._in_shares(x, items, totals[-1]) for x in batches]
        number = items.sum()  # ()
        self._items = number if self._items is None else self._items + number
        self._steps += 1

    def _in_shares(self, batch: Items, items: Tensor, texts: Tensor) -> Items:
        """A batch whose weights are the items' shares in the means of the whole step."""
        shares = batch.weights.view(-1, batch.groups) / (self._groups * items)  # (N / G, G)
        transcripts = batch.transcripts
        if transcripts is not None:
            transcripts = transcripts._replace(weights=transcripts.weights / texts)
        return batch._replace(weights=shares.view(-1), transcripts=transcripts)

    def share(self, student: Tensor, micro_batch: int) -> Tensor:
        """What the items of a micro-batch add to the loss of the step: `(N, C)` logits to `()`.

        Raises:
            BANError: if `label_weight` needs labels, and there are none.
        """
        args, items = self.args, self.batches[micro_batch]
        label_weight = args.known_label_weight
        if label_weight and not items.has_labels:
            raise BANError(
                f"label_weight={label_weight} needs labels, but train_dataset has none: "
                "add a 'labels' column, or set label_weight=0 (BAN)."
            )
        is_plain = args.objective == "kd" and args.temperature == 1 and items.common is None
        in_one_pass = is_plain and not args.label_smoothing_factor and items.transcripts is None
        if in_one_pass and items.activation == "softmax":
            loss, shares = mixed_cross_entropy(
                student, items, teacher_weight=args.teacher_weight, label_weight=label_weight
            )  # (), (COLUMNS,)
        else:
            teacher_loss, label_loss = self._terms(student, items, micro_batch)
            loss = args.teacher_weight * teacher_loss + label_weight * label_loss
            shares = item_statistics(items.beside(student), items).sum(0)  # (COLUMNS,)
            named = ItemStatistics.of(shares)
            named.teacher_loss.copy_(teacher_loss.detach())
            named.label_loss.copy_(label_loss.detach())
        self._sums = shares if self._sums is None else self._sums + shares
        return loss

    def _terms(self, student: Tensor, items: Items, micro_batch: int) -> tuple[Tensor, Tensor]:
        """The shares of the objective and of the label loss in the step's means."""
        args = self.args
        losses = OBJECTIVES[args.objective](
            items.beside(student),
            items.logits,
            items.labels,
            temperature=args.temperature,
            generator=self._generator(items, micro_batch) if args.objective == "dkpp" else None,
            activation=items.activation,
        )  # (N,)
        # The objective is a mean over these items, the ignored ones too, by their weights.
        mass = self._item_weights(items).mean()
        teacher_loss = (items.by_group(losses * items.weights) * self._ratio).sum() * mass
        if not items.has_labels:
            return teacher_loss, torch.zeros_like(teacher_loss)
        losses, _ = label_terms(student, items, args.label_smoothing_factor)  # (M,)
        return teacher_loss, losses.sum()

    def _item_weights(self, items: Items) -> Tensor:
        args, logits = self.args, items.logits
        return item_weights(args.objective, logits, args.temperature, items.activation)  # (N,)

    def _generator(self, items: Items, micro_batch: int) -> torch.Generator:
        """Noise for `dkpp` that depends on the seed, the step, and an item's place in the step.

        An item's place does not depend on how a step is cut into micro-batches and processes. The
        rows of the items before this micro-batch are drawn and dropped.
        """
        before = micro_batch * self.accelerator.num_processes + self.accelerator.process_index
        first_item = before * self._batch_size * len(items.logits) // items.rows
        # On the CPU, whose stream does not depend on how it is cut; it heeds 32 bits of a seed.
        generator = torch.Generator()
        seed = np.random.SeedSequence([self.args.seed, self._step])
        generator.manual_seed(int(seed.generate_state(1)[0]))
        torch.rand(first_item, items.logits.shape[1] - 1, generator=generator)
        return generator

    def means(self) -> dict[str, float]:
        """What to log: the means since the last call, over all processes."""
        if self._sums is None or self._items is None:
            return {}
        sums = torch.cat([self.accelerator.reduce(self._sums), self._items.reshape(1)])
        *columns, items = (sums / self._steps).tolist()
        means: dict[str, float] = dict(zip(ItemStatistics._fields, columns, strict=True))
        squared = max(1e-30, means.pop("squared_confidence"))
        means["effective_sample_size"] = items * means["teacher_confidence"] ** 2 / squared
        means["teacher_agreement"] *= 100
        for name in undefined_statistics(self.batches[0]):
            means.pop(name, None)
        self.forget()
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
    loss, sums = _MixedCrossEntropy.apply(student_logits, teacher, teacher_weight, label_weight)
    return loss, sums


class _MixedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher: Items, teacher_weight: float, label_weight: float
    ) -> tuple[Tensor, Tensor]:
        check_logits(student_logits, teacher.logits)
        gradients, sums = torch.empty_like(student_logits), []  # (N, C), each (COLUMNS,)
        for rows, q, gap, columns in _chunks(student_logits, teacher):
            sums.append(columns.sum(0))  # (COLUMNS,)
            if teacher_weight != 1:
                gap.mul_(teacher_weight)
            if label_weight and teacher.labels is not None:
                at = teacher.labels[rows, None]  # (n, 1)
                gap.add_(q, alpha=label_weight)
                gap.scatter_add_(1, at, gap.new_full(at.shape, -label_weight))
            gap.mul_(teacher.weights[rows, None])
            gradients[rows] = gap
        total = reduce(torch.add, sums)  # (COLUMNS,)
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(total)
        named = ItemStatistics.of(total)
        loss = teacher_weight * named.teacher_loss  # ()
        return (loss + label_weight * named.label_loss if label_weight else loss), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return gradients * grad_loss.to(gradients.dtype), None, None, None


def undefined_statistics(items: Items) -> list[str]:
    """The names of the statistics that have no meaning for such items."""
    undefined = [] if items.has_labels else ["label_loss"]
    if items.labels is None or items.activation != "softmax":
        undefined += ["ground_truth_term", "dark_knowledge_term"]
    if items.activation == "identity":
        undefined += ["teacher_agreement", "teacher_confidence", "effective_sample_size"]
    return undefined


@torch.no_grad()
def item_statistics(student_logits: Tensor, teacher: Items) -> Tensor:
    """The `ItemStatistics` of each item times its weight: `(N, C)` to `(N, COLUMNS)`."""
    if teacher.activation != "softmax":
        return _columns_of_numbers(student_logits, teacher) * teacher.weights[:, None]
    return torch.cat([columns for *_, columns in _chunks(student_logits, teacher)])


def _chunks(
    student_logits: Tensor, teacher: Items
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """`CHUNK` logits at a time: n rows, q and q - p `(n, C)`, and statistics `(n, COLUMNS)`."""
    n, c = student_logits.shape
    size = max(1, CHUNK // c)
    for start in range(0, max(n, 1), size):  # one empty chunk where there are no rows
        rows = slice(start, start + size)
        logq, logp = log_softmax(student_logits[rows]), log_softmax(teacher.logits[rows])
        q, p = logq.exp(), logp.exp()  # (n, C), (n, C)
        gap = q - p  # (n, C)
        labels = None if teacher.labels is None else teacher.labels[rows]  # (n,)
        columns = _columns(logq, logp, p, gap, labels)  # (n, COLUMNS)
        yield rows, q, gap, columns.mul_(teacher.weights[rows, None])


def _columns(logq: Tensor, logp: Tensor, p: Tensor, gap: Tensor, labels: Tensor | None) -> Tensor:
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
    return torch.cat([*of_label, *of_teacher], 1)  # (n, COLUMNS)


def _columns_of_numbers(student_logits: Tensor, teacher: Items) -> Tensor:
    """The columns of items that are several labels, or numbers: `(N, C)` to `(N, COLUMNS)`."""
    divergence = kd(student_logits, teacher.logits, activation=teacher.activation)  # (N,)
    label_loss = agrees = sure = torch.zeros_like(divergence)  # (N,) each
    if teacher.labels is not None:
        label_loss = label_losses(student_logits, teacher.labels, teacher.activation)  # (N,)
    if teacher.activation == "sigmoid":
        agrees = ((student_logits > 0) == (teacher.logits > 0)).float().mean(1)  # (N,)
        sure = confidence(teacher.logits, 1.0, "sigmoid")  # (N,)
    none = torch.zeros_like(divergence)  # (N,)
    return torch.stack([label_loss, none, none, divergence, agrees, sure, sure * sure], 1)


class FiniteLossGuard(TrainerCallback):
    """Stops a training whose loss or weights became NaN or infinite, before they are saved.

    Losses are noted on the device at every step and read only before the training logs, evaluates,
    saves or ends, so that a GPU need not wait for the CPU. The weights are checked before a save
    and at the end: a finite loss can have a gradient that is not.

    Args:
        gather: brings a tensor of every process together, as `Accelerator.gather` does; a loss
            that is bad on one process stops them all.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.gather = gather
        self.first_bad_step: Tensor | None = None  # ()

    def note(self, loss: Tensor, step: int) -> None:
        """Remember the step if its loss `()` is the first that is no number."""
        bad_step = torch.where(loss.isfinite().all(), NEVER, step)  # ()
        earlier = bad_step if self.first_bad_step is None else self.first_bad_step
        self.first_bad_step = torch.minimum(earlier, bad_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first_bad_step = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.on_epoch_end(args, state, control, **kwargs)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check(args, state, kwargs["model"] if control.should_save else None)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._check(args, state, kwargs["model"])

    def _check(self, args: Any, state: Any, model: nn.Module | None) -> None:
        if self.first_bad_step is None:
            return
        tensors = () if model is None else (*model.parameters(), *model.buffers())
        if not all(tensor.isfinite().all() for tensor in tensors):
            self.first_bad_step = self.first_bad_step.clamp(max=state.global_step)
        step = int(self.gather(self.first_bad_step.reshape(1)).min())
        if step == NEVER:
            return
        folder = args.output_dir
        checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "There was no save."
        raise FloatingPointError(
            f"The loss or a weight became NaN or infinite at step {step}: the training stopped. "
            f"{kept} Lower learning_rate, set max_grad_norm, or train in a higher precision."
        )
