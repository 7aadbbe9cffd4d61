"""The results of a run, and the one form that `results.json` has.

A run is a table. Its rows are networks on a dataset, its columns are ways to train them, and each
cell has one entry for each seed. A family of generations is a table of one row, whose columns are
generation 0, its students, their ensembles, and controls of equal cost.

Units: errors, calibration errors and agreements are percent, losses are nats per item, times are
seconds. `reports.reading` reads the files of earlier versions into this form.
"""

import base64
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import MEASURES, Measure, data_name, finite, method_of

SCHEMA = "ban_hf.results/2"
BLOCK = 500  # words in a block; the test text of Penn Treebank has some 165 blocks
ROW = "family"  # name of the only row of a family
TASKS = {"perplexity": "text"}  # by metric, where nothing tells the task; others are of images
#: Methods that take a part of the teacher's signal, and the method that takes all of it.
PARTS, WHOLE = ("CWTM", "DKPP"), "BAN"

Array = npt.NDArray[Any]
ColumnKind = Literal["labels", "student", "ensemble", "control"]
ClaimKind = Literal["beats", "explains", "saturates"]


class Parameters(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Parameters of a network: `all`, and those that are trained."""

    all: int
    trainable: int


class Outcomes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a network did on each item of the test set, packed to fit into `results.json`.

    A bootstrap of a text draws blocks, because words that follow one another are not independent.
    """

    predicted: str | None = None  # the class of each item, see `pack_classes`
    nll: tuple[float, ...] | None = None  # the summed loss of each block of words in a row, nats
    words: tuple[int, ...] | None = None  # in each block


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was measured of one network, or of one ensemble, in one seed."""

    row: str
    column: str
    seed: int  # of the run; entries of one seed are compared in pairs
    test: dict[str, int | float | None]  # metrics by name, and `n`, the number of items
    network: str | None = None  # its name; of an ensemble its members', joined by ` + `
    parameters: Parameters | None = None  # of an ensemble those of all members
    validation: dict[str, float | None] | None = None  # metrics at the end of the training
    best_validation: dict[str, float | None] | None = None  # the best, and its `epoch`
    outcomes: Outcomes | None = None  # where they were kept
    #: Of each bin of confidence the number of items, and their mean confidence and accuracy, which
    #: are None in an empty bin.
    reliability: tuple[tuple[int, float | None, float | None], ...] | None = None
    log: dict[str, tuple[float | None, ...]] = {}  # of the training, by name: one number an epoch
    train_loss: float | None = None  # label loss at the end of the training
    network_seed: int | None = None  # of the network's weights and views
    job: str | None = None  # name of the job that made it
    arguments: str | None = None  # sha256 of the job's
    code: str | None = None  # sha256 of the code that made it
    configuration: dict[str, Any] | None = None  # all that decided the result
    teachers: tuple[str, ...] = ()  # names of the jobs that taught it
    members: tuple[str, ...] = ()  # names of the jobs of an ensemble's members
    teacher_agreement: float | None = None  # how often it predicts what its teacher does, percent
    seconds: float | None = None  # of the training

    def value(self, metric: str, split: Literal["test", "validation"] = "test") -> float | None:
        """A metric of a split; None if it is missing or not finite."""
        return finite((self.test if split == "test" else self.validation or {}).get(metric))


class Column(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One way to train a network, or to combine several.

    A control is a network or an ensemble of the same cost, trained on labels alone.
    """

    name: str  # unique in the table
    heading: str  # in tables and pictures
    kind: ColumnKind
    in_paper: bool = False
    generation: int | None = None  # of an ensemble that of its last member
    method: str | None = None  # how students learned, where several methods are compared
    size: int = 1  # the number of networks whose predictions are averaged


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One network and dataset; what the paper has is by column."""

    name: str  # unique in the table
    heading: str  # in tables and pictures
    paper: dict[str, float | None] = {}  # the test metric
    paper_validation: dict[str, float | None] = {}
    paper_parameters: dict[str, float | None] = {}  # millions
    sizes: dict[str, int] = {}  # parameters by column at the paper's size
    note: str | None = None  # what a reader must know of this row


class Claim(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim that the results support or not; `reports.verdicts` has the rule of each kind."""

    says: str
    kind: ClaimKind
    columns: tuple[str, ...]  # in the order that the rule takes them

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Claim":
        """A claim of a table's file, `{says: ..., beats: [ban, teacher]}`."""
        kinds: tuple[ClaimKind, ...] = get_args(ClaimKind)
        kind = next((kind for kind in kinds if kind in spec), None)
        if kind is None:
            raise BANError(f"claims: {dict(spec)} is of no kind we know: {', '.join(kinds)}.")
        return cls(says=str(spec["says"]), kind=kind, columns=tuple(spec[kind]))


class Figures(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The columns of each picture; a picture without columns is not drawn."""

    generations: tuple[str, ...] = ()  # from the first teacher to the last student
    #: Of each line networks and ensembles by the number of members, from one.
    ensembles: dict[str, tuple[str, ...]] = {}
    ablation: tuple[str, ...] = ()  # students, compared with the first column


class Budget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A size that the paper's experiments are run at: its name, and what it changes, in words."""

    name: str
    says: str


class Order(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All rows and columns that the table has, in order, also those that were not run."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


class Results(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The results of a family, or of a table of the paper."""

    title: str  # of the report
    task: str  # of a table `image` or `text`, of a family the name of the models' task, if known
    metric: str  # the leading one, a key of `MEASURES`
    dataset: dict[str, Any]  # its facts, `name` among them
    seeds: tuple[int, ...]  # as the columns and rows: those that were asked for
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    entries: tuple[Entry, ...]
    order: Order
    schema: str = SCHEMA
    source: str = ""  # what is reproduced: `Furlanello et al. 2018, Table 2`
    table: str | None = None  # its name; None of a family
    budget: Budget | None = None  # of a table
    claims: tuple[Claim, ...] = ()
    figures: Figures = Figures()
    labels: str | None = None  # the packed true classes of the test set; None of a text
    command: str = ""  # that made it; several are on lines of their own
    hardware: str = "not recorded"
    versions: dict[str, str] = {}  # of the libraries
    note: str | None = None  # what a reader must know

    @property
    def is_family(self) -> bool:
        """Whether it is a family: one row, and no table of the paper."""
        return self.table is None

    @property
    def measure(self) -> Measure:
        """What it is measured by, without the metrics that no entry has."""
        leading, *others = MEASURES[self.metric].metrics
        known = [m for m in others if any(e.value(m.name) is not None for e in self.entries)]
        return replace(MEASURES[self.metric], metrics=(leading, *known))

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


# Outcomes


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


# The results of a family


def leading_metric(measured: Collection[str]) -> str:
    """The metric that leads, of those that were measured: the first of them in `MEASURES`."""
    return next((name for name in MEASURES if name in measured), "error")


def generation_column(generation: int, name: str, method: str | None = None) -> Column:
    """The column of a generation, shown as `name`: `labels`, `BAN-1`, `BAN+L-2`."""
    return Column(
        name=f"{method}-generation-{generation}" if method else f"generation-{generation}",
        heading=name,
        kind="labels" if generation == 0 else "student",
        generation=generation,
        method=method,
    )


def ensemble_column(members: Sequence[int], name: str, method: str | None = None) -> Column:
    """The column of the ensemble of some generations."""
    numbers = "-".join(map(str, members))
    return Column(
        name=f"{method}-ensemble-{numbers}" if method else f"ensemble-{numbers}",
        heading=name,
        kind="ensemble",
        generation=max(members),
        method=method,
        size=len(members),
    )


def control_column(number: int, name: str, size: int = 1) -> Column:
    """The column of a control: the n-th label-trained network, or the ensemble of the first n."""
    kind = "ensemble" if size > 1 else "network"
    return Column(name=f"labels-{kind}-{number}", heading=name, kind="control", size=size)


def family_results(
    *,
    title: str,
    metric: str,
    dataset: Mapping[str, Any],
    columns: Sequence[Column],
    entries: Sequence[Entry],
    seeds: Sequence[int],
    task: str | None = None,
    **known: Any,
) -> Results:
    """The results of a family, with the claims and the figures that its columns allow.

    Each student is compared with the first network of the family, each ensemble with the control
    ensemble of its size. No student is picked by its test result.

    Args:
        columns: made by `generation_column`, `ensemble_column` and `control_column`, in order.
        entries: what was measured; their `row` is `ROW`.
        task: of the models, by its name in `CATALOG`.
        known: `labels`, `command`, `hardware`, `versions` and `note`, as `Results` has them.
    """
    if metric not in MEASURES:
        raise BANError(f"metric={metric!r} of the results must be one of {', '.join(MEASURES)}.")
    if not columns:
        raise BANError("columns is empty: give the record of one generation at least.")
    return Results(
        title=title,
        task=task or TASKS.get(metric, "image"),
        metric=metric,
        dataset=dict(dataset),
        seeds=tuple(seeds),
        columns=tuple(columns),
        rows=(Row(name=ROW, heading=title),),
        entries=tuple(entries),
        order=Order(rows=(ROW,), columns=tuple(column.name for column in columns)),
        claims=tuple(_claims(columns)),
        figures=_figures(columns),
        **known,
    )


def _of_kind(columns: Iterable[Column], *kinds: ColumnKind) -> list[Column]:
    return [column for column in columns if column.kind in kinds]


def _claims(columns: Sequence[Column]) -> list[Claim]:
    if not (generations := _of_kind(columns, "labels", "student")):
        return []
    first, *students = generations
    claims = [_beats(student, first) for student in students]
    by_heading = {student.heading: student for student in students}
    for student in students:  # of a number, so that they had the same seed
        part, _, number = student.heading.rpartition("-")
        whole = by_heading.get(f"{WHOLE}-{number}")
        if part in PARTS and whole is not None:
            says = f"{student.heading} alone explains the gain of {whole.heading}"
            claims.append(_claim(says, "explains", student, whole, first))
    for method in dict.fromkeys(student.method for student in students):
        own = [student for student in students if student.method == method]
        if len(own) > 1:
            says = "Gains saturate" if method is None else f"Gains of {method} saturate"
            claims.append(_claim(says, "saturates", first, *own))
    controls = {c.size: c for c in reversed(_of_kind(columns, "control"))}
    if 1 in controls:
        claims += [_beats(student, controls[1]) for student in students[-1:]]
    ensembles = _of_kind(columns, "ensemble")
    return claims + [_beats(e, controls[e.size]) for e in ensembles if e.size in controls]


def _beats(column: Column, base: Column) -> Claim:
    return _claim(f"{column.heading} beats {base.heading}", "beats", column, base)


def _claim(says: str, kind: ClaimKind, *columns: Column) -> Claim:
    return Claim(says=says, kind=kind, columns=tuple(column.name for column in columns))


def _figures(columns: Sequence[Column]) -> Figures:
    if not (generations := _of_kind(columns, "labels", "student")):
        return Figures()
    first, *students = generations
    chain = tuple(column.name for column in generations)
    together = [c.name for c in _of_kind(columns, "control") if c.size > 1]
    several = len({student.method for student in students}) > 1
    lines = {}
    if students and together:
        ensembles = (column.name for column in _of_kind(columns, "ensemble"))
        lines = {
            "Born-again": (students[0].name, *ensembles),
            "Label-trained": (first.name, *together),
        }
    return Figures(
        generations=() if several else chain,
        ensembles=lines,
        ablation=chain if several else (),
    )


def side_by_side(families: Mapping[str, Results], title: str, command: str) -> Results:
    """The results of families that continue from one teacher as one: it, and the students of each.

    The families are by method; the first generation of each is the teacher.
    """
    whole = next(iter(families.values()))
    teacher = _of_kind(whole.columns, "labels", "student")[0]
    columns, entries = [teacher], [e for e in whole.entries if e.column == teacher.name]
    for method, results in families.items():
        for column in _of_kind(results.columns, "labels", "student", "ensemble"):
            if column.name == teacher.name:
                continue
            name = f"{method}-{column.name}"
            is_ensemble = column.kind == "ensemble"
            heading = f"{method}: {column.heading}" if is_ensemble else column.heading
            columns.append(replace(column, name=name, method=method, heading=heading))
            found = (entry for entry in results.entries if entry.column == column.name)
            entries += [replace(entry, column=name) for entry in found]
    return family_results(
        title=title,
        columns=columns,
        entries=entries,
        command=command,
        **{
            name: getattr(whole, name)
            for name in ("metric", "task", "dataset", "seeds", "labels", "hardware", "versions")
        },
    )


def results_of_records(
    generations: Sequence[Mapping[str, Any]], ensemble: Mapping[str, Any] | None = None
) -> Results:
    """The results of a family, from its records (`lineage.json`) alone, in order.

    The first need not be generation 0. `metric` is the `leading_metric` of the test split. Where no
    record has any, no entry has a value, and there is nothing to draw.
    """
    records = [*generations, *([ensemble] if ensemble else [])]
    if not records:
        raise BANError("generations is empty: give the record of one generation at least.")
    last, trainings = records[-1], [record["training"] for record in generations]
    seeds = [record["seed"].get("family_seed") for record in generations]
    known = list(dict.fromkeys(seed for seed in seeds if seed is not None))
    seed = known[-1] if known else 0
    columns: list[Column] = []
    for record in generations:
        method, number = method_of(record.get("objective")), record["generation"]
        column = generation_column(number, method if method == "labels" else f"{method}-{number}")
        alike = sum(number == before.generation for before in columns)
        if alike:  # teachers of one student may be of one generation
            extra = f"{column.heading} ({1 + alike})"
            column = replace(column, name=f"{column.name}-{1 + alike}", heading=extra)
        columns.append(column)
    if ensemble:
        members = [member["generation"] for member in ensemble["members"]]
        name = f"Ens*{len(members)} of generations {', '.join(map(str, members))}"
        columns.append(ensemble_column(members, name))
    entries = [_entry_of(r, c.name, seed) for r, c in zip(records, columns, strict=True)]
    several = f"Generations come from runs of several seeds ({', '.join(map(str, known))})."
    return family_results(
        title=f"Family {last['family']}",
        metric=leading_metric({name for entry in entries for name in entry.test}),
        dataset={"name": data_name(last) or "data of unknown name"},
        columns=columns,
        entries=entries,
        seeds=[seed],
        hardware=next((t["hardware"] for t in trainings if t.get("hardware")), "not recorded"),
        versions=dict(last["code"]),
        note=several if len(known) > 1 else None,
    )


def _entry_of(record: Mapping[str, Any], column: str, seed: int) -> Entry:
    measured = [metric for metric in record["metrics"] if metric["split"] == "test"]
    test = {metric["name"]: metric["value"] for metric in measured}
    if "perplexity" in test and "loss" in test:
        test.setdefault("nll", test["loss"])  # of a language model they are the same
    agreement = test.pop("teacher_agreement", None)
    n = next((metric["n"] for metric in measured if metric.get("n")), None)
    count = (record.get("architecture") or {}).get("num_parameters")
    return Entry(
        row=ROW,
        column=column,
        seed=seed,
        test=test | ({"n": n} if n else {}),
        parameters=Parameters(all=count, trainable=count) if count else None,
        teacher_agreement=agreement,
        network_seed=record["seed"].get("seed"),
        seconds=record["training"].get("seconds"),
    )
