"""Markdown tables: how numbers are written, and the sizes of networks beside the paper's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from ban_hf.lineage.results import Column, Results, Row
from ban_hf.reports.statistics import Spread

MISSING = "–"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table: first as many columns of `words`, to the left, then numbers."""
    align = ["left"] * words + ["right"] * (len(headings) - words)
    return tabulate(rows, headings, tablefmt="pipe", colalign=align, disable_numparse=True)


def cell(value: Spread | float | None, digits: int, sign: str = "") -> str:
    """A number, or mean ± standard deviation of several; a dash for none."""
    if value is None:
        return MISSING
    mean, std = (value.mean, value.std) if isinstance(value, Spread) else (value, None)
    text = f"{mean:{sign}.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"


def escaped(text: str) -> str:
    """Two stars in a line, as in Ens*2 and Ens*3, would set what is between them in italics."""
    return text.replace("*", r"\*")


@dataclass(frozen=True)
class NetworkSize:
    """The size of a network here and in the paper."""

    row: str  # heading
    columns: tuple[str, ...]  # headings of those that train it
    told: tuple[str, ...]  # what else is known of it, a cell each
    parameters: int | None  # at the paper's size
    paper_millions: float | None  # the paper's own figure


def network_sizes(row: Row, columns: Iterable[tuple[Column, tuple[str, ...]]]) -> list[NetworkSize]:
    """The networks of a row, given each column with what is told of its network."""
    groups: dict[tuple[tuple[str, ...], int | None], list[Column]] = {}
    for column, told in columns:
        groups.setdefault((told, row.sizes.get(column.name)), []).append(column)
    sizes = []
    for (told, size), alike in groups.items():
        theirs = (row.paper_parameters.get(column.name) for column in alike)
        paper = next((count for count in theirs if count is not None), None)
        headings = tuple(column.heading for column in alike)
        sizes.append(NetworkSize(row.heading, headings, told, size, paper))
    return sizes


def size_table(told: Sequence[str], sizes: Iterable[NetworkSize]) -> str:
    """Sizes of networks, under headings of what is told of them; empty without a network."""
    rows = []
    for size in sizes:
        ours, theirs = size.parameters, size.paper_millions
        millions = MISSING if ours is None else f"{ours / 1e6:.2f}"
        by = MISSING if ours is None or not theirs else f"{ours / 1e4 / theirs - 100:+.1f}"
        known = [*size.told, millions, f"{theirs:g}" if theirs else MISSING, by]
        rows.append([size.row, ", ".join(size.columns), *known])
    headings = ("at the paper's size, millions", "the paper's", "difference %")
    return table(["network", "columns", *told, *headings], rows, words=3) if rows else ""


def network_name(name: str, args: Mapping[str, object] | None) -> str:
    """A network's name, and the arguments that make it another."""
    said = ", ".join(f"{key} {value}" for key, value in (args or {}).items())
    return f"`{name}`{f' ({said})' if said else ''}"


def notes(note: str | None, rows: Iterable[Row]) -> str:
    """A table's note, then those of its rows, rows with the same note together."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            said.setdefault(row.note, []).append(row.heading)
    lines = [*([note] if note else []), *(f"{', '.join(h)}: {n}" for n, h in said.items())]
    return "\n".join(f"- {line}" for line in lines)


def subtitle(results: Results) -> str:
    """Data, size of the test set and seeds in one line."""
    sizes = (entry.test.get("n") for entry in results.entries)
    n, seeds = next((size for size in sizes if size), None), results.seeds
    named = ", ".join(map(str, seeds))
    over = f"mean ± standard deviation over {len(seeds)} seeds ({named})"
    facts = [
        str(results.dataset["name"]),
        *([f"{n:,} test {results.measure.items}"] if n else []),
        over if len(seeds) > 1 else f"one seed ({named})",
    ]
    return " · ".join(facts)
