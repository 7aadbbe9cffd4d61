"""The report of a family and of a table: their text against golden files, and their files.

Run this file as a script to rewrite the golden files.
"""

import math
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from table_results import IMAGES, entry, image_entry, labels, table, text_entry

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import method_of
from ban_hf.lineage.results import (
    Entry,
    Outcomes,
    Parameters,
    Results,
    control_column,
    ensemble_column,
    family_results,
    generation_column,
    pack_classes,
    results_of_records,
    side_by_side,
)
from ban_hf.reports import figures
from ban_hf.reports.reading import read_results
from ban_hf.reports.report import report_text, subtitle, write_report
from ban_hf.reports.statistics import is_measured
from ban_hf.reports.verdicts import verdicts

GOLDEN = Path(__file__).parents[1] / "golden"
BEATS = {"beats": ["ban", "teacher"], "says": "BAN beats its teacher"}
EXPLAINS = {"explains": ["cwtm", "ban", "teacher"], "says": "CWTM alone explains the gain"}
SATURATES = {"saturates": ["teacher", "ban", "ban-2", "ban-3"], "says": "Gains saturate"}


def small_table() -> Results:
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
    paper = {"teacher": 17.69, "ban": 16.69, "cwtm": 17.42, "ban-2": 16.44, "ens2": 15.39}
    sizes = {"paper_parameters": {"ban": 16.1}, "sizes": {"teacher": 16_120_538, "ban": 16_120_538}}
    whole = {"name": "net", "heading": "DenseNet-90-60", "paper": paper}
    half = {"name": "half", "heading": "DenseNet-80-120", "paper": {"teacher": 16.87, "ban": 16}}
    half["note"] = "the paper's teacher is a member of its Ens*3"
    claims = [BEATS, EXPLAINS, SATURATES, {"beats": ["ens3", "ens2"], "says": "Ens*3 beats Ens*2"}]
    return table(entries, claims=claims, rows=[whole | sizes, half])


def small_family(seeds: tuple[int, ...] = (1, 2), *, gain: int = 100) -> Results:
    """Two students, their ensemble and controls; each student is right on `gain` images more."""
    truth = labels()
    columns = [
        *(generation_column(k, f"BAN-{k}" if k else "labels") for k in range(3)),
        ensemble_column([1, 2], "Ens*2 of generations 1-2"),
        control_column(2, "labels again, network 2"),
        control_column(2, "Ens*2 of label-trained networks", size=2),
    ]
    wrong = [600, 600 - gain, 600 - 2 * gain, 580 - 2 * gain, 595, 570]
    entries = []
    for column, count in zip(columns, wrong, strict=True):
        for seed in seeds:
            at_fault = np.arange(IMAGES) < count + 3 * seed  # (IMAGES,)
            predicted = np.where(at_fault, (truth + 1) % 10, truth)
            is_student = column.kind == "student"
            entries.append(
                Entry(
                    row="family",
                    column=column.name,
                    seed=seed,
                    test={"error": 100 * at_fault.mean().item(), "nll": count / 300, "n": IMAGES},
                    outcomes=Outcomes(predicted=pack_classes(predicted)),
                    parameters=Parameters(all=77_706 * column.size, trainable=77_706),
                    validation={"error": 30.0} if column.generation is not None else None,
                    best_validation={"error": 29.0, "epoch": 4},
                    train_loss=0.5,
                    teacher_agreement=90.0 + seed if is_student else None,
                    seconds=12.0 if column.size == 1 else None,
                )
            )
    return family_results(
        title="cifar_wrn_10_1 on digits",
        metric="error",
        dataset={"name": "digits"},
        columns=columns,
        entries=entries,
        seeds=seeds,
        labels=pack_classes(truth),
        command="accelerate launch recipes/ban_cifar.py",
        hardware="CPU, 2 cores (x86_64)",
        versions={"torch": "2.15.0"},
    )


REPORTS = {"table": small_table, "family": small_family}


@pytest.mark.parametrize("name", REPORTS)
def test_the_whole_report(name, tmp_path, monkeypatch):
    drawn = [("generations.png", "Test error by *generation*."), ("half-gradient.png", "Half.")]
    monkeypatch.setattr(figures, "write_figures", lambda results, folder: drawn)
    results, folder = REPORTS[name](), tmp_path / "new" / "folder"
    text = write_report(results, folder)
    file = "report.md" if name == "table" else "results.md"
    report = (folder / file).read_text("utf-8")
    assert report == (GOLDEN / f"report-{name}.md").read_text("utf-8")
    assert report.startswith(text)
    assert read_results([folder / "results.json"]) == results
    assert sorted(path.name for path in folder.iterdir()) == sorted([file, "results.json"])


def test_a_family_says_what_is_shown_and_what_is_not():
    claims = [
        "BAN-1 beats labels",
        "BAN-2 beats labels again, network 2",
        "Ens*2 of generations 1-2 beats Ens*2 of label-trained networks",
        "Gains saturate",
    ]
    for gain, expected in ((100, ["yes", "yes", "yes", "no"]), (1, ["not shown", "not shown"])):
        found = {v.says: v.verdict for v in verdicts(small_family(gain=gain))}
        assert [found[claim] for claim in claims[: len(expected)]] == expected


def test_one_seed_of_a_family_shows_nothing_and_says_so():
    one = small_family((1,))
    assert {v.verdict for v in verdicts(one)} == {"not shown", "no gain shown"}
    report = report_text(one)
    assert "There is one seed, so no difference is shown." in report
    assert "lower in 1 of 1 seed, -10.00 points (95 % interval -11." in report
    assert ", over test items alone)" in report


def test_students_of_several_methods_are_set_against_their_teacher_and_bans():
    families = {}
    for method, gain in (("BAN", 100), ("CWTM", 20)):
        results = small_family(gain=gain)
        columns = tuple(
            replace(c, heading=c.heading.replace("BAN", method)) for c in results.columns
        )
        families[method] = replace(results, columns=columns)
    found = side_by_side(families, "Two methods", "a command")
    assert [c.name for c in found.columns][:4] == [
        "generation-0",
        "BAN-generation-1",
        "BAN-generation-2",
        "BAN-ensemble-1-2",
    ]
    verdict = {v.says: v.verdict for v in verdicts(found)}
    assert verdict["CWTM-1 beats labels"] == "yes"
    assert verdict["CWTM-1 alone explains the gain of BAN-1"] == "no"
    assert found.figures.ablation[0] == "generation-0"
    assert "CWTM: Ens\\*2" in report_text(found)


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
    lines = [" ".join(line.split()) for line in report_text(results).splitlines()]
    test = lines.index("| network | test perplexity | Teacher | BAN |")
    validation = lines.index("| network | validation perplexity | Teacher | BAN |")
    assert lines[test + 2].startswith("| LSTM | ours | 20.49 ± 0.14 |")
    assert lines[validation + 2].startswith("| LSTM | ours | 21.49 ± 0.14 |")
    assert lines[test + 3] == "| | paper | 71.87 | 68.56 |"
    assert lines[validation + 3] == "| | paper | 75.11 | 71.19 |"
    follows = next(line for line in lines if "BAN beats" in line)
    assert follows.startswith("- BAN beats its teacher: yes, in 2 of 2 seeds, -1.9")
    assert " in perplexity (95 % interval -" in follows


def test_a_table_not_begun_is_the_papers_alone():
    report = report_text(replace(small_table(), entries=(), seeds=(1,)))
    assert "| DenseNet-90-60  | ours" in report
    assert "Teacher (in no seed)" in report
    for section in ("What follows", "Each column", "Beyond", "Parameters", "Figures"):
        assert section not in report


def test_a_row_that_the_paper_does_not_have_is_ours_alone():
    entries = [image_entry(c, 1, n) for c, n in (("teacher", 500), ("ban", 400))]
    row = {"name": "net", "heading": "A network of our own"}
    report = report_text(table(entries, rows=[row], claims=[BEATS]))
    assert "| paper" not in report
    assert "The paper:" not in report
    assert "Not measured" not in report


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "write_figures", lambda results, folder: [])
    write_report(small_table(), tmp_path)
    before = (tmp_path / "report.md").read_text("utf-8")
    one, *others = small_table().entries
    short = replace(one, outcomes=Outcomes(predicted=pack_classes(labels()[:5])))
    with pytest.raises(BANError, match="5 predictions for 1000 labels"):
        write_report(replace(small_table(), entries=(short, *others)), tmp_path)
    assert (tmp_path / "report.md").read_text("utf-8") == before
    assert not list(tmp_path.glob("*.tmp"))


def record(generation: int | None, values: dict[str, float], **changes) -> dict:
    """What of a lineage record a table and a picture are made from; None is the ensemble."""
    objective = {"name": "kd", "teacher_weight": 1, "label_weight": 0, "temperature": 1}
    metrics = [{"name": k, "value": v, "split": "test", "n": 359} for k, v in values.items()]
    return {
        "kind": "ensemble" if generation is None else "generation",
        "family": "digits",
        "generation": generation,
        "members": [{"generation": 1}, {"generation": 2}] if generation is None else [],
        "objective": objective if generation else None,
        "seed": {} if generation is None else {"seed": 7, "family_seed": 42},
        "data": {"source": {"id": "somewhere/of/this/machine/digits"}},
        "training": {} if generation is None else {"hardware": "2 CPU cores", "seconds": 9.9},
        "metrics": metrics,
        "code": {"torch": "2.15.0"},
    } | changes


def test_records_alone_make_results():
    records = [
        record(0, {"loss": 0.2, "error": 5.85, "nll": 0.2}),
        record(1, {"loss": 0.3, "error": 6.13, "nll": 0.3, "teacher_agreement": 94.7}),
    ]
    results = results_of_records(records, record(None, {"error": 6.0}))
    assert [e.value("error") for e in results.entries] == [5.85, 6.13, 6.0]
    assert results.entries[1].teacher_agreement == 94.7
    assert results.columns[2].heading == "Ens*2 of generations 1, 2"
    assert subtitle(results) == "digits · 359 test items · one seed (42)"
    assert (results.hardware, results.versions) == ("2 CPU cores", {"torch": "2.15.0"})
    with pytest.raises(BANError, match="generations is empty"):
        results_of_records([])


def test_records_are_measured_by_what_they_have():
    text = results_of_records([record(0, {"loss": 4.757, "perplexity": 116.4})])
    assert (text.metric, text.entries[0].value("nll")) == ("perplexity", 4.757)
    loss = results_of_records([record(k, {"loss": 0.5 - k / 10}) for k in range(2)])
    assert (loss.metric, [m.name for m in loss.measure.metrics]) == ("loss", ["loss"])
    tags = results_of_records([record(k, {"error": 9.0, "entity_f1": 40.0 + k}) for k in range(2)])
    assert (tags.metric, [e.value("entity_f1") for e in tags.entries]) == ("entity_f1", [40, 41])
    nothing = results_of_records([record(0, {}), record(1, {"error": math.nan})])
    assert not is_measured(nothing)
    assert is_measured(results_of_records([record(0, {}), record(1, {"error": 5.0})]))


def test_a_small_difference_is_written_to_the_digits_of_its_metric():
    results = results_of_records([record(k, {"rmse": 0.1234 - k / 1000}) for k in range(2)])
    (verdict,) = verdicts(results)
    assert "lower in 1 of 1 seed, -0.0010 in RMSE (no interval)" in verdict.sentence


def test_generations_of_several_runs_are_said_to_be():
    pulled = record(2, {"error": 7.2}, seed={"seed": 3, "family_seed": 1}, family="theirs")
    own = [record(k, {"error": 7.0 - k / 10}, family="ours") for k in (3, 4)]
    results = results_of_records([pulled, *own])
    assert "Generations come from runs of several seeds (1, 42)." in report_text(results)
    assert [c.generation for c in results.columns] == [2, 3, 4]


def test_the_methods_have_the_names_of_the_paper():
    names = [("kd", 0), ("kd", 1), ("cwtm", 0), ("dkpp", 0.5)]
    objectives = [{"name": name, "label_weight": weight} for name, weight in names]
    assert [*map(method_of, objectives)] == ["BAN", "BAN+L", "CWTM", "DKPP+L"]
    assert method_of(None) == "labels"


def test_a_family_has_a_known_metric_and_a_generation():
    options = {"title": "t", "dataset": {"name": "d"}, "entries": [], "seeds": [1]}
    with pytest.raises(
        BANError, match=r"metric='bleu' of the results must be one of .*error, perp"
    ):
        family_results(metric="bleu", columns=[generation_column(0, "labels")], **options)
    with pytest.raises(BANError, match="one generation at least"):
        family_results(metric="error", columns=[], **options)


if __name__ == "__main__":
    for name, make in REPORTS.items():
        drawn = "![Generations](generations.png)\n\nTest error by *generation*."
        drawn += "\n\n![Half gradient](half-gradient.png)\n\nHalf."
        text = f"{report_text(make())}\n## Figures\n\n{drawn}\n"
        (GOLDEN / f"report-{name}.md").write_text(text, "utf-8")
