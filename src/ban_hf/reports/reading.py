"""Read `results.json`, of this version or an earlier one, and merge several into one."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.files import read_json
from ban_hf.lineage.names import MEASURES
from ban_hf.lineage.results import (
    ROW,
    SCHEMA,
    Claim,
    Column,
    Entry,
    Figures,
    Results,
    control_column,
    ensemble_column,
    family_results,
    generation_column,
    item_losses,
)

TABLE_1 = "ban_hf.table/1"  # schema of the tables of the first version; its families have none
VERSIONED = re.compile(r"ban_hf\.(?:results|table)/\d+")
#: What results must have in common to be merged.
COMMON = ("table", "title", "source", "task", "metric", "budget", "dataset", "labels", "order")
#: The same of the seeds of a family, whose dataset may be in another folder for each.
COMMON_OF_FAMILY = ("task", "metric", "labels")

Named = TypeVar("Named", bound=Any)


def read_results(paths: Iterable[str | os.PathLike[str]]) -> Results:
    """The results of a family or a table, from one or more `results.json`.

    Several files of a table may add seeds, rows or columns; several files of a family are its
    seeds.

    Args:
        paths: the files. Where they differ in hardware, versions or commands, all are told.

    Returns:
        The results, entries in the order of rows, columns and seeds.

    Raises:
        BANError: naming the files, if one is damaged or of a later version, if they are of
            different tables, budgets, data or code, or if they hold the same network twice with
            different results.
    """
    parts = {str(path): _read(Path(path)) for path in paths}
    if not parts:
        raise BANError("paths is empty: give one results.json at least.")
    if len({one.is_family for one in parts.values()}) > 1:
        raise BANError(
            f"{', '.join(parts)}: some are results of tables and some of families. Give those of "
            "one table, or those of one family."
        )
    merged = _merge(parts) if len(parts) > 1 else next(iter(parts.values()))
    return replace(merged, entries=_entries(parts, merged))


def _read(path: Path) -> Results:
    data = read_json(path)
    schema = data.get("schema")
    try:
        if schema == SCHEMA:
            results = msgspec.convert(data, Results)
        elif schema == TABLE_1:
            results = table_of_version_1(data)
        elif schema is None and "generations" in data:
            results = family_of_version_1(data)
        elif isinstance(schema, str) and VERSIONED.fullmatch(schema):
            raise BANError(f"{path} was written by a later ban_hf ({schema}): update ban_hf.")
        else:
            raise BANError(
                f"{path} is not the results.json of a run: its schema is {schema!r}, not "
                f"{SCHEMA!r}, and it has no generations."
            )
    except msgspec.ValidationError as error:
        raise BANError(f"{path} is damaged: {error}") from error
    except KeyError as error:
        raise BANError(f"{path} is damaged: {error.args[0]} is missing.") from error
    except (TypeError, AttributeError) as error:
        raise BANError(f"{path} is damaged: {error}.") from error
    _check(path, results)
    return results


def _check(path: Path, results: Results) -> None:
    """Raise unless the parts of a file fit together."""
    if results.metric not in MEASURES:
        raise BANError(f"{path}: metric={results.metric!r} must be one of {', '.join(MEASURES)}.")
    rows, columns = ({one.name for one in part} for part in (results.rows, results.columns))
    for entry in results.entries:
        if entry.row not in rows or entry.column not in columns:
            cell = f"row {entry.row!r}, column {entry.column!r}"
            raise BANError(f"{path} is damaged: it has an entry of {cell}, which it does not name.")
        check_entry(path, entry, results.metric, results.labels)
        if not results.is_family:
            check_cell(path, entry, results.metric)


def check_entry(path: Path, entry: Entry, metric: str, labels: str | None) -> None:
    """Raise unless the outcomes of an entry can be read.

    Raises:
        BANError: naming the file, and what in it is damaged.
    """
    if metric not in entry.test:
        raise BANError(f"{path} is damaged: an entry's test has no {metric}.")
    if entry.value(metric) is not None:
        try:
            item_losses(entry, labels)
        except ValueError as error:
            raise BANError(f"{path} is damaged: {error}") from error


def check_cell(path: Path, entry: Entry, metric: str) -> None:
    """Raise unless an entry of a table has what its report needs.

    Raises:
        BANError: naming the file and what is missing.
    """
    needed = ["code", "network", "parameters"]
    needed += ["outcomes"] if entry.value(metric) is not None else []
    for name in needed:
        if getattr(entry, name) is None:
            raise BANError(
                f"{path} is damaged: {name} is missing in row {entry.row!r}, column "
                f"{entry.column!r}, seed {entry.seed}."
            )


def table_of_version_1(data: Mapping[str, Any]) -> Results:
    """The results of a table, from the form of schema `ban_hf.table/1`."""
    taught = {entry["column"] for entry in data["entries"] if entry.get("teachers")}
    members = {entry["column"]: len(entry.get("members") or [1]) for entry in data["entries"]}
    columns = []
    for column in data["columns"]:
        name = column["name"]
        kind = "ensemble" if column.get("ensemble") else "student" if name in taught else "labels"
        size = members.get(name, 1)
        known = {key: column[key] for key in ("name", "heading", "in_paper") if key in column}
        columns.append(known | {"kind": kind, "size": size})
    claims = [msgspec.to_builtins(Claim.from_spec(claim)) for claim in data["claims"]]
    entries = [
        {key: value for key, value in entry.items() if value is not None}
        for entry in data["entries"]
    ]
    parts = {"columns": columns, "claims": claims, "entries": entries, "schema": SCHEMA}
    return msgspec.convert({**data, **parts}, Results)


def family_of_version_1(data: Mapping[str, Any]) -> Results:
    """The results of a family, from the form that has no schema, of one seed or of several."""
    seeds = data.get("seeds") or data.get("seed", 0)
    several = seeds if "differences" in data else None  # pooled, else of one run
    seeds = several or [seeds[-1] if isinstance(seeds, list) else seeds or 0]
    columns, entries = [], []
    for kind in ("generations", "ensembles", "controls"):
        for number, old in enumerate(data.get(kind) or []):
            columns.append(_column_of_version_1(kind, old, number, data))
            entries += _entries_of_version_1(old, columns[-1], seeds, len(seeds) > 1)
    return family_results(
        title=data["title"],
        metric=data.get("metric", "error"),
        dataset=data["dataset"],
        columns=columns,
        entries=entries,
        seeds=seeds,
        labels=data["generations"][0].get("labels"),
        command=data["command"],
        hardware=data["hardware"],
        versions=data["versions"],
    )


def _column_of_version_1(
    kind: str, old: Mapping[str, Any], number: int, data: Mapping[str, Any]
) -> Column:
    if kind == "generations":
        method = old.get("method")
        is_first = data["generations"][0] == old  # the teacher of all methods
        return generation_column(old["generation"], old["name"], None if is_first else method)
    if kind == "ensembles":
        return ensemble_column(old["members"], old["name"], old.get("method"))
    is_one = old["kind"] == "network"
    return control_column(number + 2 if is_one else old["size"], old["name"], old["size"])


def _entries_of_version_1(
    old: Mapping[str, Any], column: Column, seeds: Sequence[int], is_pooled: bool
) -> list[Entry]:
    """The entries of a column; of pooled results one of each seed."""

    def of(key: str, at: int) -> Any:
        """A number, or a mapping of numbers, of a seed."""
        value = old.get(key)
        if isinstance(value, Mapping) and "values" not in value:
            return {name: _number(value[name], at, seeds, is_pooled) for name in value}
        return _number(value, at, seeds, is_pooled)

    parts = (
        "test validation best_validation teacher_agreement train_loss seconds outcomes reliability "
        "parameters log"
    ).split()
    entries = []
    for at, seed in enumerate(seeds):
        known = {key: value for key in parts if (value := of(key, at)) is not None}
        known |= {"row": ROW, "column": column.name, "seed": seed}
        known |= {} if old.get("seed") is None else {"network_seed": old["seed"]}
        entries.append(msgspec.convert(known, Entry))
    return entries


def _number(value: Any, at: int, seeds: Sequence[int], is_pooled: bool) -> Any:
    if not isinstance(value, Mapping):
        return value
    if not is_pooled or len(value["values"]) != len(seeds):
        raise BANError(
            "A pooled number does not say which seed has no value: give the results of single "
            "seeds."
        )
    return value["values"][at]


def _merge(parts: Mapping[str, Results]) -> Results:
    """All but the entries of several results as one."""
    _check_alike(parts)
    each = [*parts.values()]
    first = each[0]
    columns = _union("columns", {path: one.columns for path, one in parts.items()}, first)
    rows = _union("rows", {path: one.rows for path, one in parts.items()}, first)
    names = _distinct(name for one in each for name in one.versions)
    return replace(
        first,
        columns=tuple(columns),
        rows=tuple(rows),
        seeds=tuple(sorted({seed for one in each for seed in one.seeds})),
        claims=tuple(_distinct(claim for one in each for claim in one.claims)),
        figures=_joined([one.figures for one in each]),
        command=first.command if first.is_family else "\n".join(_said(each, lambda r: r.command)),
        hardware="; ".join(_said(each, lambda r: r.hardware)),
        versions={
            name: " and ".join(
                _distinct(one.versions[name] for one in each if name in one.versions)
            )
            for name in names
        },
    )


def _said(parts: Iterable[Results], what: Callable[[Results], str]) -> list[str]:
    return _distinct(map(what, parts))


def _check_alike(parts: Mapping[str, Results]) -> None:
    (path, first), *others = parts.items()
    for other, one in others:
        for key in COMMON_OF_FAMILY if first.is_family else COMMON:
            if getattr(first, key) != getattr(one, key):
                raise BANError(
                    f"{path} and {other} differ in {key}: only results of one family or table, on "
                    "one budget and one dataset, are merged. Report them apart."
                )
    if first.is_family:
        _check_seeds_of_a_family(parts)
    _check_settings(parts)
    codes = [(path, e.code) for path, one in parts.items() for e in one.entries if e.code]
    for path, code in codes:
        if code != codes[0][1]:
            raise BANError(
                f"{codes[0][0]} and {path} hold results of different code, which are not mixed: "
                "run one of them again, or report them apart."
            )


def _check_seeds_of_a_family(parts: Mapping[str, Results]) -> None:
    (path, first), *others = parts.items()
    seeds = [seed for one in parts.values() for seed in one.seeds]
    if len(set(seeds)) < len(seeds):
        raise BANError(
            f"{', '.join(parts)} hold the seeds {', '.join(map(str, seeds))}: one comes twice, "
            "which is no further evidence. Leave one of the files out."
        )
    for other, one in others:
        names = [results.dataset["name"] for results in (first, one)]
        if names[0] != names[1]:
            raise BANError(
                f"{path} and {other} are on different data: {names[0]}, {names[1]}. Report them "
                "apart."
            )
        measured = [[column.heading for column in results.columns] for results in (first, one)]
        if measured[0] != measured[1]:
            raise BANError(
                f"{path} and {other} measured different things: {', '.join(measured[0])}, and "
                f"{', '.join(measured[1])}. Report them apart."
            )


def _check_settings(parts: Mapping[str, Results]) -> None:
    """Raise unless seeds of a cell differ in nothing but the seed, and so in their teacher."""
    known: dict[tuple[str, str], tuple[str, Any]] = {}
    for path, one in parts.items():
        for entry in one.entries:
            if entry.configuration is None:  # not recorded, by an earlier version
                continue
            settings = {k: v for k, v in entry.configuration.items() if k != "teacher"}
            training = settings.get("training") or {}
            settings["training"] = {k: v for k, v in training.items() if k != "seed"}
            cell = entry.row, entry.column
            before, same = known.setdefault(cell, (path, settings))
            if same != settings:
                raise BANError(
                    f"{before} and {path}: row {cell[0]!r}, column {cell[1]!r}, was trained with "
                    "other arguments in one than in the other: report them apart."
                )


def _union(key: str, parts: Mapping[str, Sequence[Named]], first: Results) -> list[Named]:
    """Rows or columns of all, in the order of the table."""
    merged: dict[str, tuple[str, Named]] = {}
    for path, items in parts.items():
        for item in items:
            before, same = merged.setdefault(item.name, (path, item))
            if not first.is_family and _told(same) != _told(item):
                raise BANError(
                    f"{path} and {before} differ in {key}: {item.name!r} is not the same in "
                    "both. Run one of them again, or report them apart."
                )
    order = first.order.columns if key == "columns" else first.order.rows
    return [merged[name][1] for name in order if name in merged]


def _told(item: Any) -> Any:
    """What a file says of a row or a column. Version 1 does not say what kind a column is of."""
    return replace(item, kind="student", size=1) if isinstance(item, Column) else item


def _entries(parts: Mapping[str, Results], merged: Results) -> tuple[Entry, ...]:
    """The entries of all, once each."""
    found: dict[tuple[int, int, int], tuple[str, Entry]] = {}
    rows, columns = ([one.name for one in part] for part in (merged.rows, merged.columns))
    for path, one in parts.items():
        for entry in one.entries:
            at = rows.index(entry.row), columns.index(entry.column), entry.seed
            before, same = found.setdefault(at, (path, entry))
            if same != entry:
                raise BANError(
                    f"{before} and {path} hold different results of row {entry.row!r}, column "
                    f"{entry.column!r}, seed {entry.seed}. Leave one of the two files out."
                )
    return tuple(found[at][1] for at in sorted(found))


def _joined(parts: Sequence[Figures]) -> Figures:
    """The columns that each picture shows in all of them."""
    lines = _distinct(line for part in parts for line in part.ensembles)
    return Figures(
        generations=tuple(_distinct(c for part in parts for c in part.generations)),
        ensembles={
            line: tuple(_distinct(c for part in parts for c in part.ensembles.get(line, ())))
            for line in lines
        },
        ablation=tuple(_distinct(c for part in parts for c in part.ablation)),
    )


def _distinct(items: Iterable[Any]) -> list[Any]:
    """Each once, in order; they need not be hashable."""
    kept: list[Any] = []
    for item in items:
        if item not in kept:
            kept.append(item)
    return kept
