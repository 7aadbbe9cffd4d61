"""The measurement: every row is what the saved models give by hand."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from ban_hf.jobs.measurement import ImageTest, TextTest
from family import network, train, views
from transformers import (
    AutoModelForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from ban_hf import BornAgainEnsemble, TokenWindows, create_language_model
from ban_hf.jobs.evaluation import measure_family
from ban_hf.lineage.files import read_json, write_json
from ban_hf.lineage.record import RECORD
from ban_hf.tasks.heads import load_classifier

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


def test_what_was_pulled_has_no_log_and_is_measured_the_same(folder, tmp_path):
    pulled = Path(shutil.copytree(folder, tmp_path / "pulled"))
    for log in pulled.glob("generation-*/training_log.json"):
        log.unlink()
    expected, found = (measure_family(path, TEST) for path in (folder, pulled))
    for before, row in zip(expected["generations"], found["generations"], strict=True):
        assert row["test"] == before["test"]
        assert row["train_loss"] is None
        assert not {"validation", "best_validation"} & row.keys()
    assert found["ensembles"] == expected["ensembles"]


def test_a_family_may_begin_with_a_later_generation(folder, controls, tmp_path):
    later = Path(shutil.copytree(folder, tmp_path / "later"))
    shutil.rmtree(later / "generation-0")
    record = read_json(later / "generation-1" / RECORD)
    record["seed"]["family_seed"], record["training"]["hardware"] = 99, "another machine"
    write_json(later / "generation-1" / RECORD, record)
    results, whole = measure_family(later, TEST, controls=controls), measure_family(folder, TEST)
    assert [row["generation"] for row in results["generations"]] == [1, 2, 3]
    assert results["generations"][1:] == whole["generations"][2:]
    (row,) = results["ensembles"]
    assert (row["name"], row["members"]) == ("Ens*2 of generations 2-3", [2, 3])
    members = [probabilities(folder / f"generation-{k}") for k in (2, 3)]
    assert_measures(row["test"], sum(members) / 2)
    # Generation 1 is no label-trained network: it is not among the controls.
    names = [row["name"] for row in results["controls"]]
    assert names == [
        "labels again, network 1",
        "labels again, network 2",
        "Ens*2 of label-trained networks",
    ]
    assert (results["seed"], results["hardware"]) == (whole["seed"], whole["hardware"])


@torch.no_grad()
def test_members_may_have_weights(folder):
    test = ImageTest(TEST, 10)
    members = [test.predict(load_classifier(folder / f"generation-{k}")) for k in (1, 2)]
    mean = sum(w * m.softmax(1) for w, m in zip((0.75, 0.25), members, strict=True))
    assert_measures(test.metrics(members, (3, 1)), mean)
    assert test.metrics(members, (2, 2)) == test.metrics(members)


# Texts


def language_model(kind: str, seed: int) -> PreTrainedModel:
    """A network whose predictions are far from uniform: an LSTM, or a transformer."""
    torch.manual_seed(seed)
    if kind == "lstm":
        return create_language_model(
            "lstm_200", vocab_size=WORDS, hidden_size=6, initializer_range=1.0
        ).eval()
    sizes = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=0.5)
    return GPT2LMHeadModel(config).eval()


WORDS = 11
TEXT = torch.randint(0, WORDS, (311,), generator=torch.Generator().manual_seed(7))


def text_test(columns: int, window: int = 7, **changes) -> TextTest:
    return TextTest(TokenWindows(TEXT, columns, window=window, warmup=3 * window), **changes)


def read_whole(model: PreTrainedModel) -> torch.Tensor:
    """Probabilities `(N, V)` of what follows each word but the last, read at once."""
    with torch.no_grad():
        return model(input_ids=TEXT[None, :-1]).logits[0].double().softmax(-1)


def test_perplexity_is_that_of_one_pass():
    model, test = language_model("lstm", 0), text_test(columns=1, entropy=1.5)
    reading, expected = test.predict(model), read_whole(model)
    metrics = test.metrics([reading])
    nll = sum(-math.log(p[y]) for p, y in zip(expected, TEXT[1:], strict=True)) / 310
    assert metrics["nll"] == pytest.approx(nll, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(nll), rel=1e-6)
    assert metrics["above_entropy"] == pytest.approx(nll - 1.5, rel=1e-6)
    assert metrics["n"] == 310
    assert torch.equal(reading.predicted, expected.argmax(1))


def test_perplexity_does_not_depend_on_the_columns():
    model = language_model("lstm", 0)
    found = [text_test(c).metrics([text_test(c).predict(model)]) for c in (1, 2, 5, 9)]
    assert {metrics["n"] for metrics in found} == {310}
    for metrics in found:
        assert metrics["perplexity"] == pytest.approx(found[0]["perplexity"], rel=1e-3)


def test_an_ensemble_of_language_models_mixes_probabilities():
    models, test = [language_model("lstm", seed) for seed in (0, 1, 2)], text_test(columns=1)
    mean = sum(read_whole(model) for model in models) / 3
    nll = -mean.gather(1, TEXT[1:, None]).log().mean().item()
    metrics = test.metrics([test.predict(model) for model in models])
    assert metrics["nll"] == pytest.approx(nll, rel=1e-6)
    assert "above_entropy" not in metrics
    together = test.metrics([test.predict(BornAgainEnsemble.from_members(models))])
    assert together["nll"] == pytest.approx(nll, rel=1e-5)


def test_weights_of_language_models_are_those_of_the_probabilities():
    models, test = [language_model("lstm", seed) for seed in (0, 1, 2)], text_test(columns=1)
    readings, weights = [test.predict(model) for model in models], (1, 3, 0)
    mean = (read_whole(models[0]) + 3 * read_whole(models[1])) / 4
    nll = -mean.gather(1, TEXT[1:, None]).log().mean().item()
    assert test.metrics(readings, weights)["nll"] == pytest.approx(nll, rel=1e-6)
    assert test.metrics(readings, (0, 1, 0)) == test.metrics(readings[1:2])
    together = BornAgainEnsemble.from_members(models, weights)
    assert test.metrics([test.predict(together)])["nll"] == pytest.approx(nll, rel=1e-5)


def test_a_transformer_reads_each_window_for_itself():
    model, test = language_model("gpt2", 0), text_test(columns=1, window=31)
    with torch.no_grad():
        logits = model(input_ids=TEXT[:-1].view(10, 31)).logits.flatten(0, 1)  # (N, V)
    nll = torch.nn.functional.cross_entropy(logits, TEXT[1:]).item()
    assert test.metrics([test.predict(model)])["nll"] == pytest.approx(nll, rel=1e-5)


def test_agreement_of_readings_is_that_of_the_most_likely_words():
    test = text_test(columns=1)
    first, second = (test.predict(language_model("lstm", seed)) for seed in (0, 1))
    assert test.agreement(first, first) == 100
    same = sum(int(a == b) for a, b in zip(first.predicted, second.predicted, strict=True))
    assert test.agreement(first, second) == pytest.approx(100 * same / 310)
