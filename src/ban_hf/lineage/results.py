"""The results of a run, and the one form that `results.json` has.

A run is a table. Its rows are networks on a dataset, its columns are ways to train them, and each
cell has one entry for each seed. A family of generations is a table of one row, whose columns are
its generations, its ensembles and its controls.

Units: errors, calibration errors and agreements are percent, losses are nats per item, times are
seconds. `reports.reading` reads the files of earlier versions into this form.
"""

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from ban_hf.errors import BANError

SCHEMA = "ban_hf.results/2"
BLOCK = 500  # words in a block; the test text of Penn Treebank has some 165 blocks

Array = npt.NDArray[Any]
ColumnKind = Literal["labels", "student", "ensemble", "control"]
ClaimKind = Literal["beats", "explains", "saturates"]


class Metric(msgspec.Struct, frozen=True):
    """A number in an entry's `test`.

    Attributes:
        name: its key.
        heading: of its column.
        unit: of differences, in a sentence: `points`, `nats`.
        digits: after the point.
        greater_is_better: whether more of it is better.
    """

    name: str
    heading: str
    unit: str
    digits: int
    greater_is_better: bool = False


class Measure(msgspec.Struct, frozen=True):
    """What a task is measured by.

    Attributes:
        title: of the leading metric, in a sentence.
        unit: of the leading metric on an axis; empty if it has none.
        items: what the test set is counted in.
        metrics: columns of a table, the leading metric first.
    """

    title: str
    unit: str
    items: str
    metrics: tuple[Metric, ...]

    @property
    def leading(self) -> Metric:
        """The metric that is drawn, compared, and watched while training."""
        return self.metrics[0]

    def heading(self, split: str) -> str:
        """The leading metric of a split, as the heading of a column."""
        return " ".join([split, self.title, *([self.unit] if self.unit else [])])


#: By the name of the leading metric.
MEASURES = {
    "error": Measure(
        "error",
        "%",
        "items",
        (
            Metric("error", "test error %", "points", 2),
            Metric("nll", "NLL", "nats", 3),
            Metric("ece", "ECE %", "points", 2),
        ),
    ),
    "perplexity": Measure(
        "perplexity",
        "",
        "words",
        (
            Metric("perplexity", "test perplexity", "in perplexity", 2),
            Metric("nll", "nats per word", "nats", 4),
            Metric("above_entropy", "above the entropy", "nats", 4),
        ),
    ),
    "accuracy": Measure(
        "accuracy",
        "%",
        "items",
        (
            Metric("accuracy", "test accuracy %", "points", 2, greater_is_better=True),
            Metric("nll", "NLL", "nats", 3),
            Metric("ece", "ECE %", "points", 2),
        ),
    ),
    "loss": Measure("loss", "", "items", (Metric("loss", "test loss", "nats", 4),)),
}


class Parameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of a network: `all`, and those that are trained."""

    all: int
    trainable: int


class Outcomes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a network did on each item of the test set, packed to fit into `results.json`.

    Attributes:
        predicted: of items with a class, the predicted one of each, see `pack_classes`.
        nll: of a text, the summed loss of each block of words in a row, nats. A bootstrap draws
            blocks, because words that follow one another are not independent.
        words: the number of words in each block.
    """

    predicted: str | None = None
    nll: tuple[float, ...] | None = None
    words: tuple[int, ...] | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of one network, or of one ensemble, in one seed.

    Attributes:
        row: name of its row.
        column: name of its column.
        seed: of the run; entries of one seed are compared in pairs.
        network: name of the network, or of an ensemble's members, joined by ` + `.
        parameters: of the network; of an ensemble those of all members.
        test: metrics of the test set by name, and `n`, the number of items.
        validation: metrics of the validation set at the end of the training.
        best_validation: the best of them, and its `epoch`.
        outcomes: on each item of the test set; None where they were not kept.
        reliability: of each bin of confidence the number of items, their mean confidence and
            their accuracy; these two are None in an empty bin.
        log: of the training: a list for each logged name, one number an epoch.
        train_loss: label loss at the end of the training.
        network_seed: of the network's weights and views.
        job: name of the job that made it.
        arguments: sha256 of its arguments.
        code: sha256 of the code that made it.
        configuration: all that decided the result, for the check that seeds differ in nothing else.
        teachers: names of the jobs that taught it.
        members: names of the jobs of an ensemble's members.
        teacher_agreement: how often it predicts what its teacher does, percent.
        seconds: of the training.
    """

    row: str
    column: str
    seed: int
    test: dict[str, int | float | None]
    network: str | None = None
    parameters: Parameters | None = None
    validation: dict[str, float | None] | None = None
    best_validation: dict[str, float | None] | None = None
    outcomes: Outcomes | None = None
    reliability: tuple[tuple[int, float | None, float | None], ...] | None = None
    log: dict[str, tuple[float | None, ...]] = {}
    train_loss: float | None = None
    network_seed: int | None = None
    job: str | None = None
    arguments: str | None = None
    code: str | None = None
    configuration: dict[str, Any] | None = None
    teachers: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    teacher_agreement: float | None = None
    seconds: float | None = None

    def value(self, metric: str, split: Literal["test", "validation"] = "test") -> float | None:
        """A metric of a split; None if it is missing or not finite."""
        return finite((self.test if split == "test" else self.validation or {}).get(metric))


class Column(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to train a network, or to combine several.

    Attributes:
        name: unique in the table.
        heading: in tables and pictures.
        kind: a network trained on `labels`, a `student`, an `ensemble`, or a `control`: a network
            or an ensemble of the same cost, trained on labels alone.
        in_paper: whether the paper has this column.
        generation: of a network; of an ensemble that of its last member.
        method: how students learned, where several methods are compared.
        size: the number of networks whose predictions are averaged.
    """

    name: str
    heading: str
    kind: ColumnKind
    in_paper: bool = False
    generation: int | None = None
    method: str | None = None
    size: int = 1


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One network and dataset.

    Attributes:
        name: unique in the table.
        heading: in tables and pictures.
        paper: the paper's test metric by column.
        paper_validation: the paper's validation metric by column.
        paper_parameters: the paper's parameters by column, millions.
        sizes: parameters by column at the paper's size.
        note: what a reader must know of this row.
    """

    name: str
    heading: str
    paper: dict[str, float | None] = {}
    paper_validation: dict[str, float | None] = {}
    paper_parameters: dict[str, float | None] = {}
    sizes: dict[str, int] = {}
    note: str | None = None


class Claim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim that the results support or not; `reports.verdicts` has the rule of each kind.

    Attributes:
        says: the claim, in words.
        kind: of its rule.
        columns: their names, in the order that the rule takes them.
    """

    says: str
    kind: ClaimKind
    columns: tuple[str, ...]

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Claim":
        """A claim of a table's file, `{says: ..., beats: [ban, teacher]}`.

        Raises:
            BANError: if no rule is known for it.
        """
        kinds: tuple[ClaimKind, ...] = ("beats", "explains", "saturates")
        kind = next((kind for kind in kinds if kind in spec), None)
        if kind is None:
            raise BANError(f"claims: {dict(spec)} is of no kind we know: {', '.join(kinds)}.")
        return cls(says=str(spec["says"]), kind=kind, columns=tuple(spec[kind]))


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The columns of each picture; a picture without columns is not drawn.

    Attributes:
        generations: a sequence, from the first teacher to the last student.
        ensembles: of each line, networks and ensembles by the number of members, from one.
        ablation: students, compared with the first column.
    """

    generations: tuple[str, ...] = ()
    ensembles: dict[str, tuple[str, ...]] = {}
    ablation: tuple[str, ...] = ()


class Budget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A size that the paper's experiments are run at: its name, and what it changes, in words."""

    name: str
    says: str


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All rows and columns that the table has, in order, also those that were not run."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


class Results(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The results of a family, or of a table of the paper.

    Attributes:
        schema: `ban_hf.results/2`.
        title: of the report.
        source: what is reproduced: `Furlanello et al. 2018, Table 2`; empty of a family.
        task: `image` or `text`.
        metric: name of the leading metric, one of `MEASURES`.
        table: name of the table; None of a family.
        budget: of a table; None of a family.
        dataset: facts of the dataset, its `name` among them.
        seeds: that were asked for.
        order: of rows and columns, which also orders merged results.
        columns: that were asked for.
        rows: that were asked for.
        claims: to be decided.
        figures: to be drawn.
        entries: what was measured.
        labels: the packed true classes of the test set; None of a text.
        command: that made it; several commands are on lines of their own.
        hardware: it ran on.
        versions: of the libraries.
        note: what a reader must know of these results.
    """

    title: str
    task: str
    metric: str
    dataset: dict[str, Any]
    seeds: tuple[int, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]
    order: Order
    schema: str = SCHEMA
    source: str = ""
    table: str | None = None
    budget: Budget | None = None
    claims: tuple[Claim, ...] = ()
    figures: Figures = Figures()
    labels: str | None = None
    command: str = ""
    hardware: str = "not recorded"
    versions: dict[str, str] = {}
    note: str | None = None

    @property
    def is_family(self) -> bool:
        """Whether it is a family: one row, and no table of the paper."""
        return self.table is None

    @property
    def measure(self) -> Measure:
        """What it is measured by, without the metrics that no entry has."""
        measure = MEASURES[self.metric]
        leading, *others = measure.metrics
        known = [m for m in others if any(e.value(m.name) is not None for e in self.entries)]
        return msgspec.structs.replace(measure, metrics=(leading, *known))

    def column(self, name: str) -> Column:
        """The column of a name."""
        return next(column for column in self.columns if column.name == name)

    def row(self, name: str) -> Row:
        """The row of a name."""
        return next(row for row in self.rows if row.name == name)

    def cell(self, row: str, column: str) -> dict[int, Entry]:
        """The entries of a cell by seed, finite or not."""
        found = {e.seed: e for e in self.entries if (e.row, e.column) == (row, column)}
        return dict(sorted(found.items()))

    def measured(self, row: str, column: str) -> dict[int, Entry]:
        """The entries of a cell by seed, those alone whose leading metric is a finite number."""
        cell = self.cell(row, column)
        return {s: entry for s, entry in cell.items() if entry.value(self.metric) is not None}


def finite(value: float | None) -> float | None:
    """The number, or None if it is missing or not finite."""
    return value if value is not None and math.isfinite(value) else None


def pack_classes(classes: Array) -> str:
    """Class numbers `(N,)` as text: 16 bits each, compressed, base64."""
    return base64.b64encode(zlib.compress(classes.astype("<u2").tobytes(), 9)).decode()


def unpack_classes(text: str) -> Array:
    """The class numbers that `pack_classes` packed, `(N,)`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2")


def block_losses(nll: Array) -> Outcomes:
    """The losses of the words of a text `(N,)`, nats, summed in blocks of `BLOCK` words."""
    starts = np.arange(0, len(nll), BLOCK)  # (blocks,)
    words = np.diff([*starts, len(nll)])  # (blocks,)
    sums = np.add.reduceat(nll, starts).round(6)  # (blocks,)
    return Outcomes(nll=tuple(sums.tolist()), words=tuple(words.tolist()))


def item_losses(entry: Entry, labels: str | None) -> tuple[Array, Array] | None:
    """The summed losses and the counts of what a bootstrap draws: items, or blocks of words.

    Args:
        entry: its `outcomes` are read.
        labels: packed true classes of the items; None of a text.

    Returns:
        `(N,)` and `(N,)`: of items 0 or 1 (wrong) and ones, of blocks nats and words. None where
        outcomes were not kept.

    Raises:
        BANError: if the outcomes are damaged, or of another test set than the labels.
    """
    outcomes = entry.outcomes
    if outcomes is None:
        return None
    if outcomes.nll is not None and outcomes.words is not None:
        if len(outcomes.nll) != len(outcomes.words):
            raise _damaged(entry, "nll and words have different lengths")
        return np.array(outcomes.nll), np.array(outcomes.words, dtype=float)
    if outcomes.predicted is None or labels is None:
        raise _damaged(entry, "predictions or labels are missing")
    try:
        predicted, true = unpack_classes(outcomes.predicted), unpack_classes(labels)  # (N,), (N,)
    except (ValueError, zlib.error) as error:
        raise _damaged(entry, str(error)) from error
    if len(predicted) != len(true):
        raise _damaged(entry, f"{len(predicted)} predictions for {len(true)} labels")
    return (predicted != true).astype(float), np.ones(len(true))


def _damaged(entry: Entry, why: str) -> BANError:
    return BANError(
        f"outcomes of row {entry.row!r}, column {entry.column!r}, seed {entry.seed}: {why}."
    )
