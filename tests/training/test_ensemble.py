"""The ensemble: the mean of probabilities, in one folder, usable wherever one model is."""

import copy

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    TimmWrapperConfig,
    Trainer,
    pipeline,
)

from ban_hf import BANTrainer, BornAgainEnsemble, image_processor
from ban_hf.tasks.auto import auto_class, load_model
from ban_hf.tasks.base import mean_logits

IMAGES = {"pixel_values": torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
WORDS = {"input_ids": torch.arange(24).reshape(4, 6), "attention_mask": torch.ones(4, 6).tril(2)}


def trained_statistics(model):
    """BatchNorm statistics that are not the initial ones."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()


def networks(*seeds):
    return [trained_statistics(tiny.cifar(seed)) for seed in seeds]


def mixed():
    vit = tiny.vit(image_size=32, patch_size=16)
    return [*networks(0), trained_statistics(tiny.timm_model("resnet10t")), vit.eval()]


def texts():
    return [tiny.bert(seed).eval() for seed in (0, 1)]


KINDS = {
    "same": (lambda: networks(0, 1, 2), IMAGES, AutoModelForImageClassification),
    "mixed": (mixed, IMAGES, AutoModelForImageClassification),
    "text": (texts, WORDS, AutoModelForSequenceClassification),
    "nested": (
        lambda: [BornAgainEnsemble.from_members(networks(0, 1)), *networks(2)],
        IMAGES,
        AutoModelForImageClassification,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@torch.no_grad()
def test_probabilities_are_the_mean_of_the_members(kind):
    make, inputs, _ = KINDS[kind]
    members = make()
    probabilities = [member(**inputs).logits.double().softmax(1) for member in members]
    expected = sum(probabilities) / len(members)
    logits = BornAgainEnsemble.from_members(members)(**inputs).logits
    torch.testing.assert_close(logits.double(), expected.log(), rtol=0, atol=1e-5)


@every_kind
@torch.no_grad()
def test_one_folder_gives_back_the_same_logits(tmp_path, kind):
    make, inputs, auto = KINDS[kind]
    ensemble = BornAgainEnsemble.from_members(make())
    ensemble.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    logits = ensemble(**inputs).logits
    assert torch.equal(load_model(tmp_path)(**inputs).logits, logits)
    again = auto.from_pretrained(tmp_path)
    assert isinstance(again, BornAgainEnsemble)
    assert not again.training
    assert tiny.distance(again, ensemble) == 0
    buffers = dict(again.named_buffers())  # also those that are not saved
    assert all(torch.equal(b, buffers[name]) for name, b in ensemble.named_buffers())
    # Not to the last bit: the weights lie where the file has them, and a convolution goes by that.
    torch.testing.assert_close(again(**inputs).logits, logits, rtol=0, atol=1e-6)


def test_a_saved_ensemble_does_not_say_where_its_members_lay(tmp_path):
    tiny.cifar().save_pretrained(tmp_path / "member")
    members = [load_model(tmp_path / "member"), *networks(1)]
    BornAgainEnsemble.from_members(members).save_pretrained(tmp_path / "ensemble")
    assert str(tmp_path) not in (tmp_path / "ensemble" / "config.json").read_text()


def test_it_is_not_the_mean_of_logits():
    members = [torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    expected = torch.stack([m.softmax(1) for m in members]).mean(0).log()
    assert torch.allclose(mean_logits(members), expected)
    assert not torch.allclose(mean_logits(members).softmax(1), sum(members).div(2).softmax(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_huge_logits_stay_finite(dtype):
    size = torch.finfo(dtype).max / 4
    members = [torch.tensor([[size, -size, 0.0]], dtype=dtype), torch.zeros(1, 3, dtype=dtype)]
    logits = mean_logits(members)
    assert logits.isfinite().all()
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.tensor([[2 / 3, 1 / 6, 1 / 6]], dtype=logits.dtype)
    torch.testing.assert_close(logits.softmax(1), expected)


def test_double_precision_is_kept():
    members = list(torch.randn(3, 5, 4, dtype=torch.float64).unbind())
    expected = torch.stack(members).softmax(-1).mean(0).log()
    torch.testing.assert_close(mean_logits(members), expected, rtol=0, atol=1e-14)


@torch.no_grad()
def test_an_ensemble_of_one_is_that_one():
    (member,) = networks(0)
    logits = BornAgainEnsemble.from_members([member])(**IMAGES).logits
    assert torch.equal(logits, member(**IMAGES).logits.log_softmax(1))


@torch.no_grad()
def test_the_loss_is_the_negative_log_likelihood_of_the_mean_probability():
    members, labels = networks(0, 1), torch.tensor([0, 1, 2, 3])
    mean = sum(member(**IMAGES).logits.softmax(1) for member in members) / 2
    expected = -mean[torch.arange(4), labels].log().mean()
    loss = BornAgainEnsemble.from_members(members)(**IMAGES, labels=labels).loss
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_the_weights_are_copies():
    members = networks(0, 1)
    ensemble = BornAgainEnsemble.from_members(members)
    before = ensemble(**IMAGES).logits
    for member in members:
        for value in (*member.parameters(), *member.buffers()):
            value.zero_()
        member.config.id2label[0] = "another"
    assert torch.equal(ensemble(**IMAGES).logits, before)
    assert ensemble.config.id2label[0] == "LABEL_0"


def test_members_in_training_mode_are_left_so_and_the_ensemble_is_not():
    members = [tiny.cifar(seed).train() for seed in (0, 1)]
    ensemble = BornAgainEnsemble.from_members(members)
    assert not any(module.training for module in ensemble.modules())
    assert all(member.training for member in members)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_members_stay_so(tmp_path, dtype):
    members = [member.to(dtype) for member in networks(0, 1)]
    ensemble = BornAgainEnsemble.from_members(members)
    half = {"pixel_values": IMAGES["pixel_values"].to(dtype)}
    logits = ensemble(**half).logits
    assert (ensemble.dtype, logits.dtype) == (dtype, torch.float32)
    assert torch.equal(logits, mean_logits([member(**half).logits for member in members]))
    ensemble.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(**half).logits, logits)
    mixed = BornAgainEnsemble.from_members([members[0], *networks(2)])
    assert mixed.dtype == torch.float32


def renamed():
    model = tiny.cifar(1)
    model.config.id2label = {i: str(i) for i in range(tiny.CLASSES)}
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], "members is empty"),
        (lambda: [tiny.cifar(), renamed()], r"members\[1\] has other classes"),
        (lambda: [tiny.cifar(), tiny.cifar(), tiny.bert()], r"members\[2\] takes input_ids"),
    ],
    ids=["none", "classes", "inputs"],
)
def test_members_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        BornAgainEnsemble.from_members(make())


def test_an_ensemble_teaches(tmp_path):
    teacher = BornAgainEnsemble.from_members([tiny.vit(1), tiny.vit(2)])
    before = tiny.weights(teacher)
    trainer = tiny.trained(tiny.vit(0), tmp_path, teacher=teacher, evaluation=tiny.Images(8))
    assert trainer.state.global_step == 4
    metrics = trainer.evaluate()
    student, images = trainer.model.eval(), tiny.Images(8).pixel_values
    with torch.no_grad():
        agree = student(images).logits.argmax(1) == teacher(images).logits.argmax(1)
    assert metrics["eval_teacher_agreement"] == pytest.approx(100 * agree.float().mean().item())
    assert tiny.distance(teacher, before) == 0


def test_an_ensemble_teaches_from_its_folder(tmp_path):
    ensemble = BornAgainEnsemble.from_members([tiny.vit(1), tiny.vit(2)])
    ensemble.save_pretrained(tmp_path / "ensemble")
    args = tiny.arguments(tmp_path / "run")
    trainer = BANTrainer(tiny.vit(), args, teacher=tmp_path / "ensemble")
    assert tiny.distance(trainer.teacher, ensemble) == 0


def test_a_trainer_evaluates_it(tmp_path):
    ensemble, images = BornAgainEnsemble.from_members([tiny.vit(1), tiny.vit(2)]), tiny.Images(10)
    args = tiny.arguments(tmp_path, per_device_eval_batch_size=4)
    metrics = Trainer(ensemble, args, eval_dataset=images).evaluate()
    with torch.no_grad():
        loss = ensemble(images.pixel_values, labels=images.labels).loss.item()
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-6)


def test_it_runs_in_a_pipeline(tmp_path):
    ensemble = BornAgainEnsemble.from_members(networks(0, 1))
    ensemble.save_pretrained(tmp_path)
    image_processor(32, [0.5] * 3, [0.25] * 3).save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    classify = pipeline("image-classification", str(tmp_path), device="cpu")
    answers = classify(Image.fromarray(pixels), top_k=tiny.CLASSES)
    values = torch.tensor((pixels / 255 - 0.5) / 0.25, dtype=torch.float32).permute(2, 0, 1)[None]
    expected = ensemble(pixel_values=values).logits.softmax(1)[0]
    for answer in answers:
        score = expected[ensemble.config.label2id[answer["label"]]].item()
        assert answer["score"] == pytest.approx(score, abs=1e-5)


# Weights


@every_kind
@torch.no_grad()
def test_weights_are_those_of_the_probabilities(tmp_path, kind):
    make, inputs, auto = KINDS[kind]
    members = make()
    weights = [3.0, 1.0, 0.5][: len(members)]
    probabilities = [member(**inputs).logits.double().softmax(1) for member in members]
    expected = sum(w * p for w, p in zip(weights, probabilities, strict=True)) / sum(weights)
    ensemble = BornAgainEnsemble.from_members(members, weights)
    logits = ensemble(**inputs).logits
    torch.testing.assert_close(logits.double(), expected.log(), rtol=0, atol=1e-5)
    assert ensemble.config.weights == pytest.approx([w / sum(weights) for w in weights])
    ensemble.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(**inputs).logits, logits)
    assert auto.from_pretrained(tmp_path).config.weights == ensemble.config.weights


@torch.no_grad()
def test_equal_weights_are_no_weights():
    members = [model.eval() for model in (tiny.vit(0), tiny.vit(1), tiny.vit(2))]
    images = {"pixel_values": tiny.Images(4).pixel_values}
    plain = BornAgainEnsemble.from_members(members)
    weighted = BornAgainEnsemble.from_members(members, [7, 7, 7])
    assert torch.equal(weighted(**images).logits, plain(**images).logits)
    assert weighted.config.weights is None
    assert "weights" not in plain.config.to_dict()
    assert weighted.config.to_json_string() == plain.config.to_json_string()


@pytest.mark.parametrize("weights", [(1, 0), (1e300, 0.0)])
def test_a_member_of_weight_0_does_not_count(weights):
    logits = torch.randn(5, 4)
    for other in (torch.randn(5, 4), torch.full((5, 4), torch.nan), torch.full((5, 4), torch.inf)):
        assert torch.equal(mean_logits([logits, other], weights), logits.log_softmax(1))
    three = [logits, torch.full((5, 4), torch.nan), torch.randn(5, 4)]
    assert torch.equal(mean_logits(three, (2, 0, 2)), mean_logits([three[0], three[2]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weighted_logits_are_finite_and_keep_their_precision(dtype):
    size = torch.finfo(dtype).max / 4
    members = [torch.tensor([[size, -size, 0.0]], dtype=dtype), torch.zeros(1, 3, dtype=dtype)]
    logits = mean_logits(members, (1, 3))
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.tensor([[0.5, 0.25, 0.25]], dtype=logits.dtype)
    torch.testing.assert_close(logits.softmax(1), expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1,), r"one for each of the 2 members, not 1"),
        ((), r"one for each of the 2 members, not 0"),
        ((1, -1), "none of them negative"),
        ((0, 0), "not all 0"),
        ((1, float("nan")), "must be finite"),
        ((1, float("inf")), "must be finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    members = [tiny.vit(0), tiny.vit(1)]
    with pytest.raises(ValueError, match=message):
        BornAgainEnsemble.from_members(members, weights)
    config = BornAgainEnsemble.from_members(members).config
    config.weights = list(weights)  # as a file may have them
    with pytest.raises(ValueError, match=message):
        BornAgainEnsemble(config)


def test_an_ensemble_of_weights_teaches(tmp_path):
    members = [tiny.vit(1).eval(), tiny.vit(2)]
    first = tiny.trained(tiny.vit(0), tmp_path / "a", teacher=members[0], evaluation=tiny.Images(8))
    teacher = BornAgainEnsemble.from_members(members, (1, 0))
    again = tiny.trained(tiny.vit(0), tmp_path / "b", teacher=teacher, evaluation=tiny.Images(8))
    assert tiny.distance(again.model, first.model) < 1e-6


@torch.no_grad()
def test_language_models_have_weights_and_keep_their_states():
    members = [tiny.lstm(0).eval(), tiny.lstm(1).eval(), tiny.gpt2(0).eval()]
    ids, weights = tiny.text(24).view(2, 12), [1, 2, 5]
    ensemble = BornAgainEnsemble.from_members(members, weights)
    probabilities = [member(input_ids=ids).logits.double().softmax(-1) for member in members]
    expected = sum(w * p for w, p in zip(weights, probabilities, strict=True)) / 8
    outputs = ensemble(input_ids=ids)
    torch.testing.assert_close(outputs.logits.double(), expected.log(), rtol=0, atol=1e-5)
    assert [state is not None for state in outputs.state] == [True, True, False]


# What can be loaded as a teacher or a member


def test_a_model_with_one_of_several_heads_is_known(tmp_path):
    config = DeiTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=tiny.CLASSES,
    )
    model = DeiTForImageClassification(config)
    model.save_pretrained(tmp_path)
    assert tiny.distance(load_model(tmp_path), model) == 0


def test_a_config_as_timm_writes_it_is_known():
    assert (
        auto_class(TimmWrapperConfig(architecture="resnet10t")) is AutoModelForImageClassification
    )


def test_a_model_without_a_head_is_refused(tmp_path):
    tiny.vit().vit.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTModel cannot be distilled"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder", "ns/no_such_model@v1", "no folder at all"])
def test_what_cannot_be_found_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be loaded"):
        load_model(name)


def test_the_members_configs_are_not_changed_by_building_from_them():
    ensemble = BornAgainEnsemble.from_members(mixed())
    before = copy.deepcopy(ensemble.config.members)
    BornAgainEnsemble(ensemble.config)
    assert ensemble.config.members == before
