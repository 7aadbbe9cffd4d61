"""A job done: a network trained, or an ensemble put together, measured, and put in place.

A job's folder appears whole or not at all, under its own name, with `lineage.json` in it. Until
then everything is in a scratch folder beside it, from which a killed training goes on.
"""

import copy
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from msgspec.structs import replace
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    set_seed,
)
from transformers.trainer_utils import has_length

from ban_hf.data.augmentation import ImageViews
from ban_hf.data.description import kept_random_states
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.jobs.adapters import check_saved, network_architecture, save_head
from ban_hf.jobs.evaluation import evaluate, text_decoder
from ban_hf.jobs.job import Job, Setup, code_digest, in_order
from ban_hf.jobs.progress import GenerationProgress
from ban_hf.lineage.catalog import LOWER_IS_BETTER
from ban_hf.lineage.environment import canonical_arguments, hardware, versions, weights_digest
from ban_hf.lineage.family import CHECKPOINTS, is_finished
from ban_hf.lineage.files import read_json, sha256_of_json, write_json
from ban_hf.lineage.record import (
    CARD,
    LOG,
    MetricValue,
    Objective,
    Record,
    Reference,
    Seed,
    Training,
    reference,
)
from ban_hf.models.adapters import is_adapted, parameter_count, share_frozen
from ban_hf.models.factory import share_ends
from ban_hf.models.modeling_cifar import CifarNetForImageClassification
from ban_hf.tasks.adapters import find_adapter
from ban_hf.tasks.auto import load_model
from ban_hf.tasks.losses import check_label_loss, check_label_range
from ban_hf.training.arguments import BANTrainingArguments, fast_arguments
from ban_hf.training.ensemble import BornAgainEnsemble
from ban_hf.training.performance import can_share_weights
from ban_hf.training.trainer import BANTrainer

logger = logging.getLogger(__name__)

EVALUATIONS = "evaluations"  # folder of what was measured, beside the networks
TIMES = "seconds.json"  # in a checkpoint: how long the training has taken so far


def scratch(home: Path, job: Job) -> Path:
    """Where a job works until it is finished."""
    return home / CHECKPOINTS / job.folder


def train(
    job: Job,
    home: Path,
    setup: Setup,
    args: BANTrainingArguments,
    *,
    family: str,
    family_seed: int | None = None,
    initial_teacher: Reference | None = None,
    last: int | None = None,
) -> None:
    """Train a job's network to its end, measure it, and put its folder in place.

    `args` are of this training, with its own seed, which was drawn from `family_seed`. The record
    names the teacher by its folder, or as `initial_teacher`. `last` is the last generation of the
    sequence, for the progress bar.
    """
    args = copy.copy(args)
    args.output_dir = str(scratch(home, job))
    set_seed(args.seed)
    model = setup.model_init(job.generation)
    args = fast_arguments(args, model)
    init_sha256 = weights_digest(model)
    _check_fresh(job, home, init_sha256, args.seed)
    folder = teacher_folder(job, home)
    # An adapter is loaded by the trainer, around one base, and known by its own folder.
    by_name = folder and (is_adapted(model) or find_adapter(str(folder), None))
    teacher = folder if by_name else load_teacher(job, home)
    shares_ends = bool(job.arguments.get("share_ends"))
    if shares_ends:
        assert isinstance(teacher, CifarNetForImageClassification)  # as the table has checked
        share_ends(model, teacher)
    dataset = setup.train_dataset
    if isinstance(dataset, ImageViews):  # a copy: the caller's own is not changed
        dataset = dataset.with_seed(args.seed if args.data_seed is None else args.data_seed)
    trainer = make_trainer(model, setup, args, teacher=teacher, train_dataset=dataset)
    trainer.stops_at_nan = True  # generation 0, too, before it is saved
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(GenerationProgress(job.generation, last or job.generation))
    if not job.teachers:
        check_test_set(trainer, setup)
    training = train_to_end(trainer, args.seed if family_seed is None else family_seed)
    record = Record(
        kind="generation",
        family=family,
        generation=job.generation,
        seed=Seed(args.seed, family_seed, init_sha256, weights_digest(trainer.model)),
        training=training,
        architecture=replace(network_architecture(trainer.model), shared_ends=shares_ends),
    )
    if job.teachers:
        weights = args.teacher_weight, args.known_label_weight
        activation = trainer.task.activation(trainer.student, {})
        record.objective = Objective(args.objective, args.temperature, *weights, activation)
        record.teachers = references(job, home, job.teachers)
    if initial_teacher is not None:
        record.teachers = (initial_teacher,)
    _finish(job, home, setup, trainer, record)


def build_ensemble(
    job: Job, home: Path, setup: Setup, args: BANTrainingArguments, *, family: str
) -> None:
    """Put an ensemble together, measure it, and put its folder in place."""
    members = [load_model(home / m.folder, merged=True) for m in job.members]
    model = BornAgainEnsemble.from_members(members)
    record = Record(
        kind="ensemble",
        family=family,
        members=references(job, home, job.members),
        architecture=network_architecture(model),
    )
    _finish(job, home, setup, measuring_trainer(model, setup, args, home), record)


def _finish(job: Job, home: Path, setup: Setup, trainer: BANTrainer, record: Record) -> None:
    """Save a network, measure it, and put its folder in its place: whole or not at all."""
    partial, writes = scratch(home, job) / "finished", trainer.args.should_save
    if writes:
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed here
    trainer.save_model(str(partial))
    if writes:
        # A pickle of the arguments, with paths of this machine; the record has them as JSON.
        (partial / "training_args.bin").unlink(missing_ok=True)
        if is_adapted(trainer.model):
            (partial / CARD).unlink(missing_ok=True)  # peft's, which names the base's folder
            save_head(trainer.model, partial)
        if not job.members:
            write_json(partial / LOG, trainer.state.log_history)
    trainer.accelerator.wait_for_everyone()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    # All as they are saved: the trainer has laid out the others for speed.
    networks = [load_model(home / m.folder, merged=True) for m in job.members]
    networks = networks or [load_model(partial)]
    can_share = can_share_weights(trainer.args, trainer.accelerator)
    if is_adapted(trainer.model) and can_share:
        check_saved(trainer.model, networks[0])
    teacher = load_teacher(job, home)
    for network in (*networks, *([teacher] if teacher else [])):
        if can_share:
            share_frozen(network, trainer.model)
    trained = 0 if job.members else trained
    found = measure(networks, setup, trainer, teacher, trained, teacher_folder(job, home))
    trainer.accelerator.wait_for_everyone()  # all have read the networks in `partial`
    if writes:
        packages = ["peft"] if is_adapted(trainer.model) else []
        record.data, record.code = dict(setup.data), versions(*packages)
        record.metrics = _metric_values(found.get("test", {}))
        record.write(partial)
        folder = home / job.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_evaluation(job, home, found, partial)  # of no network, if a kill follows
        shutil.rmtree(folder, ignore_errors=True)  # an ensemble of fewer members
        os.replace(partial, folder)
        shutil.rmtree(scratch(home, job), ignore_errors=True)
    trainer.accelerator.wait_for_everyone()


def _metric_values(test: Mapping[str, float | int]) -> tuple[MetricValue, ...]:
    """The metrics of the test set as a record has them."""
    return tuple(
        MetricValue(
            name=name,
            value=value if math.isfinite(value) else None,
            split="test",
            n=test["n"],
            higher_is_better=name not in LOWER_IS_BETTER,
        )
        for name, value in test.items()
        if name != "n"
    )


def references(job: Job, home: Path, others: Sequence[Job]) -> tuple[Reference, ...]:
    """How a job's record names its teachers, or its members."""
    return tuple(reference(home / other.folder, home / job.folder) for other in others)


def load_teacher(job: Job, home: Path) -> PreTrainedModel | None:
    """The network that a job learns from; of several their ensemble; None for labels alone."""
    several = len(job.teachers) > 1
    networks = [load_model(home / teacher.folder, merged=several) for teacher in job.teachers]
    if not several:
        return networks[0] if networks else None
    return BornAgainEnsemble.from_members(networks)


def teacher_folder(job: Job, home: Path) -> Path | None:
    """The folder of the network that a job learns from; None if it is not one alone."""
    return home / job.teachers[0].folder if len(job.teachers) == 1 else None


def make_trainer(
    model: PreTrainedModel, setup: Setup, args: BANTrainingArguments, **changes: Any
) -> BANTrainer:
    """A trainer on the data of a setup, but for the changes."""
    data = {"train_dataset": setup.train_dataset, "eval_dataset": setup.eval_dataset}
    return BANTrainer(model, args, **{**data, **setup.trainer, **changes})


def measuring_trainer(
    model: PreTrainedModel, setup: Setup, args: BANTrainingArguments, home: Path
) -> BANTrainer:
    """A trainer for its batches and processes alone: the network stays as it is laid out.

    It makes the folder of its arguments, so it is given one that exists.
    """
    args = copy.copy(args)
    args.output_dir, args.fast = str(home), False
    return make_trainer(model, setup, args)


def measure(
    models: Sequence[PreTrainedModel],
    setup: Setup,
    trainer: BANTrainer,
    teacher: PreTrainedModel | None,
    trained: int,
    teacher_name: Path | None = None,
) -> dict[str, Any]:
    """Measure a network, or the ensemble of several, on the test set, on all processes together.

    Of the trainer its batches and processes are used. Without a test set there is no `test` in what
    is returned. `trained` is the number of parameters that were.
    """
    parameters = {"all": sum(map(parameter_count, models)), "trainable": trained}
    if setup.test_dataset is None:
        return {"parameters": parameters}
    trainer.keep_columns([*models, *([teacher] if teacher else [])])
    loader = _test_loader(trainer, setup)

    def gather(rows: Tensor) -> Tensor:
        # Sentences are padded to the longest of each process; what is added has the weight 0.
        padded = trainer.accelerator.pad_across_processes(rows, dim=1)
        return trainer.accelerator.gather_for_metrics(padded)

    return evaluate(
        models,
        [loader],
        trainer.task,
        device=trainer.args.device,
        in_order=isinstance(setup.test_dataset, TokenWindows),
        teacher=teacher,
        teacher_name=teacher_name,
        processor=trainer.processing_class,
        decode=text_decoder(trainer.processing_class),
        gather=gather,
    ).to_dict(setup.entropy) | {"parameters": parameters}


def _test_loader(trainer: BANTrainer, setup: Setup) -> Iterable[dict[str, Any]]:
    """The batches of the whole test set."""
    # Not those of `get_eval_dataloader`, which may keep the validation set's loader.
    drops, trainer.args.dataloader_drop_last = trainer.args.dataloader_drop_last, False
    loader = trainer.get_test_dataloader(setup.test_dataset)
    trainer.args.dataloader_drop_last = drops
    return loader


def check_test_set(trainer: BANTrainer, setup: Setup) -> None:
    """Raise, before a training, for a test set that its network could not be measured on.

    So for one without labels, labels that are no classes, or that the model reads otherwise.
    """
    if setup.test_dataset is None:
        return
    task, model, classes = trainer.task, trainer.student, None
    with kept_random_states(), trainer.compute_loss_context_manager():
        for batch in _test_loader(trainer, setup):
            if not any(batch.get(name) is not None for name in task.label_names):
                raise BANError("the test set has no labels: there is nothing to measure by.")
            if classes is None:
                classes = check_label_loss(task, model, trainer._prepare_inputs(batch))
            if classes is not None:
                for labels in task.class_numbers(model, batch):
                    check_label_range(labels, classes)
    if classes is None:
        raise BANError("the test set has no labels that count: look at how they are made.")


def evaluation(job: Job, home: Path, setup: Setup, args: BANTrainingArguments) -> dict[str, Any]:
    """What was measured of a job; measured now where nothing was kept."""
    found = read_evaluation(job, home)
    PartialState().wait_for_everyone()  # all have looked before one of them writes
    if found is not None:
        return found
    merged = bool(job.members)
    models = [load_model(home / each.folder, merged=merged) for each in job.members or (job,)]
    trained = 0
    if not job.members:
        trained = sum(p.numel() for p in models[0].parameters() if p.requires_grad)
        if Record.read(home / job.folder).architecture.shared_ends:
            assert isinstance(models[0], CifarNetForImageClassification)
            trained -= sum(p.numel() for end in models[0].network.ends for p in end.parameters())
    trainer = measuring_trainer(models[0], setup, args, home)
    teacher, folder = load_teacher(job, home), teacher_folder(job, home)
    found = measure(models, setup, trainer, teacher, trained, folder)
    if args.should_save:
        write_evaluation(job, home, found)
    PartialState().wait_for_everyone()
    return read_evaluation(job, home) or found


def evaluation_file(job: Job, home: Path) -> Path:
    """Where the measurement of a job is kept: beside the networks, since it is not published."""
    name = job.folder
    if ".." in Path(name).parts:  # a control of elsewhere
        name = f"elsewhere-{sha256_of_json(os.path.abspath(home / name))[:16]}"
    return home / EVALUATIONS / f"{name}.json"


def write_evaluation(
    job: Job, home: Path, found: Mapping[str, Any], folder: Path | None = None
) -> None:
    """Keep what was measured of a job, whose network may not be in its place yet."""
    path = evaluation_file(job, home)
    path.parent.mkdir(parents=True, exist_ok=True)
    networks = _weights([folder] if folder else _measured(job, home))
    write_json(path, dict(found) | {"networks": networks, "job": job.digest, "code": code_digest()})


def read_evaluation(job: Job, home: Path) -> dict[str, Any] | None:
    """What was measured of a job's networks; None if it was not, or of other networks."""
    path, networks = evaluation_file(job, home), _measured(job, home)
    if not (path.is_file() and all(map(is_finished, networks))):
        return None
    found = read_json(path)
    return found if found.get("networks") == _weights(networks) else None


def is_done(job: Job, home: Path) -> bool:
    """Whether a job is finished."""
    if job.saved:
        return is_finished(home / job.folder)
    return read_evaluation(job, home) is not None


def _measured(job: Job, home: Path) -> list[Path]:
    """Folders of the networks that are measured of a job: its own, or its members'."""
    return [home / each.folder for each in ((job,) if job.saved else job.members)]


def _weights(folders: Sequence[Path]) -> list[str]:
    """What identifies networks: the digests of their weights, by their records."""
    return [sha for folder in folders for sha in Record.read(folder).weights_sha256]


def train_to_end(trainer: BANTrainer, seed: int) -> Training:
    """Train, from the last checkpoint if there is one; what the record holds of it.

    The record's seed is that of the run, from which the job's own may be drawn.
    """
    args = trainer.args
    # Without the optimizer's state a training cannot go on from a checkpoint.
    checkpoint = None if args.save_only_model else last_checkpoint(Path(args.output_dir))
    stopwatch = Stopwatch(checkpoint)
    trainer.add_callback(stopwatch)
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    check_trained(trainer.state.global_step)
    arguments = canonical_arguments(args) | {"seed": seed}
    return Training(
        arguments=arguments,
        arguments_sha256=sha256_of_json(arguments),
        steps=trainer.state.global_step,
        # Of a stream the passes are not known: there Trainer counts a share of all steps.
        epochs=trainer.state.epoch if has_length(trainer.train_dataset) else None,
        world_size=args.world_size,
        hardware=hardware(),
        seconds=round(stopwatch.seconds, 1),
        resumed_from=checkpoint.name if checkpoint else None,
    )


def check_trained(steps: int) -> None:
    """Raise unless a training has made a step, naming what may be the cause."""
    if not steps:
        raise BANError(
            "Not one step was trained: look at num_train_epochs, max_steps, "
            "per_device_train_batch_size and dataloader_drop_last."
        )


class Stopwatch(TrainerCallback):
    """The seconds that a training takes, over all its resumes; kept in each checkpoint."""

    def __init__(self, checkpoint: Path | None) -> None:
        path = checkpoint / TIMES if checkpoint else None
        self.before = read_json(path)["seconds"] if path and path.is_file() else 0.0
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        return float(self.before + time.monotonic() - self.started)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_json(folder / TIMES, {"seconds": self.seconds})


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that is whole: `Trainer` writes its `trainer_state.json` last."""
    for step in sorted((int(f.name[11:]) for f in folder.glob("checkpoint-[0-9]*")), reverse=True):
        checkpoint = folder / f"checkpoint-{step}"
        try:
            read_json(checkpoint / "trainer_state.json")
        except (OSError, BANError) as error:
            logger.warning("%s is not whole (%s): an earlier one is used", checkpoint, error)
            continue
        return checkpoint
    return None


def _check_fresh(job: Job, home: Path, init_sha256: str, seed: int) -> None:
    """Raise if fresh weights are those that a teacher, or a teacher's teacher, has had.

    Of one seed, as columns of a table may have, networks begin with the same weights.
    """
    for earlier in in_order([job])[:-1]:
        theirs = Record.read(home / earlier.folder).seed
        begun_alike = init_sha256 == theirs.init_sha256 and seed != theirs.seed
        if begun_alike or init_sha256 == theirs.trained_sha256:
            raise BANError(
                f"model_init({job.generation}) gave the weights that an earlier generation had, "
                "fresh or trained: build a new model each time, with weights drawn from torch's "
                "global generator, which is seeded for each generation."
            )


def quiet_loading() -> None:
    """No progress bar for each load and save of a model; those of training and network stay."""
    shown = not are_progress_bars_disabled()
    transformers.utils.logging.disable_progress_bar()  # the Hub's, too
    if shown:
        enable_progress_bars()
