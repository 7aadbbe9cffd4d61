"""Every table of the paper from its command to its report, in minutes: two steps a network."""

import json
import re
from pathlib import Path

import pytest
from family import identities

from ban_hf.cli.main import main
from ban_hf.jobs.table import Table


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"table{number}" for number in range(1, 7)])
def test_a_table_from_its_command_to_its_report(name, tmp_path, capsys):
    table, folder = Table(name, "smoke"), tmp_path / f"{name}-smoke"
    options = "--budget smoke --columns all --seeds 1 --output_dir"
    command = ["reproduce", name, *options.split(), str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr()
    results = json.loads((folder / "results.json").read_text("utf-8"))
    cells = {(entry["row"], entry["column"], entry["seed"]) for entry in results["entries"]}
    assert cells == {(row, column, 1) for row in table.rows for column in table.columns}
    assert [row["name"] for row in results["rows"]] == list(table.rows)
    assert [column["name"] for column in results["columns"]] == list(table.columns)
    assert results["budget"]["name"] == "smoke"
    assert not any(entry["test"][table.spec["metric"]] is None for entry in results["entries"])

    report = (folder / "report.md").read_text("utf-8")
    for row in table.rows.values():
        assert f"| {row['heading']} |" in report
        for papers in ("paper", "paper_validation"):
            for figure in (row.get(papers) or {}).values():
                assert f"| {figure:.2f} |" in report
    for column in table.columns.values():
        assert column["heading"] in report
    shown = set(re.findall(r"\]\(([^)]+\.png)\)", report))
    assert shown == {path.name for path in folder.glob("*.png")}
    drawn = {re.split("[-.]", picture)[0] for picture in shown}
    assert {"table", *table.spec.get("figures", {})} <= drawn

    before = {path: identities(path) for path in (tmp_path / "jobs").iterdir()}
    files = contents(folder)
    cards = {path for path in files if path.parts[0] == "cards"}
    assert cards == {Path("cards", row, f"{column}.md") for row, column in with_cards(table)}
    assert main(command) == 0
    assert {path: identities(path) for path in before} == before
    assert contents(folder) == files
    again = capsys.readouterr()
    assert again.out == said.out

    assert main(["report", str(folder / "results.json")]) == 0
    told = capsys.readouterr().out
    text, _, _ = said.out.partition("\nThe report, with pictures:")
    assert told.strip() == text.strip()
    assert report.startswith(told.partition("## Figures")[0].strip())
    assert main(["report", str(folder / "results.json"), "--output_dir", str(tmp_path / "r")]) == 0
    assert contents(tmp_path / "r") == {p: text for p, text in files.items() if p not in cards}


def contents(folder: Path) -> dict[Path, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def with_cards(table: Table) -> set[tuple[str, str]]:
    """Every cell but the ensembles and the students of several teachers."""
    jobs = {
        (row, column): table.job(row, column, 1) for row in table.rows for column in table.columns
    }
    return {at for at, job in jobs.items() if not job.members and len(job.teachers) < 2}
