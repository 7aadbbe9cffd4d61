"""What all trainings on one data set have in common: data, networks, how they are measured.

What `image_task` and `language_task` give are keywords of `train_generations`; those of
`BANTrainer` are among them.
"""

import copy
from typing import Any

from transformers import PreTrainedModel, default_data_collator

from ban_hf.data import ImageSplits, TextSplits, collate
from ban_hf.data.text import WARM_UP, evaluation_columns
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.models import (
    check_model_args,
    create_classifier,
    create_language_model,
    image_processor,
)
from ban_hf.tasks.metrics import compute_classification_metrics
from ban_hf.training.arguments import BANTrainingArguments


def ready_batches(args: BANTrainingArguments) -> BANTrainingArguments:
    """Arguments for data of ours, given in whole batches: no columns to remove, nothing to pin."""
    args = copy.copy(args)
    args.remove_unused_columns = args.dataloader_pin_memory = False
    return args


def text_arguments(
    splits: TextSplits, args: BANTrainingArguments, window: int
) -> BANTrainingArguments:
    """Arguments for texts that are read in windows: no more columns than the texts have room for.

    Raises:
        ValueError: for a window or an evaluation without items.
    """
    if window < 1 or args.per_device_eval_batch_size < 1:
        raise BANError(
            f"window={window} and per_device_eval_batch_size={args.per_device_eval_batch_size} "
            "must be at least 1."
        )
    args = ready_batches(args)
    columns = evaluation_columns(splits, args.eval_batch_size, window, args.world_size)
    args.per_device_eval_batch_size = columns // args.world_size
    return args


def image_task(
    splits: ImageSplits, args: BANTrainingArguments, model_name: str, model_args: dict[str, Any]
) -> dict[str, Any]:
    """Images, classifiers and their metrics; the images are moved to the device of `args`."""
    check_model_args(model_args, "image-classification")
    for split in (splits.train, splits.validation, splits.test):
        if split is not None:
            split.to(args.device)
    train = splits.train
    mean, std, size = train.mean.tolist(), train.std.tolist(), train.images.shape[-1]

    def model_init(generation: int) -> PreTrainedModel:
        return create_classifier(
            model_name,
            label_names=train.label_names,
            image_size=size,
            image_mean=mean,
            image_std=std,
            **model_args,
        )

    return {
        "model_init": model_init,
        "train_dataset": train,
        "eval_dataset": splits.validation,
        "test_dataset": splits.test,
        "data_collator": collate,
        "compute_metrics": compute_classification_metrics,
        "processing_class": image_processor(size, mean, std),
        "data": {"source": splits.source},
    }


def language_task(
    splits: TextSplits,
    args: BANTrainingArguments,
    model_name: str,
    model_args: dict[str, Any],
    window: int,
) -> dict[str, Any]:
    """Windows of a text, language models and their tokenizer; `args` from `text_arguments`."""
    check_model_args(model_args, "text-generation")

    def model_init(generation: int) -> PreTrainedModel:
        return create_language_model(model_name, words=splits.words, **model_args)

    def windows(split: str, columns: int, **options: int) -> TokenWindows:
        try:
            return TokenWindows(getattr(splits, split), columns, window=window, **options)
        except ValueError as error:
            raise BANError(f"{split} text: {error}") from error

    together = args.train_batch_size * args.world_size
    evaluation = {"columns": args.eval_batch_size * args.world_size, "warmup": WARM_UP * window}
    return {
        "model_init": model_init,
        "train_dataset": windows("train", together),
        "eval_dataset": windows("validation", **evaluation),
        "test_dataset": windows("test", **evaluation),
        "data_collator": default_data_collator,
        "processing_class": splits.tokenizer,
        "data": {"source": splits.source},
    }
