"""How large the networks of a table are, beside what the paper says of them, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ban_hf.reports.report import MISSING, table

Told = tuple[str, ...]  # a network and what else is known of it, a cell each
Line = dict[str, Any]


def compared(
    row: Mapping[str, Any], columns: Iterable[tuple[Mapping[str, Any], Told]]
) -> list[Line]:
    """The networks of a row, each with the columns that train it.

    Args:
        row: with `sizes`, parameters by column at the paper's size, and `paper_parameters`, those
            of the paper in millions.
        columns: each with what is told of its network.

    Returns:
        Of each network `row`, `columns` (headings), `told`, `parameters` and `paper_millions`,
        None where they are not known.
    """
    papers, sizes = row.get("paper_parameters") or {}, row.get("sizes") or {}
    groups: dict[tuple[Told, int | None], list[Mapping[str, Any]]] = {}
    for column, told in columns:
        groups.setdefault((told, sizes.get(column["name"])), []).append(column)
    lines = []
    for (told, size), alike in groups.items():
        theirs = (papers.get(column["name"]) for column in alike)
        lines.append(
            {
                "row": row["heading"],
                "columns": [column["heading"] for column in alike],
                "told": told,
                "parameters": size,
                "paper_millions": next((count for count in theirs if count is not None), None),
            }
        )
    return lines


def size_table(told: Sequence[str], lines: Iterable[Line]) -> str:
    """Lines of `compared`, under headings of what they tell; "" without a line."""
    cells = []
    for line in lines:
        size, theirs = line["parameters"], line["paper_millions"]
        ours = MISSING if size is None else f"{size / 1e6:.2f}"
        by = MISSING if size is None or not theirs else f"{size / 1e4 / theirs - 100:+.1f}"
        known = [*line["told"], ours, str(theirs or MISSING), by]
        cells.append([line["row"], ", ".join(line["columns"]), *known])
    size_headings = ("at the paper's size, millions", "the paper's", "difference %")
    return table(["network", "columns", *told, *size_headings], cells) if cells else ""


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
