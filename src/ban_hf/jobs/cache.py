"""A teacher's cache filled ahead of the trainings that will read it: what `ban-hf cache` does."""

import copy
import math
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, default_data_collator

from ban_hf.data.arguments import DataArguments, load_splits
from ban_hf.data.augmentation import ImageViews, collate
from ban_hf.data.description import describe_data
from ban_hf.data.images import ImageSplits
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.jobs.job import generation_seed
from ban_hf.lineage.record import Record
from ban_hf.tasks.auto import task_of
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.trainer import BANTrainer

#: Arguments of a record that say how a training publishes, or chooses, which none is here.
UNWANTED = frozenset("load_best_model_at_end eval_strategy".split())


def fill_cache(
    teacher: PreTrainedModel,
    record: Record,
    folder: str | Path,
    data: DataArguments,
    *,
    seed: int | None = None,
    epochs: float | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Store all outputs of a generation that its students will need.

    Batch size, epochs, precision and seed are those that the teacher was trained with, by its
    record, as they are in a sequence, where students have its arguments; `seed` and `epochs` are of
    students that have others. What the folder holds already is not computed again.

    Returns:
        `folder`, `items`, and the `files` and `bytes` on the disk.

    Raises:
        BANError: if the data are not what the teacher was trained on, or the cache refuses (see
            `TeacherCache`).
    """
    check_epochs(epochs)
    with tempfile.TemporaryDirectory() as scratch:
        changes: dict[str, Any] = {"seed": seed} if seed is not None else {}
        changes |= {"num_train_epochs": epochs, "max_steps": -1} if epochs else {}
        args = _arguments(record, scratch, changes)
        args.teacher_cache, args.teacher_cache_dtype = str(folder), dtype
        dataset = _training_data(teacher, record, data)
        is_images = isinstance(dataset, ImageViews)
        if isinstance(dataset, ImageViews):
            views_seed = generation_seed(args.seed, int(record.generation or 0) + 1)
            dataset = dataset.with_seed(views_seed if args.data_seed is None else args.data_seed)
            dataset.to(args.device)
        trainer = BANTrainer(
            type(teacher)(copy.deepcopy(teacher.config)),
            args,
            teacher=teacher,
            train_dataset=dataset,
            data_collator=collate if is_images else default_data_collator,
        )
        trainer.fill_teacher_cache()
    files = [file for file in Path(folder).iterdir() if file.suffix == ".npy"]
    return {
        "folder": str(folder),
        "files": len(files),
        "items": len(dataset),
        "bytes": sum(file.stat().st_size for file in files),
    }


def check_epochs(epochs: float | None) -> None:
    """Raise unless a number of epochs, if one is given, is above 0 and finite."""
    if epochs is not None and not 0 < epochs < math.inf:
        raise BANError(f"epochs={epochs} must be above 0, and finite.")


def _arguments(record: Record, scratch: str, changes: dict[str, Any]) -> BANTrainingArguments:
    """The arguments of a record's training, for one that saves nothing."""
    known = {field.name for field in fields(BANTrainingArguments) if field.init} - UNWANTED
    noted = {k: v for k, v in (record.training.arguments or {}).items() if k in known}
    own = {"report_to": "none", "remove_unused_columns": False, "dataloader_pin_memory": False}
    return BANTrainingArguments(scratch, **noted | own | changes)


def _training_data(
    teacher: PreTrainedModel, record: Record, data: DataArguments
) -> ImageViews | TokenWindows:
    """The data that a teacher's record names.

    Raises:
        BANError: if these are others.
    """
    noted, trained = record.data["train"], record.training.arguments or {}
    splits = load_splits(data, task_of(teacher).name)
    if isinstance(splits, ImageSplits):
        dataset: ImageViews | TokenWindows = splits.train
        flags = "--validation, --train_samples, --split_seed, --image_size"
    else:
        columns = trained["per_device_train_batch_size"] * trained["world_size"]
        dataset = TokenWindows(splits.train, columns, window=noted["window"])
        flags = "--vocabulary_size, --train_words"
    if describe_data(dataset) != noted:
        raise BANError(
            f"{data.dataset_name} as it is given is not what the teacher was trained on: "
            f"{len(dataset):,} items here, {noted['items']:,} of its record. Give the {flags} that "
            "its run was given."
        )
    return dataset
