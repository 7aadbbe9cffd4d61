"""Trained networks on a test set: classifiers on images, language models on a text.

A test of either kind has `predict`, what is kept of one network's outputs; `metrics`, of the mean
of some networks' probabilities; and `agreement` of a student with its teacher.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, default_data_collator

from ban_hf.data import collate
from ban_hf.data.windows import IGNORED, TokenWindows
from ban_hf.lineage.results import block_losses, pack_classes
from ban_hf.tasks.metrics import (
    agreement,
    error_rate,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_sums,
)
from ban_hf.training.ensemble import is_recurrent, log_mean_exp, mean_logits, weighted


class ImageTest:
    """Error (%), negative log-likelihood (nats) and calibration error (%) on labelled images.

    Args:
        dataset: of items with `labels`.
        batch_size: of the measurement.
    """

    metric = "error"

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self.loader = DataLoader(dataset, batch_size, collate_fn=collate)
        self.labels = torch.cat([batch["labels"].cpu() for batch in self.loader])  # (N,)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel) -> Tensor:
        """A model's logits `(N, C)` for all images, in order, on the CPU."""
        model = _ready(model)
        parts = [
            model(**{k: v.to(model.device) for k, v in batch.items() if k != "labels"}).logits.cpu()
            for batch in self.loader
        ]
        return torch.cat(parts)  # (N, C)

    def metrics(
        self, members: Sequence[Tensor], weights: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Of one network's logits, or of the ensemble of several, with equal weights by default."""
        logits = members[0] if len(members) == 1 else mean_logits(members, weights)  # (N, C)
        return {
            "error": error_rate(logits, self.labels).item(),
            "nll": negative_log_likelihood(logits, self.labels).item(),
            "ece": expected_calibration_error(logits, self.labels).item(),
            "n": len(self.labels),
        }

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Share of images that both put into the same class, in percent."""
        return agreement(student, teacher).item()


@dataclass(frozen=True)
class Reading:
    """What is kept of a language model's pass over a text, of each of its N targets."""

    logp: Tensor  # (N,) float64, of the word that comes
    predicted: Tensor  # (N,), the most likely word


class TextTest:
    """Perplexity on a text that is read once, in order, a recurrent model's state carried along.

    Of each word only the log-probability of what came is kept, and the most likely word, so that
    logits of all words `(N, V)` are never held: the mean of probabilities, token by token, needs no
    more.

    Args:
        windows: of the test text, with a `warmup`, so that every word but the first counts once.
        entropy: of the text under its source, nats per word, where it is known.
    """

    metric = "perplexity"

    def __init__(self, windows: TokenWindows, entropy: float | None = None) -> None:
        self.loader = DataLoader(windows, windows.columns, collate_fn=default_data_collator)
        self.entropy = entropy

    @torch.no_grad()
    def predict(self, model: PreTrainedModel) -> Reading:
        """Read the text with a model."""
        model = _ready(model)
        carries, logp, predicted = is_recurrent(model), [], []
        carried: dict[str, Any] = {}
        for batch in self.loader:
            outputs = model(input_ids=batch["input_ids"].to(model.device), **carried)
            if carries:
                carried = {"state": outputs.state}
            targets = batch["shift_labels"].to(model.device)  # (B, T)
            counts = targets != IGNORED  # (B, T)
            logits = outputs.logits[counts]  # (n, V)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            at_target = logits.gather(1, targets[counts][:, None])[:, 0]  # (n,)
            logp.append((at_target - logits.logsumexp(1)).double().cpu())
            predicted.append(logits.argmax(1).cpu())
        return Reading(torch.cat(logp), torch.cat(predicted))

    def metrics(
        self, members: Sequence[Reading], weights: Sequence[float] | None = None
    ) -> dict[str, float]:
        """Of one network's reading, or of the ensemble that mixes several ones' probabilities."""
        members, log_weights = weighted(members, weights)
        together = torch.stack([member.logp for member in members])  # (K, N)
        logp = log_mean_exp(together, log_weights)  # (N,)
        nll = -logp.mean()  # ()
        metrics = {"perplexity": nll.exp().item(), "nll": nll.item(), "n": len(logp)}
        return metrics | (
            {} if self.entropy is None else {"above_entropy": nll.item() - self.entropy}
        )

    def agreement(self, student: Reading, teacher: Reading) -> float:
        """Share of places for which both have the same most likely word, in percent."""
        return 100 * (student.predicted == teacher.predicted).double().mean().item()


def measured_by(test: ImageTest | TextTest, members: Sequence[Any]) -> dict[str, Any]:
    """Metrics of one network, or of the mean of several, and what they did on each item."""
    metrics = {"test": test.metrics(members)}
    if isinstance(test, TextTest):
        together = torch.stack([member.logp for member in members])  # (K, N)
        logp = log_mean_exp(together, None)  # (N,)
        outcomes = msgspec.to_builtins(block_losses(-logp.numpy()))
        return metrics | {"outcomes": outcomes, "labels": None}
    logits = members[0] if len(members) == 1 else mean_logits(members)  # (N, C)
    bins = [
        [int(n), confidence / n if n else None, correct / n if n else None]
        for n, confidence, correct in reliability_sums(logits, test.labels).tolist()
    ]
    return metrics | {
        "outcomes": {"predicted": pack_classes(logits.argmax(1).numpy())},
        "reliability": bins,
        "labels": pack_classes(test.labels.numpy()),
    }


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
