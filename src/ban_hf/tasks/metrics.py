"""Metrics of a classifier, from logits: error, negative log-likelihood, calibration, perplexity.

Pure torch functions; the same as :class:`LogitsMetric` for `evaluate`, which needs no script from
the Hub; and :func:`compute_classification_metrics` for ``Trainer``. All are computed in float64,
through log-softmax, and so finite for finite logits of any size.
"""

from collections.abc import Callable

import datasets
import evaluate
import torch
from torch import Tensor
from transformers import EvalPrediction

from ban_hf.errors import BANError

CALIBRATION_BINS = 15


def error_rate(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of items whose largest logit is not their label's, in percent: ``()`` float64.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, integers in ``[0, C)``.
    """
    _check(logits, labels)
    return 100 * (logits.argmax(-1) != labels).double().mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``-log softmax(logits)[label]``, in nats: ``()`` float64. See `error_rate`."""
    _check(logits, labels)
    logp = logits.double().log_softmax(-1)  # (N, C)
    return -logp.gather(-1, labels[:, None].long()).mean()


def perplexity(logits: Tensor, labels: Tensor) -> Tensor:
    """The exponential of `negative_log_likelihood`: ``()`` float64."""
    return negative_log_likelihood(logits, labels).exp()


def expected_calibration_error(
    logits: Tensor, labels: Tensor, *, bins: int = CALIBRATION_BINS
) -> Tensor:
    """`calibration_error` of logits ``(N, C)`` and labels ``(N,)``."""
    _check(logits, labels)
    confidence, predicted = logits.double().softmax(-1).max(-1)  # (N,), (N,)
    return calibration_error(reliability(confidence, predicted == labels, bins))


def reliability(confidence: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """Items, summed confidence and correct items of each bin of confidence: ``(bins, 3)``.

    The items go by confidence, the largest probability, into bins of equal width, each open below
    and closed above: ``((b - 1) / bins, b / bins]``.

    Args:
        confidence: ``(N,)`` float64.
        correct: ``(N,)`` bool.
        bins: 15 in the paper below.
    """
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (N,)
    items = torch.stack([torch.ones_like(confidence), confidence, correct.double()], 1)  # (N, 3)
    sums = torch.zeros(bins, 3, dtype=items.dtype, device=items.device)  # (bins, 3)
    return sums.index_add_(0, bin_of, items)


def calibration_error(sums: Tensor) -> Tensor:
    """``100 sum_b (n_b / N) |accuracy_b - confidence_b|``, in percent, of `reliability`: ``()``.

    Reference: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, eq. 3.
    """
    items, confidence, correct = sums.unbind(1)  # (bins,) each
    # n_b |accuracy_b - confidence_b| is the size of the gaps' sum: no bin is divided by its count.
    return 100 * (correct - confidence).abs().sum() / items.sum()


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise BANError(
            "logits must be (N, C) and labels (N,) with N > 0, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )


#: By the name that a task's facts have; those of other names need more than logits and labels.
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "error": error_rate,
    "nll": negative_log_likelihood,
    "ece": expected_calibration_error,
    "perplexity": perplexity,
}


class LogitsMetric(evaluate.Metric):
    """A metric of `METRICS` by its name; several compose with ``evaluate.combine``.

    Predictions are logits ``(N, C)``, references labels ``(N,)``; the result is ``{name: value}``.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=METRICS[self.config_name].__doc__ or "",
            citation="",
            inputs_description="predictions: logits (N, C); references: labels (N,).",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references) -> dict[str, float]:  # type: ignore[no-untyped-def]
        metric = METRICS[self.config_name]
        value = metric(torch.as_tensor(predictions), torch.as_tensor(references))
        return {self.config_name: value.item()}


def compute_classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """``compute_metrics`` for ``Trainer``: ``error`` (%), ``nll`` (nats) and ``ece`` (%)."""
    outputs = prediction.predictions  # a model with further outputs gives a tuple, logits first
    logits = torch.as_tensor(outputs[0] if isinstance(outputs, tuple) else outputs)  # (N, C)
    labels = torch.as_tensor(prediction.label_ids)  # (N,)
    return {name: METRICS[name](logits, labels).item() for name in ("error", "nll", "ece")}
