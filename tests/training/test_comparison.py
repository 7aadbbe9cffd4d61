"""Loss, gradient and diagnosis in one pass over chunks, against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from ban_hf.data.windows import IGNORED
from ban_hf.objectives import kd
from ban_hf.training import comparison
from ban_hf.training.comparison import (
    AGREEMENT,
    COLUMNS,
    CONFIDENCE,
    DARK_KNOWLEDGE,
    GROUND_TRUTH,
    LABEL_LOSS,
    SQUARED_CONFIDENCE,
    TEACHER_KL,
    compare,
    mixed_cross_entropy,
)


@pytest.fixture(params=[1, 21, 2**19], ids=["row by row", "three rows", "at once"], autouse=True)
def chunk(request, monkeypatch):
    """Every test with chunks of one row, of some rows with a rest, and of all."""
    monkeypatch.setattr(comparison, "CHUNK", request.param)


def logits_and_labels(n=8, c=7, dtype=torch.double, scale=2.0):
    rng = torch.Generator().manual_seed(0)
    z, t = (scale * torch.randn(n, c, generator=rng, dtype=dtype) for _ in range(2))
    labels = torch.randint(0, c, (n,), generator=rng)
    labels[2::3] = IGNORED
    return z.requires_grad_(), t, labels


def plain(z, t, labels, teacher_weight, label_weight):
    """Two separate terms, as the objectives and torch have them."""
    counts = 1 if labels is None else (labels != IGNORED)
    loss = teacher_weight * (kd(z, t) * counts).sum()
    if label_weight:
        loss = loss + label_weight * F.cross_entropy(z, labels, reduction="sum")
    return loss


@pytest.mark.parametrize("weights", [(1.0, 0.0), (1.0, 1.0), (0.3, 0.7), (0.0, 1.0)])
def test_value_and_gradient_are_those_of_the_plain_formula(weights):
    z, t, labels = logits_and_labels()
    expected = plain(z, t, labels, *weights)
    loss, _ = mixed_cross_entropy(z, t, labels, teacher_weight=weights[0], label_weight=weights[1])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradient, expected = (torch.autograd.grad(3 * x, z)[0] for x in (loss, expected))
    assert (gradient - expected).abs().max() < 1e-14
    assert gradient[2::3].abs().max() == 0


def test_the_gradient_is_that_of_finite_differences():
    z, t, labels = logits_and_labels(n=4, c=3)

    def loss(z):
        return mixed_cross_entropy(z, t, labels, teacher_weight=0.6, label_weight=1.3)[0]

    assert torch.autograd.gradcheck(loss, z)


def test_without_labels_every_item_counts_and_only_the_teacher_speaks():
    z, t, _ = logits_and_labels()
    loss, sums = mixed_cross_entropy(z, t, None, teacher_weight=1.0, label_weight=0.0)
    assert loss.item() == pytest.approx(kd(z, t).sum().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient - (z.softmax(1) - t.softmax(1))).abs().max() < 1e-14
    assert sums[[LABEL_LOSS, GROUND_TRUTH, DARK_KNOWLEDGE]].abs().max() == 0
    assert (sums - compare(z, t, None).sum(0)).abs().max() < 1e-12


def test_the_gradient_never_reaches_the_teacher():
    z, t, labels = logits_and_labels()
    loss, _ = mixed_cross_entropy(z, t.requires_grad_(), labels, teacher_weight=1, label_weight=1)
    assert torch.autograd.grad(loss, t, allow_unused=True) == (None,)


def test_the_columns_are_what_their_names_say():
    z, t, labels = logits_and_labels()
    items = compare(z, t, labels)
    _, sums = mixed_cross_entropy(z, t, labels, teacher_weight=1.0, label_weight=1.0)
    assert (sums - items.sum(0)).abs().max() < 1e-12
    q, p, counts = z.detach().softmax(1), t.softmax(1), labels != IGNORED
    gap, at = q - p, labels.clamp(min=0)[:, None]
    expected = torch.zeros(len(z), COLUMNS, dtype=torch.double)
    expected[:, LABEL_LOSS] = -q.gather(1, at).log()[:, 0]
    expected[:, GROUND_TRUTH] = gap.gather(1, at)[:, 0]
    expected[:, DARK_KNOWLEDGE] = gap.abs().scatter(1, at, 0.0).sum(1)
    expected[:, TEACHER_KL] = kd(z, t).detach()
    expected[:, AGREEMENT] = (z.argmax(1) == t.argmax(1)).double()
    expected[:, CONFIDENCE] = p.amax(1)
    expected[:, SQUARED_CONFIDENCE] = p.amax(1) ** 2
    assert 0 < expected[counts, AGREEMENT].mean() < 1
    assert (items - expected * counts[:, None]).abs().max() < 1e-12


def test_without_a_teacher_there_is_the_label_loss_alone():
    z, _, labels = logits_and_labels()
    items = compare(z, None, labels)
    expected = F.cross_entropy(z, labels, reduction="none")
    assert (items[:, LABEL_LOSS] - expected).abs().max() < 1e-12
    assert items[:, LABEL_LOSS + 1 :].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_given_back(dtype):
    z, t, labels = logits_and_labels(dtype=dtype)
    loss, sums = mixed_cross_entropy(z, t, labels, teacher_weight=1.0, label_weight=1.0)
    assert loss.dtype == sums.dtype == torch.float32
    full = z.detach().float().requires_grad_()
    expected = plain(full, t.float(), labels, 1.0, 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,), (exact,) = (torch.autograd.grad(x, y) for x, y in ((loss, z), (expected, full)))
    assert gradient.dtype == dtype
    assert (gradient.float() - exact).abs().max() < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float, torch.double, torch.half])
def test_logits_of_any_size_give_finite_numbers(dtype):
    large = torch.finfo(dtype).max
    z = torch.tensor([[large, -large, 0.0], [0.0, 0.0, -large]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1, 2])
    loss, sums = mixed_cross_entropy(z, -z, labels, teacher_weight=1.0, label_weight=1.0)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert sums.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 2


def test_no_items_give_no_loss():
    z, t, labels = logits_and_labels()
    loss, sums = mixed_cross_entropy(z[:0], t[:0], labels[:0], teacher_weight=1, label_weight=1)
    assert loss == 0
    assert torch.equal(sums, sums.new_zeros(COLUMNS))


def test_other_shapes_are_refused():
    z, t, labels = logits_and_labels()
    with pytest.raises(ValueError, match="the same shape"):
        mixed_cross_entropy(z, t[:, :-1], labels, teacher_weight=1.0, label_weight=1.0)
