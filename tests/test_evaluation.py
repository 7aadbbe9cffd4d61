"""The measurement: every row is what the saved models give by hand."""

from pathlib import Path

import pytest
import torch
from family import network, train, views
from transformers import AutoModelForImageClassification

from ban_hf.evaluation import measure_family

TEST = views(33, seed=2, augment=False)
PIXELS = TEST.__getitems__(range(33))["pixel_values"]


def decided(generation: int):
    """A network that says many things, unlike one that has hardly been trained."""
    model = network(generation).eval()
    with torch.no_grad():
        logits = model(pixel_values=PIXELS).logits  # (N, C)
        spread = 2 / logits.std(0).mean()
        model.classifier.weight.mul_(spread)
        model.classifier.bias.copy_(-spread * logits.mean(0))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Generations 0 to 3, and two label-trained networks. Not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    few = {"model_init": decided, "learning_rate": 1e-12}
    train(folder, 3, **few)
    for number in (1, 2):
        train(folder / "control" / str(number), 0, seed=10 + number, **few)
    return folder


@pytest.fixture(scope="module")
def controls(folder) -> list[Path]:
    return [folder / "control" / "1", folder / "control" / "2"]


def probabilities(folder: Path) -> torch.Tensor:
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        return model(pixel_values=PIXELS).logits.softmax(1)


def assert_measures(row: dict, mean: torch.Tensor) -> None:
    """Error and NLL, from the probabilities `(N, C)`, in other words than the package's."""
    wrong = sum(int(p.argmax()) != int(y) for p, y in zip(mean, TEST.labels, strict=True))
    nll = sum(-p[y].log().item() for p, y in zip(mean, TEST.labels, strict=True)) / 33
    assert row["error"] == pytest.approx(100 * wrong / 33)
    assert row["nll"] == pytest.approx(nll, rel=1e-5)
    assert 0 <= row["ece"] <= 100
    assert row["n"] == 33


def test_each_generation_is_measured(folder):
    rows = measure_family(folder, TEST, batch_size=10)["generations"]
    assert [row["name"] for row in rows] == ["labels", "BAN-1", "BAN-2", "BAN-3"]
    assert len({row["test"]["error"] for row in rows}) > 1
    assert len({row["teacher_agreement"] for row in rows[1:]}) == 3
    for k, row in enumerate(rows):
        mine = probabilities(folder / f"generation-{k}")
        assert_measures(row["test"], mine)
        assert row["generation"] == k
        assert row["seconds"] >= 0
        assert 0 < row["train_loss"] < 10
        assert row["best_validation"]["error"] <= row["validation"]["error"]
        if k:
            teacher = probabilities(folder / f"generation-{k - 1}")
            agree = (mine.argmax(1) == teacher.argmax(1)).double().mean().item()
            assert row["teacher_agreement"] == pytest.approx(100 * agree)
        else:
            assert "teacher_agreement" not in row


def test_ensembles_are_those_of_the_first_two_students_and_more(folder):
    rows = measure_family(folder, TEST)["ensembles"]
    assert [row["members"] for row in rows] == [[1, 2], [1, 2, 3]]
    assert rows[1]["name"] == "Ens*3 of generations 1-3"
    for row in rows:
        members = [probabilities(folder / f"generation-{k}") for k in row["members"]]
        assert_measures(row["test"], sum(members) / len(members))
    assert_measures(rows[-1]["test"], probabilities(folder / "ensemble"))


def test_one_student_is_measured_with_its_teacher(tmp_path):
    train(tmp_path, 1)
    (row,) = measure_family(tmp_path, TEST)["ensembles"]
    assert (row["name"], row["members"]) == ("Ens*2 of generations 0-1", [0, 1])
    assert_measures(row["test"], probabilities(tmp_path / "ensemble"))


def test_a_teacher_alone_has_no_ensemble(controls):
    results = measure_family(controls[0], TEST)
    assert (len(results["generations"]), results["ensembles"], results["controls"]) == (1, [], [])


def test_controls_are_label_trained_networks_and_their_ensembles_with_generation_0(
    folder, controls
):
    rows = measure_family(folder, TEST, controls=controls)["controls"]
    networks = [folder / "generation-0", *(control / "generation-0" for control in controls)]
    expected = [
        ("network", 1, networks[1:2]),
        ("network", 1, networks[2:3]),
        ("ensemble", 2, networks[:2]),
        ("ensemble", 3, networks),
    ]
    for row, (kind, size, members) in zip(rows, expected, strict=True):
        assert (row["kind"], row["size"]) == (kind, size)
        mean = sum(probabilities(member) for member in members) / size
        assert_measures(row["test"], mean)
    assert len({row["name"] for row in rows}) == 4


def test_no_controls_give_no_rows(folder):
    results = measure_family(folder, TEST)
    assert results["controls"] == []
    assert results["seed"] == 3
    assert results["hardware"]
    assert "torch" in results["versions"]
