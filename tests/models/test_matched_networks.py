"""The students of other shapes in Tables 4 and 5 of the paper, and the layers that they share."""

import re

import pytest
import torch
from timm.models.densenet import DenseTransition
from tiny import CLASSES, Images, distance, trained, weights
from torch import nn
from transformers import AutoModelForImageClassification

from ban_hf.jobs.table import Table
from ban_hf.models import cifar_networks, create_classifier, share_ends
from ban_hf.models.cifar_networks import CifarDenseNet, MatchedResNet, build_cifar_network

TEACHER = "cifar_densenet_90_60"
SMALL = "cifar_densenet_22_12"
STUDENTS = tuple(f"{SMALL}_{kind}" for kind in ("wide_1_1", "wide_2_0.5", "preact_2_0.5"))
RATIOS = [
    *({"depth_ratio": ratio} for ratio in (0.5, 2, 3, 4)),
    *({"compression_ratio": ratio} for ratio in (0.5, 0.75, 1.5)),
]

# parameters at 100 classes: name after the teacher's, arguments, ours, the paper's in millions
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


def classifier(name: str, seed: int = 0, **kwargs):
    torch.manual_seed(seed)
    return create_classifier(name, **{"num_labels": CLASSES, **kwargs})


def outputs(network: nn.Module, *names: str) -> list[torch.Size]:
    """The shapes that the named modules hand on for an image of 16x16 pixels."""
    seen: list[torch.Size] = []
    for name in names:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    network.eval()(torch.randn(1, 3, 16, 16))
    return seen


@pytest.mark.parametrize(("suffix", "kwargs", "expected"), COUNTS)
def test_parameters(suffix, kwargs, expected):
    with torch.device("meta"):
        network = build_cifar_network(TEACHER + suffix, **kwargs)
    assert sum(p.numel() for p in network.parameters()) == expected


def millions(*modules: nn.Module) -> float:
    return round(sum(p.numel() for module in modules for p in module.parameters()) / 1e6, 2)


def test_the_counts_that_notes_of_tables_4_and_5_give_of_another_teacher(monkeypatch):
    """Of 14 units a block and 120 channels into the first."""
    monkeypatch.setattr(cifar_networks, "STEM_CHANNELS", 120)
    depths, wide = [], []
    with torch.device("meta"):
        for ratio in (0.5, 2, 3, 4):
            network = CifarDenseNet(14, 60, depth_ratio=ratio)
            network.features.norm5 = nn.BatchNorm2d(750)
            network.classifier = nn.Linear(750, 100)
            depths.append(millions(network, DenseTransition(1500, 750)))
        for units, ratio in ((1, 1), (2, 1), (4, 0.5), (4, 1)):
            student = MatchedResNet(units, ratio, (480, 660, 750), 1500, basic=True)
            wide.append(millions(student.stages, student.norm))
    for table, counts in (("table4", depths), ("table5", wide)):
        note = Table(table, "paper").spec["note"]
        assert re.findall(r"\d+\.\d\d", note) == [f"{count:.2f}" for count in counts]
        rows = list(Table(table, "paper").rows.values())
        papers = [row["paper_parameters"]["ban"] for row in rows]
        papers = papers[:4] if table == "table4" else papers[2:]
        assert counts == pytest.approx(papers, rel=float(re.search(r"(\S+) %", note)[1]) / 100)


@pytest.mark.parametrize("compression", [0.5, 0.75])
@pytest.mark.parametrize("ratios", RATIOS)
def test_the_states_after_the_transitions_are_the_teachers(ratios, compression):
    names = ("features.conv0", "features.transition1", "features.transition2")
    student, teacher = (
        outputs(build_cifar_network(SMALL, compression=compression, **kwargs), *names)
        for kwargs in (ratios, {})
    )
    assert student == teacher


@pytest.mark.parametrize("ratio", [0.5, 2, 3, 4])
def test_depth_is_bought_with_growth(ratio):
    blocks = ("features.denseblock1", "features.denseblock2", "features.denseblock3")
    student, teacher = (
        build_cifar_network(SMALL, **kwargs) for kwargs in ({"depth_ratio": ratio}, {})
    )
    assert outputs(student, *blocks) == outputs(teacher, *blocks)
    units = student.get_submodule(blocks[1]).values()
    growths = [unit.conv2.out_channels for unit in units]
    assert len(growths) == {0.5: 2, 2: 6, 3: 9, 4: 12}[ratio]  # of 3; 1.5 units round up
    assert sum(growths) == 36
    assert max(growths) - min(growths) <= 1


def test_compression_ratio_multiplies_what_a_transition_drops():
    with torch.device("meta"):
        network = build_cifar_network(TEACHER, compression_ratio=1.5)
    for transition, kept in ((1, 458), (2, 679)):  # of 916 and 1358 in the teacher
        conv = network.get_submodule(f"features.transition{transition}.conv")
        assert (conv.in_channels, conv.out_channels) == (4 * kept, kept)
    assert network.num_features == 2 * 1579


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_residual_students_have_the_teachers_states_and_ends(name, stride):
    student, teacher = (build_cifar_network(n, stem_stride=stride) for n in (name, SMALL))
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
    with torch.device("meta"):
        half, whole = (build_cifar_network(f"{TEACHER}_wide_2_{r}").stages for r in ("0.5", "1"))
    assert [len(stage.blocks) for stage in half] == [3, 3, 3]
    assert [len(stage.blocks) for stage in whole] == [2, 2, 3]
    assert [stage.blocks[-2].conv2.out_channels for stage in half] == [229, 340, 394]
    shapes = [tuple(stage.blocks.match.weight.shape[:2]) for stage in half]
    assert shapes == [(458, 229), (679, 340), (1579, 394)]


CASES = [(SMALL, RATIOS[0]), (SMALL, RATIOS[-1]), *((name, {}) for name in STUDENTS)]


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_every_weight_learns_and_survives_saving(name, kwargs, tmp_path):
    model = classifier(name, num_channels=1, dropout=0.1, **kwargs)
    x = torch.randn(4, 1, 16, 16)
    model(x, labels=torch.arange(4)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.model_args == {"dropout": 0.1, **kwargs}
    assert distance(model, loaded) == 0
    torch.testing.assert_close(loaded.eval()(x).logits, model.eval()(x).logits)


@pytest.mark.parametrize("name", STUDENTS)
def test_initialisation_is_a_function_of_the_seed(name):
    assert distance(classifier(name), classifier(name)) == 0
    assert distance(classifier(name), classifier(name, seed=1)) > 0
    first, last = classifier(name).network.ends
    assert first.weight.std().item() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.15)
    assert not last.bias.any()


def test_dropout_of_a_residual_student_is_active_in_training_only():
    plain, dropped = (classifier(STUDENTS[0], dropout=p) for p in (0.0, 0.5))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain.eval()(x).logits, dropped.eval()(x).logits)
    dropped.train()
    assert not torch.equal(dropped(x).logits, dropped(x).logits)


def test_shared_ends_stay_the_teachers_while_the_rest_learns(tmp_path):
    student, teacher = classifier(STUDENTS[2], seed=1), classifier(SMALL)
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


def test_shared_ends_are_copies():
    student, teacher = classifier(STUDENTS[0], seed=1), classifier(SMALL)
    share_ends(student, teacher)
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
        ("cifar_wrn_10_1", {}, f"cifar_wrn_10_1.*{SMALL}"),
    ],
)
def test_ends_of_other_shapes_are_refused_and_nothing_is_copied(name, kwargs, message):
    student, teacher = classifier(name, seed=1, **kwargs), classifier(SMALL)
    before = weights(student)
    with pytest.raises(ValueError, match=message):
        share_ends(student, teacher)
    assert distance(student, before) == 0
    assert all(p.requires_grad for p in student.parameters())


def test_a_model_does_not_share_with_itself():
    model = classifier(SMALL)
    with pytest.raises(ValueError, match="same model"):
        share_ends(model, model)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        (SMALL, {"depth_ratio": 0}, "depth_ratio=0 of 3 units leaves the blocks empty"),
        (SMALL, {"depth_ratio": float("nan")}, "depth_ratio=nan"),
        (SMALL, {"depth_ratio": 20}, "60 units cannot share the 36 channels"),
        (SMALL, {"compression_ratio": 2}, "compression_ratio=2 leaves the fraction 0"),
        (SMALL, {"compression_ratio": -1}, "compression_ratio=-1 leaves the fraction 1.5"),
        (STUDENTS[0], {"depth_ratio": 2}, "depth_ratio.* not taken by"),
        (f"{SMALL}_wide_0_1", {}, "0 units at 1 times"),
        (f"{SMALL}_wide_2_0.0", {}, "2 units at 0 times"),
        ("cifar_densenet_4_12_wide_1_1", {}, "depth 4"),
        (f"{SMALL}_wid_2_1", {}, "_wide_UNITS_RATIO"),
    ],
)
def test_what_cannot_be_built_says_why(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        classifier(name, **kwargs)
