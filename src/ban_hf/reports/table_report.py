"""A table's results beside the paper's: read and merged, and written as a report.

The report says what was run on what budget, then shows the table in the paper's shape, what is not
in the paper, what follows from the figures by the rules of `reports.claims`, and how sure each
figure is. It is made from the results alone, so that the same results give the same text.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ban_hf.lineage.family_results import Results, mean_of, spread
from ban_hf.lineage.record import as_json
from ban_hf.lineage.results import MEASURES
from ban_hf.reports.claims import interval_of, verdicts
from ban_hf.reports.figures import PICTURES, write_figures
from ban_hf.reports.parameters import compared, named, notes, size_table
from ban_hf.reports.report import MISSING, cell, table
from ban_hf.reports.statistics import interval, measured, paired_difference

HOW_SURE = (
    "Each verdict follows from the figures by a fixed rule. A difference is shown where its whole "
    "95 % interval lies on one side of 0, and in more than one seed: of one alone nobody knows "
    "what another would do. What is not shown is not thereby disproved: that a part explains a "
    "gain, or that gains saturate, means that no more than it is shown. Of many such intervals "
    "some miss by chance, and with two or three seeds the part of an interval that is over seeds "
    "is rough. A seed without a finite value is in none of them."
)


def write_table_report(results: Results, folder: str | os.PathLike[str]) -> str:
    """Write `results.json`, the figures and `report.md`, each whole or not at all.

    Returns:
        The report without the figures, as a terminal shows it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "results.json", _as_text(results))
    figures = write_figures(results, folder)
    drawn = {name for name, _ in figures}
    for name in PICTURES:  # of other rows or columns, by an earlier command
        for path in (folder / f"{name}.png", *folder.glob(f"{name}-*.png")):
            if path.name not in drawn:
                path.unlink(missing_ok=True)
    text = markdown(results)
    _write(folder / "report.md", text + _pictures(figures))
    return text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _as_text(results: Results) -> str:
    """JSON with an entry a line: a log would be as many lines as it has numbers."""
    plain = json.loads(as_json(results))  # sorted, and null for what is not finite
    entries = [json.dumps(entry, ensure_ascii=False) for entry in plain.pop("entries")]
    head = json.dumps(plain, indent=2, ensure_ascii=False).removesuffix("\n}")
    return head + ',\n  "entries": [\n' + ",\n".join(entries) + "\n  ]\n}\n"


def markdown(results: Results, figures: Sequence[tuple[str, str]] = ()) -> str:
    """The report, as Markdown, which is also what a terminal shows.

    Args:
        results: of a table.
        figures: file name and caption of each picture that stands beside it.
    """
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# {results['title']}",
        _what_was_run(results),
        f"```bash\n{results['command']}\n```\n\nHardware: {results['hardware']}. {versions}.",
        _papers_shape(results),
        _section("Not measured", _not_measured(results)),
        _section("What follows", _what_follows(results)),
        _section("Beyond the paper", _beyond(results)),
        _section("Each column", _details(results)),
        _section("Parameters", _parameters(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n" + _pictures(figures)


def _pictures(figures: Sequence[tuple[str, str]]) -> str:
    """The end of the report, where pictures stand beside it."""
    shown = "\n\n".join(f"![{_alt(name)}]({name})\n\n{caption}" for name, caption in figures)
    return f"\n{_section('Figures', shown)}\n" if shown else ""


def _what_was_run(results: Results) -> str:
    budget, measure = results["budget"], MEASURES[results["metric"]]
    seeds, n = results["seeds"], _first(entry["test"].get("n") for entry in results["entries"])
    named = ", ".join(map(str, seeds))
    over = f"mean ± standard deviation over {len(seeds)} seeds ({named})"
    facts = [
        results["dataset"]["name"],
        *([f"{n:,} test {measure.items}"] if n else []),
        over if len(seeds) > 1 else f"one seed ({named})",
    ]
    return (
        f"{results['source']}, run on budget `{budget['name']}`: {budget['says']}.\n\n"
        f"{' · '.join(facts)}. The paper's figures are those it prints, of its own budget."
    )


def _papers_shape(results: Results) -> str:
    """The test metric in the columns of the paper, and of texts the validation's."""
    columns = [column for column in results["columns"] if column["in_paper"]]
    parts = [_beside_the_papers(results, columns, "test", "paper")]
    if results["task"] == "text":
        parts.append(_beside_the_papers(results, columns, "validation", "paper_validation"))
    return "\n\n".join(part for part in [*parts, notes(results, results["rows"])] if part)


def _beside_the_papers(results: Results, columns: Sequence[Any], split: str, papers: str) -> str:
    """Two lines a row: ours and, where it has any, the paper's."""
    leading = MEASURES[results["metric"]].leading
    rows = []
    for row in results["rows"]:
        ours = _line(results, row, columns, split)
        rows.append([row["heading"], "ours", *ours])
        if figures := row.get(papers):
            theirs = (cell(figures.get(column["name"]), leading.digits) for column in columns)
            rows.append(["", "paper", *theirs])
    heading = MEASURES[results["metric"]].heading(split)
    return table(["network", heading, *(column["heading"] for column in columns)], rows)


def _line(results: Results, row: Any, columns: Sequence[Any], split: str) -> list[str]:
    leading = MEASURES[results["metric"]].leading
    values = (_values(results, row, column, leading.name, split) for column in columns)
    return [cell(spread(value), leading.digits) for value in values]


def _values(results: Results, row: Any, column: Any, metric: str, split: str) -> list[float]:
    """A metric in every seed that has it."""
    cells = measured(results, row["name"], column["name"]).values()
    values = (mean_of((entry.get(split) or {}).get(metric)) for entry in cells)
    return [value for value in values if value is not None]


def _beyond(results: Results) -> str:
    tried = {entry["column"] for entry in results["entries"]}
    columns = [c for c in results["columns"] if not c["in_paper"] and c["name"] in tried]
    if not columns:
        return ""
    rows = [[row["heading"], *_line(results, row, columns, "test")] for row in results["rows"]]
    test = MEASURES[results["metric"]].leading.heading
    return table([f"network, {test}", *(column["heading"] for column in columns)], rows)


def _not_measured(results: Results) -> str:
    """What the seeds leave open of what was asked for, by row."""
    lines = []
    for row in results["rows"]:
        gaps = [gap for column in results["columns"] if (gap := _gap(results, row, column))]
        if gaps:
            lines.append(_escaped(f"- {row['heading']}: {'; '.join(gaps)}"))
    return "\n".join(lines)


def _gap(results: Results, row: Any, column: Any) -> str:
    there = {
        entry["seed"]
        for entry in results["entries"]
        if (entry["row"], entry["column"]) == (row["name"], column["name"])
    }
    diverged = there - measured(results, row["name"], column["name"]).keys()
    absent = set(results["seeds"]) - there
    parts = []
    if absent:
        is_all = len(absent) == len(results["seeds"])
        parts.append("in no seed" if is_all else f"not in seed {_listed(absent)}")
    if diverged:
        parts.append(f"no finite value in seed {_listed(diverged)}")
    return f"{column['heading']} ({', '.join(parts)})" if parts else ""


def _what_follows(results: Results) -> str:
    found = verdicts(results)
    parts = []
    for row in results["rows"]:
        own = [f"- {_escaped(v.sentence)}" for v in found if v.row == row["name"]]
        if own:
            parts.append("\n".join([f"{row['heading']}:", "", *own]))
    return "\n\n".join([HOW_SURE, *parts]) if parts else ""


def _details(results: Results) -> str:
    """Interval, likelihood, calibration, and the difference from the table's first column."""
    leading, *others = MEASURES[results["metric"]].metrics
    others = [m for m in others if any(m.name in entry["test"] for entry in results["entries"])]
    first, *_ = results["columns"]
    rows = []
    for row in results["rows"]:
        for column in results["columns"]:
            names = row["name"], column["name"]
            if (own := interval(results, *names)) is None:
                continue
            values = [(m, _values(results, row, column, m.name, "test")) for m in others]
            rows.append(
                [
                    row["heading"],
                    column["heading"],
                    f"{own.low:.2f} to {own.high:.2f}",
                    *(cell(spread(value), metric.digits) for metric, value in values),
                    *_difference(results, *names, first["name"]),
                ]
            )
    minus = [f"minus {first['heading']}", "95 % interval", "lower in"]
    headings = [f"{leading.heading}: 95 % interval", *(metric.heading for metric in others), *minus]
    return table(["network", "column", *headings], rows) if rows else ""


def _difference(results: Results, row: str, column: str, base: str) -> list[str]:
    difference = paired_difference(results, row, column, base) if column != base else None
    if difference is None:
        return [MISSING] * 3
    seeds = f"{difference.lower} of {len(difference.seeds)}"
    return [cell(vars(difference), 2, sign="+"), interval_of(difference), seeds]


def _parameters(results: Results) -> str:
    """Of each row, the networks that differ: what they train here, and at the paper's size."""
    lines = []
    for row in results["rows"]:
        trained = []
        for column in results["columns"]:
            cells = measured(results, row["name"], column["name"])
            if cells and not column["ensemble"]:
                entry = next(iter(cells.values()))
                args = ((entry.get("configuration") or {}).get("network") or {}).get("args")
                network = named({"name": entry["network"], "args": args})
                trained.append((column, (network, f"{entry['parameters']['trainable']:,}")))
        lines += compared(row, trained)
    return size_table(["network here", "parameters trained"], lines)


def _section(heading: str, body: str) -> str:
    return f"## {heading}\n\n{body}" if body else ""


def _alt(name: str) -> str:
    return Path(name).stem.replace("-", " ").replace("_", " ").capitalize()


def _escaped(text: str) -> str:
    """Two stars in a line, as in Ens*2 and Ens*3, would set what is between them in italics."""
    return text.replace("*", r"\*")


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)
