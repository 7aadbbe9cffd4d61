"""A table of the paper from its file to its results: the jobs behind its cells."""

import contextlib
import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from ban_hf.data.arguments import DataArguments, load_splits
from ban_hf.errors import BANError
from ban_hf.jobs.executor import Executor, InProcess, Workers, locked, run_jobs
from ban_hf.jobs.job import Job, Setup, in_order
from ban_hf.jobs.results import entry_of, environment_of
from ban_hf.jobs.setup import Splits, prepare, read_objectives
from ban_hf.jobs.table import Table
from ban_hf.jobs.training import (
    evaluation,
    evaluation_file,
    is_done,
    read_evaluation,
    train,
)
from ban_hf.lineage.family import is_finished
from ban_hf.lineage.files import sha256_of_json, write_json
from ban_hf.lineage.record import RECORD, Record, Reference, reference
from ban_hf.lineage.results import Budget, Claim, Column, ColumnKind, Figures, Order, Results, Row
from ban_hf.training.arguments import BANTrainingArguments

JOBS, CACHES, LOGS = "jobs", "teacher_caches", "logs"  # folders of the output directory
TASKS = {"image": "image-classification", "text": "text-generation"}

Cell = tuple[str, str, int]  # row, column, seed


class Reproduction:
    """Some rows (by default all) and columns (those of the paper) of a table, with some seeds.

    Attributes:
        home: folder of the jobs' folders, which other tables share.
        folder: of the table's report.
        cells: the job of each.
        jobs: those and what they need, in order.
    """

    def __init__(
        self,
        table: str,
        budget: str,
        *,
        rows: Sequence[str] = (),
        columns: Sequence[str] = (),
        seeds: Sequence[int] = (1,),
        output_dir: str | Path,
    ) -> None:
        self.table, self.output_dir = Table(table, budget), Path(output_dir)
        self.home = self.output_dir / JOBS
        self.folder = self.output_dir / f"{self.table.name}-{budget}"
        self.rows = self.table.choose_rows(rows)
        self.columns = self.table.choose_columns(columns)
        if not (self.rows and self.columns):
            raise BANError(
                f"{table} has no such cell: rows {', '.join(self.rows) or 'none'}, columns "
                f"{', '.join(self.columns) or 'none'}. Name columns, or give --columns all."
            )
        self.seeds = list(seeds)
        self.cells: dict[Cell, Job] = {
            (row, column, seed): self.table.job(row, column, seed)
            for seed, row, column in itertools.product(self.seeds, self.rows, self.columns)
        }
        self.jobs = in_order(self.cells.values())

    def is_done(self, job: Job) -> bool:
        """Whether a job is trained and measured."""
        return read_evaluation(job, self.home) is not None

    @property
    def missing(self) -> list[Job]:
        """The jobs that are not done."""
        return [job for job in self.jobs if not self.is_done(job)]

    @property
    def finished_cells(self) -> dict[Cell, Job]:
        """The cells whose jobs are done."""
        return {cell: job for cell, job in self.cells.items() if self.is_done(job)}

    def run(self, workers: int | None = None, *, force: bool = False) -> None:
        """Run what is missing; with `force` the jobs of the cells, though they are done.

        Raises:
            JobsFailed: when all that do not need the failed jobs are done.
            BANError: if another run is writing into `output_dir`.
        """
        caches, logs = self.output_dir / CACHES, self.output_dir / LOGS
        with locked(self.output_dir):
            if force:
                shutil.rmtree(caches, ignore_errors=True)
            for job in self.cells.values() if force else ():
                shutil.rmtree(self.home / job.folder, ignore_errors=True)
                evaluation_file(job, self.home).unlink(missing_ok=True)
            missing = {job.folder for job in self.missing}
            untrained = {job.folder for job in self.jobs if not is_done(job, self.home)}
            count = max(1, min(workers or torch.cuda.device_count(), len(missing)))
            run = functools.partial(run_cell, home=self.home, caches=self._caches())
            workplace: contextlib.AbstractContextManager[Executor] = (
                contextlib.closing(Workers(run, count, logs))
                if count > 1
                else contextlib.nullcontext(InProcess(run, logs))
            )
            try:
                with workplace as executor:
                    run_jobs(
                        self.jobs, executor, lambda job: job.folder not in missing, progress=True
                    )
            finally:
                renew_references(self.home, untrained)
            shutil.rmtree(caches, ignore_errors=True)

    def _caches(self) -> dict[str, str]:
        """The cache of each job whose teachers' outputs other jobs need too, by its folder.

        Those of one seed see the same views.
        """
        names = {
            job.folder: sha256_of_json(
                [[teacher.folder for teacher in job.teachers], job.arguments["training"]["seed"]]
            )[:12]
            for job in self.jobs
            if job.teachers and job.arguments["task"] == "image"
        }
        students = Counter(names.values())
        caches = self.output_dir / CACHES
        return {f: str(caches / name) for f, name in names.items() if students[name] > 1}

    def results(self, command: str) -> Results:
        """The results of what is done.

        They are the same whatever was done when, and by which of the commands that share
        `output_dir`.
        """
        table, spec = self.table, self.table.spec
        entries, labels = [], None
        for (row, column, seed), job in self.cells.items():
            found = read_evaluation(job, self.home)
            if found is None:
                continue
            labels = found.get("labels", labels)
            cell = {"row": row, "column": column, "seed": seed, "metric": spec["metric"]}
            entries.append(entry_of(job, self.home, found, **cell))
        return Results(
            table=table.name,
            title=spec["title"],
            source=spec["source"],
            task=spec["task"],
            metric=spec["metric"],
            budget=Budget(name=table.budget, says=table.says),
            dataset=table.dataset,
            seeds=tuple(self.seeds),
            order=Order(rows=tuple(table.rows), columns=tuple(table.columns)),
            columns=tuple(column_of(name, table.columns[name]) for name in self.columns),
            rows=tuple(self.row(name) for name in self.rows),
            note=spec.get("note"),
            claims=tuple(Claim.from_spec(claim) for claim in spec.get("claims", [])),
            figures=msgspec.convert(spec.get("figures", {}), Figures),
            entries=tuple(entries),
            labels=labels,
            command=command,
            **environment_of(self.finished_cells.values(), self.home),
        )

    def row(self, name: str) -> Row:
        """What the file says of a row, with its parameters by column at the paper's size."""
        # Of all columns, also of those not asked for: tables of other columns must merge with it.
        sizes = {column: self.table.paper_size(name, column) for column in self.table.columns}
        known = {column: size for column, size in sizes.items() if size is not None}
        given = {"heading": name, **self.table.rows[name], "name": name, "sizes": known}
        return msgspec.convert(given, Row)


def run_cell(job: Job, home: Path, caches: Mapping[str, str]) -> None:
    """Train the network of a cell, or measure its ensemble."""
    args, setup = _setup(job if not job.members else job.members[0], caches.get(job.folder))
    if job.members or is_done(job, home):  # only its measurement is missing
        evaluation(job, home, setup, args)
    else:
        train(job, home, setup, args, family=job.folder)


def renew_references(home: Path, trained: Collection[str]) -> None:
    """Name teachers that were trained just now by the records that they have now.

    A teacher that is trained again, because it was lost or by force, gets the same weights and a
    new record: its students need no training, but their records name the old one. A teacher whose
    weights are others keeps its old name, by which `verify` finds that it was changed.
    """
    renewed, records = set(trained), dict[Path, Record]()
    for path in home.glob(f"*/{RECORD}") if renewed else ():
        with contextlib.suppress(BANError):  # a damaged record is for `verify` to name
            records[path.parent] = Record.read(path.parent)
    for folder, record in sorted(records.items(), key=lambda item: item[1].generation or 0):
        teachers = tuple(_renewed(teacher, folder, renewed) for teacher in record.teachers)
        if teachers != record.teachers:
            record.teachers = teachers
            write_json(folder / RECORD, record.to_dict())
            renewed.add(folder.name)


def _renewed(teacher: Reference, folder: Path, renewed: Collection[str]) -> Reference:
    place = folder / str(teacher.path)
    if place.name not in renewed or not is_finished(place):
        return teacher
    now = reference(place, folder)
    return now if now.weights_sha256 == teacher.weights_sha256 else teacher


def _setup(job: Job, cache: str | None) -> tuple[BANTrainingArguments, Setup]:
    """The arguments of a training, its networks and its data."""
    arguments = job.arguments
    training = dict(arguments["training"])
    objectives = read_objectives(training["objective"], training.get("label_weight"))
    (objective, label_weight), *_ = objectives.values()
    # In a table the labels count where a column says so, whatever the task.
    training |= {"objective": objective, "label_weight": label_weight or 0.0}
    args = BANTrainingArguments(
        output_dir="unused",  # each job has a scratch folder of its own
        teacher_cache=cache,
        disable_tqdm=True,
        eval_strategy="epoch" if arguments["dataset"].get("validation", 1) else "no",
        save_strategy="epoch",
        save_total_limit=1,
        logging_strategy="epoch",
        report_to="none",
        **training,
    )
    dataset = DataArguments.from_mapping(arguments["dataset"])
    network, splits = arguments["network"], _load(dataset, TASKS[arguments["task"]])
    return prepare(splits, args, network["name"], network["args"], dataset.window)


@functools.lru_cache(maxsize=2)
def _load(dataset: DataArguments, task: str) -> Splits:
    """Data, read once in a process."""
    return load_splits(dataset, task)


def column_of(name: str, spec: Mapping[str, Any]) -> Column:
    """The column of a name, as a table's file describes it."""
    kind: ColumnKind = (
        "ensemble" if "ensemble" in spec else "student" if spec.get("teacher") else "labels"
    )
    return Column(
        name=name,
        heading=spec.get("heading", name),
        kind=kind,
        in_paper=not spec.get("beyond"),
        size=len(spec.get("ensemble", [""])),
    )
