"""The report of a family or a table: its text, its pictures, and the files of both.

The report says what was run, shows the results with how sure they are, and says in words what
follows from them. It is made from the results alone, so that the same results give the same text.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ban_hf.lineage.names import Metric
from ban_hf.lineage.results import Column, Results, Row
from ban_hf.reports.statistics import (
    best_possible,
    estimate,
    has_outcomes,
    mean_over_seeds,
    metric_difference,
    paired_difference,
    spread,
)
from ban_hf.reports.tables import (
    MISSING,
    cell,
    network_name,
    network_sizes,
    notes,
    size_table,
    subtitle,
    table,
)
from ban_hf.reports.verdicts import interval_of, verdicts

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

    Returns:
        The text of the report, without the pictures.
    """
    from ban_hf.reports.figures import write_figures  # matplotlib takes a second to import

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "results.json", as_text(results))
    figures = write_figures(results, folder)
    text = report_text(results)
    _write(folder / ("results.md" if results.is_family else "report.md"), text + _shown(figures))
    return text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def as_text(results: Results) -> str:
    """The content of `results.json`: an entry a line, null for what is not finite."""
    head = msgspec.json.decode(msgspec.json.encode(replace(results, entries=())))
    head = {"schema": results.schema} | {k: v for k, v in head.items() if k != "entries"}
    lines = (msgspec.json.decode(msgspec.json.encode(entry)) for entry in results.entries)
    entries = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    start = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    return f'{start},\n  "entries": [\n{entries}\n  ]\n}}\n'


def report_text(results: Results) -> str:
    """The report without its pictures, as Markdown, which is also what a terminal shows."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    details = _details(results)
    parts = [
        f"# {results.title}",
        _what_was_run(results),
        f"```bash\n{results.command}\n```" if results.command else "",
        f"Hardware: {results.hardware}. {versions}.",
        details if results.is_family else _papers_shape(results),
        notes(results.note, results.rows),
        _section("Not measured", _not_measured(results)),
        _section("What follows", _what_follows(results)),
        _section("Beyond the paper", "" if results.is_family else _beyond(results)),
        _section("Each column", "" if results.is_family else details),
        _section("Differences", _differences(results) if results.is_family else ""),
        _section("Training", _training(results) if results.is_family else ""),
        _section("Parameters", "" if results.is_family else _parameters(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, body: str) -> str:
    return f"## {heading}\n\n{body}" if body else ""


def _shown(figures: Sequence[tuple[str, str]]) -> str:
    """The end of the report: its pictures with their captions."""
    shown = "\n\n".join(f"![{_alt(name)}]({name})\n\n{caption}" for name, caption in figures)
    return f"\n{_section('Figures', shown)}\n" if shown else ""


def _alt(name: str) -> str:
    return Path(name).stem.replace("-", " ").replace("_", " ").capitalize()


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
    paper = {row.name: row.paper for row in results.rows}
    parts = [_beside_the_papers(results, columns, "test", paper)]
    if results.task == "text":
        paper = {row.name: row.paper_validation for row in results.rows}
        parts.append(_beside_the_papers(results, columns, "validation", paper))
    return "\n\n".join(parts)


def _beside_the_papers(
    results: Results,
    columns: Sequence[Column],
    split: str,
    papers: dict[str, dict[str, float | None]],
) -> str:
    """Two lines a row: ours and, where it has any, the paper's."""
    digits, rows = results.measure.leading.digits, []
    for row in results.rows:
        rows.append([row.heading, "ours", *_line(results, row, columns, split)])
        if figures := papers[row.name]:
            theirs = (cell(figures.get(column.name), digits) for column in columns)
            rows.append(["", "paper", *theirs])
    headings = ["network", results.measure.heading(split), *(c.heading for c in columns)]
    return table(headings, rows, words=2)


def _line(results: Results, row: Row, columns: Sequence[Column], split: str = "test") -> list[str]:
    leading = results.measure.leading
    cells = []
    for column in columns:
        entries = results.measured(row.name, column.name).values()
        values = (
            e.value(leading.name, "test" if split == "test" else "validation") for e in entries
        )
        cells.append(cell(spread(values), leading.digits))
    return cells


def _beyond(results: Results) -> str:
    tried = {entry.column for entry in results.entries}
    columns = [c for c in results.columns if not c.in_paper and c.name in tried]
    if not columns:
        return ""
    rows = [[row.heading, *_line(results, row, columns)] for row in results.rows]
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
    diverged = there - results.measured(row.name, column.name).keys()
    absent = set(results.seeds) - there
    parts = []
    if absent:
        is_all = len(absent) == len(results.seeds)
        parts.append("in no seed" if is_all else f"not in seed {_listed(absent)}")
    if diverged:
        parts.append(f"no finite value in seed {_listed(diverged)}")
    return f"{column.heading} ({', '.join(parts)})" if parts else ""


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _what_follows(results: Results) -> str:
    found = verdicts(results)
    if not found:
        return ""
    parts = []
    if len(results.seeds) < 2:
        parts.append(ONE_SEED)
    elif not has_outcomes(results):
        parts.append(NO_OUTCOMES)
    for row in results.rows:
        own = [f"- {escaped(v.sentence)}" for v in found if v.row == row.name]
        if own:
            head = [] if results.is_family else [f"{row.heading}:", ""]
            parts.append("\n".join([*head, *own]))
    return "\n\n".join([*parts, HOW_SURE])


def _details(results: Results) -> str:
    """A network a line: metrics, agreement, parameters, time, difference from the first column."""
    leading, *others = results.measure.metrics
    first, *_ = results.columns
    several = len(results.rows) > 1
    headings = [
        *(["network", "column"] if several else ["network" if results.is_family else "column"]),
        leading.heading,
        "95 % interval",
        *(metric.heading for metric in others),
        "agreement with its teacher %",
        "parameters",
        "seconds",
        f"minus {first.heading}",
        "95 % interval",
        "better in",
    ]
    lines = []
    for row in results.rows:
        for column in results.columns:
            if (line := _detail(results, row, column, others)) is not None:
                names = [row.heading, column.heading] if several else [column.heading]
                lines.append([*map(escaped, names), *line])
    words = 2 if several else 1
    kept = [k for k in range(len(headings)) if any(line[k] != MISSING for line in lines)]
    rows = [[line[k] for k in kept] for line in lines]
    return table([headings[k] for k in kept], rows, words) if rows else ""


def _detail(
    results: Results, row: Row, column: Column, others: Sequence[Metric]
) -> list[str] | None:
    """The numbers of a cell; None where it is not measured."""
    first, digits = results.columns[0].name, results.measure.leading.digits
    names = row.name, column.name
    own, entries = estimate(results, *names), [*results.measured(*names).values()]
    if own is None:
        return None
    minus = paired_difference(results, *names, first) if column.name != first else None
    parameters = entries[0].parameters
    return [
        cell(own, digits),
        interval_of(own.low, own.high, sign=""),
        *(cell(mean_over_seeds(results, *names, m.name), m.digits) for m in others),
        cell(spread(entry.teacher_agreement for entry in entries), 2),
        MISSING if parameters is None else f"{parameters.all:,}",
        cell(spread(entry.seconds for entry in entries), 0),
        cell(minus, digits, sign="+"),
        MISSING if minus is None else interval_of(minus.low, minus.high),
        MISSING if minus is None else f"{minus.better} of {len(minus.seeds)}",
    ]


def _differences(results: Results) -> str:
    """Differences of the two leading metrics of a family's claims, paired by seed."""
    metrics, rows = results.measure.metrics[:2], []
    for claim in results.claims:
        if claim.kind != "beats":
            continue
        column, base = (results.column(name) for name in claim.columns)
        line, known = [escaped(f"{column.heading} minus {base.heading}")], False
        for metric in metrics:
            found = metric_difference(
                results, results.rows[0].name, column.name, base.name, metric.name
            )
            signs = found.values if found is not None else ()
            lower, higher = sum(v < 0 for v in signs), sum(v > 0 for v in signs)
            line += [cell(found, metric.digits, sign="+"), f"{lower} / {higher}"]
            known = known or found is not None
        rows += [line] if known else []
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


def escaped(text: str) -> str:
    """Two stars in a line, as in Ens*2 and Ens*3, would set what is between them in italics."""
    return text.replace("*", r"\*")
