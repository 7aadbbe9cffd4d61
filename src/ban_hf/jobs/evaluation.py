"""The one measurement of a trained network: what it predicts for each item of a test set.

A network is measured as it was saved: in its own precision, without autocast, in evaluation mode. A
recurrent one reads a text in order, its state carried along. An ensemble is a network like others.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ban_hf.errors import BANError
from ban_hf.lineage.results import block_losses, pack_classes
from ban_hf.tasks.base import Task
from ban_hf.tasks.metrics import calibration_error, reliability
from ban_hf.training.recurrence import is_recurrent

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What a network predicts for the N items that count; the last two with a teacher only."""

    task: Task
    labels: Tensor  # (N,)
    label_logp: Tensor  # (N,) float64, the log-probability of the label
    predicted: Tensor  # (N,), the most likely class
    confidence: Tensor  # (N,) float64, its probability
    agrees: Tensor | None = None  # (N,) bool, whether the teacher predicts the same class
    teacher_kl: Tensor | None = None  # (N,) float64, KL(teacher || network), nats

    def metrics(self, entropy: float | None = None) -> dict[str, float | int]:
        """The task's metrics and `n`; with a teacher `teacher_agreement` (%) and `teacher_kl`.

        `entropy` is of a text under its source, nats per word, for `above_entropy`.
        """
        nll = -self.label_logp.mean()  # ()
        known = {
            "error": 100 * (self.predicted != self.labels).double().mean(),
            "nll": nll,
            "ece": calibration_error(self.reliability()),
            "perplexity": nll.exp(),
        }
        if entropy is not None:
            known["above_entropy"] = nll - entropy
        named = [metric.name for metric in self.task.facts.metrics if metric.name in known]
        found: dict[str, float | int] = {name: known[name].item() for name in named}
        if self.agrees is not None and self.teacher_kl is not None:
            found["teacher_agreement"] = 100 * self.agrees.double().mean().item()
            found["teacher_kl"] = self.teacher_kl.mean().item()
        return found | {"n": len(self.labels)}

    def reliability(self) -> Tensor:
        """Items, summed confidence and correct items of each bin of confidence: `(bins, 3)`."""
        return reliability(self.confidence, self.predicted == self.labels)

    def to_dict(self, entropy: float | None = None) -> dict[str, Any]:
        """Plain data as results have it: `test`, `outcomes`, `labels` and `reliability`."""
        if self.task.name == "text-generation":  # far more items than a file should hold
            blocks = block_losses(-self.label_logp.numpy())
            return {"test": self.metrics(entropy), "outcomes": msgspec.to_builtins(blocks)}
        bins = [
            [int(n), confidence / n if n else None, correct / n if n else None]
            for n, confidence, correct in self.reliability().tolist()
        ]
        return {
            "test": self.metrics(entropy),
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
        teacher: where there is one.
        gather: brings the rows of a batch together over all processes.
    """
    networks = [model.to(device).eval() for model in (*models, *([teacher] if teacher else []))]
    states: list[dict[str, Any]] = [{} for _ in networks]
    parts: list[Tensor] = []
    for group in zip(*loaders, strict=True):
        batches = [_to_device(batch, device) for batch in group]
        outputs = []
        for network, batch, state in zip(networks, itertools.cycle(batches), states, strict=False):
            outputs.append(network(**task.forward_inputs(network, batch), **state))
            if in_order and is_recurrent(network):
                state["state"] = outputs[-1].state
        together = outputs[0]
        if len(models) > 1:
            together = SimpleNamespace(**task.merge(outputs[: len(models)], weights))
        items = task.items(models[0], batches[0], together)
        if items.labels is None:
            raise BANError("the test set has no labels: there is nothing to measure by.")
        logp = items.logits.double().log_softmax(1)  # (N, C)
        top, predicted = logp.max(1)  # (N,), (N,)
        at_label = logp.gather(1, items.labels[:, None])[:, 0]  # (N,)
        columns = [items.weights, items.labels, at_label, predicted, top.exp()]  # (N,) each
        if teacher is not None:
            theirs = task.logits(teacher, batches[0], outputs[-1]).double().log_softmax(1)  # (N, C)
            columns.append(predicted == theirs.argmax(1))  # (N,)
            columns.append((theirs.exp() * (theirs - logp)).sum(1))  # (N,)
        found = torch.stack([column.double() for column in columns], 1)  # (N, 5 or 7)
        rows = gather(found.view(items.rows, -1, len(columns)))  # (B, N / B, 5 or 7)
        parts.append((rows if in_order else rows.flatten(0, 1)).cpu())
    table = torch.cat(parts, 1).flatten(0, 1) if in_order else torch.cat(parts)  # (N, 5 or 7)
    table = table[table[:, 0] > 0]
    compared = {"agrees": table[:, 5] > 0, "teacher_kl": table[:, 6]} if teacher else {}
    return Evaluation(
        task,
        labels=table[:, 1].long(),
        label_logp=table[:, 2],
        predicted=table[:, 3].long(),
        confidence=table[:, 4],
        **compared,
    )


def _to_device(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
