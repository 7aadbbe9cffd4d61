"""Every table of the paper from its command to its report, in minutes: two steps a network."""

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from family import identities

from ban_hf.cli.main import main
from ban_hf.jobs.table import Table

#: Each row and each column of every table. Tables 1 and 2 are large: a row with all columns, and
#: all rows with two.
RUNS = [
    ("table1", "all", ["wrn-28-1"]),
    ("table1", "teacher ban", []),
    ("table2", "all", ["densenet-80-120"]),
    ("table2", "teacher ban", []),
    *((f"table{number}", "all", []) for number in range(3, 7)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "columns", "rows"), RUNS)
def test_a_table_from_its_command_to_its_report(name, columns, rows, tmp_path, capsys):
    table, folder = Table(name, "smoke"), tmp_path / f"{name}-smoke"
    rows = {row: table.rows[row] for row in table.choose_rows(rows)}
    columns = {column: table.columns[column] for column in table.choose_columns(columns.split())}
    options = "--budget smoke --seeds 1 --output_dir"
    command = ["reproduce", name, *options.split(), str(tmp_path)]
    command += ["--rows", *rows, "--columns", *columns]
    assert main(command) == 0
    output = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text("utf-8"))
    cells = {(entry["row"], entry["column"], entry["seed"]) for entry in results["entries"]}
    assert cells == {(row, column, 1) for row in rows for column in columns}
    assert [row["name"] for row in results["rows"]] == list(rows)
    assert [column["name"] for column in results["columns"]] == list(columns)
    assert results["budget"]["name"] == "smoke"
    assert not any(entry["test"][table.spec["metric"]] is None for entry in results["entries"])

    report = (folder / "report.md").read_text("utf-8")
    for row in rows.values():
        assert f"| {row['heading']} " in report
        for papers in ("paper", "paper_validation"):
            for column, figure in (row.get(papers) or {}).items():
                assert column not in columns or f" {figure:.2f} |" in report
    for column in columns.values():
        assert column["heading"] in report
    shown = set(re.findall(r"\]\(([^)]+\.png)\)", report))
    assert shown == {path.name for path in folder.glob("*.png")}
    drawn = {re.split("[-.]", picture)[0] for picture in shown}
    figures = table.spec.get("figures", {}) if columns == table.columns else {}
    assert {"table", *figures} <= drawn

    before = identities_of(tmp_path / "jobs")
    files = contents(folder)
    cards = {path for path in files if path.parts[0] == "cards"}
    assert cards == {
        Path("cards", row, f"{column}.md") for row, column in with_cards(table, rows, columns)
    }
    assert main(command) == 0
    assert identities_of(tmp_path / "jobs") == before
    assert contents(folder) == files
    assert capsys.readouterr().out == output

    assert main(["report", str(folder / "results.json")]) == 0
    again = capsys.readouterr().out
    text, _, _ = output.partition("\nThe report, with pictures:")
    assert again.strip() == text.strip()
    assert report.startswith(again.partition("## Figures")[0].strip())
    assert main(["report", str(folder / "results.json"), "--output_dir", str(tmp_path / "r")]) == 0
    assert contents(tmp_path / "r") == {p: text for p, text in files.items() if p not in cards}


def identities_of(home: Path) -> dict[Path, dict]:
    return {path: identities(path) for path in home.iterdir()}


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def with_cards(table: Table, rows: Iterable[str], columns: Iterable[str]) -> set[tuple[str, str]]:
    """Every cell but the ensembles."""
    cells = itertools.product(rows, columns)
    return {(row, column) for row, column in cells if not table.job(row, column, 1).members}
