"""Read `results.json`, of this version or an earlier one, and merge several into one."""

import itertools
import os
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import MEASURES
from ban_hf.lineage.files import read_json
from ban_hf.lineage.results import (
    ROW,
    SCHEMA,
    Claim,
    Column,
    Entry,
    Figures,
    Results,
    Row,
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
APART = "Report them apart"
AGAIN = "Run one of them again, or report them apart"

Named = TypeVar("Named", Row, Column)


def read_results(paths: Iterable[str | os.PathLike[str]]) -> Results:
    """The results of a family or a table, from one or more `results.json`.

    Several files of a table may add seeds, rows or columns; several files of a family are its
    seeds. Where they differ in hardware, versions or commands, all are told. Entries are in the
    order of rows, columns and seeds.

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
    merged = next(iter(parts.values()))
    if len(parts) > 1:
        _check_alike(parts, _conditions)
        _check_seeds(parts)
        merged = _merged([*parts.values()])
    _check_alike(parts, _outcomes)
    rows, columns = ([one.name for one in part] for part in (merged.rows, merged.columns))
    at = {(rows.index(e.row), columns.index(e.column), e.seed): e for e in merged.entries}
    return replace(merged, entries=tuple(at[key] for key in sorted(at)))


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
    metric = results.metric
    if metric not in MEASURES:
        raise BANError(f"{path}: metric={metric!r} must be one of {', '.join(MEASURES)}.")
    rows, columns = ({one.name for one in part} for part in (results.rows, results.columns))
    for entry in results.entries:
        cell = f"row {entry.row!r}, column {entry.column!r}"
        if entry.row not in rows or entry.column not in columns:
            raise BANError(f"{path} is damaged: it has an entry of {cell}, which it does not name.")
        if metric not in entry.test:
            raise BANError(f"{path} is damaged: an entry's test has no {metric}.")
        is_finite = entry.value(metric) is not None
        if is_finite:
            try:
                item_losses(entry, results.labels)
            except ValueError as error:
                raise BANError(f"{path} is damaged: {error}") from error
        needed = ("code", "network", "parameters", "outcomes")  # by the report of a table
        for name in () if results.is_family else needed[: 3 + is_finite]:
            if getattr(entry, name) is None:
                raise BANError(
                    f"{path} is damaged: {name} is missing in {cell}, seed {entry.seed}."
                )


def table_of_version_1(data: Mapping[str, Any]) -> Results:
    """The results of a table, from the form of schema `ban_hf.table/1`."""
    taught = {entry["column"] for entry in data["entries"] if entry.get("teachers")}
    members = {entry["column"]: len(entry.get("members") or [1]) for entry in data["entries"]}
    columns = []
    for column in data["columns"]:
        name = column["name"]
        kind = "ensemble" if column.get("ensemble") else "student" if name in taught else "labels"
        columns.append({**column, "kind": kind, "size": members.get(name, 1)})
    claims = [msgspec.to_builtins(Claim.from_spec(claim)) for claim in data["claims"]]
    entries = [{k: v for k, v in entry.items() if v is not None} for entry in data["entries"]]
    parts = {"columns": columns, "claims": claims, "entries": entries, "schema": SCHEMA}
    return msgspec.convert({**data, **parts}, Results)


def family_of_version_1(data: Mapping[str, Any]) -> Results:
    """The results of a family, from the form that has no schema, of one seed or of several."""
    seeds = data.get("seeds") or data.get("seed", 0)
    if "differences" not in data:  # of one run, whose last seed it is
        seeds = [seeds[-1] if isinstance(seeds, list) else seeds or 0]
    generations, ensembles, controls = (
        data.get(kind) or [] for kind in ("generations", "ensembles", "controls")
    )
    columns = []
    for old in generations:  # the first is the teacher of all methods
        method = None if old == generations[0] else old.get("method")
        columns.append(generation_column(old["generation"], old["name"], method))
    for old in ensembles:
        columns.append(ensemble_column(old["members"], old["name"], old.get("method")))
    for number, old in enumerate(controls, 2):
        number = number if old["kind"] == "network" else old["size"]
        columns.append(control_column(number, old["name"], old["size"]))
    entries = []
    for column, old in zip(columns, [*generations, *ensembles, *controls], strict=True):
        for at, seed in enumerate(seeds):
            known = {k: _of_seed(v, at, seeds) for k, v in old.items() if v is not None}
            known |= {"row": ROW, "column": column.name, "seed": seed, "members": ()}
            entries.append(msgspec.convert(known | {"network_seed": old.get("seed")}, Entry))
    return family_results(
        title=data["title"],
        metric=data.get("metric", "error"),
        dataset=msgspec.convert(data["dataset"], dict[str, Any]),
        columns=columns,
        entries=entries,
        seeds=seeds,
        labels=next((old.get("labels") for old in generations), None),
        command=data["command"],
        hardware=data["hardware"],
        versions=msgspec.convert(data["versions"], dict[str, Any]),
    )


def _of_seed(value: Any, at: int, seeds: Sequence[int]) -> Any:
    """A number of one seed; of pooled results it is one of the `values`."""
    if not isinstance(value, Mapping):
        return value
    if "values" not in value:
        return {name: _of_seed(part, at, seeds) for name, part in value.items()}
    if len(value["values"]) != len(seeds):
        raise BANError(
            "A pooled number does not say which seed has no value: give the results of single "
            "seeds."
        )
    return value["values"][at]


def _check_seeds(parts: Mapping[str, Results]) -> None:
    """Raise if a seed of a family comes twice."""
    seeds = [seed for one in parts.values() if one.is_family for seed in one.seeds]
    if len(set(seeds)) < len(seeds):
        raise BANError(
            f"{', '.join(parts)} hold the seeds {', '.join(map(str, seeds))}: one comes twice, "
            "which is no further evidence. Leave one of the files out."
        )


@dataclass(frozen=True)
class _Fact:
    """What two files must not say differently."""

    key: Hashable  # what it is of
    value: Any
    refusal: str  # of two files that differ, after their names
    shown: str = ""  # the value in that sentence
    advice: str = APART


def _check_alike(
    parts: Mapping[str, Results], facts_of: Callable[[Results], Iterable[_Fact]]
) -> None:
    """Raise where one fact is another in another file."""
    known: dict[Hashable, tuple[str, _Fact]] = {}
    for path, results in parts.items():
        for fact in facts_of(results):
            before, same = known.setdefault(fact.key, (path, fact))
            if same.value != fact.value:
                shown = f": {same.shown}, {fact.shown}" if fact.shown else ""
                raise BANError(f"{before} and {path} {fact.refusal}{shown}. {fact.advice}.")


def _conditions(results: Results) -> Iterator[_Fact]:
    """Of what networks the results are, and how these were trained and measured."""
    for key in COMMON_OF_FAMILY if results.is_family else COMMON:
        refusal = (
            f"differ in {key}: only results of one family or table, on one budget and one dataset, "
            "are merged"
        )
        yield _Fact(key, getattr(results, key), refusal)
    if results.is_family:
        name = results.dataset["name"]
        yield _Fact("data", name, "are on different data", name)
        headings = f"({', '.join(column.heading for column in results.columns)})"
        yield _Fact("headings", headings, "measured different things", headings)
    else:  # version 1 does not say what kind a column is of
        columns = [replace(column, kind="student", size=1) for column in results.columns]
        for part, items in (("columns", columns), ("rows", results.rows)):
            for item in items:
                refusal = f"differ in {part}: {item.name!r} is not the same in both"
                yield _Fact((part, item.name), item, refusal, advice=AGAIN)
    for entry in results.entries:
        if entry.code:
            refusal = "hold results of different code, which are not mixed"
            yield _Fact("code", entry.code, refusal, advice=AGAIN)
        if entry.configuration is not None:  # else not recorded, by an earlier version
            # Seeds of a cell differ in nothing but the seed, and so in their teacher.
            settings = {k: v for k, v in entry.configuration.items() if k != "teacher"}
            training = settings.get("training") or {}
            settings["training"] = {k: v for k, v in training.items() if k != "seed"}
            refusal = (
                f"differ: row {entry.row!r}, column {entry.column!r}, was trained with other "
                "arguments in one than in the other"
            )
            yield _Fact(("settings", entry.row, entry.column), settings, refusal)


def _outcomes(results: Results) -> Iterator[_Fact]:
    """What was measured of each network."""
    for entry in results.entries:
        cell = f"row {entry.row!r}, column {entry.column!r}, seed {entry.seed}"
        refusal = f"hold different results of {cell}"
        advice = "Leave one of the two files out"
        yield _Fact((entry.row, entry.column, entry.seed), entry, refusal, advice=advice)


def _merged(parts: Sequence[Results]) -> Results:
    """Results that agree, as one."""
    first = parts[0]
    versions = {
        name: " and ".join(_union([one.versions[name]] for one in parts if name in one.versions))
        for name in _union(one.versions for one in parts)
    }
    figures = [one.figures for one in parts]
    lines = {
        name: _union(each.ensembles.get(name, ()) for each in figures)
        for name in _union(each.ensembles for each in figures)
    }
    commands = "\n".join(_union([one.command] for one in parts))
    return replace(
        first,
        columns=_ordered(first.order.columns, (c for one in parts for c in one.columns)),
        rows=_ordered(first.order.rows, (row for one in parts for row in one.rows)),
        seeds=tuple(sorted(_union(one.seeds for one in parts))),
        claims=_union(one.claims for one in parts),
        figures=Figures(
            generations=_union(each.generations for each in figures),
            ensembles=lines,
            ablation=_union(each.ablation for each in figures),
        ),
        entries=tuple(entry for one in parts for entry in one.entries),
        command=first.command if first.is_family else commands,
        hardware="; ".join(_union([one.hardware] for one in parts)),
        versions=versions,
    )


def _union(parts: Iterable[Iterable[Any]]) -> tuple[Any, ...]:
    """What any of them has, each once, in order."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(parts)))


def _ordered(names: Iterable[str], items: Iterable[Named]) -> tuple[Named, ...]:
    """Rows or columns in the order of the table; of several of a name the first."""
    known: dict[str, Named] = {}
    for item in items:
        known.setdefault(item.name, item)
    return tuple(known[name] for name in names if name in known)
