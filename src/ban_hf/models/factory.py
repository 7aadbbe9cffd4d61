"""Image classifiers by name, ours and timm's through the same call, and their image processor."""

from collections.abc import Sequence
from typing import Any

import timm
from transformers import (
    BaseImageProcessor,
    PreTrainedModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from ban_hf.errors import BANError, did_you_mean

from .cifar_networks import is_cifar_name
from .modeling_cifar import CifarNetConfig, CifarNetForImageClassification
from .timm_registry import PRESETS


def create_classifier(
    name: str,
    *,
    num_labels: int | None = None,
    label_names: Sequence[str] | None = None,
    image_size: int = 32,
    num_channels: int = 3,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    **model_args: Any,
) -> PreTrainedModel:
    """A freshly initialised image classifier; nothing is downloaded.

    The weights are a function of torch's global random state: seed it before.

    Args:
        name: one of `PRESETS`, any other depth and width by the same pattern, such as
            `"cifar_wrn_40_4"`, or any name of `timm.list_models()`, which comes as a
            `TimmWrapperForImageClassification`.
        num_labels: number of classes; may be left out where `label_names` is given.
        label_names: the classes in the order of their labels.
        image_size: height and width of the images.
        num_channels: their channels.
        image_mean: their normalisation per channel, recorded in the config; with `image_std`.
        image_std: see `image_mean`.
        **model_args: arguments of the network (`stem_stride=2`, `dropout=0.3`, `drop_path_rate`).

    Raises:
        ValueError: an unknown name (with the near matches), a depth that its family does not
            have, or labels or normalisation that contradict each other.
    """
    labels = _label_fields(num_labels, label_names)
    images = _image_fields(image_size, num_channels, image_mean, image_std)
    if not is_cifar_name(name) and not timm.is_model(name):
        raise BANError(_unknown(name))
    try:
        if not is_cifar_name(name):
            return _timm_classifier(name, model_args, images, labels)
        config = CifarNetConfig(architecture=name, model_args=model_args, **images, **labels)
        return CifarNetForImageClassification(config)
    except TypeError as error:  # an unexpected keyword
        raise BANError(f"model_args={model_args} are not taken by {name}: {error}") from error


def image_processor(
    image_size: int, image_mean: Sequence[float], image_std: Sequence[float]
) -> BaseImageProcessor:
    """The image processor to save beside a model, so that `pipeline` works on the folder.

    A pixel in 0..255 becomes (pixel / 255 - mean) / std; an image of another size is resized to
    `image_size` x `image_size` first.
    """
    return ViTImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def _timm_classifier(
    name: str, model_args: dict[str, Any], images: dict[str, Any], labels: dict[str, Any]
) -> TimmWrapperForImageClassification:
    size, channels = images["image_size"], images["num_channels"]
    pretrained_cfg = timm.get_pretrained_cfg(name)
    if pretrained_cfg is not None and pretrained_cfg.fixed_input_size:
        model_args = {"img_size": size, **model_args}
    if channels != 3:
        model_args = {"in_chans": channels, **model_args}
    config = TimmWrapperConfig(architecture=name, model_args=model_args, **labels)
    if images["image_mean"] is not None:
        # a folder of a timm model has its image processor read from here
        config.pretrained_cfg = {
            "input_size": [channels, size, size],
            "crop_pct": 1.0,
            "mean": images["image_mean"],
            "std": images["image_std"],
        }
    model = TimmWrapperForImageClassification(config)
    # the wrapper has drawn every weight anew from N(0, 0.02), meant for heads on pretrained bodies
    model.timm_model = timm.create_model(name, num_classes=config.num_labels, **model_args)
    return model


def _image_fields(
    size: int, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    if (mean is None) != (std is None):
        raise BANError("image_mean and image_std go together: give both or neither")
    for name, values in (("image_mean", mean), ("image_std", std)):
        if values is not None and len(values) != channels:
            raise BANError(f"{name} has {len(values)} values for num_channels={channels}")
    return {
        "image_size": size,
        "num_channels": channels,
        "image_mean": None if mean is None else list(mean),
        "image_std": None if std is None else list(std),
    }


def _label_fields(num_labels: int | None, label_names: Sequence[str] | None) -> dict[str, Any]:
    if label_names is None:
        if num_labels is None:
            raise BANError("give num_labels or label_names: the number of classes is unknown")
        return {"num_labels": num_labels}
    if num_labels is not None and num_labels != len(label_names):
        raise BANError(f"num_labels is {num_labels}, but label_names has {len(label_names)}")
    if len(set(label_names)) < len(label_names):
        raise BANError("label_names holds a name twice: each class needs its own")
    return {
        "id2label": dict(enumerate(label_names)),
        "label2id": {label: i for i, label in enumerate(label_names)},
    }


def _unknown(name: str) -> str:
    hint = did_you_mean(name, [*PRESETS, *timm.list_models()], n=5)
    return (
        f"name={name!r} is no model.{hint} It takes a name of timm.list_models(), or "
        "cifar_wrn_DEPTH_WIDTH, cifar_densenet_DEPTH_GROWTH, cifar_preact_resnet_DEPTH, "
        "cifar_densenet_DEPTH_GROWTH_wide_UNITS_RATIO, "
        "cifar_densenet_DEPTH_GROWTH_preact_UNITS_RATIO"
    )
