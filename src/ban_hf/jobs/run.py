"""A sequence under one directory: what stands there, and how its next generation comes to it."""

import contextlib
import copy
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock, Timeout
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, set_seed

from ban_hf.data import ImageViews, count_items
from ban_hf.errors import BANError
from ban_hf.hub.client import clean_token
from ban_hf.jobs.continuation import (
    FirstTeacher,
    find_teacher,
    given_generations,
    hold_no_other_teacher,
    noted_teacher,
    place_teacher,
)
from ban_hf.jobs.generation import generation_seed, last_checkpoint, train_to_end
from ban_hf.lineage.environment import (
    architecture,
    canonical_arguments,
    plain_json,
    versions,
    weights_digest,
)
from ban_hf.lineage.record import (
    CHECKPOINTS,
    LOG,
    RECORD,
    Record,
    check_folders,
    finished_generations,
    note_family,
    read_json,
    reference,
    refuse_another,
    sha256_of_json,
    write_json,
)
from ban_hf.lineage.results import as_name
from ban_hf.lineage.validation import check_data, check_name
from ban_hf.tasks.heads import check_loadable, load_classifier
from ban_hf.training.arguments import LOWER_IS_BETTER, BANTrainingArguments
from ban_hf.training.callbacks import GenerationProgress
from ban_hf.training.ensemble import BornAgainEnsemble, is_language_model
from ban_hf.training.performance import sequence_arguments
from ban_hf.training.teacher_cache import check_folder
from ban_hf.training.trainer import BANTrainer

#: What a run writes under its directory, as patterns.
WRITTEN = ("generation-*", "ensemble", "control", CHECKPOINTS, "*.json", "results.*", ".lock")


class Run:
    """A sequence under one directory: what stands there, and its next generation."""

    def __init__(
        self,
        model_init: Callable[[int], PreTrainedModel],
        args: BANTrainingArguments,
        generations: int,
        family: str | None,
        data: dict[str, Any],
        teacher: str | None = None,
    ) -> None:
        self.output_dir = Path(args.output_dir)
        name = (args.hub_model_id or str(self.output_dir.resolve())).rpartition("/")[2]
        self.asked_family, self.family = family, family or as_name(name)
        check_name("family", self.family)
        check_data(data)
        self.model_init, self.args, self.token = model_init, args, clean_token(args.hub_token)
        self.data, self.asked_teacher = data, teacher
        self.teacher: FirstTeacher | None = None
        self.generations, self.first = generations, 0  # with a teacher the one after it

    @property
    def last(self) -> int:
        return self.first + self.generations - bool(self.teacher)

    @property
    def standing(self) -> range:
        """The generations that stand here from the first teacher on; may be more than asked for."""
        first = self.first - bool(self.teacher)
        return range(first, next(k for k in itertools.count(first) if not self.finished(k)))

    def folder(self, generation: int) -> Path:
        return self.output_dir / f"generation-{generation}"

    def finished(self, generation: int) -> bool:
        return (self.folder(generation) / RECORD).is_file()

    def open(self) -> None:
        """Note what this run is, or hold that the run that stands here is the same one.

        Raises:
            ValueError: naming every argument that differs.
        """
        set_seed(generation_seed(self.args.seed, 0))
        model = self.model_init(0)
        check_loadable(model)
        if self.args.label_weight_is_default and is_language_model(model):
            self.args.label_weight = 1.0
        self.args = sequence_arguments(self.args, model)
        if self.args.teacher_cache is not None:
            check_folder(Path(self.args.teacher_cache), self.output_dir, WRITTEN)
        facts = plain_json(
            {
                "arguments": canonical_arguments(self.args),
                "data": self.data,
                "model": architecture(model),
            }
        )
        path = self.output_dir / RECORD
        standing = read_json(path) if path.is_file() else None
        noted, facts["teacher"] = noted_teacher(standing), {}
        if self.asked_teacher is not None:
            self.teacher = find_teacher(self.asked_teacher, noted, self.output_dir, self.token)
            facts["teacher"], self.first = self.teacher.note, self.teacher.generation + 1
        begun = self._has_begun(standing)
        if standing is not None:
            # A run that failed before it had anything to lose may be started with others.
            asked = {"family": self.asked_family, "run": facts if begun else {}}
            refuse_another(self.output_dir, standing, asked)
            self.family = standing["family"]
        check_folders(self.output_dir, is_ours=standing is not None)
        if not begun:
            ours = noted if noted == facts["teacher"] else {}
            hold_no_other_teacher(self.output_dir, given_generations(ours, self.output_dir))
        PartialState().wait_for_everyone()  # all have looked before one of them writes
        self.facts = standing["run"] if standing is not None and begun else facts
        if not begun and self.args.should_save:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            note_family(self.output_dir, self.family, self.facts)
        if self.teacher is not None:
            with PartialState().main_process_first():
                place_teacher(self.teacher, self.folder(self.first - 1), facts["data"])

    def _has_begun(self, standing: dict[str, Any] | None) -> bool:
        """Whether there is anything to lose: more than a teacher that was copied here."""
        given = given_generations(noted_teacher(standing), self.output_dir)
        trained = len(finished_generations(self.output_dir)) - len(given)
        checkpoints = (self.output_dir / CHECKPOINTS).glob("generation-*")
        return trained > 0 or any(last_checkpoint(folder) for folder in checkpoints)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the directory, so that no other run writes into it.

        Raises:
            ValueError: if another run holds it.
        """
        if not self.args.should_save:
            yield
            return
        lock = FileLock(self.output_dir / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise BANError(
                f"output_dir={self.output_dir} is being written by another run: wait for it, or "
                "give another output_dir."
            ) from error
        try:
            yield
        finally:
            lock.release()
            (self.output_dir / ".lock").unlink(missing_ok=True)

    def train(
        self, generation: int, test_dataset: Dataset | None, trainer_kwargs: dict[str, Any]
    ) -> None:
        """Train one generation to its end and put its folder in place, whole or not at all."""
        args = copy.copy(self.args)
        args.seed = generation_seed(self.args.seed, generation)
        args.output_dir = str(self.output_dir / CHECKPOINTS / f"generation-{generation}")
        if generation != max(1, self.first):  # no other student has this teacher
            args.teacher_cache = None
        train_dataset = trainer_kwargs["train_dataset"]
        if isinstance(train_dataset, ImageViews):
            train_dataset.seed = args.seed if args.data_seed is None else args.data_seed
        set_seed(args.seed)
        model = self.model_init(generation)
        record = Record("generation", self.family, generation, data=self.data)
        record.seed = {
            "seed": args.seed,
            "family_seed": self.args.seed,
            "init_sha256": weights_digest(model),
        }
        teacher = self._load_teacher(generation, record) if generation else None
        trainer = BANTrainer(model, args, teacher=teacher, **trainer_kwargs)
        _show_progress(trainer, generation, self.last)
        record.training = train_to_end(trainer) | {"arguments": canonical_arguments(self.args)}
        record.training["arguments_sha256"] = sha256_of_json(record.training["arguments"])
        self._finish(generation, record, trainer, test_dataset)

    def _load_teacher(self, generation: int, record: Record) -> PreTrainedModel:
        """Load the teacher from the folder it was saved to, and note it in the student's record."""
        folder = self.folder(generation - 1)
        teacher = load_classifier(folder)
        earlier = [Record.read(f).seed for f in finished_generations(self.output_dir)]
        known = {seed.get(name) for seed in earlier for name in ("init_sha256", "trained_sha256")}
        if record.seed["init_sha256"] in known:
            raise BANError(
                f"model_init({generation}) gave the weights that an earlier generation had, "
                "fresh or trained: build a new model each time, with weights drawn from torch's "
                "global generator, which is seeded for each generation."
            )
        record.teacher = reference(folder, self.folder(generation))
        first = self.teacher if generation == self.first else None
        if first is not None and not first.is_local:  # it stands elsewhere, for all
            del record.teacher["path"]
            record.teacher["repo_id"], _, record.teacher["revision"] = first.name.partition("@")
        names = ("temperature", "teacher_weight", "label_weight")
        record.objective = {"name": self.args.objective} | {
            name: getattr(self.args, name) for name in names
        }
        return teacher

    def _finish(
        self, generation: int, record: Record, trainer: BANTrainer, test_dataset: Dataset | None
    ) -> None:
        checkpoints = Path(trainer.args.output_dir)
        partial = checkpoints / "finished"
        if trainer.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
        record.seed["trained_sha256"] = weights_digest(trainer.model)
        trainer.save_model(str(partial))  # before the test, which may cast it (bf16_full_eval)
        record.metrics = _test(trainer, test_dataset)
        if trainer.args.should_save:
            # A pickle of the arguments, with paths of this machine; the record has them in JSON.
            (partial / "training_args.bin").unlink(missing_ok=True)
            write_json(partial / LOG, trainer.state.log_history)
            record.architecture = architecture(trainer.model)
            record.code = versions()
            record.write(partial)
            os.replace(partial, self.folder(generation))
            note_family(self.output_dir, self.family, self.facts)
            shutil.rmtree(checkpoints)
        trainer.accelerator.wait_for_everyone()

    def build_ensemble(
        self, members: Sequence[int], test_dataset: Dataset | None, trainer_kwargs: dict[str, Any]
    ) -> None:
        """Write the ensemble of some generations, unless it stands there already."""
        folder = self.output_dir / "ensemble"
        record = Record("ensemble", self.family, data=self.data, code=versions())
        record.members = [reference(self.folder(i), folder) for i in members]
        stands = (folder / RECORD).is_file() and Record.read(folder).members == record.members
        PartialState().wait_for_everyone()  # all have looked before one of them writes
        if stands:
            return
        model = BornAgainEnsemble.from_members([load_classifier(self.folder(i)) for i in members])
        args = copy.copy(self.args)
        args.output_dir = str(self.output_dir / CHECKPOINTS / "ensemble")
        if args.should_save:
            shutil.rmtree(args.output_dir, ignore_errors=True)  # of a run that was killed here
        trainer = BANTrainer(model, args, **trainer_kwargs)
        _show_progress(trainer, members[-1], self.last)
        record.metrics = _test(trainer, test_dataset)
        record.architecture = architecture(model)
        trainer.save_model(args.output_dir)
        if args.should_save:
            Path(args.output_dir, "training_args.bin").unlink()
            record.write(Path(args.output_dir))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(args.output_dir, folder)
        trainer.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Note all that is finished, and remove what a kill just after that left behind."""
        if self.args.should_save:
            note_family(self.output_dir, self.family, self.facts)
            for folder in (self.output_dir / CHECKPOINTS).glob("*"):
                if (self.output_dir / folder.name / RECORD).is_file():
                    shutil.rmtree(folder)
            with contextlib.suppress(OSError):  # a later generation's, of a run of more
                (self.output_dir / CHECKPOINTS).rmdir()
        PartialState().wait_for_everyone()


def _show_progress(trainer: BANTrainer, generation: int, generations: int) -> None:
    """One line an epoch in place of a dictionary of logs."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(GenerationProgress(generation, generations))


def _test(trainer: BANTrainer, test_dataset: Dataset | None) -> list[dict[str, Any]]:
    """The one look at the test set, as the record's metrics."""
    if test_dataset is None:
        return []
    values = trainer.evaluate(test_dataset, metric_key_prefix="test")
    timing = ("runtime", "per_second", "preparation_time")
    return [
        {
            "name": as_name(name.removeprefix("test_")),
            "value": value,
            "split": "test",
            "n": count_items(test_dataset),
            "higher_is_better": name.removeprefix("test_") not in LOWER_IS_BETTER,
        }
        for name, value in values.items()
        if name.startswith("test_")
        and not name.endswith(timing)
        and isinstance(value, int | float)
        and not isinstance(value, bool)
    ]
