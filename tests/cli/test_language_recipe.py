"""The language recipe: its configs, a run from end to end, and what is measured of it."""

import json
import math
import os
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from launch import ROOT, launched, run_recipe, trained_family
from table_results import family_rows
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import AutoModelForCausalLM, AutoTokenizer

from ban_hf import BANTrainer, load_text
from ban_hf.cli.recipe import parse_recipe
from ban_hf.data import TextSplits

CONFIGS = ROOT / "recipes" / "configs"
NAMES = ("grammar", "ptb_char_cnn_lstm", "ptb_cpu", "ptb_lstm_1500")
GENERATIONS = ("generation-0", "generation-1", "generation-2")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> tuple[Path, str]:
    """The quickstart in small, with its control, as the README starts it; what it printed."""
    folder = tmp_path_factory.mktemp("smoke")
    options = ["--smoke", "--use_cpu", "--control", "--output_dir", str(folder)]
    return folder, launched("ban_ptb.py", *options)


def results_of(folder: Path) -> dict:
    return family_rows(folder / "results.json")


def log_probabilities(folder: Path, words: torch.Tensor) -> torch.Tensor:
    """Of each word of a text but the first, `(N, V)`, read at once by a saved network."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=words[None, :-1]).logits[0].double().log_softmax(-1)


# The run from end to end


def test_the_smoke_run_leaves_a_family_and_its_report(smoke):
    folder, printed = smoke
    files = {"lineage.json", "results.json", "results.md", "results.png"}
    files |= {"control", "ensemble", "evaluations"}
    pictures = {path.name for path in folder.glob("results-*.png")}
    assert {entry.name for entry in folder.iterdir()} == {*GENERATIONS, *files, *pictures}
    assert printed.startswith("lstm_200 on grammar: a teacher and 2 students")
    assert "| BAN+L-2 " in printed
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    results = results_of(folder)
    assert results["metric"] == "perplexity"
    assert [row["name"] for row in results["generations"]] == ["labels", "BAN+L-1", "BAN+L-2"]
    assert [row["members"] for row in results["ensembles"]] == [[1, 2]]
    assert [row["kind"] for row in results["controls"]] == ["network", "ensemble"]
    for row in results["generations"]:
        assert row["best_validation"]["perplexity"] <= row["validation"]["perplexity"]
    assert "perplexity by generation" in (folder / "results.md").read_text("utf-8")


def test_students_learn_from_labels_too(smoke):
    record = json.loads((smoke[0] / "generation-1" / "lineage.json").read_text("utf-8"))
    assert (record["objective"]["label_weight"], record["objective"]["name"]) == (1, "kd")


@pytest.mark.parametrize("name", GENERATIONS)
def test_each_generation_holds_its_tokenizer(smoke, name):
    tokenizer = AutoTokenizer.from_pretrained(smoke[0] / name)
    splits = load_text("grammar", train_words=60)
    text = tokenizer.decode(splits.test[:50])
    assert tokenizer(text)["input_ids"] == splits.test[:50].tolist()


def test_the_results_are_a_pass_over_the_text_by_hand(smoke):
    folder, _ = smoke
    results, splits = results_of(folder), load_text("grammar", train_words=60)
    targets = splits.test[1:, None]
    logp = {name: log_probabilities(folder / name, splits.test) for name in GENERATIONS}
    mixed = (logp["generation-1"].exp() + logp["generation-2"].exp()) / 2
    rows = [
        (row["test"], logp[name])
        for row, name in zip(results["generations"], GENERATIONS, strict=True)
    ]
    for test, expected in [*rows, (results["ensembles"][0]["test"], mixed.log())]:
        nll = -expected.gather(1, targets).mean().item()
        assert test["nll"] == pytest.approx(nll, rel=1e-5)
        assert test["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
        assert test["n"] == len(splits.test) - 1
        assert test["above_entropy"] == pytest.approx(nll - splits.test_entropy, abs=1e-4)
    argmax = [logp[name].argmax(1) for name in GENERATIONS]
    for k in (1, 2):
        agree = 100 * (argmax[k] == argmax[k - 1]).double().mean().item()
        assert results["generations"][k]["teacher_agreement"] == pytest.approx(agree, abs=0.05)
    assert results["dataset"]["test_entropy"] == pytest.approx(splits.test_entropy)


def test_the_records_tell_the_perplexity_of_the_same_pass(smoke):
    folder, _ = smoke
    rows = [*results_of(folder)["generations"], *results_of(folder)["ensembles"]]
    for name, row in zip((*GENERATIONS, "ensemble"), rows, strict=True):
        record = json.loads((folder / name / "lineage.json").read_text("utf-8"))
        metrics = {metric["name"]: metric["value"] for metric in record["metrics"]}
        assert metrics["perplexity"] == pytest.approx(row["test"]["perplexity"], rel=1e-5), name


@pytest.mark.parametrize("name", NAMES)
def test_every_config_runs_from_end_to_end(tmp_path, name, capsys):
    path = CONFIGS / f"{name}.yaml"
    given = yaml.safe_load(path.read_text("utf-8"))
    run_recipe("ban_ptb", path, "--smoke", "--use_cpu", "--output_dir", tmp_path)
    assert capsys.readouterr().out.startswith(given["model_name"])
    rows = results_of(tmp_path)["generations"]
    assert len(rows) == min(2, given["generations"]) + 1
    assert given["label_weight"] == 1


# Configs


@pytest.mark.parametrize(
    ("name", "factor", "mode", "threshold"),
    [("ptb_lstm_1500", 0.25, "rel", 0), ("ptb_char_cnn_lstm", 0.5, "abs", 0.5)],
)
def test_the_papers_schedule_falls_on_a_plateau(tmp_path, name, factor, mode, threshold):
    config, options = CONFIGS / f"{name}.yaml", ["--use_cpu", "--output_dir", str(tmp_path)]
    argv = [str(config), *options]
    args = parse_recipe("text-generation", argv, quickstart=config).args
    trainer = BANTrainer(torch.nn.Linear(2, 2), args, task="text-generation", eval_dataset=[{}])
    optimizer = torch.optim.SGD(trainer.model.parameters(), args.learning_rate)
    schedule = trainer.create_scheduler(100, optimizer)
    assert isinstance(schedule, ReduceLROnPlateau)
    assert (schedule.mode, schedule.threshold_mode, schedule.threshold) == ("min", mode, threshold)
    assert args.metric_for_best_model == "perplexity"
    rates = []
    for perplexity in (100, 90, 89.8, 89.8):  # falls, falls, falls by less than 0.5, stays
        schedule.step(perplexity)
        rates.append(optimizer.param_groups[0]["lr"] / args.learning_rate)
    falls = [1, 1, 1, factor] if mode == "rel" else [1, 1, factor, factor**2]
    assert rates == pytest.approx(falls)


def test_what_help_says(capsys):
    run_recipe("ban_ptb", "--help")
    printed = capsys.readouterr().out
    assert "recipes/configs/ptb_lstm_1500.yaml" in printed
    for flag in ("--dataset_name", "--train_words", "--window", "--model_args", "--label_weight"):
        assert flag in printed


# The measurement


class Corpus:
    """A text of a few words in a random order, and what a network of `lstm_200` makes of it."""

    words = ("<eos>", "<unk>", "a", "b", "c", "d")

    def __init__(self, train: int, validation: int, test: int) -> None:
        rng = torch.Generator().manual_seed(0)
        parts = [torch.randint(0, 6, (n,), generator=rng) for n in (train, validation, test)]
        self.splits = TextSplits(*parts, words=list(self.words), source={"id": "a/b/corpus"})

    def train(self, folder: Path, **changes):
        defaults = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "max_steps": -1}
        args = tiny.arguments(
            folder, **defaults | {"learning_rate": 5e-5, "optim": "adamw_torch"} | changes
        )
        return trained_family(
            self.splits, args, "lstm_200", model_args={"hidden_size": 4}, window=5
        )


@pytest.mark.parametrize("sizes", [(40, 30, 200), (40, 200, 18), (40, 7, 6)])
def test_a_short_text_is_measured_in_fewer_columns(tmp_path, sizes):
    results = Corpus(*sizes).train(tmp_path, per_device_eval_batch_size=20, eval_strategy="epoch")
    assert [row["test"]["n"] for row in results["generations"]] == [sizes[2] - 1] * 2
    assert "above_entropy" not in results["generations"][0]["test"]
    assert results["dataset"]["name"] == "corpus"


def test_a_training_text_too_short_for_its_columns_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too few for 20 columns of a window of 5"):
        Corpus(40, 30, 30).train(tmp_path, per_device_train_batch_size=20)


def test_the_width_of_a_measurement_makes_no_difference(tmp_path):
    corpus, perplexities = Corpus(400, 30, 900), []
    for columns in (1, 20):
        folder = tmp_path / str(columns)
        results = corpus.train(folder, per_device_eval_batch_size=columns, learning_rate=0.01)
        perplexities.append(results["generations"][0]["test"]["perplexity"])
    assert perplexities[0] != 6
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(window=0), "window=0 and per_device_eval_batch_size=20 must be at least 1"),
        (dict(model_args={"dropout": "a"}), "dropout='a' must be a number"),
        (dict(model_args={"words": ["a"]}), r"model_args: words=.* comes from the data"),
        (dict(model_args={"hidden": 3}), "hidden: not taken by lstm_200. Did you mean"),
        (dict(model_name="lstm_20"), "'lstm_20' is no language model. Did you mean 'lstm_200'"),
        (
            dict(model_name="char_cnn_lstm_small", model_args={"filter_widths": 3}),
            "filter_widths=3 must be a list of whole numbers",
        ),
        (
            dict(
                model_name="char_cnn_lstm_small",
                model_args={"filter_widths": [], "filter_counts": []},
            ),
            "must go together, one or more of each",
        ),
        (dict(window=200), "train text: The text has 300 words: too few for 8 columns"),
    ],
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(changes, message, tmp_path):
    batches = dict(per_device_train_batch_size=8, per_device_eval_batch_size=20)
    args = tiny.arguments(tmp_path / "family", **batches)
    options = dict(model_name="lstm_200", window=5) | changes
    with pytest.raises(ValueError, match=message):
        trained_family(load_text("grammar", train_words=300), args, **options)
    assert not (tmp_path / "family").exists()


@pytest.mark.parametrize("name", ["broken.json", "broken.parquet"])
def test_a_broken_file_is_named(name, tmp_path):
    (tmp_path / name).write_text('{"a": [')
    with pytest.raises(ValueError, match=f"--dataset_name .*{name} cannot be loaded"):
        load_text(str(tmp_path / name))


def test_a_column_of_a_text_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a b\n" * 50)
    with pytest.raises(ValueError, match="text_column='foo': a text file has no"):
        load_text(str(tmp_path / "a.txt"), text_column="foo")


def test_a_built_in_name_is_not_suggested_for_itself(monkeypatch):
    monkeypatch.setenv("BAN_HF_DATA", os.devnull)
    with pytest.raises(ValueError, match="--dataset_name ptb cannot be loaded") as error:
        load_text("ptb")
    assert "Did you mean" not in str(error.value)
