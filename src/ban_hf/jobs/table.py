"""A table of the paper as a file: its rows and columns, and the job behind each cell.

    columns:
      teacher: {heading: Teacher}                       # from labels
      ban: {teacher: teacher}                           # by `objective: kd`, with no labels
      ban+l: {teacher: teacher, objective: kd+label}    # any field of BANTrainingArguments
      back: {teacher: [ban-1, ban-2]}                   # several teachers: their mean prediction
      ens2: {ensemble: [ban-1, ban-2]}                  # not trained
    rows:
      densenet-90-60: {heading: DenseNet-90-60, paper: {teacher: 17.69, ban: 16.69}}

A column may name its `network` (by default the row's), its `draw` (students of the same draw begin
with the same weights and see the same views: 0 for labels, 1 for students), `share_ends`, and what
to `scale` (`learning_rate: 2` is twice that of the network). A row may overrule
columns. `base` names a file with what tables have in common: `training`, `dataset`, `networks` and
`budgets`. A budget changes those; the milestones of the learning rate are fractions of the
training, whatever its length.
"""

import functools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ban_hf.errors import BANError, did_you_mean
from ban_hf.jobs.job import Job, code_digest, digest, generation_seed
from ban_hf.lineage.files import sha256_of_json
from ban_hf.models.cifar_networks import is_cifar_name
from ban_hf.models.factory import create_classifier, create_language_model
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
#: What a budget may change, in words.
WORDS = {
    "name": "data set",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch size",
    "train_samples": "training images",
    "train_words": "training words",
    "stem_stride": "stride of the first convolution",
    "validation": "fraction held out for validation",
}
#: Classes, or words, of the data sets of the paper.
CLASSES = {"cifar10": 10, "cifar100": 100, "ptb": 10_000}
#: Stands for the words of a text in a network that spells them: as long as it has their letters.
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-'./&$#N*\\"


class Table:
    """A table of the paper, at one budget.

    Attributes:
        name: `table2`.
        budget: `paper`, `gpu`, `cpu`, or another of its file's.
        spec: the file's contents, with those of its base.
    """

    def __init__(self, name: str, budget: str) -> None:
        self.asked, self.spec = name, read_table(name)
        self.name = Path(name).stem
        self.budget = budget
        self._budget = self.spec["budgets"][choose("budget", budget, self.spec["budgets"])] or {}

    @property
    def rows(self) -> dict[str, Any]:
        """By name."""
        found: dict[str, Any] = self.spec["rows"]
        return found

    @property
    def columns(self) -> dict[str, Any]:
        """By name, in order."""
        found: dict[str, Any] = self.spec["columns"]
        return found

    def columns_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The columns, as a row has them."""
        own = row.get("columns", {})
        return {name: column | own.get(name, {}) for name, column in self.columns.items()}

    def choose_rows(self, names: Sequence[str]) -> list[str]:
        """The rows of these names; all where none is given."""
        for name in names:
            choose("row", name, self.rows)
        return [name for name in self.rows if name in names or not names]

    def choose_columns(self, names: Sequence[str]) -> list[str]:
        """The columns of these names; `paper`, the default, and `all` stand for several."""
        several = {
            "paper": [n for n, column in self.columns.items() if not column.get("beyond")],
            "all": list(self.columns),
        }
        wanted: set[str] = set()
        for name in names or ["paper"]:
            wanted |= set(several.get(name) or [name])
            choose("column", name, [*self.columns, *several])
        return [name for name in self.columns if name in wanted]

    @property
    def dataset(self) -> dict[str, Any]:
        """What it is trained and measured on, at this budget."""
        return self._part("dataset")

    def job(self, row: str, column: str, seed: int) -> Job:
        """What makes a cell with a seed."""
        return self._job(row, column, seed, ())

    def _job(self, row: str, column: str, seed: int, above: tuple[str, ...]) -> Job:
        if column in above:
            raise BANError(f"{self.name}: column {column!r} needs itself: {', '.join(above)}.")
        choose("column", column, self.columns)
        spec = self.columns_of(self.rows[row])[column]

        def needed(key: str) -> tuple[Job, ...]:
            names = spec.get(key, [])
            names = [names] if isinstance(names, str) else names
            return tuple(self._job(row, name, seed, (*above, column)) for name in names)

        teachers, members = needed("teacher"), needed("ensemble")
        if any(job.members for job in (*teachers, *members)):
            raise BANError(
                f"{self.name}: column {column!r} needs a column that is an ensemble, which is not "
                "saved: name that column's members."
            )
        common = {"task": self.spec["task"], "dataset": self.dataset}
        if members:
            return _job(f"ensemble-of-{len(members)}", common, members=members)
        network = self._network(spec.get("network") or self.rows[row]["network"])
        own = {name: value for name, value in spec.items() if name in TRAINING}
        training = {"objective": "kd"} | self._part("training") | network.pop("training", {}) | own
        for name, factor in spec.get("scale", {}).items():
            if not isinstance(training.get(name), int | float):
                raise BANError(f"{self.name}: column {column!r}: scale: {name} is no number here.")
            training[name] *= factor
        draw = spec.get("draw", 1 if teachers else 0)
        training["seed"] = generation_seed(seed, draw)
        share_ends = bool(spec.get("share_ends"))
        both = [network["name"], *(job.arguments["network"]["name"] for job in teachers)]
        if share_ends and not (len(teachers) == 1 and all(map(is_cifar_name, both))):
            raise BANError(
                f"{self.name}: column {column!r}: share_ends needs one teacher, and both of our "
                f"CIFAR networks; these are {', '.join(both)}."
            )
        own = {"network": network, "training": training, "share_ends": share_ends}
        objective = training["objective"] if teachers else "labels"
        return _job(f"{network['name']}-{objective}", common | own, teachers)

    def _part(self, name: str) -> dict[str, Any]:
        """A part of the file, as the budget has it."""
        return {**self.spec[name], **self._budget.get(name, {})}

    def _network(self, name: str) -> dict[str, Any]:
        """`name` and `args` of a network, and fields of `training`, as the budget has them."""
        sizes = self.spec["networks"][choose("network", name, self.spec["networks"])]
        found = sizes.get(self.budget, sizes["paper"])
        found = {"name": found} if isinstance(found, str) else dict(found)
        found["args"] = self._budget.get("network", {}) | found.get("args", {})
        return found

    @cached_property
    def _papers(self) -> "Table":
        return Table(self.asked, "paper")

    def paper_size(self, row: str, column: str) -> int | None:
        """Parameters that are trained in a cell at the paper's budget.

        None of an ensemble, of a data set that is not the paper's, and of a network that cannot be
        built, which its job says: it must not keep the others from being reported.
        """
        try:
            job = self._papers.job(row, column, 1)
            if job.members:
                return None
            network, dataset = job.arguments["network"], job.arguments["dataset"]["name"]
            if dataset not in CLASSES:
                return None
            shared = job.arguments["share_ends"]
            return count_parameters(self.spec["task"], dataset, network, shared=shared)
        except (ValueError, TypeError):
            return None

    @property
    def says(self) -> str:
        """What the budget changes, in words."""
        if self.budget == "paper":
            return "networks, data and schedule of the paper, as far as they are known"
        changes = []
        for part in ("dataset", "training", "network"):
            standard = self.spec.get(part) or {}
            for name, value in self._budget.get(part, {}).items():
                was = f" (budget paper: {standard[name]})" if name in standard else ""
                changes.append(f"{WORDS.get(name, name.replace('_', ' '))} {value}{was}")
        own = [
            sizes[self.budget] for sizes in self.spec["networks"].values() if self.budget in sizes
        ]
        if own:
            changes.append("smaller networks")
        for found in own:
            if not isinstance(found, str) and "training" in found:  # beside its size
                settings = found.get("args", {}) | found["training"]
                said = ", ".join(f"{name} {value}" for name, value in settings.items())
                changes.append(f"{found['name']} with {said}")
        return "; ".join(changes)


def _job(
    words: str,
    arguments: dict[str, Any],
    teachers: tuple[Job, ...] = (),
    members: tuple[Job, ...] = (),
) -> Job:
    """A job whose folder has words for people, and the digest of all that decides its result."""
    identity = sha256_of_json([digest(arguments, teachers, members), code_digest()])[:12]
    generation = 1 + max((teacher.generation for teacher in teachers), default=-1)
    return Job(f"{words}-{identity}", arguments, teachers, members, generation, saved=not members)


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
    """Raise, before anything is trained, for a claim or figure of a column that does not exist."""
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
    """Raise unless this is a mapping from known names to values of the right type."""
    if not isinstance(given, dict):
        raise BANError(f"{where} must hold 'name: value' lines.")
    for name, value in given.items():
        if name not in known:
            raise BANError(f"{where}: unknown {name!r}.{did_you_mean(str(name), known)}")
        if not isinstance(value, known[name]):
            kind = IN_WORDS[known[name]]
            raise BANError(f"{where}: {name} must hold {kind}, and is {value!r}.")


def choose(what: str, name: str, known: Collection[str], more: str = "") -> str:
    """Raise unless a name is known; the name.

    Raises:
        ValueError: naming what there is.
    """
    if not (isinstance(name, str) and name in known):
        near = did_you_mean(str(name), list(known))
        raise BANError(f"{what}={name!r} is none.{near} There are {', '.join(known)}{more}.")
    return name


def count_parameters(task: str, dataset: str, network: Mapping[str, Any], *, shared: bool) -> int:
    """The parameters that a network trains.

    Args:
        task: `image` or `text`.
        dataset: its name, which tells classes or words.
        network: `name` and `args`.
        shared: whether its first convolution and last linear layer are its teacher's, and so not
            counted.

    Raises:
        KeyError: for a data set that is not the paper's.
    """
    return _built_once(task, dataset, network["name"], json.dumps(network["args"]), shared)


@functools.cache
def _built_once(task: str, dataset: str, name: str, arguments: str, shared: bool) -> int:
    """Counted once for the many cells that have the same network; `arguments` as JSON."""
    size, args = CLASSES[dataset], json.loads(arguments)
    with torch.device("meta"):
        if task == "image":
            model: Any = create_classifier(name, num_labels=size, **args)
        else:
            words = [*LETTERS, *(f"a{i}" for i in range(size - len(LETTERS)))]
            model = create_language_model(name, words=words, **args)
    frozen = model.network.ends if shared else ()
    return _count(model) - sum(map(_count, frozen))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
