"""A table's report: verdicts in every way they can fall, merging and its refusals, the text."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from ban_hf.reports.claims import verdicts
from ban_hf.reports.merging import read_results
from ban_hf.reports.outcomes import pack_classes
from ban_hf.reports.table_report import markdown, write_table_report
from table_results import IMAGES, entry, image_entry, labels, table, text_entry

from ban_hf.lineage.files import write_json
from ban_hf.reports import table_report as table_report

GOLDEN = Path(__file__).parents[1] / "golden"
BEATS = {"beats": ["ban", "teacher"], "says": "BAN beats its teacher"}
EXPLAINS = {"explains": ["cwtm", "ban", "teacher"], "says": "CWTM alone explains the gain"}
SATURATES = {"saturates": ["teacher", "ban", "ban-2", "ban-3"], "says": "Gains saturate"}


def judged(claim: dict, wrong: dict[str, list[int]], paper: dict | None = None):
    """The one verdict of a table, of columns to the number of wrong images of each seed."""
    entries = [
        image_entry(column, seed, count)
        for column, counts in wrong.items()
        for seed, count in enumerate(counts, 1)
    ]
    results = table(entries, claims=[claim])
    results["rows"][0]["paper"] = paper or {}
    found = verdicts(results)
    return found[0] if found else None


@pytest.mark.parametrize(
    ("ban", "verdict", "start"),
    [
        ([400, 410, 420], "yes", "yes, in 3 of 3 seeds, -9.00 ± 1.00 points (95 % interval -1"),
        ([600, 610, 590], "no", "no, it is worse: lower in 0 of 3 seeds, +10.00 ± 1.00 points"),
        ([400, 600, 510], "not shown", "not shown: lower in 1 of 3 seeds, +0.33 ± 10.02 points"),
        ([499, 499, 499], "not shown", "not shown: lower in 3 of 3 seeds, -0.10 ± 0.00 points"),
    ],
)
def test_beats(ban, verdict, start):
    found = judged(BEATS, {"teacher": [500] * 3, "ban": ban})
    assert (found.row, found.says, found.verdict) == ("net", BEATS["says"], verdict)
    assert found.sentence.startswith(f"BAN beats its teacher: {start}")
    assert found.paper is None
    assert "The paper" not in found.sentence


@pytest.mark.parametrize(
    ("figure", "paper"), [(16.69, "yes"), (17.8, "no"), (17.69, "no difference")]
)
def test_the_paper_s_own_figures_stand_beside(figure, paper):
    found = judged(
        BEATS, {"teacher": [500] * 2, "ban": [600] * 2}, {"ban": figure, "teacher": 17.69}
    )
    assert (found.verdict, found.paper) == ("no", paper)
    assert found.sentence.endswith(f" The paper: 17.69 to {figure:.2f}, {paper}.")


def test_one_seed_shows_nothing_of_another():
    """However far apart its two networks are: whether a third would be, nobody measured."""
    cells = {"teacher": [500], "ban": [400], "ban-2": [300], "cwtm": [500]}
    found = judged(BEATS, cells)
    assert found.verdict == "not shown"
    assert ": lower in 1 of 1 seed, -10.00 points (95 % interval -11." in found.sentence
    assert found.sentence.endswith(", over test items alone).")
    assert judged(BEATS, {name: counts * 2 for name, counts in cells.items()}).verdict == "yes"
    assert judged(BEATS, {"teacher": [500], "ban": [600]}).verdict == "not shown"
    assert judged(EXPLAINS, cells).verdict == judged(SATURATES, cells).verdict == "no gain shown"


def test_what_is_not_measured_is_not_judged():
    for claim in (BEATS, EXPLAINS, SATURATES):
        assert judged(claim, {"teacher": [500] * 2, "ban-3": [400] * 2}) is None
    assert judged(SATURATES, {"teacher": [500] * 2, "ban": [400] * 2}) is None


def test_a_claim_of_no_kind_is_refused():
    with pytest.raises(ValueError, match=r"claims: .*'is': .* beats, explains, saturates"):
        judged({"is": ["ban"], "says": "It is"}, {"ban": [1]})


@pytest.mark.parametrize(
    ("ban", "cwtm", "verdict", "why"),
    [
        (400, 480, "no", "no, it gains 2.00 of BAN's 10.00 points (20 %, interval "),
        (400, 520, "no", "no, it gains -2.00 of BAN's 10.00 points (-20 %, interval -"),
        (400, 400, "yes", "yes, it gains 10.00 of BAN's 10.00 points (100 %, interval 100 to 100"),
        (400, 380, "yes", "yes, it gains 12.00 of BAN's 10.00 points (120 %, interval "),
        (500, 400, "no gain shown", "no gain shown to explain: BAN minus Teacher is +0.00 ± 0.00"),
        (600, 400, "no gain shown", "no gain shown to explain: BAN minus Teacher is +10.00 ± 0.00"),
    ],
)
def test_explains(ban, cwtm, verdict, why):
    found = judged(EXPLAINS, {"teacher": [500] * 2, "ban": [ban] * 2, "cwtm": [cwtm] * 2})
    assert found.verdict == verdict
    assert found.sentence.startswith(f"CWTM alone explains the gain: {why}")


def test_a_gain_that_is_neither_there_nor_short_is_not_shown():
    wrong = {"teacher": [500, 500], "ban": [400, 400], "cwtm": [350, 510]}
    assert judged(EXPLAINS, wrong).verdict == "not shown"


def test_explanations_keep_to_the_seeds_that_all_three_have():
    """BAN gains in the seeds that CWTM has; what it does in the third is not set against CWTM."""
    wrong = {"teacher": [500] * 3, "ban": [400, 400, 900], "cwtm": [400, 400]}
    found = judged(EXPLAINS, wrong)
    assert found.verdict == "yes"
    assert "it gains 10.00 of BAN's 10.00 points" in found.sentence


@pytest.mark.parametrize(
    ("cwtm", "paper", "end"),
    [
        (17.42, "in part", "0.27 of 1.00 (27 %), in part."),
        (16.5, "yes", "1.19 of 1.00 (119 %), yes."),
        (17.7, "no", "-0.01 of 1.00 (-1 %), no."),
    ],
)
def test_the_paper_s_share(cwtm, paper, end):
    wrong = {name: [500] for name in ("teacher", "ban", "cwtm")}
    found = judged(EXPLAINS, wrong, {"teacher": 17.69, "ban": 16.69, "cwtm": cwtm})
    assert (found.verdict, found.paper) == ("no gain shown", paper)
    assert found.sentence.endswith(f"The paper: {end}")


def test_the_paper_may_have_no_gain_to_explain():
    wrong = {name: [500] for name in ("teacher", "ban", "cwtm")}
    found = judged(EXPLAINS, wrong, {"teacher": 16.0, "ban": 16.5, "cwtm": 15.0})
    assert found.paper == "no gain"


@pytest.mark.parametrize(
    ("wrong", "verdict", "why"),
    [
        ((500, 400, 401, 399), "yes", "yes, after generation 1: BAN minus Teacher is -10.00 ± "),
        ((500, 400, 300, 300), "yes", "yes, after generation 2: "),
        ((500, 501, 300, 400), "yes", "yes, after generation 2: "),
        ((500, 400, 300, 200), "no", "no, not within 3 generations: "),
        ((500, 500, 500, 400), "no", "no, not within 3 generations: "),
        ((500, 501, 600, 700), "no gain shown", "no gain shown from any generation to the next: "),
        ((500, 400, 300), "no", "no, not within 2 generations: "),
    ],
)
def test_saturates(wrong, verdict, why):
    columns = dict(zip(SATURATES["saturates"], wrong, strict=False))
    found = judged(SATURATES, {name: [count] * 2 for name, count in columns.items()})
    assert found.verdict == verdict
    assert found.sentence.startswith(f"Gains saturate: {why}")
    assert found.sentence.count(" minus ") == len(wrong) - 1


@pytest.mark.parametrize(
    ("figures", "paper", "end"),
    [
        ((17.69, 16.62, 16.44, 16.72), "yes", "16.44, 16.72, yes, after generation 2."),
        ((17.16, 16.26, 16.3, 15.5), "no", "16.30, 15.50, no, not within 3 generations."),
        ((16.87, 16.13, 16.13, None), "yes", "The paper: 16.87, 16.13, 16.13, yes, after gen"),
        ((16.0, 16.1, 16.2, 16.3), "no gain", "The paper: 16.00, 16.10, 16.20, 16.30, no gain."),
        ((16.0, 15.0, None, 14.0), None, "."),
    ],
)
def test_the_paper_s_generations(figures, paper, end):
    columns = SATURATES["saturates"]
    theirs = dict(zip(columns, figures, strict=True))
    found = judged(SATURATES, {name: [500] * 2 for name in columns}, theirs)
    assert found.paper == paper
    assert end in found.sentence
    assert ("The paper" in found.sentence) == (paper is not None)


def saved(folder: Path, name: str, **changes) -> tuple[Path, dict]:
    """A file of a table with one network, seed 1, unless something else is said."""
    given = table(changes.pop("entries", [image_entry("teacher", 1, 500)]), **changes)
    write_json(folder / name, given)
    return folder / name, given


def test_seeds_columns_and_rows_are_merged(tmp_path):
    first, own = saved(tmp_path, "a.json", claims=[BEATS], figures={"generations": ["teacher"]})
    entries = [image_entry(c, s, 400) for s, c in product((3, 2), ("ban", "cwtm", "teacher"))]
    entries.append(image_entry("ban", 2, 400, row="other"))
    rows = [*own["rows"], own["rows"][0] | {"name": "other", "heading": "Other"}]
    changes = {
        "command": "ban-hf reproduce table2 --seeds 2 3",
        "hardware": "one GPU",
        "versions": {"torch": "2.16", "timm": "1.0"},
        "claims": [BEATS, EXPLAINS],
        "figures": {"generations": ["teacher", "ban"], "ensembles": {"Born-again": ["ban"]}},
    }
    second, _ = saved(tmp_path, "b.json", entries=entries, rows=rows, **changes)
    merged = read_results([first, second])
    assert merged["seeds"] == [1, 2, 3]
    assert [column["name"] for column in merged["columns"]] == ["teacher", "ban", "cwtm"]
    assert [row["name"] for row in merged["rows"]] == ["net", "other"]
    cells = [(e["row"], e["column"], e["seed"]) for e in merged["entries"]]
    expected = [("teacher", 1), ("teacher", 2), ("teacher", 3), ("ban", 2), ("ban", 3)]
    expected += [("cwtm", 2), ("cwtm", 3)]
    assert cells == [*(("net", *cell) for cell in expected), ("other", "ban", 2)]
    assert merged["claims"] == [BEATS, EXPLAINS]
    assert merged["figures"] == changes["figures"]
    assert merged["command"] == f"ban-hf reproduce table2\n{changes['command']}"
    assert merged["hardware"] == "CPU, 2 cores (x86_64); one GPU"
    assert merged["versions"] == {"torch": "2.15 and 2.16", "timm": "1.0"}
    assert read_results([second, first])["entries"] != []


def test_a_new_column_stands_where_its_own_table_has_it(tmp_path):
    few = [image_entry(c, 1, 500) for c in ("teacher", "ens2")]
    more = [image_entry(c, 2, 500) for c in ("teacher", "ban", "ens2", "ens3")]
    files = [saved(tmp_path, f"{len(e)}.json", entries=e)[0] for e in (few, more)]
    for paths in (files, files[::-1]):
        names = [column["name"] for column in read_results(paths)["columns"]]
        assert names == ["teacher", "ban", "ens2", "ens3"]


def test_one_file_and_the_same_file_twice_are_that_file(tmp_path):
    path, own = saved(tmp_path, "a.json", claims=[BEATS])
    assert read_results([path]) == own
    assert read_results([path, path]) == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"name": "gpu", "says": "all"}}, "differ in budget"),
        ({"table": "table1"}, "differ in table"),
        ({"dataset": {"name": "digits"}}, "differ in dataset"),
        ({"labels": pack_classes(labels() + 1)}, "differ in labels"),
        ({"entries": [image_entry("teacher", 1, 499)]}, "different results of row 'net'.*seed 1"),
        ({"entries": [image_entry("teacher", 2, 500, code="new")]}, "different code.*not mixed"),
        ({"columns": [{"name": "teacher", "heading": "T"}]}, "differ in columns: 'teacher'"),
        (
            {"entries": [image_entry("teacher", 2, 500, configuration={"training": {"lr": 5}})]},
            "row 'net', column 'teacher', was trained with other arguments",
        ),
    ],
)
def test_what_is_not_of_one_table_is_not_merged(tmp_path, changes, message):
    first, _ = saved(tmp_path, "a.json")
    second, _ = saved(tmp_path, "b.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_results([first, second])
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


def test_what_is_no_table_is_refused(tmp_path):
    path, _ = saved(tmp_path, "a.json", schema="ban_hf.results/1")
    with pytest.raises(ValueError, match=r"a\.json has schema 'ban_hf.results/1', not"):
        read_results([path])
    for damage in ({"outcomes": {"predicted": "x"}}, {"test": {}}, {"outcomes": {}}):
        path, _ = saved(tmp_path, "a.json", entries=[image_entry("teacher", 1, 5) | damage])
        with pytest.raises(ValueError, match=r"a\.json is damaged: "):
            read_results([path])
    with pytest.raises(ValueError, match="paths is empty"):
        read_results([])


@pytest.mark.parametrize(
    "missing", "order rows columns claims seeds versions budget dataset entries".split()
)
def test_a_damaged_table_is_refused_by_the_name_of_its_file(tmp_path, missing):
    path, _ = saved(tmp_path, "a.json")
    data = json.loads(path.read_text("utf-8"))
    for damage in ({}, {missing: 5}):
        rest = {name: value for name, value in data.items() if name != missing}
        write_json(path, rest | damage)
        with pytest.raises(ValueError, match=rf"a\.json is damaged: {missing} is missing, or"):
            read_results([path])


def test_an_entry_of_no_row_or_without_its_parameters_is_refused(tmp_path):
    for damage, message in (
        ({"row": "zzz"}, r"an entry of row 'zzz', column 'teacher', which it does not name"),
        ({"parameters": None}, "parameters is missing, or"),
    ):
        path, _ = saved(tmp_path, "a.json", entries=[image_entry("teacher", 1, 5) | damage])
        with pytest.raises(ValueError, match=rf"a\.json is damaged: .*{message}"):
            read_results([path])


def small_table() -> dict:
    """Two rows, the second of them half done; one network diverged; columns beyond the paper."""
    wrong = {"teacher": (500, 510), "ban": (400, 420), "cwtm": (490, 495), "ban-2": (380, 430)}
    wrong |= {"ens2": (350, 360), "ens3": (340, 350)}
    size = {"all": 149476, "trainable": 0}
    entries = [
        image_entry(column, seed, count, **({"parameters": size} if "ens" in column else {}))
        for column, counts in wrong.items()
        for seed, count in enumerate(counts, 1)
    ]
    entries += [image_entry("teacher", s, 700 + 9 * s, row="half") for s in (1, 2)]
    lost = {"error": None, "nll": None, "ece": None, "n": IMAGES}
    entries += [image_entry("ban", 1, 720, row="half"), entry("ban", 2, lost, {}, row="half")]
    results = table(entries, claims=[BEATS, EXPLAINS, SATURATES])
    paper = {"teacher": 17.69, "ban": 16.69, "cwtm": 17.42, "ban-2": 16.44, "ens2": 15.39}
    sizes = {"paper_parameters": {"ban": 16.1}, "sizes": {"teacher": 16_120_538, "ban": 16_120_538}}
    whole = {"name": "net", "heading": "DenseNet-90-60", "paper": paper}
    half = {"name": "half", "heading": "DenseNet-80-120", "paper": {"teacher": 16.87, "ban": 16}}
    half["note"] = "the paper's teacher is a member of its Ens*3"
    results["rows"] = [whole | sizes, half]
    results["claims"].append({"beats": ["ens3", "ens2"], "says": "Ens*3 beats Ens*2"})
    return results


def test_the_whole_report(tmp_path, monkeypatch):
    figures = [("generations.png", "Test error by *generation*."), ("half-gradient.png", "Half.")]
    monkeypatch.setattr(table_report, "write_figures", lambda results, folder: figures)
    results = small_table()
    write_table_report(results, tmp_path / "new" / "folder")
    report = (tmp_path / "new" / "folder" / "report.md").read_text("utf-8")
    assert report == (GOLDEN / "table.md").read_text("utf-8")
    assert report == markdown(results, figures)
    again = read_results([tmp_path / "new" / "folder" / "results.json"])
    assert markdown(again, figures) == report
    assert again["entries"][0] == results["entries"][0]
    assert sorted(p.name for p in (tmp_path / "new/folder").iterdir()) == [
        "report.md",
        "results.json",
    ]


def test_the_report_of_a_text_has_its_validation_too():
    words = np.random.default_rng(0).normal(3, 1, 20_000)
    entries = [
        text_entry(column, seed, words - gain + 0.01 * seed)
        for column, gain in (("teacher", 0), ("ban", 0.1))
        for seed in (1, 2)
    ]
    row = {"name": "net", "heading": "LSTM", "paper": {"teacher": 71.87, "ban": 68.56}}
    row["paper_validation"] = {"teacher": 75.11, "ban": 71.19}
    results = table(entries, metric="perplexity", rows=[row], claims=[BEATS])
    lines = markdown(results).splitlines()
    test = lines.index("| network | test perplexity | Teacher | BAN |")
    validation = lines.index("| network | validation perplexity | Teacher | BAN |")
    assert lines[test + 2].startswith("| LSTM | ours | 20.49 ± 0.14 |")
    assert lines[validation + 2].startswith("| LSTM | ours | 21.49 ± 0.14 |")
    assert lines[test + 3] == "|  | paper | 71.87 | 68.56 |"
    assert lines[validation + 3] == "|  | paper | 75.11 | 71.19 |"
    follows = next(line for line in lines if "BAN beats" in line)
    assert follows.startswith("- BAN beats its teacher: yes, in 2 of 2 seeds, -1.9")
    assert " in perplexity (95 % interval -" in follows
    heading = "test perplexity: 95 % interval | nats per word | minus Teacher"
    assert sum(heading in line for line in lines) == 1


def test_a_table_not_begun_is_the_paper_s_alone():
    results = small_table() | {"entries": [], "seeds": [1]}
    report = markdown(results)
    assert "| DenseNet-90-60 | ours | – |" in report
    assert "Teacher (in no seed)" in report
    for section in ("What follows", "Each column", "Beyond", "Parameters", "Figures"):
        assert section not in report


def test_a_row_that_the_paper_has_not_is_ours_alone():
    entries = [image_entry(c, 1, n) for c, n in (("teacher", 500), ("ban", 400))]
    row = {"name": "net", "heading": "A network of our own"}
    report = markdown(table(entries, rows=[row], claims=[BEATS]))
    assert "| A network of our own | ours | 50.00 | 40.00 |" in report
    assert "|  | paper |" not in report
    assert "The paper:" not in report
    assert "Not measured" not in report


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(table_report, "write_figures", lambda results, folder: [])
    write_table_report(small_table(), tmp_path)
    before = (tmp_path / "report.md").read_text("utf-8")
    with pytest.raises(KeyError):
        write_table_report(small_table() | {"metric": "accuracy"}, tmp_path)
    assert (tmp_path / "report.md").read_text("utf-8") == before
    assert not list(tmp_path.glob("*.tmp"))
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["table"] == "table2"
