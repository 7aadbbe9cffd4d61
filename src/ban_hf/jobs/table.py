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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
import yaml

from ban_hf.errors import BANError, did_you_mean
from ban_hf.jobs.job import Job, code_digest, generation_seed
from ban_hf.lineage.files import sha256_of_json
from ban_hf.models.cifar_networks import is_cifar_name
from ban_hf.models.factory import create_classifier, create_language_model
from ban_hf.training.arguments import BANTrainingArguments

SHIPPED = "ban_hf.paper_tables"  # recipes/paper, in an installed package
NEEDED = "title source task metric dataset training budgets networks columns rows".split()
NAME = re.compile(r"\w[\w.+-]*")
METRIC_OF = {"image": "error", "text": "perplexity"}
CLAIMS = {"beats": (2, 2), "explains": (3, 3), "saturates": (3, None)}  # and of how many columns

#: The names that a part of a file may have, and what each holds: a value of some type, or names in
#: turn. `...` stands for any name.
Names = Mapping[Any, Any]
NUMBER = (int, float)
IN_WORDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    list: "a list",
    NUMBER: "a number",
    (str, list): "a name, or a list of names",
}
ANY: Names = {...: object}
TRAINING: Names = {field.name: object for field in fields(BANTrainingArguments)}
PARTS: Names = dict.fromkeys("title source task metric base note".split(), str) | {
    **dict.fromkeys("dataset training budgets networks columns rows figures".split(), ANY),
    "claims": list,
}
BUDGET: Names = {"dataset": ANY, "training": TRAINING, "network": ANY}
NETWORK: Names = {"name": str, "args": ANY, "training": TRAINING}
COLUMN: Names = {
    "heading": str,
    "beyond": bool,
    "network": str,
    "teacher": (str, list),
    "ensemble": list,
    "draw": int,
    "share_ends": bool,
    "scale": dict.fromkeys(TRAINING, NUMBER),
    **TRAINING,
}
FIGURES: Names = {"generations": list, "ensembles": {...: list}, "ablation": list}
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
    """A table of the paper, at one budget; `spec` is what `read_table` gives."""

    def __init__(self, name: str, budget: str) -> None:
        self.asked, self.spec = name, read_table(name)
        self.name, self.budget = Path(name).stem, budget
        self.rows: dict[str, Any] = self.spec["rows"]
        self.columns: dict[str, Any] = self.spec["columns"]
        self._changes = self.spec["budgets"][choose("budget", budget, self.spec["budgets"])]
        self._code = code_digest()

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

    def job(self, row: str, column: str, seed: int, above: tuple[str, ...] = ()) -> Job:
        """What makes a cell with a seed; `above` are the columns that need it."""
        if column in above:
            raise BANError(f"{self.name}: column {column!r} needs itself: {', '.join(above)}.")
        choose("column", column, self.columns)
        spec = self.columns[column] | self.rows[row].get("columns", {}).get(column, {})

        def needed(key: str) -> tuple[Job, ...]:
            names = spec.get(key, [])
            names = [names] if isinstance(names, str) else names
            return tuple(self.job(row, name, seed, (*above, column)) for name in names)

        teachers, members = needed("teacher"), needed("ensemble")
        if any(job.members for job in (*teachers, *members)):
            raise BANError(
                f"{self.name}: column {column!r} needs a column that is an ensemble, which is not "
                "saved: name that column's members."
            )
        arguments = {"task": self.spec["task"], "dataset": self.dataset}
        words = f"ensemble-of-{len(members)}"
        if not members:
            network = self._network(spec.get("network") or self.rows[row]["network"])
            training = self._training(column, spec, network.pop("training", {}))
            training["seed"] = generation_seed(seed, spec.get("draw", 1 if teachers else 0))
            arguments |= {"network": network, "training": training}
            arguments["share_ends"] = bool(spec.get("share_ends"))
            if arguments["share_ends"]:
                self._check_ends(column, network, teachers)
            words = f"{network['name']}-{training['objective'] if teachers else 'labels'}"
        generation = 1 + max((teacher.generation for teacher in teachers), default=-1)
        job = Job(words, arguments, teachers, members, generation, saved=not members)
        return replace(job, folder=f"{words}-{sha256_of_json([job.digest, self._code])[:12]}")

    def _part(self, name: str) -> dict[str, Any]:
        """A part of the file, as the budget has it."""
        return {**self.spec[name], **self._changes.get(name, {})}

    def _network(self, name: str) -> dict[str, Any]:
        """`name` and `args` of a network, and fields of `training`, as the budget has them."""
        sizes = self.spec["networks"][choose("network", name, self.spec["networks"])]
        found = sizes.get(self.budget, sizes["paper"])
        return {**found, "args": self._changes.get("network", {}) | found.get("args", {})}

    def _training(
        self, column: str, spec: Mapping[str, Any], networks: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A column's own fields of the training over its network's, over the table's."""
        own = {name: value for name, value in spec.items() if name in TRAINING}
        training = {"objective": "kd", **self._part("training"), **networks, **own}
        for name, factor in spec.get("scale", {}).items():
            if not isinstance(training.get(name), NUMBER):
                raise BANError(f"{self.name}: column {column!r}: scale: {name} is no number here.")
            training[name] *= factor
        return training

    def _check_ends(self, column: str, network: Mapping[str, Any], teachers: Sequence[Job]) -> None:
        """Raise unless a network can have the first and last layers of its teacher."""
        both = [network["name"], *(job.arguments["network"]["name"] for job in teachers)]
        if not (len(teachers) == 1 and all(map(is_cifar_name, both))):
            raise BANError(
                f"{self.name}: column {column!r}: share_ends needs one teacher, and both of our "
                f"CIFAR networks; these are {', '.join(both)}."
            )

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
            if job.members or job.arguments["dataset"]["name"] not in CLASSES:
                return None
            parts = ("task", "dataset", "network", "share_ends")
            return _count_trained(json.dumps({name: job.arguments[name] for name in parts}))
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
            for name, value in self._changes.get(part, {}).items():
                was = f" (budget paper: {standard[name]})" if name in standard else ""
                changes.append(f"{WORDS.get(name, name.replace('_', ' '))} {value}{was}")
        networks = self.spec["networks"].values()
        own = [sizes[self.budget] for sizes in networks if self.budget in sizes]
        if own:
            changes.append("smaller networks")
        for found in own:
            if "training" in found:  # beside its size
                settings = found.get("args", {}) | found["training"]
                said = ", ".join(f"{name} {value}" for name, value in settings.items())
                changes.append(f"{found['name']} with {said}")
        return "; ".join(changes)


@functools.cache
def _count_trained(arguments: str) -> int:
    """The parameters that a job trains, by its arguments as JSON; shared ends are its teacher's."""
    of = json.loads(arguments)
    size, network = CLASSES[of["dataset"]["name"]], of["network"]
    with torch.device("meta"):
        if of["task"] == "image":
            model: Any = create_classifier(network["name"], num_labels=size, **network["args"])
        else:
            words = [*LETTERS, *(f"a{i}" for i in range(size - len(LETTERS)))]
            model = create_language_model(network["name"], words=words, **network["args"])
    for end in model.network.ends if of["share_ends"] else ():
        end.requires_grad_(False)
    return int(model.num_parameters(only_trainable=True))


# The file


def read_table(name: str) -> dict[str, Any]:
    """The contents of a table's file (`table1` to `table6`, or a YAML file), over its base's.

    `budgets` are mappings, also those that change nothing, and so are the sizes of `networks`.

    Raises:
        BANError: for a table or a file that is not there, and for whatever in it is not known, or
            is of another kind than it must be; the near match is named.
    """
    spec = _read(_find(name), ())
    _check_needed(name, spec, NEEDED)
    _check_needed(f"{name}: dataset", spec["dataset"], ["name"])
    _check(name, spec, {**PARTS, "dataset": {"name": str, ...: object}, "training": TRAINING})
    spec["budgets"] = {key: changes or {} for key, changes in spec["budgets"].items()}
    spec["networks"] = {key: _sizes(sizes) for key, sizes in spec["networks"].items()}
    figures = dict.fromkeys(spec["columns"], NUMBER)
    row: Names = {"heading": str, "network": str, "note": str} | {
        "columns": dict.fromkeys(spec["columns"], COLUMN),
        **dict.fromkeys(("paper", "paper_validation", "paper_parameters"), figures),
    }
    sizes = dict.fromkeys(spec["budgets"], NETWORK)
    for part, known in {"budget": BUDGET, "network": sizes, "column": COLUMN, "row": row}.items():
        for key, found in spec[f"{part}s"].items():
            if not (isinstance(key, str) and NAME.fullmatch(key)):  # of a folder, too
                raise BANError(
                    f"{name}: {part} {key!r}: a name begins with a letter or a digit and goes on "
                    "with these or any of + - . _, as a text (in YAML: in quotes, if it is a "
                    "number)."
                )
            _check(f"{name}: {part} {key}", found, known)
    for key, found in spec["networks"].items():
        if "paper" not in found:
            raise BANError(f"{name}: network {key}: give at least its name at the budget `paper`.")
        for budget, size in found.items():
            _check_needed(f"{name}: network {key}: {budget}", size, ["name"])
    for key, found in spec["rows"].items():
        _check_needed(f"{name}: row {key}", found, ["network"])
    task = choose(f"{name}: task", spec["task"], METRIC_OF)
    choose(f"{name}: metric", spec["metric"], [METRIC_OF[task]])
    _check_claims(name, spec)
    return spec


def _sizes(sizes: Any) -> Any:
    """A network's name and arguments by budget; one that has a name alone is given by it."""
    if not isinstance(sizes, dict):
        return sizes
    return {k: {"name": size} if isinstance(size, str) else size for k, size in sizes.items()}


def _check_claims(name: str, spec: Mapping[str, Any]) -> None:
    """Raise, before anything is trained, for a claim or figure of a column that does not exist."""
    columns: list[Any] = []
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
        columns += claim[kind]
    figures = spec.get("figures", {})
    _check(f"{name}: figures", figures, FIGURES)
    for lines in ({"": f} if isinstance(f, list) else f for f in figures.values()):
        columns += [column for line in lines.values() for column in line]
    for column in columns:
        choose(f"{name}: column", column, spec["columns"])


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


def _check(where: str, given: Any, known: Names) -> None:
    """Raise unless this is a mapping from known names to values of the right kind."""
    if not isinstance(given, dict):
        raise BANError(f"{where} must hold 'name: value' lines.")
    for name, value in given.items():
        if name not in known and ... not in known:
            raise BANError(f"{where}: unknown {name!r}.{did_you_mean(str(name), known)}")
        kind = known[name if name in known else ...]
        if isinstance(kind, dict):
            _check(f"{where}: {name}", value, kind)
        elif not isinstance(value, kind):
            raise BANError(f"{where}: {name} must hold {IN_WORDS[kind]}, and is {value!r}.")


def _check_needed(where: str, given: Mapping[str, Any], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in given]:
        raise BANError(f"{where}: there is no {', '.join(missing)}.")


def choose(what: str, name: str, known: Collection[str], more: str = "") -> str:
    """The name, if it is known; otherwise an error that names what there is."""
    if not (isinstance(name, str) and name in known):
        near = did_you_mean(str(name), list(known))
        raise BANError(f"{what}={name!r} is none.{near} There are {', '.join(known)}{more}.")
    return name
