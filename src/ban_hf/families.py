"""What a recipe runs: the family of each objective, its controls, and one report of them all.

Several objectives are students of one teacher, `teacher/`, which is trained once. Each objective
has a folder of its own, `kd/`, `cwtm/` and so on. Students of one number have the same seed: they
begin with the same weights, see the same views in the same order, and differ in the objective
alone.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from accelerate import PartialState

from ban_hf.data.description import describe_data
from ban_hf.errors import BANError
from ban_hf.jobs.cost import plan
from ban_hf.jobs.job import Job, Setup, generation_seed
from ban_hf.jobs.results import entry_of, environment_of
from ban_hf.lineage.environment import canonical_arguments
from ban_hf.lineage.family import as_noted, check_folders, generation_folders
from ban_hf.lineage.names import as_name
from ban_hf.lineage.record import RECORD, Record, architecture
from ban_hf.lineage.results import (
    ROW,
    Column,
    Results,
    control_column,
    ensemble_column,
    family_results,
    generation_column,
    side_by_side,
)
from ban_hf.reports.report import write_report
from ban_hf.sequence import Sequence as Chain
from ban_hf.tasks.auto import task_of
from ban_hf.training.arguments import BANTrainingArguments, sequence_arguments
from ban_hf.training.teacher_cache import check_folder

TEACHER, CACHE = "teacher", "teacher_cache"  # folders beside those of several objectives
CONTROL = "control"  # folder of the label-trained networks
CONTROL_SEEDS = 1_000_000  # beyond every generation's
#: Arguments in which a control may differ: it has no teacher, and another seed.
OF_STUDENTS = {"seed", "objective", "temperature", "teacher_weight", "label_weight", "world_size"}


@dataclass
class Families:
    """The families of a run, and how they are reported.

    Args:
        setup: networks and data.
        args: of every training.
        objectives: by name, the objective and its `label_weight` (None: as the task has it).
        generations: number of students of each objective.
        control: whether to train label-trained networks, as many, with generation 0, as the
            ensemble has members.
        control_from: output directories of runs of other seeds, whose generations 0 are controls.
        teacher: a generation to continue from, see `train_generations`.
        title: of the report.
        dataset: what the report says of the data.
        command: that started the run.
    """

    setup: Setup
    args: BANTrainingArguments
    objectives: dict[str, tuple[str, float | None]]
    generations: int
    control: bool = False
    control_from: Sequence[str] = ()
    teacher: str | None = None
    title: str = ""
    dataset: dict[str, Any] | None = None
    command: str = ""

    @property
    def metric(self) -> str:
        """Name of the metric that the report leads with."""
        return task_of(self.setup.model_init(0)).headline.name

    @property
    def base(self) -> Path:
        """The output directory."""
        return Path(self.args.output_dir)

    def run(self) -> Results:
        """Train what is missing, measure, report, publish."""
        self.check()
        if len(self.objectives) == 1:
            (chain,) = self.chains()
            return self._run_family(chain)
        teacher = self.teacher
        if teacher is None:
            self._label_chain().run()
            teacher = str(self.base / TEACHER / "generation-0")
        found: dict[str, Results] = {}
        for number, (name, chain) in enumerate(
            zip(self.objectives, self.chains(teacher), strict=True), 1
        ):
            if PartialState().is_main_process:
                print(
                    f"Objective {number} of {len(self.objectives)}: {name}, into "
                    f"{chain.output_dir}",
                    flush=True,
                )
            chain.run()
            method = Record.read(chain.output_dir / f"generation-{chain.last}").method
            found[method] = self._report(chain, name=name)
        results = side_by_side(found, self.title, self.command)
        self._write(results, self.base)
        return results

    def check(self) -> None:
        """Raise, before anything is trained, where the arguments do not fit together."""
        if len(self.objectives) > 1:
            self._check_several()
        if self.teacher is not None and (self.control or self.control_from):
            raise BANError(
                "control and control_from compare with generation 0, which a family that "
                f"continues from teacher={self.teacher!r} does not have: leave them out."
            )
        for folder in self.control_from:
            self._check_control(Path(folder))

    def chains(self, teacher: str | None = None) -> Iterator[Chain]:
        """The sequence of each objective."""
        several = len(self.objectives) > 1
        for name, (objective, label_weight) in self.objectives.items():
            args, family = copy.copy(self.args), None
            args.objective, args.label_weight = objective, label_weight
            if several:
                args.output_dir = str(self.base / name)
                args.teacher_cache = args.teacher_cache or str(self.base / CACHE)
                family = self._family_name(name)
            yield Chain(
                self.setup,
                args,
                self.generations,
                family=family,
                teacher=teacher or self.teacher,
            )

    def controls(self) -> list[Chain]:
        """The label-trained networks that are trained for comparison."""
        members = max(2, self.generations) if self.control and self.generations else 1
        made = []
        for number in range(1, members):
            args = copy.copy(self.args)
            args.push_to_hub = False
            args.output_dir = str(self.base / CONTROL / str(number))
            args.seed = generation_seed(self.args.seed, CONTROL_SEEDS + number)
            args.objective, args.label_weight = next(iter(self.objectives.values()))
            made.append(Chain(self.setup, args, 0))
        return made

    def _label_chain(self) -> Chain:
        """Generation 0, the teacher of several objectives, of which it does not depend."""
        args = copy.copy(self.args)
        args.objective, args.label_weight = "kd", None
        args.output_dir = str(self.base / TEACHER)
        return Chain(self.setup, args, 0, family=self._family_name(TEACHER))

    def _run_family(self, chain: Chain) -> Results:
        """Run the one family and its controls; the report comes before it is published."""
        found: list[Results] = []

        def report() -> None:
            controls = self.controls()
            for control in controls:
                control.run()
            folders = [Path(control.args.output_dir) for control in controls]
            folders += map(Path, self.control_from)
            found.append(self._report(chain, folders))

        chain.run(report)
        return found[0]

    # Results

    def _report(self, chain: Chain, controls: Sequence[Path] = (), name: str = "") -> Results:
        """Measure a family and its controls, and write the report; the same on every process.

        Args:
            chain: its sequence, finished.
            controls: directories of label-trained networks.
            name: of its objective, where there are several.
        """
        home, networks = chain.output_dir, [job for job in chain.jobs() if not job.members]
        cells = [(_column(home, job), job) for job in networks]
        students = networks[1:] if len(networks) > 2 else networks
        for size in range(2, len(students) + 1):
            members = tuple(students[:size])
            numbers = [job.generation for job in members]
            heading = f"Ens*{size} of generations {numbers[0]}-{numbers[-1]}"
            job = Job(f"ensemble-of-{size}", {}, members=members, saved=False)
            cells.append((ensemble_column(numbers, heading), job))
        own = [job for job in networks[:1] if job.generation == 0]
        labels = [Job(os.path.relpath(folder / "generation-0", home), {}) for folder in controls]
        for number, job in enumerate(labels, 2):
            cells.append((control_column(number, f"labels again, network {number}"), job))
        for size in range(2, len(labels) + 2 if labels else 0):
            job = Job(
                f"labels-ensemble-of-{size}", {}, members=(*own, *labels[: size - 1]), saved=False
            )
            column = control_column(size, f"Ens*{size} of label-trained networks", size)
            cells.append((column, job))
        entries, packed, metric = [], None, self.metric
        for column, job in cells:
            found = chain.evaluation(job)
            packed = found.get("labels")
            cell = {"row": ROW, "column": column.name, "seed": self.args.seed, "metric": metric}
            seconds = None if job.members else Record.read(home / job.folder).training.seconds
            entry = entry_of(job, home, found, **cell)
            entries.append(msgspec.structs.replace(entry, seconds=seconds))
        results = family_results(
            title=f"{self.title}: {name}" if name else self.title,
            metric=metric,
            dataset=self.dataset or {},
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
        cache = self.args.teacher_cache
        if len(self.objectives) > 1:
            cache = cache or str(self.base / CACHE)
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
        names = list(self.objectives)
        homes = [f"{name}/" for name in names] if len(names) > 1 else [""]
        first = Job(f"{TEACHER}/generation-0" if len(names) > 1 else "generation-0", {})
        jobs = [] if self.teacher else [first]
        jobs += [
            Job(f"{CONTROL}/{number}/generation-0", {})
            for number, _ in enumerate(self.controls(), 1)
        ]
        for home in homes:
            start = min(generation_folders(self.base / home), default=0)
            chain = [first]
            for number in range(start + 1, start + 1 + self.generations):
                chain.append(Job(f"{home}generation-{number}", {}, (chain[-1],), generation=number))
            jobs += chain[1:]
            members = chain[1:] if len(chain) > 2 else chain
            if len(members) > 1:
                jobs.append(Job(f"{home}ensemble", {}, members=tuple(members)))
        return jobs

    # What does not fit together

    def _check_control(self, folder: Path) -> None:
        """Raise unless a folder's generation 0 is a control: as ours, but for the seed."""
        try:
            record = Record.read(folder / "generation-0")
        except OSError as error:
            raise BANError(f"control_from: {folder} holds no finished generation 0.") from error
        model = self.setup.model_init(0)
        ours = canonical_arguments(sequence_arguments(self.args, model))
        theirs = record.training.arguments or {}
        other = [
            name
            for name in sorted(ours.keys() & theirs.keys() - OF_STUDENTS)
            if ours[name] != theirs[name]
        ]
        noted = record.data["train"]
        data = as_noted(describe_data(self.setup.train_dataset), noted)
        checks = {
            "has the same seed as this run": record.seed.family_seed == self.args.seed,
            "is another network": record.architecture != architecture(model),
            "was trained on other data": noted != data,
            f"was trained with another {', '.join(other)}": bool(other),
        }
        for reason, is_so in checks.items():
            if is_so:
                raise BANError(f"control_from: the generation 0 of {folder} {reason}.")

    def _check_several(self) -> None:
        """Raise where something was asked for that several objectives cannot have."""
        names, base = list(self.objectives), self.base
        several = f"objective={','.join(names)!r} makes several"
        if self.generations < 1:
            raise BANError(
                f"generations={self.generations}: {several} families, which differ in their "
                "students: ask for one at least."
            )
        if self.control or self.control_from:
            raise BANError(
                f"control and control_from: {several} families, and controls are compared with the "
                "ensemble of one: give them with one objective, and an output_dir of its own."
            )
        if self.args.push_to_hub:
            raise BANError(
                f"push_to_hub: {several} families, and hub_model_id names one: leave it out, and "
                f"push the one that you want when it is finished: ban-hf push {base / 'OBJECTIVE'} "
                "ns/name."
            )
        if (base / RECORD).exists():
            raise BANError(
                f"output_dir={base} holds the family of one run; it stays as it is. {several}, "
                "with a folder for each: give another output_dir."
            )
        if self.args.teacher_cache is not None:
            check_folder(Path(self.args.teacher_cache), base, [TEACHER, *names, "results.*"])
        is_ours = any((base / name / RECORD).is_file() for name in (TEACHER, *names))
        check_folders(base, is_ours=is_ours)
        PartialState().wait_for_everyone()  # all have looked before one of them writes

    def _family_name(self, name: str) -> str | None:
        """The name of a family that begins; None for one that exists and has a name."""
        exists = (self.base / name / RECORD).is_file()
        return None if exists else as_name(f"{self.base.resolve().name}-{name}")


def _column(home: Path, job: Job) -> Column:
    """The column of a generation."""
    method = Record.read(home / job.folder).method
    return generation_column(
        job.generation, method if method == "labels" else f"{method}-{job.generation}"
    )
