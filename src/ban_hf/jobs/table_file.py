"""The file of a table: found, read over what it is based on, and held to say what is known."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from ban_hf.errors import BANError, did_you_mean
from ban_hf.training.arguments import BANTrainingArguments

SHIPPED = "ban_hf.paper_tables"  # recipes/paper, in an installed package
NEEDED = "title source task metric dataset training budgets networks columns rows".split()
NAME = re.compile(r"\w[\w.+-]*")
METRIC_OF = {"image": "error", "text": "perplexity"}
CLAIMS = {"beats": (2, 2), "explains": (3, 3), "saturates": (3, None)}  # and of how many columns

Kind = type | tuple[type, ...]
Kinds = Mapping[str, Kind]  # the names that there are, and what each holds
NUMBER = (int, float)
IN_WORDS: dict[Kind, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    dict: "'name: value' lines",
    list: "a list",
    NUMBER: "a number",
    (str, list): "a name, or a list of names",
    (str, dict): "a name, or 'name: value' lines",
}
TRAINING: Kinds = {field.name: object for field in fields(BANTrainingArguments)}
PARTS: Kinds = dict.fromkeys(NEEDED, dict) | {
    **dict.fromkeys("title source task metric base note".split(), str),
    "claims": list,
    "figures": dict,
}
OF_BUDGET: Kinds = dict.fromkeys(("dataset", "training", "network"), dict)
OF_NETWORK: Kinds = {"name": str, "args": dict, "training": dict}
OF_COLUMN: Kinds = {
    "heading": str,
    "beyond": bool,
    "network": str,
    "teacher": (str, list),
    "ensemble": list,
    "draw": int,
    "share_ends": bool,
    "scale": dict,
    **TRAINING,
}
OF_ROW: Kinds = {"heading": str, "network": str, "note": str, "columns": dict} | dict.fromkeys(
    ("paper", "paper_validation", "paper_parameters"), dict
)
FIGURES: Kinds = {"generations": list, "ensembles": dict, "ablation": list}


def read_table(name: str) -> dict[str, Any]:
    """The contents of a table's file, over those of its base.

    Args:
        name: `table1` to `table6`, or a YAML file.

    Raises:
        ValueError: for a table or a file that is not there, and for whatever in it is not known, or
            is of another kind than it must be; the near match is named.
    """
    spec = _read(_find(name), ())
    if missing := [part for part in NEEDED if part not in spec]:
        raise BANError(f"{name}: there is no {', '.join(missing)}.")
    if not isinstance(spec["dataset"].get("name"), str):
        raise BANError(f"{name}: dataset: give its name.")
    _check(f"{name}: training", spec["training"], TRAINING)
    for budget, changes in _named(name, "budget", spec["budgets"]):
        where = f"{name}: budget {budget}"
        _check(where, changes or {}, OF_BUDGET)
        _check(f"{where}: training", (changes or {}).get("training", {}), TRAINING)
    for network, sizes in _named(name, "network", spec["networks"]):
        _check_network(f"{name}: network {network}", sizes, spec["budgets"])
    for column, found in _named(name, "column", spec["columns"]):
        _check_column(f"{name}: column {column}", found)
    for row, found in _named(name, "row", spec["rows"]):
        _check_row(f"{name}: row {row}", found, spec["columns"])
    task = choose(f"{name}: task", spec["task"], METRIC_OF)
    choose(f"{name}: metric", spec["metric"], [METRIC_OF[task]])
    _check_claims(name, spec)
    return spec


def _named(table: str, what: str, given: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The items of a part, whose names are to be names of folders, too."""
    for name, value in given.items():
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise BANError(
                f"{table}: {what} {name!r}: a name begins with a letter or a digit and goes on "
                "with these or any of + - . _, as a text (in YAML: in quotes, if it is a number)."
            )
        yield name, value


def _check_claims(name: str, spec: Mapping[str, Any]) -> None:
    """Hold, before anything is trained, that what is judged and drawn is of columns there are."""
    named: list[Any] = []
    for claim in spec.get("claims", []):
        _check(f"{name}: claim", claim, {"says": str} | dict.fromkeys(CLAIMS, list))
        kind = next((kind for kind in CLAIMS if kind in claim), "")
        least, most = CLAIMS.get(kind, (1, 0))
        count = len(claim.get(kind, []))
        if len(claim) != 2 or "says" not in claim or not least <= count <= (most or count):
            raise BANError(
                f"{name}: claim {claim}: give `says`, and one of beats (2 columns), explains (3 "
                "columns), saturates (3 columns or more)."
            )
        named += claim[kind]
    _check(f"{name}: figures", spec.get("figures", {}), FIGURES)
    for figure, part in spec.get("figures", {}).items():
        lines = part if isinstance(part, dict) else {"": part}
        _check(f"{name}: figures: {figure}", lines, dict.fromkeys(lines, list))
        named += [column for line in lines.values() for column in line]
    for column in named:
        choose(f"{name}: column", column, spec["columns"])


def _check_network(where: str, sizes: Any, budgets: Collection[str]) -> None:
    _check(where, sizes, dict.fromkeys(budgets, (str, dict)))
    if "paper" not in sizes:
        raise BANError(f"{where}: give at least its name at the budget `paper`.")
    for budget, found in sizes.items():
        if not isinstance(found, str):
            _check(f"{where}: {budget}", found, OF_NETWORK)
            _check(f"{where}: {budget}: training", found.get("training", {}), TRAINING)
            if "name" not in found:
                raise BANError(f"{where}: {budget}: there is no name.")


def _check_column(where: str, column: Any) -> None:
    _check(where, column, OF_COLUMN)
    _check(f"{where}: scale", column.get("scale", {}), dict.fromkeys(TRAINING, NUMBER))


def _check_row(where: str, row: Any, columns: Collection[str]) -> None:
    _check(where, row, OF_ROW)
    if "network" not in row:
        raise BANError(f"{where}: there is no network.")
    for part in ("paper", "paper_validation", "paper_parameters"):
        _check(f"{where}: {part}", row.get(part, {}), dict.fromkeys(columns, NUMBER))
    _check(f"{where}: columns", row.get("columns", {}), dict.fromkeys(columns, dict))
    for column, found in row.get("columns", {}).items():
        _check_column(f"{where}: column {column}", found)


def _find(name: str) -> Traversable:
    """A file of a table: one that is there, or one of ours by its name."""
    if (path := Path(name)).suffix in (".yaml", ".yml"):
        return path
    ours = {Path(file.name).stem: file for file in resources.files(SHIPPED).iterdir()}
    tables = sorted(stem for stem in ours if stem.startswith("table"))
    choose("table", name, tables, "; or give a YAML file")
    return ours[name]


def _read(file: Traversable, above: tuple[str, ...]) -> dict[str, Any]:
    """A file over its base, which lies beside it or is one of ours."""
    if file.name in above:
        raise BANError(f"{file.name} is its own base: {', '.join(above)}.")
    try:
        found: Any = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BANError(f"{file.name} cannot be read as YAML: {error}") from error
    _check(file.name, found, PARTS)
    if "base" not in found:
        return dict(found)
    ours = resources.files(SHIPPED) / found["base"]
    beside = file.parent / found["base"] if isinstance(file, Path) else ours
    base = beside if beside.is_file() or not ours.is_file() else ours
    own = {name: value for name, value in found.items() if name != "base"}
    return _over(_read(base, (*above, file.name)), own)


def _over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another, and mappings in it over those there."""
    both = dict(base)
    for name, value in own.items():
        below = both.get(name)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _over(below, value)
        both[name] = value
    return both


def _check(where: str, given: Any, known: Kinds) -> None:
    """Hold that there is a mapping, of names that are known, to what each holds."""
    if not isinstance(given, dict):
        raise BANError(f"{where} must hold 'name: value' lines.")
    for name, value in given.items():
        if name not in known:
            raise BANError(f"{where}: unknown {name!r}.{did_you_mean(str(name), known)}")
        if not isinstance(value, known[name]):
            kind = IN_WORDS[known[name]]
            raise BANError(f"{where}: {name} must hold {kind}, and is {value!r}.")


def choose(what: str, name: str, known: Collection[str], more: str = "") -> str:
    """A name, held to be known.

    Raises:
        ValueError: naming what there is.
    """
    if not (isinstance(name, str) and name in known):
        near = did_you_mean(str(name), list(known))
        raise BANError(f"{what}={name!r} is none.{near} There are {', '.join(known)}{more}.")
    return name
