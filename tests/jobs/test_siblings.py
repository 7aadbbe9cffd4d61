"""Students of one teacher by several objectives: in one command, as each would have been alone."""

import functools
from pathlib import Path

import pytest
import tiny
import yaml
from family import Killed, families, final_weights, identities, listing
from launch import ROOT, on_two_processes, run_recipe
from table_results import family_rows
from transformers import TrainerCallback

from ban_hf import verify_lineage
from ban_hf.jobs.setup import read_objectives
from ban_hf.lineage.record import Record
from ban_hf.lineage.results import Results
from ban_hf.reports.reading import read_results
from ban_hf.reports.report import report_text

FOUR = "kd,kd+label,cwtm,dkpp"
FOLDERS = FOUR.split(",")
REPORT = {"results.json", "results.md", "results.png"}


def run(folder: Path, objective=FOUR, generations=2, **changes) -> Results:
    """Train as a recipe does, two epochs of three steps a generation."""
    return families(folder, objective, generations, **changes).run()


def results_of(folder: Path) -> dict:
    return family_rows(folder / "results.json")


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The four objectives of the paper's Table 2, in one go. Not to be changed."""
    folder = tmp_path_factory.mktemp("together") / "tiny"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The family of one objective, as it is without the others and without a cache."""

    @functools.cache
    def trained(objective: str) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        run(folder, objective)
        return folder

    return trained


# What it leaves


def test_each_objective_has_a_whole_family_beside_the_teacher(together):
    names = {path.name for path in together.iterdir()}
    names = {name for name in names if not name.startswith("results-")}  # further pictures
    assert names == {"teacher", "teacher_cache", *FOLDERS, *REPORT}
    assert {p.name for p in (together / "teacher").iterdir()} == {
        "evaluations",
        "generation-0",
        "lineage.json",
    }
    generations = {"generation-0", "generation-1", "generation-2", "ensemble", "lineage.json"}
    for path in together.rglob("*.json"):
        assert str(together) not in path.read_text("utf-8"), path
    objectives = [Record.read(together / name / "generation-2").objective for name in FOLDERS]
    found = [(objective.name, objective.label_weight) for objective in objectives]
    assert found == [("kd", 0), ("kd", 1), ("cwtm", 0), ("dkpp", 0)]
    for name in FOLDERS:
        assert {path.name for path in (together / name).iterdir()} >= generations | REPORT
        lineage = verify_lineage(together / name)
        assert lineage.family == f"tiny-{name}"
        assert [record.generation for record in lineage.generations] == [0, 1, 2]


def test_all_learn_from_the_teacher_that_was_trained_once(together):
    teacher = listing(together / "teacher" / "generation-0")
    for name in FOLDERS:
        assert listing(together / name / "generation-0") == teacher


def test_the_students_of_a_number_begin_alike_and_end_otherwise(together):
    for generation in (1, 2):
        seeds = [Record.read(together / n / f"generation-{generation}").seed for n in FOLDERS]
        assert len({(seed.seed, seed.init_sha256) for seed in seeds}) == 1
        assert len({seed.trained_sha256 for seed in seeds}) == 4


@pytest.mark.parametrize("name", ["kd+label", "dkpp"])
def test_each_is_what_it_would_be_alone(together, alone, name):
    assert final_weights(together / name) == final_weights(alone(name))
    here, there = results_of(together / name), results_of(alone(name))
    for part in ("generations", "ensembles"):
        assert [row["test"] for row in here[part]] == [row["test"] for row in there[part]]


# The report of them all


def test_the_results_of_all_are_those_of_each(together):
    results = results_of(together)
    rows = {row["name"]: row for row in results["generations"]}
    names = [f"{method}-{k}" for method in ("BAN", "BAN+L", "CWTM", "DKPP") for k in (1, 2)]
    assert list(rows) == ["labels", *names]
    assert len(results["ensembles"]) == 4
    for name, ensemble in zip(FOLDERS, results["ensembles"], strict=True):
        own = results_of(together / name)
        for row in own["generations"]:
            assert rows[row["name"]]["test"] == row["test"]
        assert ensemble["test"] == own["ensembles"][0]["test"]
    assert [row["method"] for row in results["ensembles"]] == ["BAN", "BAN+L", "CWTM", "DKPP"]
    assert (results["title"], results["seed"], results["metric"]) == ("tiny", 3, "error")
    document = (together / "results.md").read_text("utf-8")
    assert "| DKPP-2 " in document
    assert r"| BAN+L: Ens\*2 of generations 1-2 |" in document
    assert (together / "results.png").read_bytes().startswith(b"\x89PNG")
    assert results_of(together / "cwtm")["title"] == "tiny: cwtm"


def test_several_seeds_of_it_are_pooled_where_nothing_else_differs(tmp_path):
    for seed in (3, 4):
        run(tmp_path / str(seed), "cwtm,dkpp", 1, seed=seed)
    files = [tmp_path / str(seed) / "results.json" for seed in (3, 4)]
    pooled = read_results(files)
    assert pooled.seeds == (3, 4)
    assert [column.method for column in pooled.columns][:2] == [None, "CWTM"]
    assert "DKPP-1 minus labels" in report_text(pooled)
    text = files[1].read_text("utf-8")
    files[1].write_text(text.replace('"learning_rate": 0.1,', '"learning_rate": 0.2,'), "utf-8")
    with pytest.raises(ValueError, match="was trained with other arguments"):
        read_results(files)


# Killed, and run again


class KillIn(TrainerCallback):
    """Kills the process in a generation of one of the families."""

    def __init__(self, folder: str, generation: int, step: int) -> None:
        self.where, self.step = (folder, f"generation-{generation}"), step

    def on_step_begin(self, args, state, control, **kwargs):
        path = Path(args.output_dir)
        if ((path.parts[-3], path.name), state.global_step) == (self.where, self.step):
            raise Killed


def test_killed_again_and_again_it_ends_as_if_it_had_never_been(together, tmp_path):
    folder = tmp_path / "tiny"
    kills = [("teacher", 0, 3), ("cwtm", 1, 0), ("cwtm", 2, 5)]
    finished: dict[Path, dict] = {}
    for kill in kills:
        with pytest.raises(Killed):
            run(folder, callbacks=[KillIn(*kill)])
        assert {path: identities(path) for path in finished} == finished
        finished = {path: identities(path) for path in folder.glob("*/generation-*")}
    run(folder)
    assert {path: identities(path) for path in finished} == finished
    assert final_weights(folder) == final_weights(together)
    rows = [[row["test"] for row in results_of(f)["generations"]] for f in (folder, together)]
    assert rows[0] == rows[1]


def test_it_goes_on_where_it_was_moved_to_and_more_may_be_asked_for(tmp_path, together):
    def trained(folder: Path) -> dict:
        folders = folder.glob("*/generation-*")
        return {path.relative_to(folder): identities(path) for path in folders}

    folder = tmp_path / "b"
    run(tmp_path / "a", "kd,cwtm", 1)
    (tmp_path / "a").rename(folder)
    before, said = trained(folder), results_of(folder)
    run(folder, "kd,cwtm", 1)
    assert (trained(folder), results_of(folder)) == (before, said)
    run(folder, "kd,cwtm,kd+label", 1)
    assert trained(folder).items() >= before.items()
    names = [row["name"] for row in results_of(folder)["generations"]]
    assert names == ["labels", "BAN-1", "CWTM-1", "BAN+L-1"]
    assert Record.read(folder / "kd" / "generation-1").family == "a-kd"
    name = "kd+label/generation-1/model.safetensors"
    assert final_weights(folder)[name] == final_weights(together)[name]


def test_from_a_teacher_that_is_there_already(together, tmp_path):
    teacher = together / "teacher" / "generation-0"
    run(tmp_path, "cwtm,dkpp", 1, teacher=str(teacher))
    assert not (tmp_path / "teacher").exists()
    assert listing(tmp_path / "dkpp" / "generation-0") == listing(teacher)
    name = "cwtm/generation-1/model.safetensors"
    assert final_weights(tmp_path)[name] == final_weights(together)[name]
    with pytest.raises(ValueError, match="teacher: 'generation-0@"):
        run(tmp_path, "cwtm,dkpp", 1)


def test_from_a_later_generation_the_report_goes_on_counting(together, tmp_path):
    run(tmp_path, "cwtm", teacher=str(together / "kd" / "generation-1"))
    results = results_of(tmp_path)
    assert [row["generation"] for row in results["generations"]] == [1, 2, 3]
    assert [row["members"] for row in results["ensembles"]] == [[2, 3]]
    assert results["generations"][1]["teacher_agreement"] is not None


# What objectives may be called


@pytest.mark.parametrize(
    ("given", "label_weight", "expected"),
    [
        ("kd+label", None, {"kd+label": ("kd", 1)}),
        ("cwtm+label", 1, {"cwtm+label": ("cwtm", 1)}),
        ("kd, cwtm", None, {"kd": ("kd", None), "cwtm": ("cwtm", None)}),
        ("kd,cwtm", 0.5, {"kd": ("kd", 0.5), "cwtm": ("cwtm", 0.5)}),
        # Not None: else a language model would learn by both with labels.
        ("kd,kd+label", None, {"kd": ("kd", 0), "kd+label": ("kd", 1)}),
        ("kd,kd+label", 0, {"kd": ("kd", 0), "kd+label": ("kd", 1)}),
        ("cwtm,kd+label", 1, {"cwtm": ("cwtm", 1), "kd+label": ("kd", 1)}),
    ],
)
def test_objectives_and_their_label_weights(given, label_weight, expected):
    assert read_objectives(given, label_weight) == expected


@pytest.mark.parametrize(
    ("given", "label_weight", "message"),
    [
        ("kd,cwmt", None, "objective='cwmt' is unknown. Did you mean 'cwtm'?"),
        ("kd+lable", None, r"objective='kd\+lable' is unknown. Did you mean 'kd\+label'?"),
        ("kd,", None, "objective='' is unknown"),
        ("kd,cwtm,kd", None, "objective='kd,cwtm,kd' names 'kd' twice"),
        ("kd,kd+label", 1, r"'kd' and 'kd\+label' are the same"),
        ("kd+label", 0.5, "label_weight=0.5 contradicts objective="),
        ("kd+label", 0, "label_weight=0 contradicts objective='kd"),
        ("kd,cwtm+label", 2, "label_weight=2 contradicts objective"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(given, label_weight, message):
    with pytest.raises(ValueError, match=message):
        read_objectives(given, label_weight)


@pytest.mark.parametrize("given", ["kd,cwtm", "kd+label"])
def test_one_training_takes_one_objective(tmp_path, given):
    with pytest.raises(ValueError, match=r"is unknown.* are arguments of a recipe"):
        tiny.arguments(tmp_path, objective=given)


# Refused before anything is written


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"control": True}, "controls are compared with the ensemble of one: give them with one"),
        ({"control_from": ["elsewhere"]}, "controls are compared with the ensemble of one"),
        ({"push_to_hub": True}, "push_to_hub: .* ban-hf push .*OBJECTIVE ns/name"),
        ({"generations": 0}, "generations=0: .* ask for one at least"),
    ],
)
def test_what_belongs_to_one_family_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "new", "kd,cwtm", **changes)
    assert not (tmp_path / "new").exists()


def test_what_another_run_or_program_made_is_left_alone(tmp_path, together):
    def refused(folder: Path, objective: str, message: str) -> None:
        before = listing(folder)
        with pytest.raises(ValueError, match=message):
            run(folder, objective, 1)
        assert listing(folder) == before

    refused(together, "kd", "which no run")
    refused(together / "kd", "kd,cwtm", "holds the family of one run; it stays as it is")
    (tmp_path / "results.json").write_text("precious")
    refused(tmp_path, "kd,cwtm", r"holds results\.json, which no run")


# The recipes


def smoke(recipe: str, folder: Path, *options: str) -> list[str]:
    """The rows of a recipe that was run in small."""
    run_recipe(recipe, *options, "--smoke", "--use_cpu", "--output_dir", folder)
    return [row["name"] for row in results_of(folder)["generations"]]


def test_the_image_recipe_takes_several_objectives(tmp_path, capsys):
    """As flags, and in a configuration."""
    values = yaml.safe_load((ROOT / "recipes" / "configs" / "digits.yaml").read_text("utf-8"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values | {"objective": "kd,cwtm", "generations": 1}))
    assert smoke("ban_cifar", tmp_path / "run", str(path)) == ["labels", "BAN-1", "CWTM-1"]
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "a teacher and 1 students by each of kd,cwtm" in first_line
    rows = smoke("ban_cifar", tmp_path / "run", str(path), "--objective", "kd,dkpp")
    assert rows == ["labels", "BAN-1", "DKPP-1"]


def test_the_language_recipe_takes_several_objectives(tmp_path):
    options = ("--objective", "kd,kd+label", "--label_weight", "0", "--generations", "1")
    assert smoke("ban_ptb", tmp_path, *options) == ["labels", "BAN-1", "BAN+L-1"]
    assert "|   test perplexity |" in (tmp_path / "results.md").read_text("utf-8")


def test_two_processes_write_one_report(tmp_path):
    options = ["--smoke", "--use_cpu", "--generations", "1", "--objective", "kd,cwtm"]
    printed = on_two_processes("recipes/ban_cifar.py", *options, "--output_dir", str(tmp_path))
    assert printed.count("# cifar_wrn_10_1 on digits\n") == 1
    rows = results_of(tmp_path)["generations"]
    assert [row["name"] for row in rows] == ["labels", "BAN-1", "CWTM-1"]
    record = verify_lineage(tmp_path / "cwtm").generations[1]
    assert record.training.world_size == 2
    assert {"model.safetensors", "config.json"} <= {file.path for file in record.files}
