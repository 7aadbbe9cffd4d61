"""Results of one table from several files as one: more seeds, more rows, more columns."""

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ban_hf.errors import BANError
from ban_hf.lineage.family_results import Results
from ban_hf.lineage.record import read_json
from ban_hf.reports.outcomes import item_losses

SCHEMA = "ban_hf.table/1"
#: What tables must have in common to be of one.
COMMON = ("table", "title", "source", "task", "metric", "budget", "dataset", "labels", "order")

#: What a table's file holds, and each entry of it; a job's own results know nothing of the cell.
TABLE = {
    **dict.fromkeys("table title source task metric command hardware".split(), str),
    **dict.fromkeys("budget dataset order figures versions".split(), dict),
    **dict.fromkeys("seeds columns rows claims entries".split(), list),
}
RESULT = {"code": str, "network": str, **dict.fromkeys("parameters test outcomes".split(), dict)}
CELL = RESULT | {"row": str, "column": str, "seed": int}


def read_results(paths: Iterable[str | os.PathLike[str]]) -> dict[str, Any]:
    """The results of a table, from one or more `results.json`: more seeds, rows or columns.

    Args:
        paths: the files; where they differ in what is only told (hardware, versions, commands),
            all is told, in their order.

    Returns:
        Results of the same schema, entries in the order of rows, columns and seeds.

    Raises:
        ValueError: naming the files, if one is no table of this schema, if they are of different
            tables, budgets, data or code, or if they hold the same network twice with different
            results.
    """
    tables = {str(path): _read(Path(path)) for path in paths}
    if not tables:
        raise BANError("paths is empty: give the results.json of one table at least.")
    _check_alike(tables)
    parts = [*tables.values()]
    merged = {key: parts[0][key] for key in ("schema", *COMMON, "note") if key in parts[0]}
    for key in ("columns", "rows"):
        held = {path: one[key] for path, one in tables.items()}
        merged[key] = _union(key, held, merged["order"][key])
    merged |= {
        "seeds": sorted({seed for one in parts for seed in one["seeds"]}),
        "claims": _distinct(claim for one in parts for claim in one["claims"]),
        "figures": _joined([one["figures"] for one in parts]),
        "command": "\n".join(_distinct(one["command"] for one in parts)),
        "hardware": "; ".join(_distinct(one["hardware"] for one in parts)),
        "versions": {
            name: " and ".join(
                _distinct(one["versions"][name] for one in parts if name in one["versions"])
            )
            for name in _distinct(name for one in parts for name in one["versions"])
        },
    }
    return merged | {"entries": _entries(tables, merged)}


def _read(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if data.get("schema") != SCHEMA:
        raise BANError(
            f"{path} has schema {data.get('schema')!r}, not {SCHEMA!r}: give the results.json of "
            "a table that ban-hf reproduce has written."
        )
    _hold(path, data, TABLE)
    try:
        names = [{one["name"] for one in data[part]} for part in ("rows", "columns")]
    except (KeyError, TypeError) as error:
        raise BANError(f"{path} is damaged: a row or a column has no name.") from error
    for entry in data["entries"]:
        hold_entry(path, entry, data["metric"], data.get("labels"), CELL)
        if entry["row"] not in names[0] or entry["column"] not in names[1]:
            cell = f"row {entry['row']!r}, column {entry['column']!r}"
            raise BANError(f"{path} is damaged: it has an entry of {cell}, which it does not name.")
    return data


def hold_entry(
    path: Path, entry: Any, metric: str, labels: str | None, kinds: Mapping[str, type]
) -> None:
    """Hold that what was measured of a network is whole.

    Raises:
        ValueError: naming the file, and what in it is missing or cannot be read.
    """
    _hold(path, entry, kinds)
    try:
        if entry["test"][metric] is not None:
            item_losses(entry, labels)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise BANError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _hold(path: Path, data: Any, kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not (isinstance(data, dict) and isinstance(data.get(name), kind)):
            raise BANError(f"{path} is damaged: {name} is missing, or not what it must be.")


def _check_alike(tables: Mapping[str, Results]) -> None:
    (path, first), *others = tables.items()
    for other, one in others:
        for key in COMMON:
            if first.get(key) != one.get(key):
                raise BANError(
                    f"{path} and {other} differ in {key}: only results of one table, on one "
                    "budget and one data set, are merged. Report them apart."
                )
    _check_settings(tables)
    codes = [(path, entry["code"]) for path, one in tables.items() for entry in one["entries"]]
    for path, code in codes:
        if code != codes[0][1]:
            raise BANError(
                f"{codes[0][0]} and {path} hold results of different code, which are not mixed: "
                "run one of them again, or report them apart."
            )


def _check_settings(tables: Mapping[str, Results]) -> None:
    """Hold that seeds of a cell differ in nothing but the seed."""
    known: dict[tuple[str, str], tuple[str, Any]] = {}
    for path, one in tables.items():
        for entry in one["entries"]:
            found = entry.get("configuration") or {}
            training = {k: v for k, v in (found.get("training") or {}).items() if k != "seed"}
            cell = entry["row"], entry["column"]
            before, same = known.setdefault(cell, (path, found | {"training": training}))
            if same != found | {"training": training}:
                raise BANError(
                    f"{before} and {path}: row {cell[0]!r}, column {cell[1]!r}, was trained with "
                    "other arguments in one than in the other: report them apart."
                )


def _union(key: str, parts: Mapping[str, Sequence[Any]], order: Sequence[str]) -> list[Any]:
    """Rows or columns of all, in the order of the table."""
    merged: dict[str, tuple[str, Any]] = {}
    for path, items in parts.items():
        for item in items:
            before, same = merged.setdefault(item["name"], (path, item))
            if same != item:
                raise BANError(
                    f"{path} and {before} differ in {key}: {item['name']!r} is not the same in "
                    "both. Run one of them again, or report them apart."
                )
    return [merged[name][1] for name in order if name in merged]


def _entries(tables: Mapping[str, Results], merged: Results) -> list[Any]:
    """The entries of all, once each."""
    found: dict[tuple[int, int, int], tuple[str, Any]] = {}
    rows, columns = ([one["name"] for one in merged[key]] for key in ("rows", "columns"))
    for path, one in tables.items():
        for entry in one["entries"]:
            at = rows.index(entry["row"]), columns.index(entry["column"]), entry["seed"]
            before, same = found.setdefault(at, (path, entry))
            if same != entry:
                raise BANError(
                    f"{before} and {path} hold different results of row {entry['row']!r}, column "
                    f"{entry['column']!r}, seed {entry['seed']}. Leave one of the two files out."
                )
    return [found[at][1] for at in sorted(found)]


def _joined(parts: Sequence[Any]) -> Any:
    """What figures show, in all: of mappings each key, of lists each column."""
    if isinstance(parts[0], Mapping):
        keys = _distinct(key for part in parts for key in part)
        return {key: _joined([part[key] for part in parts if key in part]) for key in keys}
    return _distinct(column for part in parts for column in part)


def _distinct(items: Iterable[Any]) -> list[Any]:
    """Each once, in order; they need not be hashable."""
    kept: list[Any] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept
