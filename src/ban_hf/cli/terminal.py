"""What the command line prints: a lineage as a tree, measurements as a table, plain text."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.lineage.family import Lineage
from ban_hf.lineage.names import MEASURES, Measure, counted
from ban_hf.lineage.record import Record
from ban_hf.lineage.results import finite

BRANCH, ASCII_BRANCH = "└─ ", "`- "
MISSING = "-"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys, but for \n and \t
COMMIT = re.compile(r"(.+@[0-9a-f]{7})[0-9a-f]{33}")


def say(text: str) -> None:
    """Print text from anywhere: no control characters, no sign that cannot be encoded."""
    encoding = sys.stdout.encoding or "ascii"
    print(CONTROL.sub("?", text).encode(encoding, "replace").decode(encoding), flush=True)


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return CONTROL.sub("?", " ".join(str(error).split())) or type(error).__name__


def branch() -> str:
    """What leads from a teacher to its student, in signs that standard output has."""
    try:
        BRANCH.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return ASCII_BRANCH
    return BRANCH


def draw_tree(lineage: Lineage, branch: str = BRANCH) -> str:
    """A family as a tree: each generation below its teacher, then the ensemble."""
    measure, rows = _measure(lineage.records), []
    for record, location in zip(lineage.records, lineage.locations, strict=True):
        value = finite(record.metric(measure.leading.name, "test"))
        unit = f" {measure.unit}" if measure.unit else ""
        figure = MISSING if value is None else f"{value:.{measure.leading.digits}f}{unit}"
        depth = 0 if record.generation is None else record.generation
        depth -= lineage.generations[0].generation or 0 if depth else 0
        indent = "   " * (depth - 1) + branch if depth else ""
        rows.append(
            [
                indent + _name(record, lineage.family),
                _objective(record),
                f"{measure.title} {figure}",
                short_location(location),
            ]
        )
    return f"{lineage.family}\n{table(rows)}"


def _measure(records: Sequence[Record]) -> Measure:
    """What the networks are measured by: the first measure that one of them has."""
    names = {metric.name for record in records for metric in record.metrics}
    return next((m for name, m in MEASURES.items() if name in names), MEASURES["error"])


def short_location(location: str) -> str:
    """A commit by its first seven digits; a folder relative to the current one."""
    if match := COMMIT.fullmatch(location):
        return match[1]
    path = Path(location)
    below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if below else location


def table(rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """Rows in columns; `numbers`: all but the first column are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if numbers and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def measurement_table(measured: dict[str, Any]) -> str:
    """What `measure_members` found, a line for each member and one for the ensemble of several."""
    several = len(measured["members"]) > 1
    entries = [*measured["members"], *([measured["ensemble"]] if several else [])]
    measure = MEASURES[measured["metric"]]
    tests = [entry["test"] for entry in entries]
    metrics = [m for m in measure.metrics if any(finite(t.get(m.name)) is not None for t in tests)]
    rows = [["", "weight", *(metric.heading for metric in metrics)]]
    for entry in entries:
        weight = f"{entry['weight']:.3f}" if "weight" in entry else ""
        values = [f"{entry['test'][metric.name]:.{metric.digits}f}" for metric in metrics]
        rows.append([entry["name"], weight, *values])
    n = measured["ensemble"]["test"]["n"]
    return f"{measured['dataset']['id']}: {n:,} test {measure.items}\n{table(rows, numbers=True)}"


def _name(record: Record, family: str) -> str:
    if record.kind == "ensemble":
        return f"ensemble of {counted([member.generation for member in record.members])}"
    own = f" of {record.family}" if record.family != family else ""
    return f"generation {record.generation}{own}"


def _objective(record: Record) -> str:
    """How a generation learned: `labels`, `BAN`, `BAN+L, T=4`, `CWTM`, ..."""
    if record.kind == "ensemble":
        return "mean"
    temperature = record.objective.temperature if record.objective else 1
    return record.method + (f", T={temperature:g}" if temperature != 1 else "")
