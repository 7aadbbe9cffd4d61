"""The image classifiers: sizes, shapes, initialization, saving, and how to reach them by name."""

import re
from itertools import pairwise

import pytest
import timm
import torch
from PIL import Image
from timm.models.densenet import DenseTransition
from tiny import CLASSES, Images, distance, trained, weights
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

from ban_hf import (
    CifarNetConfig,
    CifarNetForImageClassification,
    create_classifier,
    image_processor,
)
from ban_hf.errors import BANError
from ban_hf.jobs.table import Table
from ban_hf.models import cifar_networks
from ban_hf.models.cifar_networks import CifarDenseNet, MatchedResNet, build_cifar_network
from ban_hf.models.factory import check_model_args, share_ends
from ban_hf.models.presets import PRESETS

MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
DENSE, TEACHER = "cifar_densenet_22_12", "cifar_densenet_90_60"
SMALL = ("cifar_wrn_16_1", DENSE, "cifar_preact_resnet_29")
STUDENTS = tuple(f"{DENSE}_{kind}" for kind in ("wide_1_1", "wide_2_0.5", "preact_2_0.5"))
RATIOS = [
    *({"depth_ratio": ratio} for ratio in (0.5, 2, 3, 4)),
    *({"compression_ratio": ratio} for ratio in (0.5, 0.75, 1.5)),
]

# preset -> parameters in millions at 100 classes, relative tolerance
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

# name after the teacher's, arguments, parameters at 100 classes: ours, the paper's in millions
COUNTS = [
    ("", {}, 16_120_538),  # Table 2 16.1, Table 4 22.4 (which is Table 2's 80-80)
    ("", {"depth_ratio": 0.5}, 20_905_248),  # 21.2
    ("", {"depth_ratio": 2}, 13_441_628),  # 13.7
    ("", {"depth_ratio": 3}, 12_598_718),  # 12.9
    ("", {"depth_ratio": 4}, 12_214_808),  # 12.6
    ("", {"compression_ratio": 0.5}, 5_903_969),  # 5.1
    ("", {"compression_ratio": 0.75}, 9_397_232),  # 10.1
    ("", {"compression_ratio": 1.5}, 76_225_210),  # 80.5
    ("_preact_14_0.5", {}, 6_400_968),  # 7.3
    ("_preact_14_1", {}, 21_457_564),  # 17.7
    ("_wide_1_1", {}, 21_635_264),  # 20.9
    ("_wide_2_1", {}, 44_961_180),  # 43.1
    ("_wide_4_0.5", {}, 25_854_852),  # 24.3
    ("_wide_4_1", {}, 91_613_012),  # 87.3
]


def seeded(name: str, seed: int = 0, **kwargs):
    torch.manual_seed(seed)
    return create_classifier(name, **{"num_labels": CLASSES, **kwargs})


def built(name: str, **kwargs) -> nn.Module:
    """A network without memory."""
    with torch.device("meta"):
        return build_cifar_network(name, **kwargs)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def outputs(network: nn.Module, *names: str) -> list[torch.Size]:
    """The shapes that the named modules hand on for an image of 16x16 pixels."""
    seen: list[torch.Size] = []
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    network.eval()(torch.randn(1, 3, 16, 16))
    return seen


# Sizes and shapes


def test_parameters():
    assert set(PARAMETERS) == set(PRESETS)
    for name, (millions, tolerance) in PARAMETERS.items():
        assert count(built(name)) / 1e6 == pytest.approx(millions, rel=tolerance), name
    for suffix, kwargs, expected in COUNTS:
        assert count(built(TEACHER + suffix, **kwargs)) == expected, (suffix, kwargs)


def test_the_counts_that_notes_of_tables_4_and_5_give_of_another_teacher(monkeypatch):
    """Of 14 units a block and 120 channels into the first."""
    monkeypatch.setattr(cifar_networks, "STEM_CHANNELS", 120)
    depths, wide = [], []
    with torch.device("meta"):
        for ratio in (0.5, 2, 3, 4):
            network = CifarDenseNet(88, 60, depth_ratio=ratio)
            network.features.norm5 = nn.BatchNorm2d(750)
            network.classifier = nn.Linear(750, 100)
            depths.append(round(count(network, DenseTransition(1500, 750)) / 1e6, 2))
        for units, ratio in ((1, 1), (2, 1), (4, 0.5), (4, 1)):
            student = MatchedResNet(88, 60, units, ratio, basic=True)
            wide.append(round(count(student.stages, student.norm) / 1e6, 2))
    for table, counts in (("table4", depths), ("table5", wide)):
        note = Table(table, "paper").spec["note"]
        assert re.findall(r"\d+\.\d\d", note) == [f"{millions:.2f}" for millions in counts]
        rows = list(Table(table, "paper").rows.values())
        papers = [row["paper_parameters"]["ban"] for row in rows]
        papers = papers[:4] if table == "table4" else papers[2:]
        assert counts == pytest.approx(papers, rel=float(re.search(r"(\S+) %", note)[1]) / 100)


def test_wide_resnet_parameters_match_the_closed_form():
    for depth, width, classes in ((40, 4, 10), (22, 3, 7)):
        network = built(f"cifar_wrn_{depth}_{width}", num_classes=classes)
        units, channels = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        expected = 27 * 16
        for before, after in pairwise(channels):
            first = 9 * before * after + 9 * after**2 + before * after + 2 * (before + after)
            expected += first + (units - 1) * (18 * after**2 + 4 * after)
        expected += 2 * channels[-1] + classes * (channels[-1] + 1)
        assert count(network) == expected


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


def test_densenet_compression():
    half, all_ = (build_cifar_network(DENSE, compression=c) for c in (0.5, 1.0))
    assert half.features.transition1.conv.weight.shape[:2] == (26, 52)
    assert all_.features.transition1.conv.weight.shape[:2] == (52, 52)
    assert all_.num_features == 16 + 3 * 3 * 12


@pytest.mark.parametrize("compression", [0.5, 0.75])
@pytest.mark.parametrize("ratios", RATIOS)
def test_the_states_after_the_transitions_are_the_teachers(ratios, compression):
    names = ("features.conv0", "features.transition1", "features.transition2")
    student, teacher = (
        outputs(build_cifar_network(DENSE, compression=compression, **kwargs), *names)
        for kwargs in (ratios, {})
    )
    assert student == teacher


@pytest.mark.parametrize("ratio", [0.5, 2, 3, 4])
def test_depth_is_bought_with_growth(ratio):
    blocks = ("features.denseblock1", "features.denseblock2", "features.denseblock3")
    student, teacher = (
        build_cifar_network(DENSE, **kwargs) for kwargs in ({"depth_ratio": ratio}, {})
    )
    assert outputs(student, *blocks) == outputs(teacher, *blocks)
    units = student.get_submodule(blocks[1]).values()
    growths = [unit.conv2.out_channels for unit in units]
    assert len(growths) == {0.5: 2, 2: 6, 3: 9, 4: 12}[ratio]  # of 3; 1.5 units round up
    assert sum(growths) == 36
    assert max(growths) - min(growths) <= 1


def test_compression_ratio_multiplies_what_a_transition_drops():
    network = built(TEACHER, compression_ratio=1.5)
    for transition, kept in ((1, 458), (2, 679)):  # of 916 and 1358 in the teacher
        conv = network.get_submodule(f"features.transition{transition}.conv")
        assert (conv.in_channels, conv.out_channels) == (4 * kept, kept)
    assert network.num_features == 2 * 1579


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_residual_students_have_the_teachers_states_and_ends(name, stride):
    student, teacher = (build_cifar_network(n, stem_stride=stride) for n in (name, DENSE))
    stages = outputs(student, "stages.0", "stages.1", "stages.2", "norm")
    transitions = outputs(teacher, "features.transition1", "features.transition2")
    assert [shape[1] for shape in stages[:2]] == [shape[1] for shape in transitions]
    sizes = [16 // stride, 8 // stride, 4 // stride]
    assert [shape[-1] for shape in stages] == [*sizes, sizes[-1]]
    assert stages[2][1] == teacher.num_features == student.num_features
    for mine, other in zip(student.ends, teacher.ends, strict=True):
        assert str(mine) == str(other)
    info = [(f["num_chs"], f["reduction"]) for f in student.feature_info]
    assert info == [(16, stride), (26, stride), (31, 2 * stride), (67, 4 * stride)]


def test_a_residual_stage_is_units_of_the_ratio_then_a_convolution():
    half, whole = (built(f"{TEACHER}_wide_2_{ratio}").stages for ratio in ("0.5", "1"))
    assert [len(stage.blocks) for stage in half] == [3, 3, 3]
    assert [len(stage.blocks) for stage in whole] == [2, 2, 3]
    assert [stage.blocks[-2].conv2.out_channels for stage in half] == [229, 340, 394]
    shapes = [tuple(stage.blocks.match.weight.shape[:2]) for stage in half]
    assert shapes == [(458, 229), (679, 340), (1579, 394)]


# Dropout, initialization, loss


@pytest.mark.parametrize("name", [*SMALL, STUDENTS[0]])
def test_dropout_is_active_in_training_only(name):
    x = torch.randn(2, 3, 32, 32)
    plain, dropped = seeded(name), seeded(name, dropout=0.5)
    assert distance(plain, dropped) == 0
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


@pytest.mark.parametrize("name", [*SMALL, *STUDENTS, "test_resnet", "test_vit"])
def test_initialization_is_a_function_of_the_seed(name):
    assert distance(seeded(name, 3), seeded(name, 3)) == 0
    assert distance(seeded(name, 3), seeded(name, 4)) > 0


@pytest.mark.parametrize("name", SMALL)
def test_a_fresh_model_keeps_the_initialization_of_the_network(name):
    torch.manual_seed(5)
    network = timm.create_model(name, num_classes=CLASSES)
    assert distance(seeded(name, 5).network, network) == 0


def test_convolutions_start_from_he_normal_over_the_fan_out():
    """Those of stock timm networks too, where TimmWrapper alone draws all from N(0, 0.02)."""
    wide, stock = seeded("cifar_wrn_16_2").network, seeded("test_resnet").timm_model
    student = seeded(STUDENTS[0]).network
    convolutions = (wide.stem.conv, wide.stages[2].blocks[1].conv2, stock.layer1[0].conv2)
    for conv in (*convolutions, student.ends[0]):
        fan_out = conv.out_channels * 9
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.15)
    assert not student.ends[1].bias.any()


def test_loss_is_the_cross_entropy_and_obeys_num_items_in_batch(tmp_path):
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
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    assert Trainer(model, args).model_accepts_loss_kwargs


# Saving


SAVED = [
    *((name, {}) for name in (*SMALL, *STUDENTS, "test_resnet", "test_vit")),
    (DENSE, {"stem_stride": 2, "dropout": 0.1, **RATIOS[0]}),
    (DENSE, {"compression": 0.75, **RATIOS[-2]}),
]


@pytest.mark.parametrize(("name", "kwargs"), SAVED)
def test_every_weight_learns_and_survives_saving(name, kwargs, tmp_path):
    names = [f"c{i}" for i in range(CLASSES)]
    model = seeded(name, label_names=names, image_mean=MEAN, image_std=STD, **kwargs)
    x = torch.randn(4, 3, 32, 32)
    model.train()(x, labels=torch.arange(4)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert distance(model, loaded) == 0
    assert loaded.config.id2label == dict(enumerate(names))
    assert loaded.config.label2id == {name: i for i, name in enumerate(names)}
    # the weights are equal to the bit; the CPU's kernels may round the last bit of the logits
    # otherwise, because the loaded ones lie in a memory map, off the 64-byte boundary
    torch.testing.assert_close(loaded.eval()(x).logits, model.eval()(x).logits)
    config = AutoConfig.from_pretrained(tmp_path)
    if isinstance(config, CifarNetConfig):
        assert (config.architecture, config.model_args) == (name, kwargs)
        rebuilt = AutoModelForImageClassification.from_config(config)
        assert isinstance(rebuilt, CifarNetForImageClassification)


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
    assert distance(model, CifarNetForImageClassification.from_pretrained(tmp_path)) == 0


@pytest.mark.parametrize("name", ["cifar_wrn_16_1", "test_resnet"])
def test_pipeline_sees_the_normalised_image(name, tmp_path):
    model = seeded(name, label_names=list("abcde"), image_mean=MEAN, image_std=STD).eval()
    model.save_pretrained(tmp_path)
    image_processor(32, MEAN, STD).save_pretrained(tmp_path)
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    classify = pipeline("image-classification", model=str(tmp_path), function_to_apply="none")
    results = classify(Image.fromarray(pixels.numpy()), top_k=5)
    x = (pixels.permute(2, 0, 1) / 255 - torch.tensor(MEAN)[:, None, None]) / (
        torch.tensor(STD)[:, None, None]
    )
    expected = dict(zip("abcde", model(x[None]).logits[0].tolist(), strict=True))
    assert {r["label"]: r["score"] for r in results} == pytest.approx(expected, abs=1e-5)


# Sharing of the ends


def test_shared_ends_stay_the_teachers_while_the_rest_learns(tmp_path):
    student, teacher = seeded(STUDENTS[2], seed=1), seeded(DENSE)
    before = weights(teacher)
    share_ends(student, teacher)
    assert distance(teacher, before) == 0
    assert all(p.requires_grad for p in teacher.parameters())
    start = weights(student)
    trained(student, tmp_path, teacher, Images(16), max_steps=1, weight_decay=0.5)
    for mine, other in zip(student.network.ends, teacher.network.ends, strict=True):
        assert distance(mine, other) == 0
    shared = {id(p) for end in student.network.ends for p in end.parameters()}
    assert len(shared) == 3
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in shared)
        assert torch.equal(parameter, start[name]) == (id(parameter) in shared), name
    first = student.network.ends[0].weight.clone()
    with torch.no_grad():
        teacher.network.ends[0].weight.zero_()
    assert torch.equal(student.network.ends[0].weight, first)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (
            STUDENTS[0],
            {"num_labels": 3},
            r"linear layer .*\(3, 67\).*and .*\(5, 67\).*same num_",
        ),
        (STUDENTS[0], {"num_channels": 1}, r"first convolution is .*\(16, 1, 3, 3\)"),
        (STUDENTS[0], {"compression": 0.75}, "last linear layer is .*compression"),
        ("cifar_wrn_10_1", {}, f"cifar_wrn_10_1.*{DENSE}"),
    ],
)
def test_ends_of_other_shapes_are_refused_and_nothing_is_copied(name, kwargs, message):
    student, teacher = seeded(name, seed=1, **kwargs), seeded(DENSE)
    before = weights(student)
    with pytest.raises(ValueError, match=message):
        share_ends(student, teacher)
    assert distance(student, before) == 0
    assert all(p.requires_grad for p in student.parameters())


def test_a_model_does_not_share_with_itself():
    model = seeded(DENSE)
    with pytest.raises(ValueError, match="same model"):
        share_ends(model, model)


# By name, and errors


def test_timm_knows_the_presets():
    assert set(PRESETS) <= set(timm.list_models("cifar_*"))
    headless = timm.create_model(DENSE, num_classes=0)
    assert headless(torch.randn(1, 3, 32, 32)).shape == (1, headless.num_features)


def test_stock_timm_models_come_at_the_asked_for_size():
    model = seeded("test_vit", num_channels=1, image_size=48, drop_path_rate=0.1)
    assert isinstance(model, TimmWrapperForImageClassification)
    assert model(torch.randn(2, 1, 48, 48)).logits.shape == (2, CLASSES)
    assert model.config.model_args == {"in_chans": 1, "img_size": 48, "drop_path_rate": 0.1}


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("wrn_28_2", {}, "cifar_wrn_28_2"),
        ("resnt18", {}, "resnet18"),
        (f"{DENSE}_wid_2_1", {}, "_wide_UNITS_RATIO"),
        ("cifar_wrn_27_1", {}, "depth .*28"),
        ("cifar_densenet_4_12", {}, "depth"),
        ("cifar_densenet_4_12_wide_1_1", {}, "depth 4"),
        ("cifar_preact_resnet_30", {}, "depth"),
        ("cifar_wrn_4_1", {}, "depth"),
        ("cifar_wrn_16_1", {"num_labels": None}, "give num_labels or label_names"),
        ("cifar_wrn_16_1", {"label_names": ["a", "b"]}, "num_labels is 5, but label_names has 2"),
        (
            "cifar_wrn_16_1",
            {"num_labels": None, "label_names": ["a", "b", "a"]},
            "label_names holds a name twice",
        ),
        ("cifar_wrn_16_1", {"image_mean": MEAN}, "image_mean and image_std go together"),
        (
            "cifar_wrn_16_1",
            {"num_channels": 1, "image_mean": MEAN, "image_std": STD},
            "image_mean has 3 values for num_channels=1",
        ),
        ("cifar_wrn_10_1", {"dropuot": 0.1}, "dropuot: not taken by cifar_wrn_10_1. Did you mean"),
        ("cifar_wrn_10_1", {"compression": 0.5}, "compression: not taken .* dropout, global_pool"),
        (STUDENTS[0], {"depth_ratio": 2}, "depth_ratio.* not taken by"),
        ("test_resnet", {"drop_rat": 0.1}, "drop_rat: not taken by test_resnet. .*'drop_rate'"),
        ("test_resnet", {"in_chans": 1}, "model_args: in_chans is set by num_channels"),
        ("cifar_wrn_10_1", {"in_chans": 1}, "model_args: in_chans is set by num_channels"),
        ("test_resnet", {"num_classes": 3}, "num_classes is set by num_labels or label_names"),
        ("test_resnet", {"pretrained": True}, "pretrained is set by fresh weights"),
        ("test_vit", {"img_size": 28}, "img_size=28, but the images are 32x32: leave img_size out"),
        ("test_vit", {"image_size": 28}, "test_vit cannot read images of 28x28 .*another ima"),
        ("cifar_wrn_10_1", {"stem_stride": 2, "dropout": 2.0}, "dropout probability has to be"),
        (DENSE, {"depth_ratio": 0}, "depth_ratio=0 of 3 units leaves the blocks empty"),
        (DENSE, {"depth_ratio": float("nan")}, "depth_ratio=nan"),
        (DENSE, {"depth_ratio": 20}, "60 units cannot share the 36 channels"),
        (DENSE, {"compression_ratio": 2}, "compression_ratio=2 leaves the fraction 0"),
        (DENSE, {"compression_ratio": -1}, "compression_ratio=-1 leaves the fraction 1.5"),
        (f"{DENSE}_wide_0_1", {}, "0 units at 1 times"),
        (f"{DENSE}_wide_2_0.0", {}, "2 units at 0 times"),
    ],
)
def test_what_cannot_be_built_says_why(name, kwargs, message):
    with pytest.raises(BANError, match=message):
        seeded(name, **kwargs)


def test_a_bug_in_a_network_keeps_its_traceback():
    with pytest.raises(TypeError, match="not supported between"):
        create_classifier("test_vit", num_labels=3, drop_rate="a lot")


@pytest.mark.parametrize("name", ["label_names", "image_size", "num_labels", "words", "name"])
def test_what_the_data_decide_is_not_an_argument(name):
    with pytest.raises(BANError, match=f"model_args: {name}=.*leave it out; it comes from the"):
        check_model_args({"stem_stride": 2, name: 1})
