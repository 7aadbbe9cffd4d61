"""The one measurement of a trained network: what it predicts for each item of a test set.

A network is measured as it was saved: in its own precision, without autocast, in evaluation mode. A
recurrent one reads a text in order, its state carried along. An ensemble is a network like others.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Wav2Vec2CTCTokenizer,
)

from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import MEASURES
from ban_hf.lineage.results import block_losses, pack_classes
from ban_hf.objectives import kd, label_losses
from ban_hf.tasks.base import Items, Task, Transcripts, first_member
from ban_hf.tasks.losses import check_label_range
from ban_hf.tasks.metrics import Predictions, scores
from ban_hf.tasks.pairing import call_options, foreign_inputs, pair, without
from ban_hf.training.recurrence import is_recurrent

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Evaluation(Predictions):
    """What a network predicts for the items that count; the last two with a teacher only."""

    task: Task
    decode: Callable[[list[int]], str] | None = None  # the text of token numbers
    agrees: Tensor | None = None  # (N,) float64, 1 where the teacher predicts the same
    teacher_kl: Tensor | None = None  # (N,) float64, KL(teacher || network), nats

    @property
    def leading(self) -> str:
        """The name of the leading metric."""
        return self.task.leading(self.activation, list(self.names.values()))

    def metrics(self, entropy: float | None = None) -> dict[str, float | int]:
        """The task's metrics and `n`; with a teacher `teacher_agreement` (%) and `teacher_kl`.

        `entropy` is of a text under its source, nats per word, for `above_entropy`.
        """
        known = scores(self.leading, self, self.decode)
        if entropy is not None:
            known["above_entropy"] = known["nll"] - entropy
        named = [metric.name for metric in MEASURES[self.leading].metrics]
        found: dict[str, float | int] = {name: known[name] for name in named if name in known}
        if self.agrees is not None:
            found["teacher_agreement"] = 100 * self.mean(self.agrees).item()
        if self.teacher_kl is not None:
            found["teacher_kl"] = self.mean(self.teacher_kl).item()
        return found | {"n": len(self.texts) or len(self.labels)}

    def to_dict(self, entropy: float | None = None) -> dict[str, Any]:
        """Plain data as results have it: `test`, `outcomes`, `labels` and `reliability`.

        The last three where the leading metric is a mean over items, which a bootstrap draws.
        """
        measured: dict[str, Any] = {"test": self.metrics(entropy)}
        if self.leading == "perplexity":  # far more items than a file should hold
            blocks = block_losses(self.losses.numpy())
            return measured | {"outcomes": msgspec.to_builtins(blocks)}
        if self.leading != "error":
            return measured
        bins = [
            [int(n), confidence / n if n else None, correct / n if n else None]
            for n, confidence, correct in self.reliability().tolist()
        ]
        return measured | {
            "outcomes": {"predicted": pack_classes(self.predicted.numpy())},
            "labels": pack_classes(self.labels.numpy()),
            "reliability": bins,
        }


@torch.no_grad()
def evaluate(
    models: Sequence[PreTrainedModel],
    loaders: Sequence[Iterable[dict[str, Any]]],
    task: Task,
    *,
    weights: Sequence[float] | None = None,
    device: torch.device | str = "cpu",
    in_order: bool = False,
    teacher: PreTrainedModel | None = None,
    teacher_name: str | Path | None = None,
    processor: Any = None,
    decode: Callable[[list[int]], str] | None = None,
    gather: Gather = lambda rows: rows,
) -> Evaluation:
    """Measure a network, or the mean prediction of several, and compare it with a teacher's.

    Args:
        models: one network, or the members of an ensemble; moved to the device and put into
            evaluation mode.
        loaders: the batches of the test set in order, with labels: one for all models, or one for
            each, where they read images of other sizes or statistics.
        task: of the models.
        weights: of the members; equal by default.
        device: where they run.
        in_order: whether row b of each batch continues row b of the one before, as `TokenWindows`
            does: a recurrent network goes on from its state, and items are in the text's order,
            however many columns it is read in.
        teacher: where there is one; it reads the batches of the first loader in its own way
            (`tasks.pairing`).
        teacher_name: its folder or Hub id, by default what its config says.
        processor: the tokenizer or image processor of the models, to compare with the teacher's.
        decode: gives the text of token numbers, for the word error of recordings.
        gather: brings the rows of a batch together over all processes.
    """
    networks = [model.to(device).eval() for model in (*models, *([teacher] if teacher else []))]
    foreign = [foreign_inputs(network, networks) for network in networks]
    readers: list[Callable[..., Any]] = [partial(task.forward_inputs, model) for model in models]
    pairing = None if teacher is None else pair(task, teacher, models[0], processor, teacher_name)
    readers += [pairing.teacher_inputs] if pairing else []
    states: list[dict[str, Any]] = [{} for _ in networks]
    parts: list[Tensor] = []
    texts: list[tuple[list[int], list[int]]] = []
    activation = task.activation(models[0], {})
    for group in zip(*loaders, strict=True):
        batches = [_to_device(batch, device) for batch in group]
        outputs = []
        each = zip(networks, readers, itertools.cycle(batches), foreign, states, strict=False)
        for network, read, batch, names, state in each:
            inputs = without(read(batch), names) | call_options(network)
            outputs.append(network(**inputs, **state))
            if in_order and is_recurrent(network):
                state["state"] = outputs[-1].state
        together = outputs[0]
        if len(models) > 1:
            means = task.merge(outputs[: len(models)], weights, activation)
            together = SimpleNamespace(**means)
        items = task.items(models[0], batches[0], together)
        if not items.has_labels:
            raise BANError("the test set has no labels: there is nothing to measure by.")
        for labels in task.class_numbers(models[0], batches[0]):
            check_label_range(labels, items.logits.shape[1])
        theirs = None
        if pairing is not None:
            theirs = pairing.items(batches[0], outputs[-1])
        table = _table(items, theirs)  # (N, COLUMNS + 2 C')
        rows = gather(table.view(items.rows, -1, table.shape[1]))  # (B, N / B, COLUMNS + 2 C')
        parts.append(rows.cpu())
        if items.transcripts is not None:
            frames = items.logits.argmax(1).where(items.weights > 0, items.transcripts.blank)
            texts += _texts(frames.view(items.rows, -1), items.transcripts, gather)
    return _evaluation(
        parts,
        in_order,
        task=task,
        activation=items.activation,
        names=first_member(models[0]).config.id2label,
        decode=decode,
        texts=texts,
        compared=teacher is not None,
        groups=items.groups,
    )


def _table(items: Items, theirs: Items | None) -> Tensor:
    """What is kept of each item: weight, loss, confidence, agreement, divergence, labels, output.

    `(N, 7)`, or of C labels or numbers `(N, 5 + 2 C)`; of items without labels these are 0.
    """
    logits = items.logits.double()  # (N, C)
    zeros = torch.zeros_like(logits[:, 0])  # (N,)
    agrees, divergence = zeros, zeros
    if theirs is not None:
        ours, teacher = theirs.beside(logits), theirs.logits.double()  # (N, C) each
        divergence = kd(ours, teacher, activation=items.activation)  # (N,)
        if items.activation == "softmax":
            agrees = (ours.argmax(1) == teacher.argmax(1)).double()  # (N,)
        elif items.activation == "sigmoid":
            agrees = ((ours > 0) == (teacher > 0)).double().mean(1)  # (N,)
    if items.activation == "softmax":
        top, predicted = logits.softmax(1).max(1)  # (N,), (N,)
        output = predicted[:, None]  # (N, 1)
    else:
        top = zeros
        output = logits.sigmoid() if items.activation == "sigmoid" else logits  # (N, C)
    labels, losses = torch.zeros_like(output), zeros  # (N, C'), (N,)
    if items.labels is not None:
        labels = items.labels.view(len(output), -1)  # (N, C')
        losses = label_losses(logits, items.labels, items.activation)  # (N,)
    columns = [items.weights, losses, top, agrees, divergence]
    return torch.cat([torch.stack([x.double() for x in columns], 1), labels, output], 1)


def _texts(
    frames: Tensor, transcripts: Transcripts, gather: Gather
) -> list[tuple[list[int], list[int]]]:
    """Of each row the likeliest text, by its frames `(B, T)`, and the true one, as tokens."""
    blank = transcripts.blank
    starts = torch.ones_like(frames, dtype=torch.bool)  # (B, T)
    starts[:, 1:] = frames[:, 1:] != frames[:, :-1]
    ours = frames.where(starts, blank)  # (B, T)
    # What fills up rows for all processes is 0: tokens are shifted so that it is the blank.
    pairs = [
        gather((x.where(x != IGNORED, blank) - blank)[..., None]) for x in (ours, transcripts.text)
    ]
    rows = [[[t + blank for t in row if t] for row in x[..., 0].tolist()] for x in pairs]
    return list(zip(*rows, strict=True))


def _evaluation(
    parts: list[Tensor], in_order: bool, *, compared: bool, groups: int, **known: Any
) -> Evaluation:
    """The predictions of all batches `(B, N / B, 5 + 2 C)`, put in order."""
    row, rows = 0, []
    for part in parts:
        rows.append(torch.arange(row, row + len(part))[:, None].expand(part.shape[:2]))
        row += len(part)
    if in_order:  # row b of each batch continues row b of the one before
        table, of_row = torch.cat(parts, 1).flatten(0, 1), torch.cat(rows, 1).flatten()
    else:
        table = torch.cat([part.flatten(0, 1) for part in parts])  # (N, 5 + 2 C)
        of_row = torch.cat([x.flatten() for x in rows])  # (N,)
    group = torch.arange(len(table)) % groups  # (N,)
    counts = table[:, 0] > 0  # (N,)
    table, of_row, group = table[counts], of_row[counts], group[counts]
    _, losses, confidence, agrees, divergence = table[:, :5].unbind(1)  # (N,) each
    labels, predicted = table[:, 5:].chunk(2, 1)  # (N, C), (N, C)
    if known["activation"] == "softmax":
        labels, predicted = labels[:, 0].long(), predicted[:, 0].long()  # (N,), (N,)
    has_agreement = compared and known["activation"] != "identity"
    return Evaluation(
        labels=labels,
        losses=losses,
        predicted=predicted,
        confidence=confidence,
        rows=of_row,
        groups=group,
        agrees=agrees if has_agreement else None,
        teacher_kl=divergence if compared else None,
        **known,
    )


def text_decoder(processor: Any) -> Callable[[list[int]], str] | None:
    """What gives the text of token numbers; None where a processor has no tokenizer."""
    tokenizer = processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    # Tokens that are alike and follow one another were taken together already.
    options = {"group_tokens": False} if isinstance(tokenizer, Wav2Vec2CTCTokenizer) else {}
    return partial(tokenizer.decode, **options)


def _to_device(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
