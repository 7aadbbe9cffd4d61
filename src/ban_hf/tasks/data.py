"""The data of a task: from splits to what trainings on them are given."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

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


def prepare(
    splits: ImageSplits | TextSplits,
    args: Args,
    model_name: str,
    model_args: Mapping[str, Any],
    window: int,
) -> tuple[Args, dict[str, Any]]:
    """A copy of the arguments that fits the data, and the fields of a `Setup` that follow.

    The data are given in whole batches: there are no columns to remove, and nothing to pin. Images
    are moved to the device of `args`, and a text is evaluated in no more columns than it has room
    for.

    Raises:
        BANError: for a window or an evaluation without items, and for arguments of the network
            that the data decide; from `model_init`, for those that the network does not have.
    """
    reads_images = isinstance(splits, ImageSplits)
    check_model_args(model_args, "image-classification" if reads_images else "text-generation")
    args = copy.copy(args)
    args.remove_unused_columns = args.dataloader_pin_memory = False
    create: Callable[..., PreTrainedModel]
    if isinstance(splits, ImageSplits):
        create, parts, of_data = create_classifier, *_image_data(splits, args)
    else:
        create, parts, of_data = create_language_model, *_text_data(splits, args, window)

    def model_init(generation: int) -> PreTrainedModel:
        return create(model_name, **of_data, **model_args)

    return args, parts | {"model_init": model_init}


def _image_data(
    splits: ImageSplits, args: TrainingArguments
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What trainings on images are given, and the arguments of a network that follow."""
    train = splits.train
    for split in (train, splits.validation, splits.test):
        if split is not None:
            split.to(args.device)
    size, mean, std = train.images.shape[-1], train.mean.tolist(), train.std.tolist()
    parts = {
        "train_dataset": train,
        "eval_dataset": splits.validation,
        "test_dataset": splits.test,
        "trainer": {
            "data_collator": collate,
            "compute_metrics": compute_classification_metrics,
            "processing_class": image_processor(size, mean, std),
        },
    }
    of_data = {"image_size": size, "image_mean": mean, "image_std": std}
    return parts, of_data | {"label_names": train.label_names}


def _text_data(
    splits: TextSplits, args: TrainingArguments, window: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same of texts; sets how many columns an evaluation has."""
    processes = args.world_size
    if window < 1 or args.per_device_eval_batch_size < 1:
        raise BANError(
            f"window={window} and per_device_eval_batch_size={args.per_device_eval_batch_size} "
            "must be at least 1."
        )
    columns = evaluation_columns(splits, args.eval_batch_size, window, processes)
    args.per_device_eval_batch_size = columns // processes

    def windows(split: str, batch_size: int, warmup: int = 0) -> TokenWindows:
        tokens = getattr(splits, split)
        try:
            return TokenWindows(tokens, batch_size * processes, window=window, warmup=warmup)
        except BANError as error:
            raise BANError(f"{split} text: {error}") from error

    parts = {
        "train_dataset": windows("train", args.train_batch_size),
        "eval_dataset": windows("validation", args.eval_batch_size, WARM_UP * window),
        "test_dataset": windows("test", args.eval_batch_size, WARM_UP * window),
        "trainer": {"data_collator": default_data_collator, "processing_class": splits.tokenizer},
    }
    return parts, {"words": splits.words}


# What images a classifier reads


class ImageFormat(NamedTuple):
    """What a classifier reads: square images, and the mean and deviation of each channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_format(
    processor: Mapping[str, Any] | None, config: PretrainedConfig, place: str
) -> ImageFormat:
    """What a classifier reads.

    Args:
        processor: the image processor that is saved beside it, if one is.
        config: of the model, for one without a processor.
        place: of the model, for an error.

    Raises:
        BANError: if neither tells, or it is more than a resize to a square and a normalization.
    """
    found = _of_config(config) if processor is None else _of_processor(processor, place)
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


def _of_processor(processor: Mapping[str, Any], place: str) -> ImageFormat:
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
