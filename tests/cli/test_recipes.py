"""The recipes: their files and flags are checked, they run from end to end, and measure."""

import json
import math
import os
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from family import identities
from launch import ROOT, launched, run_recipe, trained_family
from table_results import family_rows
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import AutoModelForCausalLM, AutoTokenizer

from ban_hf import BANTrainer, load_images, load_text
from ban_hf.cli.recipe import FamilyArguments, Recipe, parse_recipe
from ban_hf.data import TextSplits
from ban_hf.models.cifar_networks import is_cifar_name
from ban_hf.tasks.auto import load_model

CONFIGS = sorted((ROOT / "recipes" / "configs").glob("*.yaml"))
SMOKE = ("--smoke", "--use_cpu", "--output_dir")
GENERATIONS = ("generation-0", "generation-1", "generation-2")


def results_of(folder: Path) -> dict:
    return family_rows(folder / "results.json")


# Files and flags


def parse(tmp_path, *argv) -> Recipe:
    """The run of a command line, where the quickstart is of resnet10t."""
    (tmp_path / "quick.yaml").write_text("model_name: resnet10t\nreport_to: none\n")
    words = [*map(str, argv), "--use_cpu"]
    quickstart = tmp_path / "quick.yaml"
    return parse_recipe("image-classification", words, quickstart=quickstart)


def config(tmp_path, text) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_without_arguments_it_is_the_quickstart(tmp_path):
    recipe = parse(tmp_path)
    assert recipe.family == FamilyArguments("resnet10t")
    assert recipe.objectives == {"kd": ("kd", None)}


def test_flags_override_a_config_and_a_config_the_defaults(tmp_path):
    path = config(
        tmp_path,
        "model_name: a\ncontrol_from: [b, c]\ncontrol: true\nmodel_args: {d: 1}\nseed: null\n"
        "learning_rate: 5e-4\ntemperature: 2\nlr_milestones: [0.5]\ntrain_samples: 9\n",
    )
    recipe = parse(tmp_path, path, "--temperature", 4, "--lr_milestones", 0.2, 0.4)
    family, args = recipe.family, recipe.args
    assert (family.model_name, family.control_from, family.control) == ("a", ["b", "c"], True)
    assert (family.network_args, recipe.data.train_samples) == ({"d": 1}, 9)
    assert (args.learning_rate, args.temperature, args.seed) == (5e-4, 4.0, 42)
    assert args.lr_milestones == [0.2, 0.4]
    family = parse(tmp_path, path, "--control", "false", "--model_name=e").family
    assert (family.model_name, family.control) == ("e", False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("objectve: kd", "config.yaml: unknown key 'objectve'. Did you mean 'objective'?"),
        ("zzzzzz: 1", "config.yaml: unknown key 'zzzzzz'.\n"),
        ("learning_rate: fast", "learning-rate: invalid float value: 'fast'"),
        ("num_train_epochs: [1, 2]", "unknown argument '2'"),
        ("max_steps: 2.5", "max-steps: invalid int value: '2.5'"),
        ("control: perhaps", "--control: Truthy value expected"),
        ("objective: kdd", "objective='kdd' is unknown. Did you mean 'kd'?"),
        ("temperature: 0", "temperature=0.0 must be above 0"),
        ("teacher_weight: 0", "teacher_weight and label_weight are both 0"),
        ("- model_name\n- a", "must hold 'name: value' lines"),
        ("", "must hold 'name: value' lines"),
        ("model_name: [", "config.yaml is not YAML"),
        ("help: true", "unknown key 'help'"),
        (["--label_weigth", "1"], "unknown argument '--label_weigth'. Did you mean '--label_w"),
        (["--label_weigth=1"], "unknown argument '--label_weigth'. Did you mean '--label_w"),
        (["--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
        (["--temperature", "-1"], "temperature=-1.0 must be above 0"),
        (["no/such.yaml"], "no/such.yaml"),
        (["cifar100"], "cifar100"),
        (["--control", "true", "stray"], "unknown argument 'stray'"),
    ],
)
def test_a_bad_file_or_flag_is_refused_by_name(tmp_path, capsys, given, message):
    with pytest.raises(SystemExit) as exit:
        parse(tmp_path, *(given if isinstance(given, list) else [config(tmp_path, given)]))
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        ("ban_cifar", "--objective --image_size --train_samples"),
        ("ban_ptb", "--dataset_name --train_words --window --model_args --label_weight"),
    ],
)
def test_help_is_printed(capsys, recipe, flags):
    for asked in ("--help", "--help_all"):
        run_recipe(recipe, asked)
        printed = capsys.readouterr().out
        assert "[CONFIG.yaml] [--flag value ...]" in printed
        assert printed.splitlines()[2].startswith("Born-again ")
        assert all(f"  {flag} " in printed for flag in flags.split())
        assert ("--learning_rate LEARNING_RATE" in printed) == (asked == "--help_all")


# The run from end to end


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_from_end_to_end(tmp_path, path, capsys):
    given = yaml.safe_load(path.read_text("utf-8"))
    name, small = given["model_name"], []
    is_image = is_cifar_name(name)
    if is_image:
        name = "cifar_wrn_10_1"
        small = ["--model_name", name]
    elif name.startswith("char_cnn"):
        few = given["model_args"] | {"filter_widths": [1, 2], "filter_counts": [4, 4]}
        small = ["--model_args", json.dumps(few)]
    run_recipe("ban_cifar" if is_image else "ban_ptb", path, *SMOKE, tmp_path, *small)
    assert capsys.readouterr().out.splitlines()[0].startswith(name)
    check_folder(tmp_path, students=min(2, given["generations"]))
    assert str(path) in results_of(tmp_path)["command"]
    assert given.get("label_weight", 0) == (0 if is_image else 1)


def check_folder(folder: Path, *more: str, students: int = 2) -> None:
    """A family and its report are there, and nothing else but `more`."""
    files = {"lineage.json", "results.json", "results.md", "results.png", "ensemble", "evaluations"}
    files |= {*GENERATIONS[: students + 1]}
    pictures = {path.name for path in folder.glob("results-*.png")}
    assert {entry.name for entry in folder.iterdir()} == {*files, *pictures, *more}
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    results = results_of(folder)
    names = [row["name"] for row in results["generations"]]
    learned = "BAN+L" if results["metric"] == "perplexity" else "BAN"
    assert names == ["labels", *(f"{learned}-{k}" for k in range(1, students + 1))]
    assert [row["members"] for row in results["ensembles"]] == [[students - 1, students]]
    assert names[-1] in (folder / "results.md").read_text("utf-8")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The quickstart in small, with its control. Not to be changed."""
    folder = tmp_path_factory.mktemp("images")
    run_recipe("ban_cifar", "--control", *SMOKE, folder)
    return folder


def test_the_results_are_those_of_the_saved_models(images):
    results = results_of(images)
    n = results["generations"][0]["test"]["n"]
    # Normalised by the statistics of the images that were trained on.
    test = load_images("digits", image_size=8, train_samples=8).test.select(range(n), augment=False)
    batch = test.__getitems__(range(n))
    labels = batch.pop("labels")
    rows = [(f"generation-{k}", results["generations"][k]) for k in range(3)]
    rows += [("ensemble", results["ensembles"][0])]
    rows += [("control/1/generation-0", results["controls"][0])]
    for name, row in rows:
        with torch.no_grad():
            logits = load_model(images / name)(**batch).logits
        wrong = (logits.argmax(1) != labels).double().mean().item()
        nll = torch.nn.functional.cross_entropy(logits, labels).item()
        assert row["test"]["error"] == pytest.approx(100 * wrong), name
        assert row["test"]["nll"] == pytest.approx(nll, rel=1e-5), name
    kinds = [(row["kind"], row["size"]) for row in results["controls"]]
    assert kinds == [("network", 1), ("ensemble", 2)]
    files = [images / name / "model.safetensors" for name, _ in rows if "generation-0" in name]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_running_it_again_trains_nothing_and_says_the_same(images):
    folders = (*GENERATIONS, "ensemble", "control/1/generation-0")
    before = [identities(images / name) for name in folders]
    results = results_of(images)
    run_recipe("ban_cifar", "--control", *SMOKE, images)
    assert [identities(images / name) for name in folders] == before
    assert results_of(images) == results


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> tuple[Path, str]:
    """The quickstart in small, with its control, as the README starts it; what it printed."""
    folder = tmp_path_factory.mktemp("texts")
    return folder, launched("ban_ptb.py", "--control", *SMOKE, str(folder))


def test_the_command_of_the_readme_leaves_a_family_and_its_report(texts):
    folder, printed = texts
    check_folder(folder, "control")
    assert printed.startswith("lstm_200 on grammar: a teacher and 2 students")
    assert "| BAN+L-2 " in printed
    results = results_of(folder)
    assert [row["kind"] for row in results["controls"]] == ["network", "ensemble"]
    for row in results["generations"]:
        assert row["best_validation"]["perplexity"] <= row["validation"]["perplexity"]
    assert "perplexity by generation" in (folder / "results.md").read_text("utf-8")


def test_records_and_tokenizers_of_texts(texts):
    folder, _ = texts
    words = load_text("grammar", train_words=60).test[:50]
    rows = [*results_of(folder)["generations"], *results_of(folder)["ensembles"]]
    for name, row in zip((*GENERATIONS, "ensemble"), rows, strict=True):
        record = json.loads((folder / name / "lineage.json").read_text("utf-8"))
        metrics = {metric["name"]: metric["value"] for metric in record["metrics"]}
        assert metrics["perplexity"] == pytest.approx(row["test"]["perplexity"], rel=1e-5), name
        if name == "generation-1":  # students learn from labels too
            objective = record["objective"]
            assert (objective["label_weight"], objective["name"]) == (1, "kd")
        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        assert tokenizer(tokenizer.decode(words))["input_ids"] == words.tolist()


def log_probabilities(folder: Path, words: torch.Tensor) -> torch.Tensor:
    """Of each word of a text but the first, `(N, V)`, read at once by a saved network."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=words[None, :-1]).logits[0].double().log_softmax(-1)


def test_the_results_are_a_pass_over_the_text_by_hand(texts):
    folder, _ = texts
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


# Schedule and measurement of texts


@pytest.mark.parametrize(
    ("name", "factor", "mode", "threshold"),
    [("ptb_lstm_1500", 0.25, "rel", 0), ("ptb_char_cnn_lstm", 0.5, "abs", 0.5)],
)
def test_the_papers_schedule_falls_on_a_plateau(tmp_path, name, factor, mode, threshold):
    config = ROOT / "recipes" / "configs" / f"{name}.yaml"
    argv = [str(config), "--use_cpu", "--output_dir", str(tmp_path)]
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


def corpus_results(sizes: tuple[int, int, int], folder: Path, **changes) -> dict:
    """Of a network of `lstm_200` on a text of a few words in a random order."""
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randint(0, 6, (n,), generator=rng) for n in sizes]
    words = ["<eos>", "<unk>", "a", "b", "c", "d"]
    splits = TextSplits(*parts, words=words, source={"id": "a/b/corpus"})
    options = dict(per_device_train_batch_size=2, num_train_epochs=1, max_steps=-1)
    args = tiny.arguments(folder, optim="adamw_torch", **options | changes)
    return trained_family(splits, args, "lstm_200", model_args={"hidden_size": 4}, window=5)


@pytest.mark.parametrize("sizes", [(40, 30, 200), (40, 200, 18), (40, 7, 6)])
def test_a_short_text_is_measured_in_fewer_columns(tmp_path, sizes):
    options = dict(per_device_eval_batch_size=20, eval_strategy="epoch", learning_rate=5e-5)
    results = corpus_results(sizes, tmp_path, **options)
    assert [row["test"]["n"] for row in results["generations"]] == [sizes[2] - 1] * 2
    assert "above_entropy" not in results["generations"][0]["test"]
    assert results["dataset"]["name"] == "corpus"


def test_the_width_of_a_measurement_makes_no_difference(tmp_path):
    perplexities = []
    for columns in (1, 20):
        options = dict(per_device_eval_batch_size=columns, learning_rate=0.01)
        results = corpus_results((400, 30, 900), tmp_path / str(columns), **options)
        perplexities.append(results["generations"][0]["test"]["perplexity"])
    assert perplexities[0] != 6
    assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(window=0), "window=0 and per_device_eval_batch_size=20 must be at least 1"),
        (dict(model_args={"words": ["a"]}), r"model_args: words=.* comes from the data"),
        (dict(model_args={"hidden": 3}), "hidden: not taken by lstm_200. Did you mean"),
        (dict(model_name="lstm_20"), "'lstm_20' is no language model. Did you mean 'lstm_200'"),
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
