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
to `scale` (`learning_rate: 2` is twice that of the network, whatever it is). A row may overrule
columns. `base` names a file with what tables have in common: `training`, `dataset`, `networks` and
`budgets`. A budget changes those; the milestones of the learning rate are fractions of the
training, whatever its length.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ban_hf.errors import BANError
from ban_hf.jobs.generation import generation_seed
from ban_hf.jobs.job import Job
from ban_hf.jobs.sizes import CLASSES, count_parameters
from ban_hf.jobs.table_file import TRAINING, choose, read_table
from ban_hf.models.cifar_networks import is_cifar_name

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
        common = {"task": self.spec["task"], "dataset": self.dataset}
        if members:
            return Job(common, members=members)
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
        return Job(common | own, teachers)

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
