"""The ensemble: the mean of probabilities, in one folder, usable wherever one model is."""

import copy

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    TimmWrapperConfig,
    Trainer,
    pipeline,
)

from ban_hf import BornAgainEnsemble, image_processor
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


@pytest.mark.parametrize("weights", [None, (3.0, 1.0, 0.5)], ids=["equal", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_folder_gives_the_mean_of_the_members_probabilities(kind, weights, tmp_path):
    make, inputs, auto = KINDS[kind]
    members = make()
    weights = weights and list(weights[: len(members)])
    shares = [w / sum(weights) for w in weights] if weights else [1 / len(members)] * len(members)
    probabilities = [member(**inputs).logits.double().softmax(1) for member in members]
    expected = sum(w * p for w, p in zip(shares, probabilities, strict=True))
    ensemble = BornAgainEnsemble.from_members(members, weights)
    logits = ensemble(**inputs).logits
    torch.testing.assert_close(logits.double(), expected.log(), rtol=0, atol=1e-5)
    assert ensemble.config.weights == (weights and pytest.approx(shares))

    ensemble.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    before = copy.deepcopy(ensemble.config.members)
    assert torch.equal(load_model(tmp_path)(**inputs).logits, logits)
    again = auto.from_pretrained(tmp_path)
    assert isinstance(again, BornAgainEnsemble)
    assert not again.training
    assert again.config.weights == ensemble.config.weights
    assert ensemble.config.members == before
    assert tiny.distance(again, ensemble) == 0
    buffers = dict(again.named_buffers())  # also those that are not saved
    assert all(torch.equal(b, buffers[name]) for name, b in ensemble.named_buffers())
    # Not to the last bit: the weights lie where the file has them, and a convolution goes by that.
    torch.testing.assert_close(again(**inputs).logits, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", [None, (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_huge_logits_stay_finite_and_precise(dtype, weights):
    size = torch.finfo(dtype).max / 4
    members = [torch.tensor([[size, -size, 0.0]], dtype=dtype), torch.zeros(1, 3, dtype=dtype)]
    logits = mean_logits(members, weights)
    assert logits.dtype == torch.promote_types(dtype, torch.float32)
    expected = [[0.5, 0.25, 0.25]] if weights else [[2 / 3, 1 / 6, 1 / 6]]
    torch.testing.assert_close(logits.softmax(1), torch.tensor(expected, dtype=logits.dtype))


@pytest.mark.parametrize("weights", [(1, 0), (1e300, 0.0)])
def test_a_member_of_weight_0_does_not_count(weights):
    logits = torch.randn(5, 4)
    for value in (0.0, torch.nan, torch.inf):
        other = torch.full((5, 4), value)
        assert torch.equal(mean_logits([logits, other], weights), logits.log_softmax(1))
    three = [logits, torch.full((5, 4), torch.nan), torch.randn(5, 4)]
    assert torch.equal(mean_logits(three, (2, 0, 2)), mean_logits([three[0], three[2]]))


@torch.no_grad()
def test_the_weights_are_copies_and_no_folder_of_a_member_is_named(
    tmp_path,
):
    tiny.cifar().save_pretrained(tmp_path / "member")
    members = [load_model(tmp_path / "member").train(), tiny.cifar(1).train()]
    ensemble = BornAgainEnsemble.from_members(members)
    assert all(member.training for member in members)
    assert not any(module.training for module in ensemble.modules())
    before = ensemble(**IMAGES).logits
    for member in members:
        for value in (*member.parameters(), *member.buffers()):
            value.zero_()
        member.config.id2label[0] = "another"
    assert torch.equal(ensemble(**IMAGES).logits, before)
    assert ensemble.config.id2label[0] == "LABEL_0"
    ensemble.save_pretrained(tmp_path / "ensemble")
    assert str(tmp_path) not in (tmp_path / "ensemble" / "config.json").read_text()


@torch.no_grad()
def test_half_precision_members_stay_so(tmp_path):
    dtype = torch.bfloat16
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


def test_a_trainer_evaluates_it(tmp_path):
    ensemble, images = BornAgainEnsemble.from_members([tiny.vit(1), tiny.vit(2)]), tiny.Images(10)
    args = tiny.arguments(tmp_path, per_device_eval_batch_size=4)
    metrics = Trainer(ensemble, args, eval_dataset=images).evaluate()
    with torch.no_grad():
        loss = ensemble(images.pixel_values, labels=images.labels).loss.item()
        members = [member(images.pixel_values).logits.softmax(1) for member in ensemble.members]
    expected = F.nll_loss((sum(members) / 2).log(), images.labels).item()
    assert metrics["eval_loss"] == pytest.approx(loss, rel=1e-6) == pytest.approx(expected)


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


def test_a_config_as_timm_writes_it_is_known():
    assert (
        auto_class(TimmWrapperConfig(architecture="resnet10t")) is AutoModelForImageClassification
    )


@pytest.mark.parametrize("name", ["no/such/folder", "ns/no_such_model@v1", "no folder at all"])
def test_what_cannot_be_found_is_named(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be loaded"):
        load_model(name)
