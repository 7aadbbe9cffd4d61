"""Files of results: read in every version, merged, and refused by name."""

import json
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
import pytest
from table_results import IMAGES, image_entry, labels, table_data

from ban_hf.errors import BANError
from ban_hf.lineage.files import write_json
from ban_hf.lineage.results import (
    Entry,
    Outcomes,
    block_losses,
    item_losses,
    pack_classes,
    unpack_classes,
)
from ban_hf.reports.reading import read_results
from ban_hf.reports.report import as_text, report_text
from ban_hf.reports.verdicts import verdicts

RESULTS = Path(__file__).parents[2] / "results"
BEATS = {"beats": ["ban", "teacher"], "says": "BAN beats its teacher"}
EXPLAINS = {"explains": ["cwtm", "ban", "teacher"], "says": "CWTM alone explains the gain"}


def saved(folder: Path, name: str, **changes) -> Path:
    """A file of a table with one network, seed 1, unless something else is said."""
    given = table_data(changes.pop("entries", [image_entry("teacher", 1, 500)]), **changes)
    write_json(folder / name, given)
    return folder / name


def test_seeds_columns_and_rows_are_merged(tmp_path):
    first = saved(tmp_path, "a.json", claims=[BEATS], figures={"generations": ["teacher"]})
    entries = [image_entry(c, s, 400) for s, c in product((3, 2), ("ban", "cwtm", "teacher"))]
    entries.append(image_entry("ban", 2, 400, row="other"))
    row = {"name": "net", "heading": "DenseNet", "paper": {}, "paper_parameters": {}}
    changes = {
        "command": "ban-hf reproduce table2 --seeds 2 3",
        "hardware": "one GPU",
        "versions": {"torch": "2.16", "timm": "1.0"},
        "claims": [BEATS, EXPLAINS],
        "figures": {"generations": ["teacher", "ban"], "ensembles": {"Born-again": ["ban"]}},
    }
    rows = [row, row | {"name": "other", "heading": "Other"}]
    second = saved(tmp_path, "b.json", entries=entries, rows=rows, **changes)
    merged = read_results([first, second])
    assert merged.seeds == (1, 2, 3)
    assert [column.name for column in merged.columns] == ["teacher", "ban", "cwtm"]
    assert [row.name for row in merged.rows] == ["net", "other"]
    cells = [(e.row, e.column, e.seed) for e in merged.entries]
    expected = [("teacher", 1), ("teacher", 2), ("teacher", 3), ("ban", 2), ("ban", 3)]
    expected += [("cwtm", 2), ("cwtm", 3)]
    assert cells == [*(("net", *cell) for cell in expected), ("other", "ban", 2)]
    assert [claim.says for claim in merged.claims] == [BEATS["says"], EXPLAINS["says"]]
    assert msgspec.to_builtins(merged.figures) == {
        "generations": ("teacher", "ban"),
        "ensembles": {"Born-again": ("ban",)},
    }
    assert merged.command == f"ban-hf reproduce table2\n{changes['command']}"
    assert merged.hardware == "CPU, 2 cores (x86_64); one GPU"
    assert merged.versions == {"torch": "2.15 and 2.16", "timm": "1.0"}
    again = read_results([second, first])
    assert (again.entries, again.columns) == (merged.entries, merged.columns)


def test_a_file_twice_is_that_file_and_what_is_written_is_read_again(tmp_path):
    path = saved(tmp_path, "a.json", claims=[BEATS])
    once = read_results([path])
    assert read_results([path, path]) == once
    (tmp_path / "b.json").write_text(as_text(once), "utf-8")
    assert read_results([tmp_path / "b.json"]) == once


def of_rate(seed: int, rate: int, wrong: int = 500) -> dict:
    """A change: the network of a seed, trained with a learning rate."""
    configuration = {"training": {"lr": rate, "seed": seed}, "teacher": seed}
    return {"entries": [image_entry("teacher", seed, wrong, configuration=configuration)]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"name": "gpu", "says": "all"}}, "differ in budget"),
        ({"table": "table1"}, "differ in table"),
        ({"dataset": {"name": "digits"}}, "differ in dataset"),
        ({"labels": pack_classes(labels() + 1)}, "differ in labels"),
        (of_rate(1, 4) | {"hardware": "GPU"}, None),
        (of_rate(2, 4), None),
        (of_rate(2, 5), "row 'net', column 'teacher', was trained with other arguments"),
        (of_rate(1, 4, wrong=499), "different results of row 'net'.*seed 1"),
        ({"entries": [image_entry("teacher", 2, 500, code="new")]}, "different code.*not mixed"),
        ({"columns": [{"name": "teacher", "heading": "T"}]}, "differ in columns: 'teacher'"),
    ],
)
def test_what_is_not_of_one_table_is_not_merged(tmp_path, changes, message):
    first = saved(tmp_path, "a.json", **of_rate(1, 4))
    second = saved(tmp_path, "b.json", **changes)
    if message is None:
        assert read_results([first, second])
        return
    with pytest.raises(BANError, match=message) as error:
        read_results([first, second])
    assert str(first) in str(error.value)
    assert str(second) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "ban_hf.results/3"}, r"a later ban_hf \(ban_hf.results/3\): update"),
        ({"schema": "ban_hf.lineage/1"}, "not the results.json of a run: its schema is"),
        ({"metric": "bleu"}, "metric='bleu' must be one of .*error, perplexity"),
        ({"claims": [{"is": ["ban"], "says": "It is"}]}, r"'is': .* beats, explains, saturates"),
        *(
            ({"entries": [image_entry("teacher", 1, 5) | damage]}, rf"a\.json is damaged: .*{says}")
            for damage, says in (
                ({"row": "zzz"}, "an entry of row 'zzz', column 'teacher', which it does not name"),
                ({"parameters": None}, "parameters is missing"),
                ({"outcomes": None}, "outcomes is missing"),
                ({"outcomes": {"predicted": "x"}}, "row 'net', column 'teacher', seed 1"),
                ({"outcomes": {}}, "predictions or labels are missing"),
                (
                    {"outcomes": {"predicted": pack_classes(labels()[:9])}},
                    "9 predictions for 1000 labels",
                ),
                ({"test": {}}, "has no error"),
                ({"seed": "one"}, r"Expected `int`, got `str` - at `\$\.entries\[0\]\.seed`"),
            )
        ),
    ],
)
def test_a_file_that_is_damaged_or_not_understood_is_refused(tmp_path, changes, message):
    with pytest.raises(BANError, match=message):
        read_results([saved(tmp_path, "a.json", **changes)])


@pytest.mark.parametrize(
    "missing", "order rows columns claims seeds budget dataset entries title task metric".split()
)
def test_a_damaged_table_is_refused_by_the_name_of_its_file(tmp_path, missing):
    data = table_data([image_entry("teacher", 1, 500)])
    del data[missing]
    for damage in [{}] * (missing != "budget") + [{missing: 5}]:
        write_json(tmp_path / "a.json", data | damage)
        with pytest.raises(BANError, match=r"a\.json is damaged: "):
            read_results([tmp_path / "a.json"])


def test_outcomes_come_back_as_they_were_packed():
    classes = np.arange(IMAGES) % 300
    assert np.array_equal(unpack_classes(pack_classes(classes)), classes)
    nll = np.random.default_rng(0).normal(3, 1, 1234)
    entry = Entry(row="r", column="c", seed=1, test={}, outcomes=block_losses(nll))
    losses, words = item_losses(entry, None)
    assert words.tolist() == [500, 500, 234]
    assert losses == pytest.approx([nll[:500].sum(), nll[500:1000].sum(), nll[1000:].sum()])
    unequal = Outcomes(nll=(1.0, 2.0), words=(5,))
    with pytest.raises(BANError, match="different lengths"):
        item_losses(msgspec.structs.replace(entry, outcomes=unequal), None)


def family(folder: Path, number: int, errors=(20.0, 18.0, 17.0), **changes) -> Path:
    """A family of two students as the first version wrote it, with its ensemble and controls."""
    control = {"test": {"error": 19.0, "nll": 2.0, "ece": None, "n": 1000}}
    data = {
        "title": "A family on digits",
        "command": f"accelerate launch recipes/ban_cifar.py --seed {number}",
        "hardware": "2 CPU cores",
        "seed": number,
        "dataset": {"name": "digits", "id": f"data/{number}"},
        "generations": [
            {
                "generation": k,
                "name": f"BAN-{k}" if k else "labels",
                "seed": 100 * number + k,
                "test": {"error": error, "nll": error / 10, "ece": 1.234, "n": 1000},
                "validation": {"error": 16.0 + k},
                "best_validation": {"error": 15.0 + k, "epoch": 7},
                "teacher_agreement": 90.0 + k if k else None,
                "train_loss": 0.5,
                "seconds": 60.4,
            }
            for k, error in enumerate(errors)
        ],
        "ensembles": [{"members": [1, 2], "name": "Ens*2", "test": {"error": 16.0, "nll": 1.0}}],
        "controls": [
            {"name": "labels again, network 2", "kind": "network", "size": 1} | control,
            {"name": "2 label-trained", "kind": "ensemble", "size": 2} | control,
        ],
        "versions": {"torch": "2.15.0"},
    }
    path = folder / f"{len(list(folder.iterdir()))}.json"
    write_json(path, data | changes)
    return path


def test_a_family_of_version_1_is_a_table_of_one_row(tmp_path):
    found = read_results([family(tmp_path, 7)])
    assert [(c.kind, c.generation, c.size) for c in found.columns] == [
        ("labels", 0, 1),
        ("student", 1, 1),
        ("student", 2, 1),
        ("ensemble", 2, 2),
        ("control", None, 1),
        ("control", None, 2),
    ]
    second = found.cell("family", "generation-2")[7]
    assert (second.value("error"), second.teacher_agreement) == (17.0, 92.0)
    assert second.network_seed == 702
    assert (second.best_validation, second.seconds) == ({"error": 17.0, "epoch": 7}, 60.4)
    says = [claim.says for claim in found.claims]
    assert says[:3] == ["BAN-1 beats labels", "BAN-2 beats labels", "Gains saturate"]
    assert "Ens*2 beats 2 label-trained" in says


def test_seeds_of_a_family_are_pooled_and_paired(tmp_path):
    errors = {3: (20.0, 18.0, 17.0), 1: (21.0, 18.5, 18.0), 2: (22.0, 20.0, 16.0)}
    pooled = read_results([family(tmp_path, seed, own) for seed, own in errors.items()])
    assert pooled.seeds == (1, 2, 3)
    text = report_text(pooled)
    assert "| BAN-2 minus labels | -4.00 ± 1.73 |" in " ".join(text.split())
    (first, *_) = verdicts(pooled)
    assert first.sentence.startswith("BAN-1 beats labels: not shown: lower in 3 of 3 seeds, -2.17")
    assert "(no interval)" in first.sentence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "hold the seeds 1, 1: one comes twice"),
        ({"dataset": {"name": "cifar10"}}, "on different data: digits, cifar10"),
        ({"controls": []}, "measured different things"),
        ({"metric": "loss"}, "has no loss"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, changes, message):
    paths = [family(tmp_path, 1), family(tmp_path, 2, **changes)]
    with pytest.raises(BANError, match=message):
        read_results(paths)


def test_nothing_and_a_table_with_a_family_are_not_merged(tmp_path):
    with pytest.raises(BANError, match="some are results of tables and some of families"):
        read_results([saved(tmp_path, "a.json"), family(tmp_path, 1)])
    with pytest.raises(BANError, match="paths is empty"):
        read_results([])


def test_a_family_that_lacks_a_part_is_refused(tmp_path):
    path = family(tmp_path, 1)
    data = json.loads(path.read_text("utf-8"))
    for name in ("title", "dataset", "versions"):
        write_json(path, {key: value for key, value in data.items() if key != name})
        with pytest.raises(BANError, match=rf"0\.json is damaged: {name} is missing"):
            read_results([path])


@pytest.mark.parametrize("folder", ["cifar100_cpu", "cifar100_cpu_fast"])
def test_committed_pooled_results_are_what_their_seeds_give(folder):
    """The pooled file of version 1 has the same numbers as its seeds read together."""
    pooled = read_results([RESULTS / folder / "results.json"])
    seeds = read_results(sorted((RESULTS / folder).glob("seed-*.json")))
    assert report_text(pooled) == report_text(seeds)
    published = (RESULTS / folder / "results.md").read_text("utf-8")
    cells = {cell.strip() for cell in published.split("|")}
    for column in ("generation-0", "generation-1"):
        values = [e.test["error"] for e in seeds.measured("family", column).values()]
        assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in cells


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*/report.md")), ids=lambda p: p.parent.name)
def test_committed_tables_give_the_verdicts_that_were_published(path):
    found = read_results(sorted(path.parent.glob("*.json")))
    published = path.read_text("utf-8")
    for verdict in verdicts(found):
        assert f"- {verdict.sentence.replace('*', chr(92) + '*')}\n" in published
