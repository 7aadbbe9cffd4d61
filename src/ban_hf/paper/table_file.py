"""The file of a table: found, read over what it is based on, and held to say what is known."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ban_hf.recipe import did_you_mean
from ban_hf.results import MEASURES
from ban_hf.training_args import BANTrainingArguments

SHIPPED = "ban_hf.paper_tables"  # recipes/paper, in an installed package
NEEDED = "title source task metric dataset training budgets networks columns rows".split()
PARTS = [*NEEDED, "base", "note", "claims", "figures"]
TRAINING = {f.name for f in fields(BANTrainingArguments)}
OF_BUDGET = ("dataset", "training", "network")
OF_NETWORK = ("name", "args", "training")
OF_COLUMN = [
    *"heading beyond network teacher ensemble draw share_ends scale".split(),
    *sorted(TRAINING),
]
CLAIMS = {"beats": 2, "explains": 3, "saturates": 3}  # and of how many columns at least
OF_ROW = "heading network columns paper paper_validation paper_parameters note".split()


def read_table(name: str) -> dict[str, Any]:
    """The contents of a table's file, over those of its base.

    Args:
        name: `table1` to `table6`, or a YAML file.

    Raises:
        ValueError: for a table or a file that is not there, and for whatever in it is not known, or
            is no mapping where there must be one; the near match is named.
    """
    spec = _read(_find(name))
    if missing := [part for part in NEEDED if part not in spec]:
        raise ValueError(f"{name}: there is no {', '.join(missing)}.")
    for part in ("dataset", "training", "budgets", "networks", "columns", "rows"):
        _hold_mapping(f"{name}: {part}", spec[part])
    _check(f"{name}: training", spec["training"], TRAINING)
    for budget, changes in spec["budgets"].items():
        where = f"{name}: budget {budget}"
        _check(where, changes or {}, OF_BUDGET)
        _check(f"{where}: training", (changes or {}).get("training") or {}, TRAINING)
    for network, sizes in spec["networks"].items():
        _check_network(f"{name}: network {network}", sizes, spec["budgets"])
    for column, found in spec["columns"].items():
        _check(f"{name}: column {column}", found, OF_COLUMN)
    for row, found in spec["rows"].items():
        _check_row(f"{name}: row {row}", found, spec["columns"])
    choose(f"{name}: metric", spec["metric"], MEASURES)
    choose(f"{name}: task", spec["task"], ("image", "text"))
    _check_claims(name, spec)
    return spec


def _check_claims(name: str, spec: Mapping[str, Any]) -> None:
    """Hold, before anything is trained, that what is judged and drawn is of columns there are."""
    named: list[Any] = []
    for claim in spec.get("claims") or []:
        _check(f"{name}: claim", claim, ["says", *CLAIMS])
        kinds = claim.keys() & CLAIMS.keys()
        if len(kinds) != 1 or len(claim[min(kinds)]) < CLAIMS[min(kinds)]:
            raise ValueError(
                f"{name}: claim {claim}: give one of "
                + ", ".join(f"{kind} ({least} columns)" for kind, least in CLAIMS.items())
            )
        named += claim[min(kinds)]
    for part in (spec.get("figures") or {}).values():
        named += [c for line in part.values() for c in line] if isinstance(part, dict) else part
    for column in named:
        choose(f"{name}: column", column, spec["columns"])


def _check_network(where: str, sizes: Any, budgets: Collection[str]) -> None:
    _check(where, sizes, budgets)
    if "paper" not in sizes:
        raise ValueError(f"{where}: give at least its name at the budget `paper`.")
    for budget, found in sizes.items():
        if not isinstance(found, str):
            _check(f"{where}: {budget}", found, OF_NETWORK)
            _check(f"{where}: {budget}: training", found.get("training") or {}, TRAINING)
            if "name" not in found:
                raise ValueError(f"{where}: {budget}: there is no name.")


def _check_row(where: str, row: Any, columns: Collection[str]) -> None:
    _check(where, row, OF_ROW)
    if "network" not in row:
        raise ValueError(f"{where}: there is no network.")
    for part in ("columns", "paper", "paper_validation", "paper_parameters"):
        _check(f"{where}: {part}", row.get(part) or {}, columns)
    for column, found in (row.get("columns") or {}).items():
        _check(f"{where}: column {column}", found, OF_COLUMN)


def _find(name: str) -> Traversable:
    """A file of a table: one that is there, or one of ours by its name."""
    if (path := Path(name)).suffix in (".yaml", ".yml"):
        return path
    ours = {Path(file.name).stem: file for file in resources.files(SHIPPED).iterdir()}
    tables = sorted(stem for stem in ours if stem.startswith("table"))
    choose("table", name, tables, "; or give a YAML file")
    return ours[name]


def _read(file: Traversable) -> dict[str, Any]:
    try:
        found: Any = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.name} cannot be read as YAML: {error}") from error
    _check(file.name, found, PARTS)
    if "base" not in found:
        return dict(found)
    where = file.parent if isinstance(file, Path) else resources.files(SHIPPED)
    return _over(_read(where / found.pop("base")), dict(found))


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, and mappings in it over those there."""
    both = dict(base)
    for name, value in own.items():
        below = both.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _over(below, value)
        both[name] = value
    return both


def _check(where: str, given: Any, known: Collection[str]) -> None:
    """Hold that there is a mapping, of names that are known."""
    _hold_mapping(where, given)
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: unknown {name!r}.{did_you_mean(str(name), known)}")


def _hold_mapping(where: str, given: Any) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where} must hold 'name: value' lines.")


def choose(what: str, name: str, known: Collection[str], more: str = "") -> str:
    """A name, held to be known.

    Raises:
        ValueError: naming what there is.
    """
    if name not in known:
        near = did_you_mean(name, list(known))
        raise ValueError(f"{what}={name!r} is none.{near} There are {', '.join(known)}{more}.")
    return name
