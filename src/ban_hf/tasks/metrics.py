"""Metrics of a classifier, from logits: error, negative log-likelihood, calibration, agreement.

Pure torch functions; the same as ``evaluate.Metric`` classes, which need no script from the Hub and
compose with ``evaluate.combine``; and :func:`compute_classification_metrics` for ``Trainer``. All
are computed in float64, through log-softmax, and so finite for finite logits of any size.
"""

import datasets
import evaluate
import torch
from torch import Tensor
from transformers import EvalPrediction

from ban_hf.errors import BANError

CALIBRATION_BINS = 15


def error_rate(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of items whose largest logit is not their label's, in percent.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, integers in ``[0, C)``.

    Returns:
        ``()`` float64, from 0 to 100.
    """
    _check(logits, labels)
    return 100 * (logits.argmax(-1) != labels).double().mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``-log softmax(logits)[label]``, in nats.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, integers in ``[0, C)``.

    Returns:
        ``()`` float64.
    """
    _check(logits, labels)
    logp = logits.double().log_softmax(-1)  # (N, C)
    return -logp.gather(-1, labels[:, None].long()).mean()


def expected_calibration_error(
    logits: Tensor, labels: Tensor, *, bins: int = CALIBRATION_BINS
) -> Tensor:
    """``100 sum_b (n_b / N) |accuracy_b - confidence_b|``, in percent.

    The items go by confidence, the largest probability, into ``bins`` bins of equal width, each
    open below and closed above: ``((b - 1) / bins, b / bins]``.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, integers in ``[0, C)``.
        bins: 15 in the paper below.

    Returns:
        ``()`` float64, from 0 to 100.

    Reference: Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017, eq. 3.
    """
    sums = reliability_sums(logits, labels, bins=bins)  # (bins, 3)
    # n_b |accuracy_b - confidence_b| is the size of the gaps' sum: no bin is divided by its count.
    return 100 * (sums[:, 2] - sums[:, 1]).abs().sum() / len(labels)


def reliability_sums(logits: Tensor, labels: Tensor, *, bins: int = CALIBRATION_BINS) -> Tensor:
    """Items, summed confidence and correct items of each bin of `expected_calibration_error`.

    Args:
        logits: ``(N, C)``.
        labels: ``(N,)``, integers in ``[0, C)``.
        bins: their number.

    Returns:
        ``(bins, 3)`` float64; its points of a reliability diagram are columns 1 and 2 over 0.
    """
    _check(logits, labels)
    confidence, predicted = logits.double().softmax(-1).max(-1)  # (N,), (N,)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (N,)
    correct = (predicted == labels).double()  # (N,)
    items = torch.stack([torch.ones_like(confidence), confidence, correct], 1)  # (N, 3)
    return torch.zeros(bins, 3, dtype=items.dtype, device=items.device).index_add_(0, bin_of, items)


def agreement(logits: Tensor, other_logits: Tensor) -> Tensor:
    """Share of items on which two networks have their largest logit in the same class, in percent.

    Args:
        logits: ``(N, C)``.
        other_logits: ``(N, C)``.

    Returns:
        ``()`` float64, from 0 to 100.
    """
    if logits.shape != other_logits.shape:
        raise BANError(
            f"logits and other_logits must have one shape, got {tuple(logits.shape)} and "
            f"{tuple(other_logits.shape)}"
        )
    return 100 * (logits.argmax(-1) == other_logits.argmax(-1)).double().mean()


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise BANError(
            "logits must be (N, C) and labels (N,) with N > 0, got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )


class _LogitsMetric(evaluate.Metric):
    """An ``evaluate.Metric`` of predictions (logits, ``(N, C)``) and references (labels)."""

    def _info(self) -> evaluate.MetricInfo:
        doc = type(self).__doc__ or ""
        features = {
            "predictions": datasets.Sequence(datasets.Value("float64")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=doc,
            citation="",
            inputs_description="predictions: logits (N, C); references: labels (N,).",
            features=datasets.Features(features),
        )


class ErrorRate(_LogitsMetric):
    """``{"error": ...}``, in percent; see :func:`error_rate`."""

    def _compute(self, predictions, references) -> dict[str, float]:  # type: ignore[no-untyped-def]
        logits, labels = torch.as_tensor(predictions), torch.as_tensor(references)
        return {"error": error_rate(logits, labels).item()}


class NegativeLogLikelihood(_LogitsMetric):
    """``{"nll": ...}``, in nats; see :func:`negative_log_likelihood`."""

    def _compute(self, predictions, references) -> dict[str, float]:  # type: ignore[no-untyped-def]
        logits, labels = torch.as_tensor(predictions), torch.as_tensor(references)
        return {"nll": negative_log_likelihood(logits, labels).item()}


class CalibrationError(_LogitsMetric):
    """``{"ece": ...}``, in percent; see :func:`expected_calibration_error`."""

    def _compute(self, predictions, references) -> dict[str, float]:  # type: ignore[no-untyped-def]
        logits, labels = torch.as_tensor(predictions), torch.as_tensor(references)
        return {"ece": expected_calibration_error(logits, labels).item()}


class Perplexity(_LogitsMetric):
    """``{"perplexity": ...}``, the exponential of :func:`negative_log_likelihood`."""

    def _compute(self, predictions, references) -> dict[str, float]:  # type: ignore[no-untyped-def]
        logits, labels = torch.as_tensor(predictions), torch.as_tensor(references)
        return {"perplexity": negative_log_likelihood(logits, labels).exp().item()}


def compute_classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """``compute_metrics`` for ``Trainer``: ``error`` (%), ``nll`` (nats) and ``ece`` (%)."""
    outputs = prediction.predictions  # a model with further outputs gives a tuple, logits first
    logits = torch.as_tensor(outputs[0] if isinstance(outputs, tuple) else outputs)  # (N, C)
    labels = torch.as_tensor(prediction.label_ids)  # (N,)
    found: dict[str, float] = {}
    for metric in (ErrorRate(), NegativeLogLikelihood(), CalibrationError()):
        found |= metric._compute(predictions=logits, references=labels)
    return found
