"""A table from its file to its report: the jobs behind its cells, done, gathered, written down."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ban_hf.errors import BANError
from ban_hf.jobs.executor import JOBS, JobsFailed, do_all, is_done
from ban_hf.jobs.job import Job, in_order
from ban_hf.jobs.job_cards import write_cards
from ban_hf.jobs.networks import RESULTS
from ban_hf.jobs.table import Table
from ban_hf.lineage.record import read_json
from ban_hf.lineage.results import Budget, Claim, Column, Entry, Figures, Order, Results, Row
from ban_hf.reports.reading import check_cell, check_entry
from ban_hf.reports.report import write_report
from ban_hf.reports.tables import NetworkSize, network_name, network_sizes, notes, size_table

CARDS = "cards"  # in a table's folder

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
        ValueError: for a name that there is not; the near one is named.
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
    def folder(self) -> Path:
        """Of the table's report."""
        return self.output_dir / f"{self.table.name}-{self.table.budget}"

    @property
    def missing(self) -> list[Job]:
        """The jobs that are not done."""
        return [job for job in self.jobs if not is_done(job, self.output_dir)]

    def sizes(self) -> tuple[list[NetworkSize], str]:
        """The networks of the rows, their parameters beside the paper's; and that as Markdown."""
        rows, sizes = list(map(self.row, self.rows)), []
        for row in rows:
            jobs = {name: self.cells[row.name, name, self.seeds[0]] for name in self.columns}
            networks = {
                name: job.arguments["network"] for name, job in jobs.items() if not job.members
            }
            sizes += network_sizes(
                row,
                (
                    (_column(name, self.table.columns[name]), (network_name(n["name"], n["args"]),))
                    for name, n in networks.items()
                ),
            )
        spec, heading = self.table.spec, f"network at the budget `{self.table.budget}`"
        table = size_table([heading], sizes)
        parts = [f"## {spec['source']}", table, notes(spec.get("note"), rows)]
        return sizes, "\n\n".join(part for part in parts if part)

    def run(self, command: str, workers: int | None = None) -> tuple[Results, str]:
        """Do what is missing and write the report; the results, and what it says.

        Args:
            command: how this was started, for the report.
            workers: see `do_all`.

        Raises:
            JobsFailed: when all else is done, and a report of that is written.
        """
        try:
            do_all(self.jobs, self.output_dir, workers)
        except JobsFailed as failed:
            if not any(is_done(job, self.output_dir) for job in self.cells.values()):
                raise
            try:
                self._write(command)
            except (OSError, ValueError) as error:
                raise JobsFailed(f"{failed} Nor could what is done be reported: {error}") from error
            raise JobsFailed(f"{failed} A report of what is done: {self.folder}") from failed
        return self._write(command)

    def _write(self, command: str) -> tuple[Results, str]:
        """The report of what is done, and the cards of the first seed's networks."""
        results = self.gather(command)
        text = write_report(results, self.folder)
        jobs = {
            (row, column): job
            for (row, column, seed), job in self.cells.items()
            if seed == self.seeds[0] and is_done(job, self.output_dir)
        }
        write_cards(jobs, self.output_dir / JOBS, self.folder / CARDS)
        return results, text

    def gather(self, command: str) -> Results:
        """The results of what is done.

        The same whatever was done when, and by which of the commands that share `output_dir`.
        """
        table, spec = self.table, self.table.spec
        done = {cell: job for cell, job in self.cells.items() if is_done(job, self.output_dir)}
        found = {cell: self._result(job) for cell, job in done.items()}
        first = next(iter(found.values()))
        entries = tuple(self._entry(cell, data) for cell, data in found.items())
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
            columns=tuple(_column(name, table.columns[name]) for name in self.columns),
            rows=tuple(self.row(name) for name in self.rows),
            note=spec.get("note"),
            claims=tuple(Claim.from_spec(claim) for claim in spec.get("claims", [])),
            figures=msgspec.convert(spec.get("figures", {}), Figures),
            entries=entries,
            labels=first["labels"],
            command=command,
            hardware="; ".join(sorted({data["hardware"] for data in found.values()})),
            versions=first["versions"],
        )

    def _result(self, job: Job) -> dict[str, Any]:
        path = self.output_dir / JOBS / job.name / RESULTS
        found = read_json(path)
        if found.get("job") != job.name:
            raise BANError(f"{path} is of another job: delete it, and give the command again.")
        try:
            for name, kind in {"log": list, "hardware": str, "versions": dict}.items():
                if not isinstance(found.get(name), kind):
                    raise BANError(f"{path} is damaged: {name} is missing, or not what it must be.")
            entry = self._entry(("", "", 0), found)
            check_entry(path, entry, self.table.spec["metric"], found.get("labels"))
            check_cell(path, entry, self.table.spec["metric"])
        except msgspec.ValidationError as error:
            raise BANError(
                f"{path} is damaged: {error}. Delete it, and give the command again."
            ) from error
        except BANError as error:
            raise BANError(f"{error} Delete it, and give the command again.") from error
        return found

    def _entry(self, cell: Cell, data: Mapping[str, Any]) -> Entry:
        """What a job's file says, as the entry of a cell."""
        row, column, seed = cell
        known = {key: value for key, value in data.items() if value is not None}
        known |= {"row": row, "column": column, "seed": seed, "log": _by_name(data["log"])}
        return msgspec.convert(known, Entry)

    def row(self, name: str) -> Row:
        """What the file says of a row, with its parameters by column at the paper's size."""
        spec = self.table.rows[name]
        # Of all columns, also of those not asked for: tables of other columns must merge with it.
        sizes = {column: self.table.paper_size(name, column) for column in self.table.columns}
        known = {column: size for column, size in sizes.items() if size is not None}
        kept = ("paper", "paper_validation", "paper_parameters", "note")
        said = {"heading": name} | {k: spec[k] for k in ("heading", *kept) if k in spec}
        return msgspec.convert({"name": name, "sizes": known, **said}, Row)


def _by_name(log: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """A log as a list for each name, an item an epoch, to four digits: a third of the space."""
    names = dict.fromkeys(name for epoch in log for name in epoch)
    return {
        name: [
            None if (value := epoch.get(name)) is None else float(f"{value:.4g}") for epoch in log
        ]
        for name in names
    }


def _column(name: str, spec: Mapping[str, Any]) -> Column:
    members = spec.get("ensemble", ())
    return Column(
        name=name,
        heading=spec.get("heading", name),
        kind="ensemble" if members else "student" if "teacher" in spec else "labels",
        in_paper=not spec.get("beyond"),
        size=max(1, len(members)),
    )
