"""The recipe: its files and flags are checked, and it runs from end to end."""

from pathlib import Path

import pytest
import torch
import yaml
from family import identities
from launch import ROOT, launched, run_recipe
from table_results import family_rows

from ban_hf import load_images
from ban_hf.cli.recipe import FamilyArguments, Recipe, parse_recipe
from ban_hf.tasks.auto import load_model

CONFIGS = [
    path
    for pattern in ("cifar*.yaml", "digits.yaml")
    for path in sorted((ROOT / "recipes" / "configs").glob(pattern))
]
SMOKE = ("--smoke", "--use_cpu", "--output_dir")


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


def refused(tmp_path, capsys, *argv) -> str:
    """What is said where arguments are refused."""
    with pytest.raises(SystemExit) as exit:
        parse(tmp_path, *argv)
    assert exit.value.code == 2
    return capsys.readouterr().err


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
    ("text", "message"),
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
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, capsys, text, message):
    assert message in refused(tmp_path, capsys, config(tmp_path, text))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--label_weigth", "1"], "unknown argument '--label_weigth'. Did you mean '--label_w"),
        (["--label_weigth=1"], "unknown argument '--label_weigth'. Did you mean '--label_w"),
        (["--temperature", "hot"], "--temperature: invalid float value: 'hot'"),
        (["--temperature", "-1"], "temperature=-1.0 must be above 0"),
        (["no/such.yaml"], "no/such.yaml"),
        (["cifar100"], "cifar100"),
        (["--control", "true", "stray"], "unknown argument 'stray'"),
    ],
)
def test_a_bad_flag_is_refused_by_name(tmp_path, capsys, argv, message):
    assert message in refused(tmp_path, capsys, *argv)


def test_help_is_printed(capsys):
    run_recipe("ban_cifar", "--help")
    ours = capsys.readouterr().out
    run_recipe("ban_cifar", "--help_all")
    for printed in (ours, capsys.readouterr().out):
        assert "[CONFIG.yaml] [--flag value ...]" in printed
        assert "--objective" in printed
        assert "Born-again image classifiers" in printed


# ban_cifar


def results_of(folder: Path) -> dict:
    return family_rows(folder / "results.json")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_from_end_to_end(tmp_path, path, capsys):
    run_recipe("ban_cifar", path, *SMOKE, tmp_path)
    first_line = capsys.readouterr().out.splitlines()[0]
    assert first_line.startswith(yaml.safe_load(path.read_text("utf-8"))["model_name"])
    folders = {"generation-0", "generation-1", "generation-2", "ensemble", "evaluations"}
    files = {"lineage.json", "results.json", "results.md", "results.png"}
    pictures = {path.name for path in tmp_path.glob("results-*.png")}
    assert {entry.name for entry in tmp_path.iterdir()} == folders | files | pictures
    results = results_of(tmp_path)
    assert [row["name"] for row in results["generations"]] == ["labels", "BAN-1", "BAN-2"]
    assert [row["members"] for row in results["ensembles"]] == [[1, 2]]
    assert str(path) in results["command"]
    assert "BAN-2" in (tmp_path / "results.md").read_text("utf-8")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The quickstart in small, with its control. Not to be changed."""
    folder = tmp_path_factory.mktemp("smoke")
    run_recipe("ban_cifar", "--control", *SMOKE, folder)
    return folder


def test_the_results_are_those_of_the_saved_models(smoke):
    results = results_of(smoke)
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
            logits = load_model(smoke / name)(**batch).logits
        wrong = (logits.argmax(1) != labels).double().mean().item()
        nll = torch.nn.functional.cross_entropy(logits, labels).item()
        assert row["test"]["error"] == pytest.approx(100 * wrong), name
        assert row["test"]["nll"] == pytest.approx(nll, rel=1e-5), name


def test_the_control_is_another_label_trained_network_and_the_ensemble_of_both(smoke):
    kinds = [(row["kind"], row["size"]) for row in results_of(smoke)["controls"]]
    assert kinds == [("network", 1), ("ensemble", 2)]
    files = [smoke / "generation-0", smoke / "control" / "1" / "generation-0"]
    weights = [(path / "model.safetensors").read_bytes() for path in files]
    assert weights[0] != weights[1]


def test_running_it_again_trains_nothing_and_says_the_same(smoke):
    folders = ("generation-0", "generation-1", "generation-2", "ensemble", "control/1/generation-0")
    before = [identities(smoke / name) for name in folders]
    results = results_of(smoke)
    run_recipe("ban_cifar", "--control", *SMOKE, smoke)
    assert [identities(smoke / name) for name in folders] == before
    assert results_of(smoke) == results


def test_the_command_of_the_readme_runs(tmp_path):
    printed = launched("ban_cifar.py", "--smoke", "--output_dir", str(tmp_path))
    assert printed.startswith("cifar_wrn_10_1 on digits")
    assert "| BAN-2 " in printed
    assert results_of(tmp_path)["generations"][2]["name"] == "BAN-2"
