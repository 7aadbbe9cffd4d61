"""The sequence: generation 0 learns from labels, each further one from the one before it.

A sequence is a chain of jobs in one folder, and the ensemble of its students.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from msgspec.structs import replace
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, set_seed

from ban_hf.errors import BANError
from ban_hf.hub.client import clean_token
from ban_hf.hub.download import (
    InitialTeacher,
    check_no_other_teacher,
    find_teacher,
    given_generations,
    noted_teacher,
    place_teacher,
)
from ban_hf.hub.publishing import Publisher, check_base_is_on_hub
from ban_hf.jobs.adapters import network_architecture
from ban_hf.jobs.executor import InProcess, locked, run_jobs
from ban_hf.jobs.job import Job, Setup, generation_seed
from ban_hf.jobs.setup import make_setup
from ban_hf.jobs.training import (
    EVALUATIONS,
    build_ensemble,
    is_done,
    last_checkpoint,
    references,
    train,
)
from ban_hf.lineage.catalog import as_name
from ban_hf.lineage.environment import canonical_arguments
from ban_hf.lineage.family import (
    CHECKPOINTS,
    Lineage,
    check_folders,
    finished_generations,
    is_finished,
    load_family,
    note_family,
    refuse_another,
)
from ban_hf.lineage.files import plain_json, read_json
from ban_hf.lineage.record import (
    RECORD,
    Record,
    Reference,
    check_data,
    check_name,
)
from ban_hf.tasks.auto import check_loadable, task_of
from ban_hf.tasks.losses import check_meaning
from ban_hf.training.arguments import BANTrainingArguments, fast_arguments
from ban_hf.training.recurrence import check_windows
from ban_hf.training.teacher import check_storable
from ban_hf.training.teacher_cache import check_folder

#: What a sequence writes into its folder, as patterns.
WRITTEN = (
    *("generation-*", "ensemble", "control", CHECKPOINTS, EVALUATIONS),
    *("*.json", "results.*", ".lock"),
)


def train_generations(
    model_init: Callable[[int], PreTrainedModel],
    args: BANTrainingArguments,
    *,
    generations: int,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    test_dataset: Dataset | None = None,
    ensemble: bool = True,
    family: str | None = None,
    data: dict[str, Any] | None = None,
    teacher: str | None = None,
    report: Callable[[], None] | None = None,
    **trainer_kwargs: Any,
) -> Lineage:
    """Train generation 0 on labels, then `generations` students, each from the one before it.

    Writes `generation-0` ... `generation-k` under `args.output_dir`, each with its model and its
    `lineage.json`, `ensemble` (the mean of generations 1 to k, or of 0 and 1 where k is 1), and the
    family's `lineage.json`. Called again with the same arguments it continues where it stopped: a
    finished generation is not trained again, a killed one goes on from its last checkpoint. More
    generations may be requested later.

    With `args.push_to_hub` each generation is published as soon as it is finished, to
    `<hub_model_id>-gen0` and so on, and at the end the ensemble to `hub_model_id`. If the Hub
    cannot be reached in between, the training goes on: what is missing is published at the end.

    Args:
        model_init: gives a fresh network for a generation; torch is seeded for it beforehand.
        args: of every generation. `seed` is the family's: each generation draws its own from it.
            Language models also learn from labels, unless `label_weight` is given (BAN+L).
            With `load_best_model_at_end` a generation is its best checkpoint on `eval_dataset`,
            otherwise its last state, as in the paper.
        generations: number of students, k; 0 trains the label network alone.
        train_dataset: what all generations are trained on.
        eval_dataset: for validation while training; a checkpoint may be chosen by it.
        test_dataset: each generation is measured on it once, when it is finished.
        ensemble: whether to write the ensemble.
        family: name of the sequence; by default that of `hub_model_id`, or of the output directory,
            at the start.
        data: what the records say of the data (JSON), beside the fingerprints of the datasets.
        teacher: a generation to continue from, on the Hub, `"ns/family-gen2@commit"`, or in a
            folder: it is copied to `generation-2`, one in a folder with those before it, and the
            students are generations 3 and so on. The copied folder may move later.
        report: called, on every process, when all is trained, before the ensemble is published:
            if it writes `results.json`, the family's card shows that.
        trainer_kwargs: for `BANTrainer`: `task`, `data_collator`, `compute_metrics`,
            `processing_class`, `callbacks` and so on.

    Returns:
        The family's records.

    Raises:
        BANError: where `output_dir` holds a run of other arguments, data or model; the message
            names what differs.
        LineageError: where `teacher` is not what its record says.
        PublishError: where `hub_model_id` holds something else; before anything is trained.
        HubError: where the Hub cannot be reached, at the start or, with all trained, at the end.
        FloatingPointError: where a loss becomes NaN; the finished generations stay.
    """
    if isinstance(model_init, nn.Module):
        raise BANError(
            f"model_init is a {type(model_init).__name__}: give a function that builds a fresh one "
            "for the number of a generation."
        )
    setup = make_setup(
        model_init,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        test_dataset=test_dataset,
        data=data,
        **trainer_kwargs,
    )
    return Sequence(setup, args, generations, ensemble, family, teacher).run(report)


class Sequence:
    """A sequence in its folder: the chain of its jobs. Its arguments: see `train_generations`."""

    def __init__(
        self,
        setup: Setup,
        args: BANTrainingArguments,
        generations: int,
        ensemble: bool = True,
        family: str | None = None,
        teacher: str | None = None,
    ) -> None:
        if generations < bool(teacher):
            raise BANError(
                f"generations={generations}: it counts the students, and must not be negative, nor "
                "0 where there is a teacher."
            )
        self.setup, self.args, self.generations = setup, copy.copy(args), generations
        self.has_ensemble, self.requested_family, self.requested_teacher = ensemble, family, teacher
        self.publisher = Publisher(args)
        self.args.push_to_hub = False  # the trainer's own way, which uploads pickles
        self.output_dir = Path(args.output_dir)
        name = (args.hub_model_id or str(self.output_dir.resolve())).rpartition("/")[2]
        self.family = family or as_name(name)
        check_name("family", self.family)
        check_data(dict(setup.data))
        self.teacher: InitialTeacher | None = None
        self.first = 0  # the first generation to train; with a teacher the one after it

    def run(self, report: Callable[[], None] | None = None) -> Lineage:
        """Do all that is missing, report, and publish."""
        args = self.args
        check_windows("test_dataset", self.setup.test_dataset, args.eval_batch_size, args)
        self.open()
        requested = range(self.first, self.last + 1)
        missing = [k for k in requested if not self._is_finished(k)]
        self.publisher.prepare(missing, self.first, self.teacher.name if self.teacher else None)

        def publish(job: Job) -> None:
            if not job.members and job.generation in requested:
                self.publisher.publish_generation(job.generation, self.output_dir / job.folder)

        # Of several processes the one that saves keeps other runs from writing here.
        with locked(self.output_dir) if args.should_save else contextlib.nullcontext():
            run_jobs(self.jobs(), InProcess(self._do), self._is_done, publish)
            self._close()
        if report is not None:
            report()
        self.publisher.publish_family(self.output_dir)
        return load_family(self.output_dir)

    # The chain

    def jobs(self) -> list[Job]:
        """The requested generations and existing ones, and their ensemble."""
        start, last = self.first - (self.teacher is not None), self.last
        while self._is_finished(last + 1):
            last += 1
        facts = self.facts
        splits = ("train", "validation", "test")  # without the path that they were read from
        settings = {
            "model": facts.get("model", {}),
            "teacher": facts.get("teacher", {}),
            "training": facts["arguments"],
            "data": {name: facts["data"][name] for name in splits if name in facts["data"]},
        }
        first = Job(f"generation-{start}", settings | {"generation": start}, generation=start)
        return family_jobs(first, last, settings, ensemble=self.has_ensemble)

    def _do(self, job: Job) -> None:
        """Train a generation, or put the ensemble together."""
        args = copy.copy(self.args)
        if job.members:
            build_ensemble(job, self.output_dir, self.setup, args, family=self.family)
        else:
            args.seed = generation_seed(self.args.seed, job.generation)
            if job.generation != max(1, self.first):  # no other student has this teacher
                args.teacher_cache = None
            train(
                job,
                self.output_dir,
                self.setup,
                args,
                family=self.family,
                family_seed=self.args.seed,
                initial_teacher=self._initial_teacher(job),
                last=self.last,
            )
        if self.args.should_save:
            note_family(self.output_dir, self.family, self.facts)
        PartialState().wait_for_everyone()

    def _is_done(self, job: Job) -> bool:
        """Whether a job is finished; an ensemble of other members is not."""
        done = all(is_done(each, self.output_dir) for each in (job, *job.members))
        if done and job.members:
            named = references(job, self.output_dir, job.members)
            done = Record.read(self.output_dir / job.folder).members == named
        PartialState().wait_for_everyone()  # all have looked before one of them writes
        return done

    def _initial_teacher(self, job: Job) -> Reference | None:
        """How the first student names a teacher that came from the Hub."""
        if self.teacher is None or job.generation != self.first or self.teacher.is_local:
            return None
        repo_id, _, revision = self.teacher.name.partition("@")
        (copied,) = references(job, self.output_dir, job.teachers)
        return replace(copied, path=None, repo_id=repo_id, revision=revision)

    def _is_finished(self, generation: int) -> bool:
        return is_finished(self.output_dir / f"generation-{generation}")

    # The folder

    def open(self) -> None:
        """Note what this run is, or check that the existing run is the same one.

        Raises:
            BANError: naming every argument that differs.
        """
        set_seed(generation_seed(self.args.seed, 0))
        model = self.setup.model_init(0)
        check_loadable(model)
        task = task_of(model)
        task.leading("softmax", list(model.config.id2label.values()))  # or raises
        if self.generations:
            check_meaning(task, model, self.args.objective)
        if self.args.label_weight is None:
            self.args.label_weight = task.default_label_weight
        self.args = fast_arguments(self.args, model)
        if self.args.teacher_cache is not None:
            check_storable(self.setup.train_dataset, self.args)
            check_folder(Path(self.args.teacher_cache), self.output_dir, WRITTEN)
        network = network_architecture(model)
        if self.publisher.is_on:
            check_base_is_on_hub(network, "model_init's model")
        facts = plain_json(
            {
                "arguments": canonical_arguments(self.args),
                "data": self.setup.data,
                "model": network.to_dict(),
            }
        )
        path = self.output_dir / RECORD
        existing = read_json(path) if path.is_file() else None
        noted, facts["teacher"] = noted_teacher(existing), {}
        if self.requested_teacher is not None:
            token = clean_token(self.args.hub_token)
            self.teacher = find_teacher(self.requested_teacher, noted, self.output_dir, token)
            facts["teacher"], self.first = self.teacher.note, self.teacher.generation + 1
        self.last = self.first + self.generations - (self.teacher is not None)
        begun = self._has_begun(noted)
        if existing is not None:
            # A run that failed before it had anything to lose may be started with others.
            requested = {"family": self.requested_family, "run": facts if begun else {}}
            refuse_another(self.output_dir, existing, requested)
            self.family = existing["family"]
        check_folders(self.output_dir, is_ours=existing is not None)
        if not begun:
            ours = noted if noted == facts["teacher"] else {}
            check_no_other_teacher(self.output_dir, given_generations(ours, self.output_dir))
        PartialState().wait_for_everyone()  # all have looked before one of them writes
        self.facts = existing["run"] if existing is not None and begun else facts
        if not begun and self.args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            note_family(self.output_dir, self.family, self.facts)
        if self.teacher is not None:
            with PartialState().main_process_first():
                folder = self.output_dir / f"generation-{self.first - 1}"
                place_teacher(self.teacher, folder, facts["data"])

    def _has_begun(self, noted: dict[str, str]) -> bool:
        """Whether there is anything to lose: more than a teacher that was copied here."""
        given = given_generations(noted, self.output_dir)
        trained = len(finished_generations(self.output_dir)) - len(given)
        checkpoints = (self.output_dir / CHECKPOINTS).glob("generation-*")
        return trained > 0 or any(last_checkpoint(folder) for folder in checkpoints)

    def _close(self) -> None:
        """Note all that is finished, and remove what a kill just after that left behind."""
        if self.args.should_save:
            note_family(self.output_dir, self.family, self.facts)
            for folder in (self.output_dir / CHECKPOINTS).glob("*"):
                if is_finished(self.output_dir / folder.name):
                    shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # a later generation's, of a run of more
                (self.output_dir / CHECKPOINTS).rmdir()
        PartialState().wait_for_everyone()


def family_jobs(
    first: Job, last: int, settings: Mapping[str, Any], *, folder: str = "", ensemble: bool = True
) -> list[Job]:
    """A generation and those after it, each taught by the one before it, and their ensemble.

    The ensemble is of the students; of a single one it is of that and its teacher.
    """
    chain = [first]
    for k in range(first.generation + 1, last + 1):
        arguments = {**settings, "generation": k}
        chain.append(Job(f"{folder}generation-{k}", arguments, (chain[-1],), generation=k))
    if not ensemble or len(chain) < 2:
        return chain
    members = tuple(chain[1:] if len(chain) > 2 else chain)
    return [*chain, Job(f"{folder}ensemble", {}, members=members)]
