"""The data of a task: from splits to what a trainer and a sequence are given.

`prepare` and `network_builder` together give keywords of `train_generations`; those of `BANTrainer`
are among them.
"""

import copy
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
    TrainingArguments,
    default_data_collator,
)

from ban_hf.data.augmentation import collate
from ban_hf.data.images import ImageSplits
from ban_hf.data.text import WARM_UP, TextSplits, evaluation_columns
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.lineage.files import read_json
from ban_hf.models.configuration import CifarNetConfig
from ban_hf.models.factory import (
    check_model_args,
    create_classifier,
    create_language_model,
    image_processor,
)
from ban_hf.tasks.metrics import compute_classification_metrics

Args = TypeVar("Args", bound=TrainingArguments)

PROCESSOR_FILE = "preprocessor_config.json"


def prepare_arguments(
    splits: ImageSplits | TextSplits, args: Args, window: int | None = None
) -> Args:
    """A copy of the arguments that fits the data, which are given in whole batches.

    There are no columns to remove, and nothing to pin. A text is evaluated in no more columns than
    it has room for.

    Args:
        splits: of the data.
        args: of the training.
        window: words at a time, of a text.

    Raises:
        BANError: for a window or an evaluation without items.
    """
    args = copy.copy(args)
    args.remove_unused_columns = args.dataloader_pin_memory = False
    if isinstance(splits, TextSplits):
        if window is None or window < 1 or args.per_device_eval_batch_size < 1:
            raise BANError(
                f"window={window} and per_device_eval_batch_size="
                f"{args.per_device_eval_batch_size} must be at least 1."
            )
        columns = evaluation_columns(splits, args.eval_batch_size, window, args.world_size)
        args.per_device_eval_batch_size = columns // args.world_size
    return args


def prepare(
    splits: ImageSplits | TextSplits, args: TrainingArguments, window: int | None = None
) -> dict[str, Any]:
    """Datasets, collator, processor and metrics of a training, as keywords.

    Images are moved to the device of `args`.

    Args:
        splits: of the data.
        args: from `prepare_arguments`.
        window: words at a time, of a text.
    """
    if isinstance(splits, TextSplits):
        return _prepare_text(splits, args, int(window or 0))
    for split in (splits.train, splits.validation, splits.test):
        if split is not None:
            split.to(args.device)
    return {
        "train_dataset": splits.train,
        "eval_dataset": splits.validation,
        "test_dataset": splits.test,
        "data_collator": collate,
        "compute_metrics": compute_classification_metrics,
        "processing_class": image_processor(*_format_of(splits)),
        "data": {"source": splits.source},
    }


def _prepare_text(splits: TextSplits, args: TrainingArguments, window: int) -> dict[str, Any]:
    def windows(split: str, columns: int, warmup: int = 0) -> TokenWindows:
        try:
            return TokenWindows(getattr(splits, split), columns, window=window, warmup=warmup)
        except ValueError as error:
            raise BANError(f"{split} text: {error}") from error

    columns, warmup = args.eval_batch_size * args.world_size, WARM_UP * window
    return {
        "train_dataset": windows("train", args.train_batch_size * args.world_size),
        "eval_dataset": windows("validation", columns, warmup),
        "test_dataset": windows("test", columns, warmup),
        "data_collator": default_data_collator,
        "processing_class": splits.tokenizer,
        "data": {"source": splits.source},
    }


def network_builder(
    splits: ImageSplits | TextSplits, name: str, model_args: dict[str, Any]
) -> Callable[[int], PreTrainedModel]:
    """`model_init` of a sequence on these data: a fresh network for each generation.

    Args:
        splits: of the data.
        name: of the architecture.
        model_args: further arguments of the network.

    Raises:
        BANError: for arguments that the data decide; from the result, for those that the
            architecture does not have.
    """
    is_text = isinstance(splits, TextSplits)
    check_model_args(model_args)

    def of_words(generation: int) -> PreTrainedModel:
        assert isinstance(splits, TextSplits)
        return create_language_model(name, words=splits.words, **model_args)

    def of_images(generation: int) -> PreTrainedModel:
        assert isinstance(splits, ImageSplits)
        size, mean, std = _format_of(splits)
        return create_classifier(
            name,
            label_names=splits.train.label_names,
            image_size=size,
            image_mean=mean,
            image_std=std,
            **model_args,
        )

    return of_words if is_text else of_images


def _format_of(splits: ImageSplits) -> tuple[int, list[float], list[float]]:
    """Size, mean and deviation of the images."""
    train = splits.train
    return train.images.shape[-1], train.mean.tolist(), train.std.tolist()


# What images a classifier reads


class ModelFiles(Protocol):
    """The files beside a model's weights, in a folder or on the Hub."""

    def names(self) -> Collection[str]:
        """Their names."""
        ...

    def fetch(self, name: str) -> Path:
        """One of them, on this machine."""
        ...


class ImageFormat(NamedTuple):
    """What a classifier reads: square images, and the mean and deviation of each channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_format(place: ModelFiles, config: PretrainedConfig) -> ImageFormat:
    """What a classifier reads, by the processor saved beside it, or by its config.

    Args:
        place: of the model.
        config: of the model.

    Raises:
        BANError: if neither tells, or it is more than a resize to a square and a normalization.
    """
    if PROCESSOR_FILE in place.names():
        return _of_processor(place, read_json(place.fetch(PROCESSOR_FILE)))
    found = _of_config(config)
    if found is None:
        raise BANError(
            f"{place} has no {PROCESSOR_FILE} beside its weights, and its config does not tell "
            "which images it reads (size, mean and deviation, no crop): save its image processor "
            "there."
        )
    return found


def _of_config(config: PretrainedConfig) -> ImageFormat | None:
    if isinstance(config, CifarNetConfig) and config.image_mean and config.image_std:
        return ImageFormat(config.image_size, tuple(config.image_mean), tuple(config.image_std))
    known = config.pretrained_cfg if isinstance(config, TimmWrapperConfig) else None
    if known and known["crop_pct"] == 1 and known["input_size"][1] == known["input_size"][2]:
        return ImageFormat(known["input_size"][1], tuple(known["mean"]), tuple(known["std"]))
    return None


def _of_processor(place: ModelFiles, processor: dict[str, Any]) -> ImageFormat:
    size = processor.get("size")
    height, width = (
        (size.get("height"), size.get("width")) if isinstance(size, dict) else [size] * 2
    )
    normalizes, scales = (processor.get(f"do_{step}", True) for step in ("normalize", "rescale"))
    mean = tuple(processor.get("image_mean", ())) if normalizes else (0.0,) * 3
    std = tuple(processor.get("image_std", ())) if normalizes else (1.0,) * 3
    reasons = {
        "does not resize to a square": not height or height != width,
        "keeps the size": not processor.get("do_resize", True),
        "crops": processor.get("do_center_crop"),
        "pads": processor.get("do_pad"),
        "does not scale pixels to 0..1": not scales
        or not math.isclose(processor.get("rescale_factor", 1 / 255), 1 / 255),
        "is not for three channels": not len(mean) == len(std) == 3,
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise BANError(
                f"the image processor of {place} {reason}. Only models that read images "
                "of three channels, resized to a square, as (pixel / 255 - mean) / deviation can "
                "be measured."
            )
    return ImageFormat(int(height or 0), mean, std)
