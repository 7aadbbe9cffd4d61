"""The results of a family of generations: a table of one row.

Its columns are generation 0, its students, their ensembles, and controls of equal cost.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.names import data_name, method_of
from ban_hf.lineage.results import (
    MEASURES,
    Claim,
    Column,
    ColumnKind,
    Entry,
    Figures,
    Order,
    Parameters,
    Results,
    Row,
)

ROW = "family"  # name of the only row
#: Leading metrics that a record may have, the first that is there first.
RECORDED = ("error", "perplexity", "loss")
TASKS = {"perplexity": "text"}  # by metric; all others are of images
#: Methods that take a part of the teacher's signal, and the method that takes all of it.
PARTS, WHOLE = ("CWTM", "DKPP"), "BAN"


def generation_column(generation: int, name: str, method: str | None = None) -> Column:
    """The column of a generation.

    Args:
        generation: its number.
        name: how it is shown: `labels`, `BAN-1`, `BAN+L-2`.
        method: where students of several methods are compared, that of this one.
    """
    kind: ColumnKind = "labels" if generation == 0 else "student"
    prefix = f"{method}-" if method else ""
    return Column(
        name=f"{prefix}generation-{generation}",
        heading=name,
        kind=kind,
        generation=generation,
        method=method,
    )


def ensemble_column(members: Sequence[int], name: str, method: str | None = None) -> Column:
    """The column of the ensemble of some generations."""
    prefix = f"{method}-" if method else ""
    return Column(
        name=f"{prefix}ensemble-{'-'.join(map(str, members))}",
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
    labels: str | None = None,
    command: str = "",
    hardware: str = "not recorded",
    versions: Mapping[str, str] | None = None,
    note: str | None = None,
) -> Results:
    """The results of a family, with the claims and the figures that its columns allow.

    Each student is compared with the first network of the family, each ensemble with the control
    ensemble of its size. No student is picked by its test result.

    Args:
        title: of the report.
        metric: name of the leading metric, one of `MEASURES`.
        dataset: facts of the dataset, its `name` among them.
        columns: made by `generation_column`, `ensemble_column` and `control_column`, in order.
        entries: what was measured; their `row` is `ROW`.
        seeds: of the runs.
        labels: packed true classes of the test set.
        command: that made the run.
        hardware: it ran on.
        versions: of the libraries.
        note: what a reader must know.

    Raises:
        BANError: if the metric is not known, or there is no column.
    """
    if metric not in MEASURES:
        raise BANError(f"metric={metric!r} of the results must be one of {', '.join(MEASURES)}.")
    if not columns:
        raise BANError("columns is empty: give the record of one generation at least.")
    return Results(
        title=title,
        task=TASKS.get(metric, "image"),
        metric=metric,
        dataset=dict(dataset),
        seeds=tuple(seeds),
        columns=tuple(columns),
        rows=(Row(name=ROW, heading=title),),
        entries=tuple(entries),
        order=Order(rows=(ROW,), columns=tuple(column.name for column in columns)),
        claims=tuple(_claims(columns)),
        figures=_figures(columns),
        labels=labels,
        command=command,
        hardware=hardware,
        versions=dict(versions or {}),
        note=note,
    )


def _generations(columns: Iterable[Column]) -> list[Column]:
    return [column for column in columns if column.kind in ("labels", "student")]


def _claims(columns: Sequence[Column]) -> list[Claim]:
    if not (generations := _generations(columns)):
        return []
    first, *students = generations
    claims = [_beats(student, first) for student in students]
    by_heading = {student.heading: student for student in students}
    for student in students:  # of a number, so that they had the same seed
        part, _, number = student.heading.rpartition("-")
        whole = by_heading.get(f"{WHOLE}-{number}")
        if part in PARTS and whole is not None:
            claims.append(
                Claim(
                    says=f"{student.heading} alone explains the gain of {whole.heading}",
                    kind="explains",
                    columns=(student.name, whole.name, first.name),
                )
            )
    methods = list(dict.fromkeys(student.method for student in students))
    for method in methods:
        own = [first, *(student for student in students if student.method == method)]
        if len(own) > 2:
            claims.append(
                Claim(
                    says="Gains saturate" if method is None else f"Gains of {method} saturate",
                    kind="saturates",
                    columns=tuple(column.name for column in own),
                )
            )
    controls = {c.size: c for c in reversed(columns) if c.kind == "control"}
    again = [controls[1]] if 1 in controls else []
    claims += [_beats(student, control) for control in again for student in students[-1:]]
    ensembles = [column for column in columns if column.kind == "ensemble"]
    claims += [_beats(e, controls[e.size]) for e in ensembles if e.size in controls]
    return claims


def _beats(column: Column, base: Column) -> Claim:
    says = f"{column.heading} beats {base.heading}"
    return Claim(says=says, kind="beats", columns=(column.name, base.name))


def _figures(columns: Sequence[Column]) -> Figures:
    if not (generations := _generations(columns)):
        return Figures()
    first, *students = generations
    ensembles = [column for column in columns if column.kind == "ensemble"]
    together = [c.name for c in columns if c.kind == "control" and c.size > 1]
    several = len({student.method for student in students}) > 1
    lines = {}
    if students and together:
        lines["Born-again"] = (students[0].name, *(column.name for column in ensembles))
        lines["Label-trained"] = (first.name, *together)
    return Figures(
        generations=() if several else tuple(c.name for c in (first, *students)),
        ensembles=lines,
        ablation=tuple(c.name for c in (first, *students)) if several else (),
    )


def side_by_side(families: Mapping[str, Results], title: str, command: str) -> Results:
    """The results of families that continue from one teacher as one: it, and the students of each.

    Args:
        families: by method; the first generation of each is the teacher.
        title: of the report.
        command: that made the run.
    """
    whole = next(iter(families.values()))
    teacher = _generations(whole.columns)[0]
    columns, entries = [teacher], [e for e in whole.entries if e.column == teacher.name]
    for method, results in families.items():
        for column in results.columns:
            if column.kind == "control" or column.name == teacher.name:
                continue
            name = f"{method}-{column.name}"
            heading = column.heading
            if column.kind == "ensemble":
                heading = f"{method}: {heading}"
            columns.append(replace(column, name=name, method=method, heading=heading))
            found = (entry for entry in results.entries if entry.column == column.name)
            entries += [replace(entry, column=name) for entry in found]
    return family_results(
        title=title,
        metric=whole.metric,
        dataset=whole.dataset,
        columns=columns,
        entries=entries,
        seeds=whole.seeds,
        labels=whole.labels,
        command=command,
        hardware=whole.hardware,
        versions=whole.versions,
    )


def results_of_records(
    generations: Sequence[Mapping[str, Any]], ensemble: Mapping[str, Any] | None = None
) -> Results:
    """The results of a family, from its records (`lineage.json`) alone.

    Args:
        generations: the records, in order; the first need not be generation 0.
        ensemble: the ensemble's record, if there is one.

    Returns:
        `metric` is the first of `RECORDED` that a record has of the test split. Where none has
        any, no entry has a value, and there is nothing to draw.

    Raises:
        BANError: if no record is given.
    """
    records = [*generations, *([ensemble] if ensemble else [])]
    if not records:
        raise BANError("generations is empty: give the record of one generation at least.")
    last, trainings = records[-1], [record["training"] for record in generations]
    seeds = [record["seed"].get("family_seed") for record in generations]
    known = list(dict.fromkeys(seed for seed in seeds if seed is not None))
    seed = known[-1] if known else 0
    columns: list[Column] = []
    entries: list[Entry] = []
    for record in generations:
        method, number = method_of(record.get("objective")), record["generation"]
        column = generation_column(number, method if method == "labels" else f"{method}-{number}")
        alike = sum(number == before.generation for before in columns)
        if alike:  # teachers of one student may be of one generation
            extra = f"{column.heading} ({1 + alike})"
            column = replace(column, name=f"{column.name}-{1 + alike}", heading=extra)
        columns.append(column)
        entries.append(_entry_of(record, column.name, seed))
    if ensemble:
        members = [member["generation"] for member in ensemble["members"]]
        name = f"Ens*{len(members)} of generations {', '.join(map(str, members))}"
        columns.append(ensemble_column(members, name))
        entries.append(_entry_of(ensemble, columns[-1].name, seed))
    metrics = [name for name in RECORDED if any(name in entry.test for entry in entries)]
    several = f"Generations come from runs of several seeds ({', '.join(map(str, known))})."
    return family_results(
        title=f"Family {last['family']}",
        metric=metrics[0] if metrics else "error",
        dataset={"name": data_name(last) or "data of unknown name"},
        columns=columns,
        entries=entries,
        seeds=[seed],
        hardware=next((t["hardware"] for t in trainings if t.get("hardware")), "not recorded"),
        versions=last["code"],
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
