"""The measurement: every figure is what the saved models give by hand."""

import math
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from family import families, network, views
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    default_data_collator,
)

from ban_hf import (
    BornAgainEnsemble,
    TokenWindows,
    collate,
    create_language_model,
)
from ban_hf.jobs.evaluation import Evaluation, evaluate
from ban_hf.lineage.record import LOG
from ban_hf.lineage.results import Entry, Results
from ban_hf.tasks.auto import task_of

TEST = views(33, seed=2, augment=False)
PIXELS = TEST.__getitems__(range(33))["pixel_values"]
LABELS = torch.as_tensor(TEST.labels)


def decided(generation: int):
    """A network that predicts many classes, unlike one that has hardly been trained."""
    model = network(generation).eval()
    with torch.no_grad():
        logits = model(pixel_values=PIXELS).logits  # (N, C)
        spread = 2 / logits.std(0).mean()
        model.classifier.weight.mul_(spread)
        model.classifier.bias.copy_(-spread * logits.mean(0))
    return model


def probabilities(model: PreTrainedModel | Path) -> torch.Tensor:
    if isinstance(model, Path):
        model = AutoModelForImageClassification.from_pretrained(model)
    with torch.no_grad():
        return model.eval()(pixel_values=PIXELS).logits.double().softmax(1)


def assert_measures(test: dict, mean: torch.Tensor) -> None:
    """Error, NLL and ECE, from the probabilities `(N, C)`, in other words than the package's."""
    top, predicted = mean.max(1)
    wrong = sum(int(p) != int(y) for p, y in zip(predicted, LABELS, strict=True))
    nll = sum(-p[y].log().item() for p, y in zip(mean, LABELS, strict=True)) / 33
    assert test["error"] == pytest.approx(100 * wrong / 33)
    assert test["nll"] == pytest.approx(nll, rel=1e-5)
    gaps = 0.0
    for b in range(15):
        inside = (top > b / 15) & (top <= (b + 1) / 15)
        right = (predicted == LABELS)[inside].sum().item()
        gaps += abs(right - top[inside].sum().item())
    assert test["ece"] == pytest.approx(100 * gaps / 33, rel=1e-5)
    assert test["n"] == 33


# Images


def evaluated(*models: PreTrainedModel, **options) -> Evaluation:
    loader = DataLoader(TEST, 10, collate_fn=collate)
    return evaluate(models, [loader] * len(models), task_of(models[0]), **options)


def fresh(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return decided(seed)


def test_a_network_is_measured_beside_its_teacher():
    model, teacher = fresh(0), fresh(1)
    found = evaluated(model.train(), teacher=teacher)
    mine, theirs = probabilities(model), probabilities(teacher)
    assert_measures(found.metrics(), mine)
    agree = (mine.argmax(1) == theirs.argmax(1)).double().mean().item()
    kl = (theirs * (theirs / mine).log()).sum(1).mean().item()
    assert found.metrics()["teacher_agreement"] == pytest.approx(100 * agree)
    assert found.metrics()["teacher_kl"] == pytest.approx(kl, rel=1e-5)
    assert 0 < agree < 1
    itself = evaluated(model, teacher=model).metrics()
    assert (itself["teacher_agreement"], itself["teacher_kl"]) == (100, 0)
    assert "teacher_kl" not in evaluated(model).metrics()
    assert found.reliability()[:, 0].sum() == 33
    assert found.predicted.tolist() == mine.argmax(1).tolist()


def test_members_may_have_weights():
    models = [fresh(seed) for seed in (0, 1, 2)]
    mean = sum(w * probabilities(m) for w, m in zip((0.25, 0.75, 0), models, strict=True))
    assert_measures(evaluated(*models, weights=(0.25, 0.75, 0)).metrics(), mean)
    assert_measures(evaluated(*models).metrics(), sum(map(probabilities, models)) / 3)
    one = evaluated(*models, weights=(0, 1, 0)).metrics()
    assert one == pytest.approx(evaluated(models[1]).metrics())


def test_a_test_set_without_labels_is_refused():
    model, images = fresh(0), DataLoader(tiny.Images(4, labels=False), 4)
    with pytest.raises(ValueError, match="the test set has no labels"):
        evaluate([model], [images], task_of(model))


# Texts


def language_model(kind: str, seed: int) -> PreTrainedModel:
    """A network whose predictions are far from uniform: an LSTM, or a transformer."""
    torch.manual_seed(seed)
    if kind == "lstm":
        return create_language_model(
            "lstm_200", vocab_size=WORDS, hidden_size=6, initializer_range=1.0
        ).eval()
    sizes = {"vocab_size": WORDS, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).eval()


WORDS = 11
TEXT = torch.randint(0, WORDS, (311,), generator=torch.Generator().manual_seed(7))


def reading(*models: PreTrainedModel, columns: int = 1, window: int = 7, **options) -> Evaluation:
    text = TokenWindows(TEXT, columns, window=window, warmup=3 * window)
    loader = DataLoader(text, columns, collate_fn=default_data_collator)
    return evaluate(models, [loader], task_of(models[0]), in_order=True, **options)


def read_whole(model: PreTrainedModel) -> torch.Tensor:
    """Probabilities `(N, V)` of what follows each word but the last, read at once."""
    with torch.no_grad():
        return model(input_ids=TEXT[None, :-1]).logits[0].double().softmax(-1)


def nll_of(mean: torch.Tensor) -> float:
    return -mean.gather(1, TEXT[1:, None]).log().mean().item()


def test_perplexity_is_that_of_one_pass():
    model = language_model("lstm", 0)
    found, expected = reading(model), read_whole(model)
    metrics, nll = found.metrics(entropy=1.5), nll_of(expected)
    assert metrics["nll"] == pytest.approx(nll, rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(math.exp(nll), rel=1e-6)
    assert metrics["above_entropy"] == pytest.approx(nll - 1.5, rel=1e-6)
    assert metrics["n"] == 310
    assert "above_entropy" not in found.metrics()
    assert torch.equal(found.predicted, expected.argmax(1))


def test_perplexity_does_not_depend_on_the_columns():
    model = language_model("lstm", 0)
    found = [reading(model, columns=c).metrics() for c in (1, 2, 5, 9)]
    assert {metrics["n"] for metrics in found} == {310}
    for metrics in found:
        assert metrics["perplexity"] == pytest.approx(found[0]["perplexity"], rel=1e-3)
    for columns in (1, 3, 10):  # in the text's order
        assert reading(model, columns=columns).labels.tolist() == TEXT[1:].tolist()


@pytest.mark.parametrize("weights", [None, (0.25, 0.75, 0)])
def test_an_ensemble_of_language_models_mixes_probabilities(weights):
    models = [language_model("lstm", seed) for seed in (0, 1, 2)]
    shares = weights or (1 / 3,) * 3
    nll = nll_of(sum(w * read_whole(m) for w, m in zip(shares, models, strict=True)))
    assert reading(*models, weights=weights).metrics()["nll"] == pytest.approx(nll, rel=1e-6)
    together = BornAgainEnsemble.from_members(models, weights)
    assert reading(together).metrics()["nll"] == pytest.approx(nll, rel=1e-5)


def test_a_transformer_reads_each_window_for_itself():
    model = language_model("gpt2", 0)
    with torch.no_grad():
        logits = model(input_ids=TEXT[:-1].view(10, 31)).logits.flatten(0, 1)  # (N, V)
    nll = torch.nn.functional.cross_entropy(logits, TEXT[1:]).item()
    assert reading(model, window=31).metrics()["nll"] == pytest.approx(nll, rel=1e-5)


def test_agreement_with_a_teacher_is_that_of_the_most_likely_words():
    model, teacher = language_model("lstm", 0), language_model("lstm", 1)
    found = reading(model, columns=2, teacher=teacher).metrics()
    mine, theirs = (reading(each, columns=2).predicted for each in (model, teacher))
    assert found["teacher_agreement"] == pytest.approx(100 * (mine == theirs).double().mean())
    assert found["n"] == 310


# A family


def trained(folder: Path, generations: int, **changes) -> Results:
    """A family of networks that stay as they begin, trained unless it is there, and reported."""
    options = {"model_init": decided, "test_dataset": TEST, "learning_rate": 1e-12}
    options |= {"eval_strategy": "epoch", "save_strategy": "no"}
    return families(folder, "kd", generations, **options | changes).run()


def entries(results: Results) -> dict[str, Entry]:
    return {entry.column: entry for entry in results.entries}


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> tuple[Path, Results]:
    """Generations 0 to 3 and two label-trained networks. Not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    return folder, trained(folder, 3, control=True)


def test_each_generation_is_measured(measured):
    folder, results = measured
    names = [f"generation-{k}" for k in range(4)]
    found = [entries(results)[name] for name in names]
    columns = {column.name: column for column in results.columns}
    assert [columns[name].heading for name in names] == ["labels", "BAN-1", "BAN-2", "BAN-3"]
    assert len({entry.test["error"] for entry in found}) > 1
    assert (results.seeds, bool(results.hardware), "torch" in results.versions) == (
        (3,),
        True,
        True,
    )
    for k, entry in enumerate(found):
        mine = probabilities(folder / names[k])
        assert_measures(entry.test, mine)
        assert entry.seconds >= 0
        assert 0 < entry.train_loss < 10
        assert entry.best_validation["error"] <= entry.validation["error"]
        if k:
            theirs = probabilities(folder / names[k - 1])
            agree = (mine.argmax(1) == theirs.argmax(1)).double().mean().item()
            assert entry.teacher_agreement == pytest.approx(100 * agree)
        else:
            assert entry.teacher_agreement is None


def test_ensembles_are_those_of_the_first_two_students_and_more(measured):
    folder, results = measured
    found = entries(results)
    each = [probabilities(folder / f"generation-{k}") for k in range(4)]
    assert_measures(found["ensemble-1-2"].test, sum(each[1:3]) / 2)
    assert_measures(found["ensemble-1-2-3"].test, sum(each[1:]) / 3)
    assert_measures(found["ensemble-1-2-3"].test, probabilities(folder / "ensemble"))
    # That of all is the saved one, which is not measured again.
    measured_apart = {path.stem for path in (folder / "evaluations").glob("ensemble*")}
    assert measured_apart == {"ensemble", "ensemble-of-2"}
    columns = {column.name: column.heading for column in results.columns}
    assert columns["ensemble-1-2-3"] == "Ens*3 of generations 1-3"


def test_controls_are_label_trained_networks_and_their_ensembles_with_generation_0(measured):
    folder, results = measured
    homes = (folder, folder / "control" / "1", folder / "control" / "2")
    first, *labels = (probabilities(home / "generation-0") for home in homes)
    expected = {
        "labels-network-2": labels[0],
        "labels-network-3": labels[1],
        "labels-ensemble-2": (first + labels[0]) / 2,
        "labels-ensemble-3": (first + labels[0] + labels[1]) / 3,
    }
    assert [c.name for c in results.columns if c.kind == "control"] == list(expected)
    for name, mean in expected.items():
        assert_measures(entries(results)[name].test, mean)


def test_a_family_is_measured_the_same_without_its_log_and_its_measurements(measured, tmp_path):
    """As it is where it was pulled."""
    folder, expected = measured
    pulled = Path(shutil.copytree(folder, tmp_path / "pulled"))
    for log in pulled.rglob(LOG):
        log.unlink()
    shutil.rmtree(pulled / "evaluations")
    found = entries(trained(pulled, 3, control=True))
    for column, before in entries(expected).items():
        assert found[column].test == before.test
        assert found[column].teacher_agreement == before.teacher_agreement
        assert found[column].train_loss is found[column].validation is None


def test_what_was_measured_of_other_members_is_not_taken_for_an_ensemble(measured, tmp_path):
    """With more students, and with another control, ensembles of two have other members."""
    folder = tmp_path / "family"
    results = trained(folder, 1, dataset=None)
    assert results.dataset["name"] == "data of unknown name"
    each = [folder / f"generation-{k}" for k in range(3)]
    found = entries(results)["ensemble-0-1"]
    assert_measures(found.test, sum(map(probabilities, each[:2])) / 2)
    assert_measures(found.test, probabilities(folder / "ensemble"))
    for seed in (10, 11):
        trained(tmp_path / str(seed), 0, seed=seed)
        given = {"control_from": [str(tmp_path / str(seed))]}
        results = entries(trained(folder, 2, **given))
        assert_measures(results["ensemble-1-2"].test, sum(map(probabilities, each[1:])) / 2)
        both = probabilities(each[0]) + probabilities(tmp_path / str(seed) / "generation-0")
        assert_measures(results["labels-ensemble-2"].test, both / 2)


def test_a_family_may_begin_with_a_later_generation(published, tmp_path):
    results = trained(tmp_path / "later", 2, teacher="ns/fam-gen1")
    assert list(entries(results)) == [*(f"generation-{k}" for k in (1, 2, 3)), "ensemble-2-3"]
    each = [probabilities(tmp_path / "later" / f"generation-{k}") for k in (1, 2, 3)]
    for k, mine in enumerate(each, 1):
        assert_measures(entries(results)[f"generation-{k}"].test, mine)
    assert_measures(entries(results)["ensemble-2-3"].test, sum(each[1:]) / 2)
    assert results.seeds == (3,)


def test_sentences_are_each_read_from_an_empty_state():
    """One after another, as by itself: the state of a batch does not go on into the next."""
    model = language_model("lstm", 0)
    sentences = [{"input_ids": row, "labels": row} for row in TEXT[:300].view(10, 30)]

    def read(size: int) -> torch.Tensor:
        loader = DataLoader(sentences, size, collate_fn=default_data_collator)
        return evaluate([model], [loader], task_of(model)).losses

    assert read(2) == pytest.approx(read(1), abs=1e-6)
    assert read(3) == pytest.approx(read(1), abs=1e-6)
