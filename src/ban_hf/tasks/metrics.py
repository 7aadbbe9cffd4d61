"""What the field measures each task by, without a script from the Hub.

Plain functions; the same for `evaluate`, as :class:`LogitsMetric` and :class:`ScoreMetric`;
:func:`scores`, which gives a network's :class:`Predictions` all that its task is measured by; and
:func:`compute_classification_metrics` for ``Trainer``. What is computed from logits is computed in
float64, through log-softmax, and so finite for finite logits of any size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import Activation

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


# Of predictions


def entity_scores(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, percent, as `seqeval` counts them.

    Args:
        predictions: the tag of each token of each sentence, such as ``B-PER``, ``I-PER``, ``O``.
        references: the true tags.
    """
    from seqeval.metrics import f1_score, precision_score, recall_score

    known = {"entity_f1": f1_score, "precision": precision_score, "recall": recall_score}
    found = list(map(list, references)), list(map(list, predictions))
    return {name: 100 * float(score(*found, zero_division=0)) for name, score in known.items()}


def span_scores(predictions: Tensor, references: Tensor) -> dict[str, float]:
    """Exact match and F1 of spans of tokens, percent: the means over answers.

    SQuAD's own figures compare words without articles and punctuation; these compare tokens.

    Args:
        predictions: first and last token of each answer, ``(N, 2)``; no tokens if out of order.
        references: the true ones.
    """
    (start, end), (true_start, true_end) = predictions.unbind(1), references.unbind(1)  # (N,)
    overlap = (torch.minimum(end, true_end) - torch.maximum(start, true_start) + 1).clamp(min=0)
    lengths = (end - start + 1).clamp(min=0) + (true_end - true_start + 1).clamp(min=0)  # (N,)
    exact = (predictions == references).all(1)  # (N,)
    f1 = torch.where(exact, 1.0, 2 * overlap.double() / lengths.clamp(min=1))  # (N,)
    return {"exact_match": 100 * exact.double().mean().item(), "span_f1": 100 * f1.mean().item()}


def multilabel_scores(predictions: Tensor, references: Tensor) -> dict[str, float]:
    """Macro F1 at a probability of one half, and mean average precision, percent.

    Average precision is the mean over the labels that at least one item has.

    Args:
        predictions: probabilities ``(N, C)``.
        references: 0 or 1, ``(N, C)``.
    """
    from sklearn.metrics import average_precision_score, f1_score

    true, shown = (references > 0.5).numpy(), predictions.numpy()
    f1 = f1_score(true, shown > 0.5, average="macro", zero_division=0)
    occurs = true.any(0)  # (C,)
    precision = average_precision_score(true[:, occurs], shown[:, occurs]) if occurs.any() else 0.0
    return {"macro_f1": 100 * float(f1), "average_precision": 100 * float(precision)}


def regression_scores(predictions: Tensor, references: Tensor) -> dict[str, float]:
    """Root mean squared error, and the correlations of Pearson and Spearman.

    The correlations are NaN where one side does not vary; of several numbers they are over all.

    Args:
        predictions: ``(N, C)``.
        references: ``(N, C)``.
    """
    from scipy.stats import pearsonr, spearmanr

    ours, true = predictions.double().flatten().numpy(), references.double().flatten().numpy()
    varies = len(true) > 1 and np.ptp(ours) > 0 and np.ptp(true) > 0
    return {
        "rmse": float(np.sqrt(np.mean((ours - true) ** 2))),
        "pearson": float(pearsonr(ours, true).statistic) if varies else float("nan"),
        "spearman": float(spearmanr(ours, true).statistic) if varies else float("nan"),
    }


def mean_iou(predictions: Tensor, references: Tensor) -> dict[str, float]:
    """Mean over classes of intersection over union, percent.

    It is the mean over the classes that are predicted or true anywhere.

    Args:
        predictions: class numbers ``(N,)`` of the pixels that count.
        references: the true ones.
    """
    classes = int(max(predictions.max(), references.max())) + 1
    pairs = torch.bincount(references * classes + predictions, minlength=classes**2)
    confusion = pairs.view(classes, classes).double()  # (C, C)
    both = confusion.diagonal()  # (C,)
    union = confusion.sum(0) + confusion.sum(1) - both  # (C,)
    return {"miou": 100 * (both[union > 0] / union[union > 0]).mean().item()}


def edit_rate(predictions: Sequence[Sequence], references: Sequence[Sequence]) -> float:
    """Insertions, deletions and substitutions, in percent of the true tokens or words."""
    from rapidfuzz.distance import Levenshtein

    pairs = zip(predictions, references, strict=True)
    edits = sum(Levenshtein.distance(ours, true) for ours, true in pairs)
    return 100 * edits / max(1, sum(map(len, references)))


def token_error(
    predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]
) -> dict[str, float]:
    """The `edit_rate` of texts as token numbers."""
    return {"token_error": edit_rate(predictions, references)}


def word_error(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The `edit_rate` of texts in words."""
    return {"wer": edit_rate([x.split() for x in predictions], [x.split() for x in references])}


# Of a network


@dataclass(frozen=True)
class Predictions:
    """What a network predicts for the N items of a test set that count.

    Of recordings that are aligned with a text, the items have no labels: `texts` has them.
    """

    activation: Activation
    labels: Tensor  # (N,); (N, C) floats where items are not one class
    losses: Tensor  # (N,) float64, the label loss of each, nats
    predicted: Tensor  # (N,), the most likely class; (N, C), probabilities, or numbers
    confidence: Tensor  # (N,) float64, the probability of what is predicted
    rows: Tensor  # (N,), the row of the test set that an item is of
    groups: Tensor  # (N,), see `tasks.base.Items`
    names: dict[int, str] = field(default_factory=dict)  # of the classes
    texts: list[tuple[list[int], list[int]]] = field(default_factory=list)  # predicted and true

    def mean(self, column: Tensor) -> Tensor:
        """The mean of a column `(N,)` over the items of each group, and of these: `()`."""
        parts = [column[self.groups == group] for group in self.groups.unique()]
        return torch.stack([part.mean() for part in parts]).mean() if parts else column.mean()

    def reliability(self) -> Tensor:
        """Items, summed confidence and correct items of each bin of confidence: `(bins, 3)`."""
        return reliability(self.confidence, self.predicted == self.labels)


def scores(
    leading: str, found: Predictions, decode: Callable[[list[int]], str] | None = None
) -> dict[str, float]:
    """The metrics of a measure, by name, as far as they are defined.

    Args:
        leading: the measure's leading metric, a key of `lineage.catalog.MEASURES`.
        found: what a network predicts.
        decode: gives the text of token numbers, for the word error.
    """
    if leading == "token_error":
        ours, true = ([pair[side] for pair in found.texts] for side in (0, 1))
        measured = token_error(ours, true)
        if decode is not None:
            measured |= word_error(list(map(decode, ours)), list(map(decode, true)))
        return measured
    if leading == "rmse":
        return regression_scores(found.predicted, found.labels)
    nll = found.mean(found.losses)  # ()
    measured = {"nll": nll.item()}
    if leading == "macro_f1":
        return multilabel_scores(found.predicted, found.labels) | measured
    measured |= {
        "error": 100 * (found.predicted != found.labels).double().mean().item(),
        "ece": calibration_error(found.reliability()).item(),
        "perplexity": nll.exp().item(),
        "loss": nll.item(),
    }
    if leading == "entity_f1":
        measured |= entity_scores(
            _sentences(found, found.predicted), _sentences(found, found.labels)
        )
    elif leading == "exact_match":
        measured |= span_scores(*_spans(found))
    elif leading == "miou":
        measured |= mean_iou(found.predicted, found.labels)
    return measured


def _sentences(found: Predictions, classes: Tensor) -> list[list[str]]:
    """The tags of each row's tokens."""
    _, lengths = found.rows.unique_consecutive(return_counts=True)
    return [[found.names[c] for c in row.tolist()] for row in classes.split(lengths.tolist())]


def _spans(found: Predictions) -> tuple[Tensor, Tensor]:
    """First and last tokens as predicted and as they are, of rows where both count: `(n, 2)`."""
    starts, ends = found.groups == 0, found.groups == 1  # (N,), (N,)
    both = torch.isin(found.rows, found.rows[starts]) & torch.isin(found.rows, found.rows[ends])
    columns = [[x[both & starts], x[both & ends]] for x in (found.predicted, found.labels)]
    predicted, true = (torch.stack(pair, 1) for pair in columns)
    return predicted, true


# For `evaluate` and `Trainer`


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


class ScoreMetric(evaluate.Metric):
    """The scores of predictions by name: `entities`, `spans`, `labels`, `numbers`, `iou`, `words`.

    Predictions and references are as the functions above take them: tags of sentences, spans,
    probabilities, numbers, class numbers, texts.
    """

    def _info(self) -> evaluate.MetricInfo:
        score, feature = SCORES[self.config_name]
        features = datasets.Features({"predictions": feature, "references": feature})
        return evaluate.MetricInfo(
            description=score.__doc__ or "", citation="", inputs_description="", features=features
        )

    def _compute(self, predictions, references) -> dict[str, float]:  # type: ignore[no-untyped-def]
        score, _ = SCORES[self.config_name]
        if self.config_name not in ("entities", "words"):
            predictions, references = torch.as_tensor(predictions), torch.as_tensor(references)
        return score(predictions, references)


_NUMBERS = datasets.Sequence(datasets.Value("float64"))
#: The scores of `ScoreMetric`, and what they are computed from.
SCORES: dict[str, tuple[Callable[..., dict[str, float]], Any]] = {
    "entities": (entity_scores, datasets.Sequence(datasets.Value("string"))),
    "spans": (span_scores, datasets.Sequence(datasets.Value("int64"))),
    "labels": (multilabel_scores, _NUMBERS),
    "numbers": (regression_scores, _NUMBERS),
    "iou": (mean_iou, datasets.Value("int64")),
    "words": (word_error, datasets.Value("string")),
}


def compute_classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """``compute_metrics`` for ``Trainer``: ``error`` (%), ``nll`` (nats) and ``ece`` (%)."""
    outputs = prediction.predictions  # a model with further outputs gives a tuple, logits first
    logits = torch.as_tensor(outputs[0] if isinstance(outputs, tuple) else outputs)  # (N, C)
    labels = torch.as_tensor(prediction.label_ids)  # (N,)
    return {name: METRICS[name](logits, labels).item() for name in ("error", "nll", "ece")}
