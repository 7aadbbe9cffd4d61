"""What the command line prints: a lineage as a tree, measurements as a table, plain text."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.errors import did_you_mean
from ban_hf.lineage.catalog import MEASURES, counted, finite
from ban_hf.lineage.family import Lineage
from ban_hf.lineage.record import Record
from ban_hf.lineage.results import leading_metric

BRANCH, ASCII_BRANCH = "└─ ", "`- "  # from a teacher to its student
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal obeys, but for \n and \t
COMMIT = re.compile(r"(.+@[0-9a-f]{7})[0-9a-f]{33}")


def say(text: str) -> None:
    """Print text from anywhere: no control characters, no sign that cannot be encoded."""
    encoding = sys.stdout.encoding or "ascii"
    if "?" in BRANCH.encode(encoding, "replace").decode(encoding):
        text = text.replace(BRANCH, ASCII_BRANCH)
    print(CONTROL.sub("?", text).encode(encoding, "replace").decode(encoding), flush=True)


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return CONTROL.sub("?", " ".join(str(error).split())) or type(error).__name__


def unknown_argument(word: str, parser: argparse.ArgumentParser) -> str:
    """What is said of a word that a parser does not know."""
    name = word.partition("=")[0]
    return f"unknown argument {name!r}.{did_you_mean(name, parser._option_string_actions)}"


def draw_tree(lineage: Lineage) -> str:
    """A family as a tree: each generation below its teacher, then the ensemble."""
    measured = {metric.name for record in lineage.records for metric in record.metrics}
    measure = MEASURES[leading_metric(measured)]
    unit = f" {measure.unit}" if measure.unit else ""
    first = lineage.generations[0].generation or 0
    rows = []
    for record, location in zip(lineage.records, lineage.locations, strict=True):
        value = finite(record.metric(measure.leading.name, "test"))
        figure = "-" if value is None else f"{value:.{measure.leading.digits}f}{unit}"
        depth = (record.generation or first) - first
        indent = "   " * (depth - 1) + BRANCH if depth else ""
        name, objective = _name_and_objective(record, lineage.family)
        place = short_location(location)
        rows.append([indent + name, objective, f"{measure.title} {figure}", place])
    return f"{lineage.family}\n{table(rows)}"


def _name_and_objective(record: Record, family: str) -> tuple[str, str]:
    """Which network, and how it learned: `labels`, `BAN`, `BAN+L, T=4`, `CWTM`, ..."""
    if record.kind == "ensemble":
        return f"ensemble of {counted([member.generation for member in record.members])}", "mean"
    own = f" of {record.family}" if record.family != family else ""
    temperature = record.objective.temperature if record.objective else 1
    return record.name + own, record.method + (f", T={temperature:g}" if temperature != 1 else "")


def short_location(location: str) -> str:
    """A commit by its first seven digits; a folder relative to the current one."""
    if match := COMMIT.fullmatch(location):
        return match[1]
    path = Path(location)
    below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if below else location


def table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Rows in columns; `numbers`: all but the first column are aligned on the right."""
    columns = []
    for i, column in enumerate(zip(*rows, strict=True)):
        width = max(map(len, column))
        is_right = numbers and i > 0
        columns.append([cell.rjust(width) if is_right else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def measurement_table(measured: dict[str, Any]) -> str:
    """What `measure_members` found, a line for each member and one for the ensemble of several."""
    ensemble, entries = measured["ensemble"], list(measured["members"])
    if len(entries) > 1:
        entries.append(ensemble)
    measure = MEASURES[measured["metric"]]
    tests = [entry["test"] for entry in entries]
    metrics = [m for m in measure.metrics if any(finite(t.get(m.name)) is not None for t in tests)]
    rows = [["", "weight", *(metric.heading for metric in metrics)]]
    for entry in entries:
        weight = f"{entry['weight']:.3f}" if "weight" in entry else ""
        values = [f"{entry['test'][metric.name]:.{metric.digits}f}" for metric in metrics]
        rows.append([entry["name"], weight, *values])
    size = f"{ensemble['test']['n']:,} test {measure.items}"
    return f"{measured['dataset']['id']}: {size}\n{table(rows, numbers=True)}"
