"""What a recipe runs: the family of each objective, its controls, and one report of them all.

Several objectives are students of one teacher, `teacher/`, which is trained once. Each objective
has a folder of its own, `kd/`, `cwtm/` and so on. Students of one number have the same seed: they
begin with the same weights, see the same views in the same order, and differ in the objective
alone.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from accelerate import PartialState

from ban_hf.data.description import describe_data
from ban_hf.errors import BANError
from ban_hf.jobs.adapters import network_architecture
from ban_hf.jobs.cost import plan
from ban_hf.jobs.job import Job, Setup, generation_seed
from ban_hf.jobs.results import entry_of, environment_of
from ban_hf.jobs.training import evaluation
from ban_hf.lineage.catalog import as_name
from ban_hf.lineage.environment import canonical_arguments
from ban_hf.lineage.family import (
    as_noted,
    check_folders,
    finished_generations,
    generation_folders,
)
from ban_hf.lineage.record import RECORD, Record
from ban_hf.lineage.results import (
    ROW,
    Results,
    control_column,
    ensemble_column,
    family_results,
    generation_column,
    leading_metric,
    side_by_side,
)
from ban_hf.reports.report import write_report
from ban_hf.sequence import Sequence as Chain
from ban_hf.sequence import family_jobs
from ban_hf.tasks.auto import task_of
from ban_hf.training.arguments import BANTrainingArguments, fast_arguments
from ban_hf.training.teacher_cache import check_folder

TEACHER, CACHE = "teacher", "teacher_cache"  # folders beside those of several objectives
CONTROL = "control"  # folder of the label-trained networks
CONTROL_SEEDS = 1_000_000  # beyond every generation's
#: Arguments in which a control may differ: it has no teacher, and another seed.
OF_STUDENTS = {"seed", "objective", "temperature", "teacher_weight", "label_weight", "world_size"}


@dataclass
class Families:
    """The families of a run, and how they are reported: `run` does both.

    `setup` is made by `make_setup`, for any head. The report is written into `args.output_dir`.
    """

    setup: Setup
    args: BANTrainingArguments  # of every training
    objectives: dict[str, tuple[str, float | None]]  # by name, see `read_objectives`
    generations: int  # students of each objective
    #: Whether to train label-trained networks, as many, with generation 0, as the ensemble has.
    control: bool = False
    control_from: Sequence[str] = ()  # runs of other seeds, whose generations 0 are controls
    teacher: str | None = None  # a generation to continue from, see `train_generations`
    title: str = ""
    dataset: dict[str, Any] | None = None  # what the report says of the data, its `name` at least
    command: str = ""  # that started the run

    def __post_init__(self) -> None:
        self.base = Path(self.args.output_dir)
        self.several = len(self.objectives) > 1
        members = max(2, self.generations) if self.control and self.generations else 1
        self.controls = [f"{CONTROL}/{number}" for number in range(1, members)]

    def run(self) -> Results:
        """Train what is missing, measure, report, publish."""
        self.check()
        if not self.several:
            return self._run_family(next(iter(self.objectives)), self.teacher)
        teacher = self.teacher
        if teacher is None:
            # It learns from labels, whatever the objectives are.
            self._sequence(TEACHER, ("kd", None), 0).run()
            teacher = str(self.base / TEACHER / "generation-0")
        found: dict[str, Results] = {}
        for number, name in enumerate(self.objectives, 1):
            if PartialState().is_main_process:
                which = f"Objective {number} of {len(self.objectives)}"
                print(f"{which}: {name}, into {self.base / name}", flush=True)
            results = self._run_family(name, teacher)
            found[Record.read(finished_generations(self.base / name)[-1]).method] = results
        results = side_by_side(found, self.title, self.command)
        self._write(results, self.base)
        return results

    def check(self) -> None:
        """Raise, before anything is trained, where the arguments do not fit together."""
        if self.setup.test_dataset is None:
            raise BANError("test_dataset is missing: a report needs one to measure networks on.")
        if self.several:
            self._check_several()
        if self.teacher is not None and (self.control or self.control_from):
            raise BANError(
                "control and control_from compare with generation 0, which a family that "
                f"continues from teacher={self.teacher!r} does not have: leave them out."
            )
        for folder in self.control_from:
            self._check_control(Path(folder))

    def _sequence(
        self,
        folder: str,
        objective: tuple[str, float | None],
        generations: int,
        teacher: str | None = None,
        seed: int | None = None,
    ) -> Chain:
        """A sequence in a folder of `base`; with a seed of its own it is a control."""
        args, family = copy.copy(self.args), None
        if seed is not None:
            args.seed, args.push_to_hub = seed, False
        args.objective, args.label_weight = objective
        args.output_dir = str(self.base / folder)
        if self.several and not (self.base / folder / RECORD).is_file():
            family = as_name(f"{self.base.resolve().name}-{folder}")
        if self.several and generations:
            args.teacher_cache = args.teacher_cache or str(self.base / CACHE)
        return Chain(self.setup, args, generations, family=family, teacher=teacher)

    def _run_family(self, name: str, teacher: str | None) -> Results:
        """Train the family of an objective and its controls; it is reported, then published."""
        objective, found = self.objectives[name], list[Results]()
        chain = self._sequence(name if self.several else "", objective, self.generations, teacher)

        def report() -> None:
            for number, folder in enumerate(self.controls, 1):
                seed = generation_seed(self.args.seed, CONTROL_SEEDS + number)
                self._sequence(folder, objective, 0, seed=seed).run()
            title = f"{self.title}: {name}" if self.several else self.title
            found.append(self._report(chain, title))

        chain.run(report)
        return found[0]

    # Results

    def _report(self, chain: Chain, title: str) -> Results:
        """Measure a family and its controls, and write the report; the same on every process."""
        home, jobs = chain.output_dir, chain.jobs()
        networks = [job for job in jobs if not job.members]
        cells = []
        for job in networks:
            method, number = Record.read(home / job.folder).method, job.generation
            heading = method if method == "labels" else f"{method}-{number}"
            cells.append((generation_column(number, heading), job))
        for saved in jobs[len(networks) :]:
            for size in range(2, len(saved.members) + 1):
                members = saved.members[:size]
                numbers = [job.generation for job in members]
                heading = f"Ens*{size} of generations {numbers[0]}-{numbers[-1]}"
                part = Job(f"ensemble-of-{size}", {}, members=members, saved=False)
                job = saved if members == saved.members else part
                cells.append((ensemble_column(numbers, heading), job))
        folders = [*(self.base / folder for folder in self.controls), *map(Path, self.control_from)]
        labels = [Job(os.path.relpath(folder / "generation-0", home), {}) for folder in folders]
        for number, job in enumerate(labels, 2):
            cells.append((control_column(number, f"labels again, network {number}"), job))
        for size in range(2, len(labels) + 2 if labels else 0):
            members = (networks[0], *labels[: size - 1])
            job = Job(f"labels-ensemble-of-{size}", {}, members=members, saved=False)
            column = control_column(size, f"Ens*{size} of label-trained networks", size)
            cells.append((column, job))
        entries, packed, metric = [], None, None
        for column, job in cells:
            found = evaluation(job, home, chain.setup, chain.args)
            packed, metric = found.get("labels"), metric or leading_metric(found["test"])
            cell = {"row": ROW, "column": column.name, "seed": self.args.seed, "metric": metric}
            seconds = None if job.members else Record.read(home / job.folder).training.seconds
            entry = entry_of(job, home, found, **cell)
            entries.append(msgspec.structs.replace(entry, seconds=seconds))
        results = family_results(
            title=title,
            metric=metric or leading_metric(()),
            task=task_of(self.setup.model_init(0)).name,
            dataset=self.dataset or {"name": "data of unknown name"},
            columns=[column for column, _ in cells],
            entries=entries,
            seeds=[self.args.seed],
            labels=packed,
            command=self.command,
            **environment_of(networks, home),
        )
        self._write(results, home)
        return results

    def _write(self, results: Results, folder: Path) -> None:
        """Write a report, and print it."""
        if PartialState().is_main_process:
            print(write_report(results, folder))
        PartialState().wait_for_everyone()

    # The graph, for a plan

    def plan(self) -> None:
        """Print what the missing jobs would take of time and disk."""
        self.check()
        cache = self.args.teacher_cache or (str(self.base / CACHE) if self.several else None)
        text = plan(
            self.graph(),
            self.base,
            self.setup,
            self.args,
            teacher_cache=Path(cache) if cache else None,
            title=self.title,
        )
        if PartialState().is_main_process:
            print(text, flush=True)
        PartialState().wait_for_everyone()

    def graph(self) -> list[Job]:
        """The jobs of the run, with folders relative to `base`; a given teacher is none of them."""
        start_folder = f"{TEACHER}/" if self.several else ""
        jobs = [Job(f"{folder}/generation-0", {}) for folder in self.controls]
        if self.teacher is None:
            jobs.append(Job(f"{start_folder}generation-0", {}))
        for folder in [f"{name}/" for name in self.objectives] if self.several else [""]:
            start = min(generation_folders(self.base / folder), default=0)
            first = Job(f"{start_folder}generation-0", {}, generation=start)
            jobs += family_jobs(first, start + self.generations, {}, folder=folder)[1:]
        return jobs

    # What does not fit together

    def _check_control(self, folder: Path) -> None:
        """Raise unless a folder's generation 0 is a control: as ours, but for the seed."""
        try:
            record = Record.read(folder / "generation-0")
        except OSError as error:
            raise BANError(f"control_from: {folder} holds no finished generation 0.") from error
        model = self.setup.model_init(0)
        ours = canonical_arguments(fast_arguments(self.args, model))
        theirs = record.training.arguments or {}
        known = sorted(ours.keys() & theirs.keys() - OF_STUDENTS)
        other = [name for name in known if ours[name] != theirs[name]]
        noted = record.data["train"]
        checks = {
            "has the same seed as this run": record.seed.family_seed == self.args.seed,
            "is another network": record.architecture != network_architecture(model),
            "was trained on other data": noted
            != as_noted(describe_data(self.setup.train_dataset), noted),
            f"was trained with another {', '.join(other)}": bool(other),
        }
        for reason, is_so in checks.items():
            if is_so:
                raise BANError(f"control_from: the generation 0 of {folder} {reason}.")

    def _check_several(self) -> None:
        """Raise where something was asked for that several objectives cannot have."""
        names, base = list(self.objectives), self.base
        several = f"objective={','.join(names)!r} makes several"
        problems = {
            f"generations={self.generations}: {several} families, which differ in their "
            "students: ask for one at least.": self.generations < 1,
            f"control and control_from: {several} families, and controls are compared with the "
            "ensemble of one: give them with one objective, and an output_dir of its own.": (
                self.control or bool(self.control_from)
            ),
            f"push_to_hub: {several} families, and hub_model_id names one: leave it out, and "
            f"push the one that you want when it is finished: ban-hf push {base / 'OBJECTIVE'} "
            "ns/name.": self.args.push_to_hub,
            f"output_dir={base} holds the family of one run; it stays as it is. {several}, "
            "with a folder for each: give another output_dir.": (base / RECORD).exists(),
        }
        for problem, is_so in problems.items():
            if is_so:
                raise BANError(problem)
        if self.args.teacher_cache is not None:
            check_folder(Path(self.args.teacher_cache), base, [TEACHER, *names, "results.*"])
        is_ours = any((base / name / RECORD).is_file() for name in (TEACHER, *names))
        check_folders(base, is_ours=is_ours)
        PartialState().wait_for_everyone()  # all have looked before one of them writes
