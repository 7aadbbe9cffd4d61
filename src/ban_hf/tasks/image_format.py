"""What images a classifier reads: from its image processor, or from its config."""

import math
from typing import Any, NamedTuple

from transformers import PretrainedConfig, TimmWrapperConfig

from ban_hf.errors import BANError
from ban_hf.hub.location import Location
from ban_hf.lineage.files import read_json
from ban_hf.models import CifarNetConfig

PROCESSOR = "preprocessor_config.json"


class ImageFormat(NamedTuple):
    """What a classifier reads: square images, and the mean and deviation of each channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def image_format(place: Location, config: PretrainedConfig) -> ImageFormat:
    """What a classifier reads, by the processor saved beside it, or by its config.

    Args:
        place: of the model.
        config: of the model.

    Raises:
        ValueError: if neither says so, or it is more than a resize to a square and a normalisation.
    """
    if PROCESSOR in place.names():
        return _of_processor(place, read_json(place.fetch(PROCESSOR)))
    found = _of_config(config)
    if found is None:
        raise BANError(
            f"{place} has no {PROCESSOR} beside its weights, and its config does not say either "
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


def _of_processor(place: Location, processor: dict[str, Any]) -> ImageFormat:
    size = processor.get("size")
    height, width = (
        (size.get("height"), size.get("width")) if isinstance(size, dict) else [size] * 2
    )
    normalises, scales = (processor.get(f"do_{step}", True) for step in ("normalize", "rescale"))
    mean = tuple(processor.get("image_mean", ())) if normalises else (0.0,) * 3
    std = tuple(processor.get("image_std", ())) if normalises else (1.0,) * 3
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
                f"the image processor of {place} {reason}. Measured can be models that read images "
                "of three channels, resized to a square, as (pixel / 255 - mean) / deviation."
            )
    return ImageFormat(int(height or 0), mean, std)
