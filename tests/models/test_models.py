"""The backbones: sizes, shapes, initialization, saving, and the ways to reach them by name."""

from itertools import pairwise

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    TimmWrapperForImageClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from ban_hf.errors import BANError
from ban_hf.models import (
    PRESETS,
    CifarNetConfig,
    CifarNetForImageClassification,
    check_model_args,
    create_classifier,
    image_processor,
)
from ban_hf.models.cifar_networks import build_cifar_network

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
SMALL = ("cifar_wrn_16_1", "cifar_densenet_22_12", "cifar_preact_resnet_29")

# name -> parameters in millions at 100 classes, relative tolerance
PARAMETERS = {
    "cifar_wrn_28_1": (0.375, 0.002),
    "cifar_wrn_28_2": (1.479, 0.001),
    "cifar_wrn_28_5": (9.162, 0.001),
    "cifar_wrn_28_10": (36.5, 0.002),
    "cifar_wrn_16_1": (0.181, 0.002),
    "cifar_wrn_16_2": (0.703, 0.001),
    "cifar_densenet_90_60": (16.1, 0.008),
    "cifar_densenet_80_80": (22.4, 0.008),
    "cifar_densenet_80_120": (50.4, 0.008),
    "cifar_densenet_112_33": (6.72, 0.002),  # 6.62M at 10 classes, where the paper says 6.3M
    "cifar_densenet_22_12": (0.0747, 0.001),
    "cifar_preact_resnet_29": (0.335, 0.002),
    "cifar_preact_resnet_164": (1.726, 0.002),
    "cifar_preact_resnet_1001": (10.35, 0.002),  # 10.2M in the paper
}


def seeded(name: str, seed: int = 0, **kwargs):
    torch.manual_seed(seed)
    return create_classifier(name, **{"num_labels": 10, **kwargs})


def same_state(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(torch.equal(mine[k], other[k]) for k in mine)


def train_step(model: nn.Module) -> None:
    """Moves weights and BatchNorm statistics away from where they start."""
    model.train()
    model(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_every_preset_has_a_parameter_count_to_meet():
    assert set(PARAMETERS) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name):
    expected, tolerance = PARAMETERS[name]
    with torch.device("meta"):
        network = build_cifar_network(name, num_classes=100)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(expected, rel=tolerance)


def test_wide_resnet_parameters_match_the_closed_form():
    for depth, width, classes in ((40, 4, 10), (22, 3, 7)):
        with torch.device("meta"):
            network = build_cifar_network(f"cifar_wrn_{depth}_{width}", num_classes=classes)
        units, channels = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        count = 27 * 16
        for before, after in pairwise(channels):
            first = 9 * before * after + 9 * after**2 + before * after + 2 * (before + after)
            count += first + (units - 1) * (18 * after**2 + 4 * after)
        count += 2 * channels[-1] + classes * (channels[-1] + 1)
        assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", [*SMALL, "cifar_densenet_16_6", "cifar_preact_resnet_11"])
def test_logits_have_one_row_per_image(name):
    model = seeded(name, num_labels=7, num_channels=1).eval()
    assert model(torch.randn(3, 1, 32, 32)).logits.shape == (3, 7)
    assert model(torch.randn(1, 1, 40, 24)).logits.shape == (1, 7)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("stride", [1, 2])
def test_stem_stride_sets_the_resolution_of_every_stage(name, stride):
    features = timm.create_model(name, features_only=True, stem_stride=stride)
    sizes = [f.shape[-1] for f in features(torch.randn(1, 3, 32, 32))]
    assert sizes == [32 // stride, 32 // stride, 16 // stride, 8 // stride]
    assert features.feature_info.reduction() == [32 // size for size in sizes]
    model = seeded(name, stem_stride=stride)
    assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)


def test_densenet_compression():
    half, all_ = (build_cifar_network("cifar_densenet_22_12", compression=c) for c in (0.5, 1.0))
    assert half.features.transition1.conv.weight.shape[:2] == (26, 52)
    assert all_.features.transition1.conv.weight.shape[:2] == (52, 52)
    assert all_.num_features == 16 + 3 * 3 * 12


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_active_in_training_only(name):
    x = torch.randn(2, 3, 32, 32)
    plain, dropped = seeded(name), seeded(name, dropout=0.5)
    assert same_state(plain, dropped)
    assert torch.equal(plain.eval()(x).logits, dropped.eval()(x).logits)
    dropped.train()
    assert not torch.equal(dropped(x).logits, dropped(x).logits)
    plain.train()
    assert torch.equal(plain(x).logits, plain(x).logits)


def test_wide_resnet_dropout_sits_between_the_convolutions_of_a_unit():
    unit = build_cifar_network("cifar_wrn_16_1", dropout=0.999).stages[0].blocks[0].train()
    unit.conv2.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    seen: list[torch.Tensor] = []
    unit(torch.randn(4, 16, 8, 8))
    assert (seen[0] == 0).float().mean() > 0.99


@pytest.mark.parametrize("name", [*SMALL, "test_resnet", "test_vit"])
def test_initialization_is_timms_and_a_function_of_the_seed(name):
    assert same_state(seeded(name, 3), seeded(name, 3))
    assert not same_state(seeded(name, 3), seeded(name, 4))


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_model_keeps_the_initialization_of_the_network(name):
    torch.manual_seed(5)
    network = timm.create_model(name, num_classes=10)
    assert same_state(seeded(name, 5).network, network)


def test_wide_resnet_convolutions_start_from_he_normal_over_the_fan_out():
    network = seeded("cifar_wrn_16_2").network
    for conv in (network.stem.conv, network.stages[2].blocks[1].conv2):
        fan_out = conv.out_channels * 9
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


def test_stock_timm_networks_keep_timms_initialization():
    """TimmWrapper alone draws every convolution from N(0, 0.02)."""
    conv = seeded("test_resnet").timm_model.layer1[0].conv2
    he = (2 / (conv.out_channels * 9)) ** 0.5
    assert conv.weight.std().item() == pytest.approx(he, rel=0.1)


def test_loss_is_the_cross_entropy_and_obeys_num_items_in_batch():
    model = seeded("cifar_wrn_16_1").eval()
    x, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 2, 3, 4])
    before = model.config.to_dict()
    out = model(pixel_values=x, labels=labels)
    torch.testing.assert_close(out.loss, cross_entropy(out.logits, labels))
    scaled = model(x, labels, num_items_in_batch=torch.tensor(16)).loss
    torch.testing.assert_close(scaled, cross_entropy(out.logits, labels, reduction="sum") / 16)
    assert model(x).loss is None
    assert model(x, return_dict=False)[0].equal(out.logits)
    assert model.config.to_dict() == before


def test_trainer_passes_num_items_in_batch(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert Trainer(seeded("cifar_wrn_16_1"), args).model_accepts_loss_kwargs


@pytest.mark.parametrize("name", [*SMALL, "test_resnet", "test_vit"])
def test_round_trip_is_bit_identical(name, tmp_path):
    model = seeded(name, label_names=[f"c{i}" for i in range(10)], image_mean=MEAN, image_std=STD)
    train_step(model)
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert same_state(model, loaded)
    assert loaded.config.id2label == {i: f"c{i}" for i in range(10)}
    assert loaded.config.label2id == {f"c{i}": i for i in range(10)}
    x = torch.randn(2, 3, 32, 32)
    # the weights are equal to the bit; the CPU's kernels may round the last bit of the logits
    # otherwise, because the loaded ones lie in a memory map, off the 64-byte boundary
    torch.testing.assert_close(loaded.eval()(x).logits, model.eval()(x).logits)


def test_model_args_survive_saving(tmp_path):
    seeded("cifar_densenet_22_12", stem_stride=2, compression=0.75).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, CifarNetConfig)
    assert config.architecture == "cifar_densenet_22_12"
    assert config.model_args == {"stem_stride": 2, "compression": 0.75}
    assert isinstance(
        AutoModelForImageClassification.from_config(config), CifarNetForImageClassification
    )


@pytest.mark.parametrize("name", SMALL)
def test_loading_with_another_head_fills_in_what_is_missing(name, tmp_path):
    model = seeded(name)
    model.save_pretrained(tmp_path)
    other = CifarNetForImageClassification.from_pretrained(
        tmp_path, num_labels=4, ignore_mismatched_sizes=True
    )
    head, state = other.network.get_classifier(), model.state_dict()
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.5)
    assert not head.bias.any()
    same = [k for k, v in other.state_dict().items() if v.shape == state[k].shape]
    assert len(same) == len(state) - 2
    assert all(torch.equal(other.state_dict()[k], state[k]) for k in same)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last(name, tmp_path):
    model = seeded(name).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x).logits
    model.to(memory_format=torch.channels_last)
    actual = model(x.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert same_state(model, CifarNetForImageClassification.from_pretrained(tmp_path))


@pytest.mark.parametrize("name", ["cifar_wrn_16_1", "test_resnet"])
def test_pipeline_sees_the_normalised_image(name, tmp_path):
    model = seeded(name, label_names=list("abcdefghij"), image_mean=MEAN, image_std=STD).eval()
    model.save_pretrained(tmp_path)
    image_processor(32, MEAN, STD).save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    classify = pipeline("image-classification", model=str(tmp_path), function_to_apply="none")
    results = classify(Image.fromarray(pixels.numpy()), top_k=10)
    x = (pixels.permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / (
        torch.tensor(STD)[:, None, None]
    )
    expected = dict(zip("abcdefghij", model(x[None]).logits[0].tolist(), strict=True))
    assert {r["label"]: r["score"] for r in results} == pytest.approx(expected, abs=1e-5)


def test_timm_knows_the_presets():
    assert set(PRESETS) <= set(timm.list_models("cifar_*"))
    headless = timm.create_model("cifar_densenet_22_12", num_classes=0)
    assert headless(torch.randn(1, 3, 32, 32)).shape == (1, headless.num_features)


def test_stock_timm_models_come_at_the_asked_for_size():
    model = seeded("test_vit", num_channels=1, image_size=48, drop_path_rate=0.1)
    assert isinstance(model, TimmWrapperForImageClassification)
    assert model(torch.randn(2, 1, 48, 48)).logits.shape == (2, 10)
    assert model.config.model_args == {"in_chans": 1, "img_size": 48, "drop_path_rate": 0.1}


@pytest.mark.parametrize(
    ("name", "near"),
    [("wrn_28_2", "cifar_wrn_28_2"), ("resnt18", "resnet18"), ("cifar_wrn_27_1", "28")],
)
def test_a_name_that_is_no_model_names_the_near_match(name, near):
    with pytest.raises(ValueError, match=near):
        create_classifier(name, num_labels=10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "give num_labels or label_names"),
        ({"num_labels": 3, "label_names": ["a", "b"]}, "num_labels is 3, but label_names has 2"),
        ({"label_names": ["a", "b", "a"]}, "label_names holds a name twice"),
        ({"num_labels": 3, "image_mean": MEAN}, "image_mean and image_std go together"),
        (
            {"num_labels": 3, "num_channels": 1, "image_mean": MEAN, "image_std": STD},
            "image_mean has 3 values for num_channels=1",
        ),
    ],
)
def test_contradictory_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_classifier("cifar_wrn_16_1", **kwargs)


@pytest.mark.parametrize("name", ["cifar_densenet_4_12", "cifar_preact_resnet_30", "cifar_wrn_4_1"])
def test_a_depth_that_the_family_does_not_have(name):
    with pytest.raises(ValueError, match="depth"):
        create_classifier(name, num_labels=10)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("cifar_wrn_10_1", {"dropuot": 0.1}, "dropuot: not taken by cifar_wrn_10_1. Did you mean"),
        ("cifar_wrn_10_1", {"compression": 0.5}, "compression: not taken .* dropout, global_pool"),
        ("test_resnet", {"drop_rat": 0.1}, "drop_rat: not taken by test_resnet. .*'drop_rate'"),
        ("test_resnet", {"in_chans": 1}, "model_args: in_chans is set by num_channels"),
        ("cifar_wrn_10_1", {"in_chans": 1}, "model_args: in_chans is set by num_channels"),
        ("test_resnet", {"num_classes": 3}, "num_classes is set by num_labels or label_names"),
        ("test_resnet", {"pretrained": True}, "pretrained is set by fresh weights"),
        ("test_vit", {"img_size": 28}, "img_size=28, but the images are 32x32: leave img_size out"),
        (
            "test_vit",
            {"image_size": 28},
            "test_vit cannot read images of 28x28 .*another ima",
        ),
        ("cifar_wrn_10_1", {"stem_stride": 2, "dropout": 2.0}, "dropout probability has to be"),
    ],
)
def test_arguments_that_a_network_does_not_take(name, kwargs, message):
    with pytest.raises(BANError, match=message):
        create_classifier(name, num_labels=3, **kwargs)


def test_a_bug_in_a_network_keeps_its_traceback():
    with pytest.raises(TypeError, match="not supported between"):
        create_classifier("test_vit", num_labels=3, drop_rate="a lot")


@pytest.mark.parametrize("name", ["label_names", "image_size", "num_labels", "words", "name"])
def test_what_the_data_decide_is_not_an_argument(name):
    with pytest.raises(BANError, match=f"model_args: {name}=.*leave it out; it comes from the"):
        check_model_args({"stem_stride": 2, name: 1})
