"""A teacher's cache filled ahead of the trainings that will read it: what `ban-hf cache` does."""

import copy
import math
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel, default_data_collator

from ban_hf.data import ImageViews, TokenWindows, collate, load_images, load_text
from ban_hf.data.description import describe_data
from ban_hf.errors import BANError
from ban_hf.hub.location import locate
from ban_hf.hub.verification import ancestry
from ban_hf.jobs.generation import generation_seed
from ban_hf.jobs.members import NamedDataset
from ban_hf.lineage.record import Record, finished_generations
from ban_hf.tasks.heads import load_classifier
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.ensemble import is_language_model
from ban_hf.training.trainer import BANTrainer

#: Arguments of a record that say how a training publishes, or chooses, which none is here.
UNWANTED = frozenset("load_best_model_at_end eval_strategy".split())


@dataclass(frozen=True)
class TrainingData(NamedDataset):
    """The training data of the run that a teacher is of, as its recipe was given them."""

    image_size: int | None = None
    validation: float = 0.1
    split_seed: int = 0
    train_samples: int | None = None
    vocabulary_size: int | None = None
    train_words: int | None = None


def fill_cache(
    teacher: str,
    folder: str | Path,
    data: TrainingData,
    *,
    seed: int | None = None,
    epochs: float | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Ask a generation all that its students will ask it, and keep what it says.

    Batch size, epochs, precision and seed are those that the teacher was trained with, by its
    record, as they are in a sequence, where students have its arguments.

    Args:
        teacher: a generation: a local folder, or a Hub id (`ns/family-gen2@v1`).
        folder: of the cache; what is there already is not asked again.
        data: what it was trained on.
        seed: of the students' family, where that is another than the teacher's.
        epochs: of the students, where that is another number than the teacher's.
        dtype: `"float32"`, or `"float16"`, which rounds.

    Returns:
        `teacher`, `folder`, `items`, and the `files` and `bytes` on the disk.

    Raises:
        ValueError: if the teacher is no generation, the data are not what it was trained on, or the
            cache refuses (see `TeacherCache`).
    """
    if epochs is not None and not 0 < epochs < math.inf:
        raise BANError(f"epochs={epochs} must be above 0, and finite.")
    if finished_generations(Path(teacher)):
        raise BANError(f"{teacher!r} is a family: name one of its generations.")
    place = locate(teacher)
    record = ancestry(place)[-1].record
    if record.kind != "generation":
        raise BANError(f"{teacher!r} is an ensemble: name one of its generations.")
    with tempfile.TemporaryDirectory() as scratch:
        changes = {"seed": seed} | ({"num_train_epochs": epochs, "max_steps": -1} if epochs else {})
        args = _arguments(record, scratch, changes)
        args.teacher_cache, args.teacher_cache_dtype = str(folder), dtype
        model = load_classifier(str(place))
        dataset = _training_data(model, record, data)
        if isinstance(dataset, ImageViews):
            views_seed = generation_seed(args.seed, int(record.generation or 0) + 1)
            dataset.seed = views_seed if args.data_seed is None else args.data_seed
            dataset.to(args.device)
        trainer = BANTrainer(
            type(model)(copy.deepcopy(model.config)),
            args,
            teacher=model,
            train_dataset=dataset,
            data_collator=collate if isinstance(dataset, ImageViews) else default_data_collator,
        )
        trainer.fill_teacher_cache()
    files = [file for file in Path(folder).iterdir() if file.suffix == ".npy"]
    return {
        "teacher": str(place),
        "folder": str(folder),
        "files": len(files),
        "items": len(dataset),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _arguments(record: Record, scratch: str, changes: dict[str, Any]) -> BANTrainingArguments:
    """The arguments of a record's training, for one that saves nothing."""
    known = {field.name for field in fields(BANTrainingArguments) if field.init} - UNWANTED
    noted = {k: v for k, v in record.training["arguments"].items() if k in known}
    given = {name: value for name, value in changes.items() if value is not None}
    own = {"report_to": "none", "remove_unused_columns": False, "dataloader_pin_memory": False}
    return BANTrainingArguments(scratch, **noted | own | given)


def _training_data(
    model: PreTrainedModel, record: Record, data: TrainingData
) -> ImageViews | TokenWindows:
    """The data that a teacher's record names.

    Raises:
        ValueError: if these are others.
    """
    noted = record.data["train"]
    dataset: Dataset
    if is_language_model(model):
        text = load_text(
            data.dataset_name,
            config=data.dataset_config,
            revision=data.dataset_revision,
            text_column=data.text_column,
            vocabulary_size=data.vocabulary_size,
            train_words=data.train_words,
        )
        trained = record.training["arguments"]
        columns = trained["per_device_train_batch_size"] * trained["world_size"]
        dataset = TokenWindows(text.train, columns, window=noted["window"])
        flags = "--vocabulary_size, --train_words"
    else:
        dataset = load_images(
            data.dataset_name,
            config=data.dataset_config,
            revision=data.dataset_revision,
            image_column=data.image_column,
            label_column=data.label_column,
            image_size=data.image_size,
            validation=data.validation,
            train_samples=data.train_samples,
            seed=data.split_seed,
        ).train
        flags = "--validation, --train_samples, --split_seed, --image_size"
    if describe_data(dataset) != noted:
        raise BANError(
            f"{data.dataset_name} as it is given is not what the teacher was trained on: "
            f"{len(dataset):,} items here, {noted['items']:,} of its record. Give the {flags} that "
            "its run was given."
        )
    return dataset
