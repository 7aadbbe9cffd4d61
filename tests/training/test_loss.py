"""The loss of a step in one pass over chunks, its statistics, and the guard, by the formulas."""

import pytest
import torch
import torch.nn.functional as F
from tiny import Images, confident, history, trained, vit
from transformers import TrainerCallback, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

from ban_hf.objectives import kd
from ban_hf.tasks.base import IGNORED, Items, class_labels
from ban_hf.training import loss as loss_module
from ban_hf.training.loss import COLUMNS, ItemStatistics, item_statistics, mixed_cross_entropy


def teacher_items(t, labels):
    """The teacher's items `(N, C)`, of labels with -100."""
    return Items(t, *class_labels(labels, t[:, 0]), rows=len(t))


def mixed(z, t, labels, *, teacher_weight=1.0, label_weight=1.0):
    weights = dict(teacher_weight=teacher_weight, label_weight=label_weight)
    return mixed_cross_entropy(z, teacher_items(t, labels), **weights)


def statistics(z, t, labels):
    return item_statistics(z, teacher_items(t, labels))


@pytest.fixture(params=[1, 21, 2**19], ids=["row by row", "three rows", "at once"])
def chunk(request, monkeypatch):
    """Every test with chunks of one row, of some rows with a rest, and of all."""
    monkeypatch.setattr(loss_module, "CHUNK", request.param)


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


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.3, 0.7), (0.0, 1.0)])
@pytest.mark.usefixtures("chunk")
def test_value_and_gradient_are_those_of_the_plain_formula(weights):
    z, t, labels = logits_and_labels()
    expected = plain(z, t, labels, *weights)
    loss, _ = mixed(z, t, labels, teacher_weight=weights[0], label_weight=weights[1])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradient, expected = (torch.autograd.grad(3 * x, z)[0] for x in (loss, expected))
    assert (gradient - expected).abs().max() < 1e-14
    assert gradient[2::3].abs().max() == 0


@pytest.mark.usefixtures("chunk")
def test_the_gradient_is_that_of_finite_differences():
    z, t, labels = logits_and_labels(n=4, c=3)

    def loss(z):
        return mixed(z, t, labels, teacher_weight=0.6, label_weight=1.3)[0]

    assert torch.autograd.gradcheck(loss, z)


@pytest.mark.usefixtures("chunk")
def test_without_labels_every_item_counts_and_only_the_teacher_speaks():
    z, t, _ = logits_and_labels()
    loss, sums = mixed(z, t, None, teacher_weight=1.0, label_weight=0.0)
    assert loss.item() == pytest.approx(kd(z, t).sum().item(), rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, z)
    assert (gradient - (z.softmax(1) - t.softmax(1))).abs().max() < 1e-14
    assert sums[:3].abs().max() == 0  # what needs a label
    assert (sums - statistics(z, t, None).sum(0)).abs().max() < 1e-12


@pytest.mark.usefixtures("chunk")
def test_the_gradient_never_reaches_the_teacher():
    z, t, labels = logits_and_labels()
    loss, _ = mixed(z, t.requires_grad_(), labels, teacher_weight=1, label_weight=1)
    assert torch.autograd.grad(loss, t, allow_unused=True) == (None,)


@pytest.mark.usefixtures("chunk")
def test_the_columns_are_what_their_names_say():
    z, t, labels = logits_and_labels()
    items = statistics(z, t, labels)
    _, sums = mixed(z, t, labels)
    assert (sums - items.sum(0)).abs().max() < 1e-12
    q, p, counts = z.detach().softmax(1), t.softmax(1), labels != IGNORED
    gap, at = q - p, labels.clamp(min=0)[:, None]
    expected = ItemStatistics(
        label_loss=-q.gather(1, at).log()[:, 0],
        ground_truth_term=gap.gather(1, at)[:, 0],
        dark_knowledge_term=gap.abs().scatter(1, at, 0.0).sum(1),
        teacher_loss=kd(z, t).detach(),
        teacher_agreement=(z.argmax(1) == t.argmax(1)).double(),
        teacher_confidence=p.amax(1),
        squared_confidence=p.amax(1) ** 2,
    )
    assert 0 < expected.teacher_agreement[counts].mean() < 1
    assert (items - torch.stack(expected, 1) * counts[:, None]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16])
@pytest.mark.usefixtures("chunk")
def test_half_precision_is_computed_in_float32_and_given_back(dtype):
    z, t, labels = logits_and_labels(dtype=dtype)
    loss, sums = mixed(z, t, labels, teacher_weight=1.0, label_weight=1.0)
    assert loss.dtype == sums.dtype == torch.float32
    full = z.detach().float().requires_grad_()
    expected = plain(full, t.float(), labels, 1.0, 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,), (exact,) = (torch.autograd.grad(x, y) for x, y in ((loss, z), (expected, full)))
    assert gradient.dtype == dtype
    assert (gradient.float() - exact).abs().max() < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float, torch.double, torch.half])
@pytest.mark.usefixtures("chunk")
def test_logits_of_any_size_give_finite_numbers(dtype):
    large = torch.finfo(dtype).max
    z = torch.tensor([[large, -large, 0.0], [0.0, 0.0, -large]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([1, 2])
    loss, sums = mixed(z, -z, labels, teacher_weight=1.0, label_weight=1.0)
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert sums.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 2


def test_no_items_give_no_loss_and_other_shapes_are_refused():
    z, t, labels = logits_and_labels()
    loss, sums = mixed(z[:0], t[:0], labels[:0])
    assert loss == 0
    assert torch.equal(sums, sums.new_zeros(COLUMNS))
    with pytest.raises(ValueError, match="the same shape"):
        mixed(z, t[:, :-1], labels)


# Logs


def test_the_logs_of_a_step_are_what_the_paper_defines(tmp_path):
    data, teacher = Images(8), confident(vit(2))
    options = dict(max_steps=1, temperature=2.0, teacher_weight=0.7, label_weight=0.4)
    (line,) = history(trained(confident(vit(1)), tmp_path, teacher, data, **options))
    with torch.no_grad():
        z, t = (m(pixel_values=data.pixel_values).logits for m in (confident(vit(1)), teacher))
    q, p, rows = z.softmax(1), t.softmax(1), torch.arange(8)
    off_label = torch.ones_like(q).scatter(1, data.labels[:, None], 0.0)
    teacher_loss, label_loss = kd(z, t, temperature=2.0).mean(), F.cross_entropy(z, data.labels)
    w = p.amax(1)
    expected = {
        "loss": 0.7 * teacher_loss + 0.4 * label_loss,
        "teacher_loss": teacher_loss,
        "label_loss": label_loss,
        "teacher_agreement": 100 * (z.argmax(1) == t.argmax(1)).float().mean(),
        "ground_truth_term": (q - p)[rows, data.labels].mean(),
        "dark_knowledge_term": ((q - p).abs() * off_label).sum(1).mean(),
        "teacher_confidence": w.mean(),
        "effective_sample_size": w.sum() ** 2 / w.square().sum(),
    }
    assert line.keys() == expected.keys() | {"grad_norm", "learning_rate", "step"}
    for name, value in expected.items():
        assert line[name] == pytest.approx(value.item(), rel=1e-5), name


def test_a_line_is_the_mean_over_its_steps(tmp_path):
    every, second = (
        history(trained(vit(1), tmp_path, confident(vit(2)), logging_steps=n)) for n in (1, 2)
    )
    assert len(second) == 2
    names = second[1].keys() - {"grad_norm", "learning_rate", "step", "effective_sample_size"}
    for name in names:
        mean = (every[2][name] + every[3][name]) / 2
        assert second[1][name] == pytest.approx(mean, rel=1e-4, abs=1e-6), name
    # n (mean w)^2 / mean w^2 over the items of both steps; of one step n / size = mean w^2.
    steps = [(s["teacher_confidence"], s["effective_sample_size"]) for s in (every[2], every[3])]
    squares = sum(mean**2 / size for mean, size in steps) / 2
    size = second[1]["teacher_confidence"] ** 2 / squares
    assert second[1]["effective_sample_size"] == pytest.approx(size, rel=1e-4)


@pytest.mark.parametrize("objective", ["kd", "cwtm"])
def test_a_teacher_equally_confident_everywhere_leaves_the_whole_batch(objective, tmp_path):
    teacher = vit(2)
    with torch.no_grad():
        teacher.classifier.weight.zero_()
        teacher.classifier.bias.copy_(torch.arange(5.0))
    options = dict(objective=objective, per_device_train_batch_size=8)
    lines = history(trained(vit(1), tmp_path, teacher, gradient_accumulation_steps=2, **options))
    for line in lines:
        assert line["effective_sample_size"] == pytest.approx(16, rel=1e-5)
        if objective == "cwtm":
            assert line["teacher_loss"] == pytest.approx(line["label_loss"], rel=1e-5)


# The guard


class Poisoned(Images):
    """Images that are not numbers from the given access on."""

    def __init__(self, good: int) -> None:
        super().__init__()
        self.good = good

    def __getitem__(self, i: int) -> dict:
        self.good -= 1
        item = super().__getitem__(i)
        return item if self.good >= 0 else item | {"pixel_values": item["pixel_values"] * torch.nan}


class OverflowingGradient(TrainerCallback):
    """Gives the third step a gradient that its loss does not show."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            model.classifier.weight.grad.fill_(torch.inf)


@pytest.mark.parametrize(
    ("logging_steps", "save_steps", "kept"),
    [(1, 1, "checkpoint-2"), (100, 1, "checkpoint-2"), (100, 4, None)],
)
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_good_checkpoint(
    logging_steps, save_steps, kept, tmp_path
):
    options = dict(per_device_train_batch_size=8, max_steps=8, save_strategy="steps")
    with pytest.raises(FloatingPointError, match="at step 3") as error:
        trained(
            vit(1),
            tmp_path,
            vit(2),
            Poisoned(16),
            logging_steps=logging_steps,
            save_steps=save_steps,
            **options,
        )
    checkpoint = get_last_checkpoint(str(tmp_path))
    if kept is None:
        assert checkpoint is None
        assert "There was no save" in str(error.value)
    else:
        assert checkpoint.endswith(kept)
        assert f"The last good checkpoint is {checkpoint}" in str(error.value)
        model = ViTForImageClassification.from_pretrained(checkpoint)
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("save_steps", [3, 100], ids=["at a save", "at the end"])
def test_weights_that_are_no_number_are_not_saved_though_the_loss_still_is_one(
    save_steps, tmp_path
):
    with pytest.raises(FloatingPointError, match="at step 3"):
        trained(
            vit(1),
            tmp_path,
            vit(2),
            max_steps=3,
            save_strategy="steps",
            save_steps=save_steps,
            callbacks=[OverflowingGradient()],
        )
    assert get_last_checkpoint(str(tmp_path)) is None
