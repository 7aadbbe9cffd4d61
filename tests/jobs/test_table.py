"""The tables of the paper as files: what each cell is made by, and what is refused."""

import itertools
import json
from pathlib import Path

import pytest
import yaml

from ban_hf.cli.main import main
from ban_hf.jobs import table as tables
from ban_hf.jobs.job import generation_seed
from ban_hf.jobs.reproduction import Reproduction
from ban_hf.jobs.table import Table

RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
TABLES = [f"table{number}" for number in range(1, 7)]
BUDGETS = ["paper", "gpu", "cpu", "smoke"]
OF_ONE_TEACHER = ["ban", "ban+l", "cwtm", "dkpp"]

# Cells, and jobs behind them, with all columns: Table 2 needs three jobs less for its one
# Wide-ResNet in four rows, Table 3 and so on a teacher in all rows.
COUNTS = {
    "table1": (24, 24),
    "table2": (88, 85),
    "table3": (20, 17),
    "table4": (21, 15),
    "table5": (18, 13),
    "table6": (10, 10),
}

# As the paper prints it (Table 2): error %, teacher, BAN, BAN+L, CWTM, DKPP, BAN-1, BAN-2, BAN-3,
# Ens*2, Ens*3.
TABLE2 = """
112-33 18.25 16.95 17.68 17.84 17.84 17.61 17.22 16.59 15.77 15.68
90-60  17.69 16.69 16.93 17.42 17.43 16.62 16.44 16.72 15.39 15.74
80-80  17.16 16.36 16.5  17.16 16.84 16.26 16.30 15.5  15.46 15.14
80-120 16.87 16.00 16.41 17.12 16.34 16.13 16.13 /     15.13 14.9
"""
# Table 6: perplexity, teacher and BAN+L, on validation, then on test.
TABLE6 = {
    "char-cnn-lstm": [83.69, 80.27, 80.05, 76.97],
    "lstm": [75.11, 71.19, 71.87, 68.56],
}

# Row and column, parameters at the paper's size, the paper's in millions, by how many percent they
# differ at most: Wide-ResNets and DenseNets, then those that no rule of ours meets.
SIZES = [
    ("table3", "wrn-28-1", "teacher", 375_348, 0.38, 1.5),
    ("table3", "wrn-28-2", "ban", 1_479_220, 1.48, 1.5),
    ("table3", "wrn-28-5", "teacher", 9_161_524, 9.16, 1.5),
    ("table3", "wrn-28-10", "teacher", 36_536_884, 36, 1.5),
    ("table3", "wrn-28-1", "densenet", 16_120_538, 16.1, 1),
    ("table2", "densenet-80-80", "ban", 22_576_116, 22.4, 1),
    ("table2", "densenet-80-120", "ban", 50_469_436, 50.4, 1),
    ("table2", "densenet-112-33", "ban", 6_717_847, 6.3, 7),
    ("table1", "densenet-90-60", "teacher", 15_978_338, 16.1, 1),  # 10 classes
    ("table5", "preact-14-0.5", "ban", 6_400_968 - 158_432, 7.3, 15),  # the ends are not trained
    ("table6", "lstm", "teacher", 51_034_000, 52, 2),
    ("table6", "char-cnn-lstm", "ban+l", 19_373_135, 19, 2),
]


def training(table: Table, row: str, column: str, seed: int = 1) -> dict:
    return table.job(row, column, seed).arguments["training"]


def write(folder: Path, **spec) -> str:
    """A table file of one's own, over the shipped `images.yaml`."""
    file = folder / "own.yaml"
    small = {
        "base": str(RECIPES / "images.yaml"),
        "title": "Two networks",
        "source": "nobody",
        "columns": {"teacher": {"heading": "Teacher"}, "ban": {"teacher": "teacher"}},
        "rows": {"small": {"network": "wrn-28-1"}},
    }
    file.write_text(yaml.safe_dump(small | spec, sort_keys=False), "utf-8")
    return str(file)


@pytest.mark.parametrize(("name", "budget"), itertools.product(TABLES, BUDGETS))
def test_every_table_gives_jobs_at_every_budget(name, budget, tmp_path):
    asked = Reproduction(name, budget, columns=["all"], output_dir=tmp_path)
    assert (len(asked.cells), len(asked.jobs)) == COUNTS[name]
    assert asked.missing == asked.jobs
    assert not list(tmp_path.iterdir())


def test_the_objectives_of_table_2_learn_from_the_same_views_and_weights_but_ban_1_does_not():
    table = Table("table2", "cpu")
    jobs = [table.job("densenet-90-60", column, 3) for column in OF_ONE_TEACHER]
    other = table.job("densenet-90-60", "ban-1", 3)
    assert {job.arguments["training"]["seed"] for job in jobs} == {generation_seed(3, 1)}
    assert len({job.folder for job in jobs}) == len(jobs)
    ban, ban_1 = (one.arguments["training"] for one in (jobs[0], other))
    assert {name for name in ban if ban[name] != ban_1[name]} == {"seed"}
    assert ban_1["seed"] == generation_seed(3, 11)
    assert {job.teachers[0].folder for job in [*jobs, other]} == {
        table.job("densenet-90-60", "teacher", 3).folder
    }


@pytest.mark.parametrize("budget", BUDGETS)
def test_tables_share_the_networks_that_they_have_in_common(budget):
    def name(table: str, row: str, column: str, seed: int = 1) -> str:
        return Table(table, budget).job(row, column, seed).folder

    teacher = name("table2", "densenet-90-60", "teacher")
    assert name("table4", "depth-2", "teacher") == teacher
    assert name("table4", "compression-1.5", "teacher") == teacher
    assert name("table5", "wide-1-1", "teacher") == teacher
    assert name("table3", "wrn-28-10", "densenet-labels") == teacher
    assert name("table3", "wrn-28-2", "teacher") == name("table2", "densenet-80-80", "wrn")
    assert name("table5", "wide-1-1", "teacher", seed=2) != teacher


def test_a_folder_has_network_objective_and_number_of_members_in_words():
    table = Table("table2", "smoke")
    folders = [table.job("densenet-90-60", name, 1).folder for name in ("teacher", "cwtm", "ens2")]
    words = ["cifar_densenet_16_6-labels", "cifar_densenet_16_6-cwtm", "ensemble-of-2"]
    assert [folder.rpartition("-")[0] for folder in folders] == words
    for budget, seed in (("cpu", 1), ("smoke", 2)):
        folders.append(Table("table2", budget).job("densenet-90-60", "teacher", seed).folder)
    assert len({folder.rpartition("-")[2] for folder in folders}) == 5


def test_a_new_version_of_the_results_makes_new_folders(monkeypatch):
    before = Table("table2", "smoke").job("densenet-90-60", "ens2", 1)
    monkeypatch.setattr(tables, "code_digest", lambda: "of another version")
    after = Table("table2", "smoke").job("densenet-90-60", "ens2", 1)
    assert after.folder != before.folder
    assert after.members[0].teachers[0].folder != before.members[0].teachers[0].folder
    assert after.digest == before.digest


def test_a_column_tells_what_its_network_learns_by():
    table = Table("table2", "paper")
    expected = {
        "ban": {"objective": "kd"},
        "ban+l": {"objective": "kd+label"},
        "t4": {"objective": "kd", "temperature": 4},
        "smoothing": {"label_smoothing_factor": 0.1},
        "dkd": {"objective": "dkd"},
    }
    for column, fields in expected.items():
        assert fields.items() <= training(table, "densenet-90-60", column).items()
    assert not table.job("densenet-90-60", "smoothing", 1).teachers
    both = table.job("densenet-90-60", "two", 1).teachers
    assert [job.arguments["network"]["name"] for job in both] == [
        "cifar_densenet_90_60",
        "cifar_wrn_28_2",
    ]


@pytest.mark.parametrize("budget", ["smoke", "cpu", "gpu", "paper"])
@pytest.mark.parametrize("row", ["lstm", "char-cnn-lstm"])
def test_labels_counted_twice_are_twice_the_rate_and_half_the_clipping_norm(budget, row):
    table = Table("table6", budget)
    once, twice = (training(table, row, column) for column in ("teacher", "labels-twice"))
    assert twice["learning_rate"] == 2 * once["learning_rate"]
    assert twice["max_grad_norm"] == once["max_grad_norm"] / 2


def test_a_row_may_overrule_columns():
    """The paper has the teacher, and no BAN-3, in the ensemble of three of DenseNet-80-120."""
    table = Table("table2", "paper")
    of = {"densenet-80-120": ["teacher", "ban-1", "ban-2"]}
    for row in table.rows:
        job = table.job(row, "ens3", 1)
        columns = of.get(row, ["ban-1", "ban-2", "ban-3"])
        assert [m.folder for m in job.members] == [table.job(row, c, 1).folder for c in columns]


def test_columns_are_the_paper_s_or_all_or_some_in_the_order_of_the_file():
    table = Table("table1", "cpu")
    assert table.choose_columns([]) == table.choose_columns(["paper"]) == ["teacher", "ban"]
    assert table.choose_columns(["all"]) == ["teacher", "ban", "labels-2"]
    assert table.choose_columns(["labels-2", "teacher"]) == ["teacher", "labels-2"]
    assert table.choose_columns(["labels-2", "paper"]) == ["teacher", "ban", "labels-2"]
    assert table.choose_rows(["wrn-28-5", "wrn-28-1"]) == ["wrn-28-1", "wrn-28-5"]


def test_what_a_column_needs_comes_with_it_and_is_no_cell(tmp_path):
    asked = Reproduction(
        "table2", "smoke", rows=["densenet-90-60"], columns=["ens2"], output_dir=tmp_path
    )
    ensemble = asked.cells["densenet-90-60", "ens2", 1]
    ban_1, ban_2 = ensemble.members
    assert list(asked.cells) == [("densenet-90-60", "ens2", 1)]
    assert [job.folder for job in asked.jobs] == [
        job.folder for job in (ban_1.teachers[0], ban_1, ban_2, ensemble)
    ]


@pytest.mark.parametrize("name", TABLES)
def test_a_budget_says_what_it_changes_and_the_paper_s_that_it_changes_nothing(name):
    standard = Table(name, "paper")
    assert "of the paper" in standard.says
    for budget in ("gpu", "cpu", "smoke"):
        said = Table(name, budget).says
        assert "of the paper" not in said
        for part, changes in standard.spec["budgets"][budget].items():
            for field, value in changes.items():
                before = standard.spec.get(part, {}).get(field)
                was = f"{value} (budget paper: {before})"
                assert (str(value) if before is None else was) in said
        assert ("smaller networks" in said) is (budget != "gpu")


def test_milestones_stay_fractions_of_the_training():
    for budget in BUDGETS:
        found = training(Table("table1", budget), "wrn-28-1", "ban")
        assert found["lr_milestones"] == [60 / 200, 120 / 200, 160 / 200]


def test_the_paper_s_own_settings():
    job = Table("table2", "paper").job("densenet-90-60", "ban", 1)
    expected = {
        "num_train_epochs": 200,
        "per_device_train_batch_size": 128,
        "learning_rate": 0.1,
        "lr_gamma": 0.2,
        "weight_decay": 5e-4,
        "max_grad_norm": 0,
        "optim_args": "momentum=0.9,nesterov=True",
    }
    assert expected.items() <= job.arguments["training"].items()
    assert "train_samples" not in job.arguments["dataset"]
    table = Table("table6", "paper")
    lstm, cnn = (training(table, row, "teacher") for row in ("lstm", "char-cnn-lstm"))
    assert [lstm[name] for name in ("learning_rate", "per_device_train_batch_size")] == [1, 32]
    assert [cnn[name] for name in ("learning_rate", "per_device_train_batch_size")] == [2, 20]
    assert lstm["num_train_epochs"] == cnn["num_train_epochs"] == 40
    assert table.dataset == {"name": "ptb", "window": 35}


def test_the_figures_of_table_2_are_the_paper_s():
    table = Table("table2", "cpu")
    columns = table.choose_columns(["paper"])
    lines = [line.split() for line in TABLE2.strip().splitlines()]
    assert [f"densenet-{line[0]}" for line in lines] == list(table.rows)
    for (_, *figures), row in zip(lines, table.rows.values(), strict=True):
        expected = zip(columns, figures, strict=True)
        assert row["paper"] == {name: float(text) for name, text in expected if text != "/"}


def test_the_figures_of_table_6_are_the_paper_s():
    for name, row in Table("table6", "cpu").rows.items():
        validation, test = row["paper_validation"], row["paper"]
        figures = [validation["teacher"], validation["ban+l"], test["teacher"], test["ban+l"]]
        assert figures == TABLE6[name]


@pytest.mark.parametrize(("name", "row", "column", "count", "papers", "percent"), SIZES)
def test_parameters_at_the_paper_s_size(name, row, column, count, papers, percent):
    table = Table(name, "smoke")  # whose own networks are of another size
    assert table.paper_size(row, column) == count
    assert count == pytest.approx(papers * 1e6, rel=percent / 100)
    assert table.rows[row]["paper_parameters"].get(column, papers) == papers


@pytest.mark.slow
def test_the_published_sizes_are_what_the_command_says(capsys):
    published = Path(__file__).parents[2] / "results" / "paper_sizes.md"
    for number in range(1, 7):
        assert main(["reproduce", f"table{number}", "--budget", "paper", "--sizes"]) == 0
        print()
    assert published.read_text("utf-8") == capsys.readouterr().out


def test_sizes_are_of_the_rows_asked_for_and_train_nothing(tmp_path, capsys):
    command = ["reproduce", "table5", "--rows", "wide-1-1", "--output_dir", str(tmp_path / "runs")]
    assert main([*command, "--sizes"]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "`cifar_densenet_16_24_wide_1_1` (stem_stride 4) | 21.48 | 20.9 | +2.8 |" in output
    assert "Pre-ResNet" not in output
    assert main([*command, "--sizes", "--json"]) == 0
    networks = json.loads(capsys.readouterr().out)["networks"]
    assert [line["columns"] for line in networks] == [
        ["DenseNet-90-60 teacher"],
        ["Baseline"],
        ["BAN"],
    ]
    counts = [line["parameters"] for line in networks]
    assert counts == [16_120_538, 21_635_264, 21_635_264 - 158_432]
    assert [line["paper_millions"] for line in networks] == [None, None, 20.9]
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit):
        main([*command, "--sizes", "--plan"])


def test_a_file_of_one_s_own_stands_over_ours(tmp_path):
    budgets = {"tiny": {"dataset": {"name": "digits"}, "training": {"num_train_epochs": 2}}}
    table = Table(write(tmp_path, budgets=budgets, training={"learning_rate": 0.2}), "tiny")
    arguments = table.job("small", "ban", 1).arguments
    assert table.name == "own"
    # there is no tiny one: it is the paper's
    assert arguments["network"] == {"name": "cifar_wrn_28_1", "args": {"dropout": 0.3}}
    assert arguments["dataset"] == {"name": "digits", "validation": 0.02}
    of_both = {"learning_rate": 0.2, "num_train_epochs": 2, "lr_gamma": 0.2, "objective": "kd"}
    assert of_both.items() <= arguments["training"].items()
    assert Table(write(tmp_path, budgets=budgets), "smoke").dataset["image_size"] == 8


def test_a_base_may_be_one_of_ours_or_lie_beside_the_file(tmp_path):
    table = Table(write(tmp_path, base="images.yaml"), "cpu")
    assert table.job("small", "teacher", 1).arguments["network"]["name"] == "cifar_wrn_16_1"
    (tmp_path / "images.yaml").write_text((RECIPES / "images.yaml").read_text("utf-8"), "utf-8")
    table = Table(write(tmp_path, base="images.yaml"), "cpu")
    assert table.job("small", "teacher", 1).arguments["network"]["name"] == "cifar_wrn_16_1"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"table": "tabel2"}, r"table='tabel2' is none. Did you mean 'table2'\? .*table6"),
        ({"table": "images"}, "table='images' is none"),  # a base is no table
        ({"budget": "cpus"}, r"budget='cpus' is none. Did you mean 'cpu'\?"),
        ({"rows": ["densenet-90-6"]}, r"row='densenet-90-6'.*Did you mean 'densenet-90-60'\?"),
        ({"columns": ["cwmt"]}, r"column='cwmt' is none. Did you mean 'cwtm'\?"),
        ({"columns": ["al"]}, r"column='al'.*Did you mean 'all'\?"),
    ],
)
def test_a_name_that_there_is_not_is_refused_and_the_near_one_named(asked, message, tmp_path):
    of = {"table": "table2", "budget": "smoke"} | asked
    with pytest.raises(ValueError, match=message):
        Reproduction(**of, output_dir=tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"colums": {}}, r"own.yaml: unknown 'colums'. Did you mean 'columns'\?"),
        (
            {"rows": {"small": {"networks": "wrn-28-1"}}},
            r"row small: unknown 'networks'. Did you mean 'network'\?",
        ),
        (
            {"columns": {"teacher": {"learning_rat": 1}}},
            r"column teacher: unknown 'learning_rat'. Did you mean 'learning_rate'\?",
        ),
        (
            {"rows": {"small": {"network": "wrn-28-1", "columns": {"bann": {}}}}},
            r"row small: columns: unknown 'bann'. Did you mean 'ban'\?",
        ),
        (
            {"rows": {"small": {"network": "wrn-28-1", "columns": {"ban": {"teacer": "ban"}}}}},
            r"unknown 'teacer'. Did you mean 'teacher'\?",
        ),
        (
            {"rows": {"small": {"network": "wrn-28-3"}}},
            r"network='wrn-28-3' is none. Did you mean 'wrn-28-",
        ),
        (
            {"columns": {"teacher": {}, "ban": {"teacher": "teachr"}}},
            r"column='teachr' is none. Did you mean 'teacher'\?",
        ),
        (
            {"columns": {"teacher": {"teacher": "ban"}, "ban": {"teacher": "teacher"}}},
            r"own: column 'teacher' needs itself: teacher, ban",
        ),
        ({"columns": {"both": {"ensemble": ["both"]}}}, "column 'both' needs itself"),
        ({"columns": {"teacher": {"share_ends": True}}}, "'teacher': share_ends needs one teacher"),
        ({"base": "no.yaml"}, "no.yaml cannot be read as YAML"),
        ({"training": {"num_train_epoch": 1}}, r"training: unknown 'num_train_epoch'. Did you"),
        ({"budgets": {"tiny": {"trainig": {}}}}, r"budget tiny: unknown 'trainig'. Did you mean"),
        ({"budgets": {"tiny": {"training": {"epochs": 1}}}}, "budget tiny: training: unknown"),
        ({"networks": {"net": "cifar_wrn_10_1"}}, "network net must hold 'name: value' lines"),
        ({"networks": {"net": {"cpu": "cifar_wrn_10_1"}}}, "network net: give .* budget `paper`"),
        (
            {"networks": {"net": {"paper": {"name": "cifar_wrn_10_1", "arg": {}}}}},
            r"network net: paper: unknown 'arg'. Did you mean 'args'\?",
        ),
        (
            {"claims": [{"beats": ["bann", "teacher"], "says": "x"}]},
            r"column='bann' is none. Did you mean 'ban'",
        ),
        (
            {"claims": [{"beat": ["ban", "teacher"]}]},
            r"claim: unknown 'beat'. Did you mean 'beats'",
        ),
        ({"claims": [{"beats": ["ban"], "says": "x"}]}, r"one of beats \(2 columns\)"),
        ({"claims": [{"beats": ["ban", "teacher", "ban"], "says": "x"}]}, "one of beats"),
        ({"claims": [{"beats": ["ban", "teacher"]}]}, "give `says`, and one of beats"),
        ({"claims": [{"beats": 5, "says": "x"}]}, "claim: beats must hold a list, and is 5"),
        ({"claims": ["ban"]}, "claim must hold 'name: value' lines"),
        ({"figures": {"gens": ["ban"]}}, "figures: unknown 'gens'"),
        ({"figures": {"generations": {"a": ["ban"]}}}, "generations must hold a list"),
        ({"figures": {"ensembles": ["ban"]}}, "ensembles must hold 'name: value' lines"),
        ({"figures": {"ensembles": {"a": "ban"}}}, "ensembles: a must hold a list"),
        ({"note": ["x"]}, r"note must hold a text, and is \['x'\]"),
        ({"dataset": {"name": 5}}, "dataset: name must hold a text, and is 5"),
        ({"columns": {"teacher": {"heading": 5}}}, "column teacher: heading must hold a text"),
        ({"columns": {"ban": {"teacher": 5}}}, "teacher must hold a name, or a list of names"),
        ({"columns": {"ban": {"teacher": [5]}}}, "column=5 is none"),
        ({"columns": {"ban": {"draw": "x"}}}, "column ban: draw must hold a whole number"),
        ({"columns": {"ban": {"scale": [1]}}}, "column ban: scale must hold 'name: value' lines"),
        ({"columns": {"ban": {"scale": {"learning_rate": "2"}}}}, "must hold a number, and is '2'"),
        ({"columns": {"ban": {"scale": {"optim": 2}}}}, "'ban': scale: optim is no number here"),
        (
            {"rows": {"small": {"network": "wrn-28-1", "paper": {"ban": "5"}}}},
            "row small: paper: ban must hold a number, and is '5'",
        ),
        ({"rows": {"../evil": {"network": "wrn-28-1"}}}, r"row '../evil': a name begins with"),
        ({"rows": {1: {"network": "wrn-28-1"}}}, "row 1: a name begins with .* in quotes"),
        ({"networks": {"n": {"paper": {"name": "cifar_wrn_10_1", "args": [1]}}}}, "args must hold"),
        ({"base": "own.yaml"}, "own.yaml is its own base"),
        ({"figures": {"ablation": ["teachr"]}}, "column='teachr' is none"),
        (
            {"rows": {"small": {"network": "wrn-28-1", "paper": {"bann": 1}}}},
            r"row small: paper: unknown 'bann'",
        ),
        ({"metric": "accuracy"}, "metric='accuracy' is none.* There are error"),
        ({"metric": "perplexity"}, "metric='perplexity' is none.* There are error"),
        ({"dataset": "digits"}, "dataset must hold 'name: value' lines"),
        ({"rows": ["small"]}, "rows must hold 'name: value' lines"),
        ({"rows": {"small": {"heading": "Small"}}}, "row small: there is no network"),
        ({"columns": {"teacher": None}}, "column teacher must hold 'name: value' lines"),
        (
            {"columns": {"teacher": {"scale": {"learning_rat": 2}}}},
            r"column teacher: scale: unknown 'learning_rat'. Did you mean 'learning_rate'\?",
        ),
    ],
)
def test_a_file_that_says_what_is_not_known_is_refused(spec, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Reproduction(write(tmp_path, **spec), "smoke", columns=["all"], output_dir=tmp_path)


def test_a_table_without_columns_of_the_paper_says_how_to_ask_for_others(tmp_path):
    own = write(tmp_path, columns={"teacher": {"beyond": True}, "ban": {"beyond": True}})
    with pytest.raises(ValueError, match=r"no such cell: rows small, columns none.*--columns all"):
        Reproduction(own, "smoke", output_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "own.yaml cannot be read as YAML: .*No such file"),
        ("rows: [a\n", "own.yaml cannot be read as YAML"),
        ("- a\n- b\n", "own.yaml must hold 'name: value' lines"),
        ("\xff", "own.yaml cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(text, message, tmp_path):
    file = tmp_path / "own.yaml"
    if text is not None:
        file.write_text(text, "latin-1")
    with pytest.raises(ValueError, match=message):
        Table(str(file), "cpu")
