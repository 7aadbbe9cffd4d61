"""A table of the paper from its file to its results: the jobs behind its cells."""

import contextlib
import functools
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
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
    build_ensemble,
    evaluation,
    evaluation_file,
    is_done,
    read_evaluation,
    train,
)
from ban_hf.lineage.files import sha256_of_json
from ban_hf.lineage.results import Budget, Claim, Column, ColumnKind, Figures, Order, Results, Row
from ban_hf.training.arguments import BANTrainingArguments

JOBS, CACHES, LOGS = "jobs", "teacher_caches", "logs"  # folders of the output directory
TASKS = {"image": "image-classification", "text": "text-generation"}

Cell = tuple[str, str, int]  # row, column, seed


class Reproduction:
    """Some rows and columns of a table, with some seeds.

    Args:
        table: its name, `table2`, or a YAML file.
        budget: `paper`, `gpu` or `cpu`.
        rows: their names; all by default.
        columns: their names; `paper` (the default) are those of the paper, `all` all of them.
        seeds: of each cell.
        output_dir: of the jobs, which other tables share, and of the table's own folder.

    Raises:
        BANError: for a name that does not exist; the near one is named.
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
            for seed in self.seeds
            for row in self.rows
            for column in self.columns
        }
        self.jobs = in_order(self.cells.values())

    @property
    def home(self) -> Path:
        """The folder of the jobs' folders."""
        return self.output_dir / JOBS

    @property
    def folder(self) -> Path:
        """The folder of the table's report."""
        return self.output_dir / f"{self.table.name}-{self.table.budget}"

    @property
    def missing(self) -> list[Job]:
        """The jobs that are not done: not trained, or not measured."""
        return [job for job in self.jobs if read_evaluation(job, self.home) is None]

    @property
    def finished_cells(self) -> dict[Cell, Job]:
        """The cells whose jobs are done."""
        cells = self.cells.items()
        return {cell: job for cell, job in cells if read_evaluation(job, self.home) is not None}

    def run(self, workers: int | None = None, *, force: bool = False) -> None:
        """Run what is missing.

        Args:
            workers: processes at a time, by default one for each GPU; one alone is this process.
            force: whether to run the jobs of the cells again, though they are done.

        Raises:
            JobsFailed: when all that do not need the failed jobs are done.
            BANError: if another run is writing into `output_dir`.
        """
        with locked(self.output_dir):
            if force:
                shutil.rmtree(self.output_dir / CACHES, ignore_errors=True)
            for job in self.cells.values() if force else ():
                shutil.rmtree(self.home / job.folder, ignore_errors=True)
                evaluation_file(job, self.home).unlink(missing_ok=True)
            missing = self.missing
            count = max(1, min(workers or torch.cuda.device_count(), len(missing)))
            run = functools.partial(run_cell, home=self.home, caches=self._caches())
            done = {job.folder for job in self.jobs} - {job.folder for job in missing}
            logs = self.output_dir / LOGS
            workplace: contextlib.AbstractContextManager[Executor] = (
                contextlib.closing(Workers(run, count, logs))
                if count > 1
                else contextlib.nullcontext(InProcess(run, logs))
            )
            with workplace as executor:
                run_jobs(self.jobs, executor, lambda job: job.folder in done, progress=True)
            shutil.rmtree(self.output_dir / CACHES, ignore_errors=True)

    def _caches(self) -> dict[str, str]:
        """The cache of each job whose teachers' outputs other jobs need too, by its folder."""
        names = {job.folder: name for job in self.jobs if (name := _cache_name(job))}
        students = Counter(names.values())
        return {
            folder: str(self.output_dir / CACHES / name)
            for folder, name in names.items()
            if students[name] > 1
        }

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
        spec = self.table.rows[name]
        # Of all columns, also of those not asked for: tables of other columns must merge with it.
        sizes = {column: self.table.paper_size(name, column) for column in self.table.columns}
        known = {column: size for column, size in sizes.items() if size is not None}
        kept = ("heading", "paper", "paper_validation", "paper_parameters", "note")
        given = {"heading": name} | {key: spec[key] for key in kept if key in spec}
        return msgspec.convert({"name": name, "sizes": known, **given}, Row)


def run_cell(job: Job, home: Path, caches: Mapping[str, str]) -> None:
    """Train the network of a cell, or measure its ensemble."""
    args, setup = _setup(job if not job.members else job.members[0], caches.get(job.folder))
    if job.saved and is_done(job, home):  # only its measurement is missing
        evaluation(job, home, setup, args)
    elif job.members:
        build_ensemble(job, home, setup, args, family=job.folder)
    else:
        train(job, home, setup, args, family=job.folder)


def _setup(job: Job, cache: str | None) -> tuple[BANTrainingArguments, Setup]:
    """The arguments of a training, its networks and its data."""
    arguments = job.arguments
    training = dict(arguments["training"])
    objective, label_weight = next(
        iter(read_objectives(training["objective"], training.get("label_weight")).values())
    )
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


def _cache_name(job: Job) -> str | None:
    """What identifies the cache of its teachers' outputs for its views; None without one."""
    if not job.teachers or job.arguments["task"] != "image":
        return None
    teachers = [teacher.folder for teacher in job.teachers]
    return sha256_of_json([teachers, job.arguments["training"]["seed"]])[:12]


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
