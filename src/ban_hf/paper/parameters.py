"""How large the networks of a table are, beside what the paper says of them, as Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

from ban_hf.report import MISSING, table

Told = tuple[str, ...]  # a network and what else is known of it, a cell each


def size_table(
    headings: Iterable[str],
    rows: Iterable[tuple[Mapping[str, Any], Iterable[tuple[Mapping[str, Any], Told]]]],
) -> str:
    """A line for each network of a row, with the columns that train it.

    Args:
        headings: of what is told of a network.
        rows: with `sizes`, parameters by column at the paper's size, `paper_parameters`, those of
            the paper in millions, and the columns, each with what is told of its network.

    Returns:
        The table; "" without a line.
    """
    lines = [line for row, columns in rows for line in _lines(row, columns)]
    size = ("at the paper's size, millions", "the paper's", "difference %")
    return table(["network", "columns", *headings, *size], lines) if lines else ""


def _lines(
    row: Mapping[str, Any], columns: Iterable[tuple[Mapping[str, Any], Told]]
) -> Iterable[list[str]]:
    papers, sizes = row.get("paper_parameters") or {}, row.get("sizes") or {}
    groups: dict[tuple[Told, int | None], list[Mapping[str, Any]]] = {}
    for column, told in columns:
        groups.setdefault((told, sizes.get(column["name"])), []).append(column)
    for (told, size), alike in groups.items():
        known = (papers.get(column["name"]) for column in alike)
        theirs = next((count for count in known if count is not None), None)
        ours = MISSING if size is None else f"{size / 1e6:.2f}"
        by = MISSING if size is None or not theirs else f"{size / 1e4 / theirs - 100:+.1f}"
        headings = ", ".join(column["heading"] for column in alike)
        yield [row["heading"], headings, *told, ours, str(theirs or MISSING), by]


def named(network: Mapping[str, Any]) -> str:
    """A network's name, and the arguments that make it another."""
    said = ", ".join(f"{name} {value}" for name, value in (network.get("args") or {}).items())
    return f"`{network['name']}`{f' ({said})' if said else ''}"


def notes(told: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """What a table has to say, then its rows, those that say the same together."""
    said: dict[str, list[str]] = {}
    for row in rows:
        if row.get("note"):
            said.setdefault(row["note"], []).append(row["heading"])
    own = [told["note"]] if told.get("note") else []
    lines = [*own, *(f"{', '.join(headings)}: {note}" for note, headings in said.items())]
    return "\n".join(f"- {line}" for line in lines)
