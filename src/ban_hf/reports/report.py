"""The report of a family or a table: its text, its pictures, and the files of both.

The report says what was run, shows the results with how sure they are, and says in words what
follows from them. It is made from the results alone, so that the same results give the same text.
"""

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ban_hf.lineage.files import write_text
from ban_hf.lineage.results import Column, Results, Row
from ban_hf.reports.statistics import (
    best_possible,
    estimate,
    metric_difference,
    paired_difference,
    spread,
)
from ban_hf.reports.tables import (
    MISSING,
    cell,
    escaped,
    network_name,
    network_sizes,
    notes,
    size_table,
    subtitle,
    table,
)
from ban_hf.reports.verdicts import interval_of, verdicts

Split = Literal["test", "validation"]

HOW_SURE = (
    "Each verdict follows from the figures by a fixed rule. A difference is shown where its whole "
    "95 % interval lies on one side of 0, in more than one seed, because one seed says nothing of "
    "another. What is not shown is not thereby disproved: that a part explains a gain, or that "
    "gains saturate, means that no more than it is shown. Of many such intervals some miss by "
    "chance. With two or three seeds the part of an interval that is over seeds is rough. A seed "
    "without a finite value is in none of them."
)
ONE_SEED = (
    "**There is one seed, so no difference is shown.** Run it with two more seeds (`--seed`) and "
    "report them together: `ban-hf report seed-*/results.json`."
)
NO_OUTCOMES = (
    "**Results of single test items were not kept, so there are no intervals of differences,** and "
    "no difference is shown."
)


def write_report(results: Results, folder: str | os.PathLike[str]) -> str:
    """Write the results, the pictures and the report, each whole or not at all.

    A family has `results.json`, `results.md` and `results.png`; a table has `results.json`,
    `report.md` and `table.png`. Further pictures lie beside them, as far as there are numbers.
    Returns the text of the report, without the pictures.
    """
    from ban_hf.reports.figures import write_figures  # matplotlib takes a second to import

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", as_text(results))
    figures = write_figures(results, folder)
    text = report_text(results)
    write_text(
        folder / ("results.md" if results.is_family else "report.md"), text + _shown(figures)
    )
    return text


def as_text(results: Results) -> str:
    """The content of `results.json`: an entry a line, null for what is not finite."""
    head = msgspec.json.decode(msgspec.json.encode(results))
    lines = [json.dumps(entry, ensure_ascii=False) for entry in head.pop("entries")]
    head, entries = {"schema": results.schema} | head, ",\n".join(lines)
    start = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    return f'{start},\n  "entries": [\n{entries}\n  ]\n}}\n'


def report_text(results: Results) -> str:
    """The report without its pictures, as Markdown, which is also what a terminal shows."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    details = _details(results)
    sections = {
        "Not measured": _not_measured(results),
        "What follows": _what_follows(results),
    }
    if results.is_family:
        sections |= {"Differences": _differences(results), "Training": _training(results)}
    else:
        sections |= {"Beyond the paper": _beyond(results), "Each column": details}
        sections |= {"Parameters": _parameters(results)}
    parts = [
        f"# {results.title}",
        _what_was_run(results),
        f"```bash\n{results.command}\n```" if results.command else "",
        f"Hardware: {results.hardware}. {versions}.",
        details if results.is_family else _papers_shape(results),
        notes(results.note, results.rows),
        *(f"## {heading}\n\n{body}" for heading, body in sections.items() if body),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(figures: Sequence[tuple[str, str]]) -> str:
    """The end of the report: its pictures with their captions."""
    shown = []
    for name, caption in figures:
        says = Path(name).stem.replace("-", " ").replace("_", " ").capitalize()
        shown.append(f"\n![{says}]({name})\n\n{caption}\n")
    return "".join(["\n## Figures\n", *shown]) if shown else ""


def _what_was_run(results: Results) -> str:
    parts = []
    if results.budget is not None:
        ran = f"run on budget `{results.budget.name}`: {results.budget.says}"
        parts.append(f"{results.source}, {ran}.\n\n")
    parts.append(f"{subtitle(results)}.")
    if results.source:
        parts.append(" The paper's figures are those it prints, of its own budget.")
    if (best := best_possible(results)) is not None:
        parts.append(
            f" The best possible perplexity, that of the source of the text, is {best:.2f}."
        )
    return "".join(parts)


def _papers_shape(results: Results) -> str:
    """The test metric in the columns of the paper, and of texts the validation's."""
    columns = [column for column in results.columns if column.in_paper]
    parts = [_beside_the_papers(results, columns, "test")]
    if results.task == "text":
        parts.append(_beside_the_papers(results, columns, "validation"))
    return "\n\n".join(parts)


def _beside_the_papers(results: Results, columns: Sequence[Column], split: Split) -> str:
    """Two lines a row: ours and, where it has any, the paper's."""
    digits, rows = results.measure.leading.digits, []
    for row in results.rows:
        rows.append([row.heading, "ours", *_line(results, row, columns, split)])
        if figures := row.paper if split == "test" else row.paper_validation:
            theirs = (cell(figures.get(column.name), digits) for column in columns)
            rows.append(["", "paper", *theirs])
    headings = ["network", results.measure.heading(split), *(c.heading for c in columns)]
    return table(headings, rows, words=2)


def _line(results: Results, row: Row, columns: Sequence[Column], split: Split) -> list[str]:
    """The leading metric of the columns of a row, a cell each."""
    leading = results.measure.leading
    cells = (results.measured(row.name, column.name).values() for column in columns)
    values = (spread(entry.value(leading.name, split) for entry in entries) for entries in cells)
    return [cell(value, leading.digits) for value in values]


def _beyond(results: Results) -> str:
    tried = {entry.column for entry in results.entries}
    columns = [c for c in results.columns if not c.in_paper and c.name in tried]
    if not columns:
        return ""
    rows = [[row.heading, *_line(results, row, columns, "test")] for row in results.rows]
    test = results.measure.leading.heading
    return table([f"network, {test}", *(column.heading for column in columns)], rows)


def _not_measured(results: Results) -> str:
    """What the seeds leave open of what was asked for, by row."""
    lines = []
    for row in results.rows:
        gaps = [gap for column in results.columns if (gap := _gap(results, row, column))]
        if gaps:
            lines.append(escaped(f"- {row.heading}: {'; '.join(gaps)}"))
    return "\n".join(lines)


def _gap(results: Results, row: Row, column: Column) -> str:
    there = results.cell(row.name, column.name).keys()
    absent = set(results.seeds) - there
    diverged = there - results.measured(row.name, column.name).keys()
    parts = []
    if absent:
        is_all = len(absent) == len(results.seeds)
        named = f"not in seed {', '.join(map(str, sorted(absent)))}"
        parts.append("in no seed" if is_all else named)
    if diverged:
        parts.append(f"no finite value in seed {', '.join(map(str, sorted(diverged)))}")
    return f"{column.heading} ({', '.join(parts)})" if parts else ""


def _what_follows(results: Results) -> str:
    found = verdicts(results)
    if not found:
        return ""
    parts = []
    if len(results.seeds) < 2:
        parts.append(ONE_SEED)
    elif any(e.outcomes is None for e in results.entries if e.value(results.metric) is not None):
        parts.append(NO_OUTCOMES)
    for row in results.rows:
        own = [f"- {escaped(v.sentence)}" for v in found if v.row == row.name]
        if own:
            head = [] if results.is_family else [f"{row.heading}:", ""]
            parts.append("\n".join([*head, *own]))
    return "\n\n".join([*parts, HOW_SURE])


def _details(results: Results) -> str:
    """A network a line: metrics, agreement, parameters, time, difference from the first column."""
    cells = itertools.product(results.rows, results.columns)
    lines = [line for row, column in cells if (line := _detail(results, row, column))]
    if not lines:
        return ""
    headings = [heading for heading, _ in lines[0]]
    kept = [k for k in range(len(headings)) if any(line[k][1] != MISSING for line in lines)]
    rows = [[line[k][1] for k in kept] for line in lines]
    return table([headings[k] for k in kept], rows, 2 if len(results.rows) > 1 else 1)


def _detail(results: Results, row: Row, column: Column) -> list[tuple[str, str]]:
    """What was measured of a cell, each with its heading; empty where nothing was."""
    (leading, *others), first = results.measure.metrics, results.columns[0]
    own = estimate(results, row.name, column.name)
    if own is None:
        return []
    entries = [*results.measured(row.name, column.name).values()]
    parameters, minus = entries[0].parameters, None
    if column != first:
        minus = paired_difference(results, row.name, column.name, first.name)
    if len(results.rows) > 1:
        names = [("network", escaped(row.heading)), ("column", escaped(column.heading))]
    else:
        names = [("network" if results.is_family else "column", escaped(column.heading))]
    return [
        *names,
        (leading.heading, cell(own, leading.digits)),
        ("95 % interval", interval_of(own, leading.digits, sign="")),
        *((m.heading, cell(spread(e.value(m.name) for e in entries), m.digits)) for m in others),
        ("agreement with its teacher %", cell(spread(e.teacher_agreement for e in entries), 2)),
        ("parameters", MISSING if parameters is None else f"{parameters.all:,}"),
        ("seconds", cell(spread(entry.seconds for entry in entries), 0)),
        (f"minus {first.heading}", cell(minus, leading.digits, sign="+")),
        ("95 % interval", MISSING if minus is None else interval_of(minus, leading.digits)),
        ("better in", MISSING if minus is None else f"{minus.better} of {len(minus.seeds)}"),
    ]


def _differences(results: Results) -> str:
    """Differences of the two leading metrics of a family's claims, paired by seed."""
    metrics, rows = results.measure.metrics[:2], []
    for claim in results.claims:
        if claim.kind != "beats":
            continue
        column, base = claim.columns
        headings = [results.column(name).heading for name in claim.columns]
        line = [escaped(" minus ".join(headings))]
        for metric in metrics:
            found = metric_difference(results, results.rows[0].name, column, base, metric.name)
            signs = found.values if found is not None else ()
            lower, higher = sum(v < 0 for v in signs), sum(v > 0 for v in signs)
            line += [cell(found, metric.digits, sign="+"), f"{lower} / {higher}"]
        rows += [line] if any(text != MISSING for text in line[1::2]) else []
    headings = [part for metric in metrics for part in (metric.heading, "seeds lower / higher")]
    return table(["paired difference", *headings], rows) if rows else ""


def _training(results: Results) -> str:
    """Loss and validation of the networks of a family that were trained."""
    leading, rows = results.measure.leading, []
    for column in results.columns:
        if column.kind not in ("labels", "student"):
            continue
        entries = [*results.cell(results.rows[0].name, column.name).values()]
        best = [entry.best_validation or {} for entry in entries]
        line = [
            cell(spread(entry.train_loss for entry in entries), 3),
            cell(spread(e.value(leading.name, "validation") for e in entries), leading.digits),
            cell(spread(one.get(leading.name) for one in best), leading.digits),
            cell(spread(one.get("epoch") for one in best), 0),
        ]
        if any(text != MISSING for text in line):
            rows.append([escaped(column.heading), *line])
    validation = f"{results.measure.heading('validation')}: last"
    headings = ["network", "training loss", validation, "best", "epoch of the best"]
    return table(headings, rows) if rows else ""


def _parameters(results: Results) -> str:
    """Of each row, the networks that differ: what they train here, and at the paper's size."""
    sizes = []
    for row in results.rows:
        trained = []
        for column in results.columns:
            cells = results.measured(row.name, column.name)
            entry = next(iter(cells.values()), None)
            if entry is None or entry.members or column.kind == "ensemble":
                continue
            args = ((entry.configuration or {}).get("network") or {}).get("args")
            count = MISSING if entry.parameters is None else f"{entry.parameters.trainable:,}"
            trained.append((column, (network_name(entry.network or MISSING, args), count)))
        sizes += network_sizes(row, trained)
    return size_table(["network here", "parameters trained"], sizes)
