"""Metrics against values by hand, scikit-learn, and `evaluate` without a network."""

import math

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from transformers import EvalPrediction

from ban_hf.tasks.metrics import (
    METRICS,
    LogitsMetric,
    compute_classification_metrics,
    error_rate,
    expected_calibration_error,
    negative_log_likelihood,
    perplexity,
)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 7, generator=generator)
    return logits, torch.randint(7, (500,), generator=generator)


def test_equal_scikit_learn(batch):
    logits, labels = batch
    probs = logits.double().softmax(-1).numpy()
    assert error_rate(logits, labels).item() == pytest.approx(
        100 * (1 - accuracy_score(labels, probs.argmax(1)))
    )
    assert negative_log_likelihood(logits, labels).item() == pytest.approx(
        log_loss(labels, probs, labels=range(7))
    )
    assert perplexity(logits, labels) == negative_log_likelihood(logits, labels).exp()


@pytest.mark.parametrize("bins", [1, 15])
def test_calibration_equals_a_plain_loop(batch, bins):
    logits, labels = batch
    confidence, predicted = logits.double().softmax(-1).max(-1)
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            right = (predicted == labels)[inside].double().mean()
            total += inside.double().mean() * (right - confidence[inside].mean()).abs()
    measured = expected_calibration_error(logits, labels, bins=bins)
    assert measured.item() == pytest.approx(100 * float(total))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_huge_logits_are_finite(dtype):
    huge = torch.finfo(dtype).max
    logits = torch.tensor([[huge, -huge], [huge, huge]], dtype=dtype)
    labels = torch.tensor([0, 1])
    assert negative_log_likelihood(logits, labels).item() == pytest.approx(math.log(2) / 2)
    # The first is sure and right; the second has confidence 1/2 and its tie goes to class 0.
    assert expected_calibration_error(logits, labels).item() == pytest.approx(25)
    wrong = negative_log_likelihood(logits[:1] / 4, labels[1:])
    assert wrong.item() == pytest.approx(huge / 2, rel=1e-2)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2,\)"):
        error_rate(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="N > 0"):
        negative_log_likelihood(torch.zeros(0, 2), torch.zeros(0))


def test_trainer_and_evaluate_agree(batch, tmp_path):
    logits, labels = (part.numpy() for part in batch)
    expected = compute_classification_metrics(EvalPrediction((logits, None), labels))
    assert set(expected) == {"error", "nll", "ece"}
    assert expected == compute_classification_metrics(EvalPrediction(logits, labels))
    expected["perplexity"] = math.exp(expected["nll"])
    combined = evaluate.combine([LogitsMetric(name, cache_dir=str(tmp_path)) for name in METRICS])
    assert combined.compute(predictions=logits, references=labels) == pytest.approx(expected)
    for part in np.array_split(np.arange(500), 3):
        combined.add_batch(predictions=logits[part], references=labels[part])
    assert combined.compute() == pytest.approx(expected)
