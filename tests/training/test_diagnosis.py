"""What is logged beside the loss, by hand; and the guard against losses that are no number."""

import pytest
import torch
import torch.nn.functional as F
from tiny import Images, confident, history, trained, vit
from transformers import TrainerCallback, ViTForImageClassification
from transformers.trainer_utils import get_last_checkpoint

from ban_hf.objectives import kd


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


@pytest.mark.parametrize("teacher", [None, vit], ids=["labels", "teacher"])
@pytest.mark.parametrize(
    ("logging_steps", "save_steps", "kept"),
    [(1, 1, "checkpoint-2"), (100, 1, "checkpoint-2"), (100, 4, None)],
)
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_good_checkpoint(
    teacher, logging_steps, save_steps, kept, tmp_path
):
    options = dict(per_device_train_batch_size=8, max_steps=8, save_strategy="steps")
    with pytest.raises(FloatingPointError, match="at step 3") as error:
        trained(
            vit(1),
            tmp_path,
            teacher and teacher(2),
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
