"""Which Auto class a classifier belongs to, and how it is loaded."""

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from ban_hf.errors import BANError

TASKS = {
    AutoModelForImageClassification: MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
}


def auto_class(config: PretrainedConfig) -> Any:
    """The Auto class of the model that a config was saved with.

    Raises:
        ValueError: if it has no head for image or sequence classification or language modelling.
    """
    named = config.architectures or []
    if isinstance(config, TimmWrapperConfig) and not named:  # as timm itself writes it on the Hub
        named = ["TimmWrapperForImageClassification"]
    for auto, mapping in TASKS.items():
        heads = mapping.get(type(config), ())  # a class, or several (DeiT)
        heads = heads if isinstance(heads, tuple) else (heads,)
        if any(head.__name__ in named for head in heads):
            return auto
    raise BANError(
        f"{', '.join(named or ['a model without a head'])} cannot be distilled: there must be a "
        "head for image or sequence classification, or a causal language model, and the model must "
        "be known to the Auto classes (`AutoModelForImageClassification.register`)."
    )


def check_loadable(model: PreTrainedModel) -> None:
    """Hold that a model, once saved, can be loaded again: better asked before it is trained.

    Raises:
        ValueError: if `load_classifier` will not know its class.
    """
    config = copy.copy(model.config)
    config.architectures = [type(model).__name__]
    auto_class(config)


def build_classifier(config: PretrainedConfig) -> PreTrainedModel:
    """A freshly initialised model of a saved config, with the head that it was saved with."""
    return auto_class(config).from_config(config)


def load_classifier(name: str | Path) -> PreTrainedModel:
    """Load a model with its head from a local folder or from the Hub; never runs remote code.

    Args:
        name: a folder that `save_pretrained` wrote, or a Hub id, with `@revision` if wanted.

    Raises:
        ValueError: if there is no such folder or id, or its head is none that we can distil.
    """
    kwargs: dict[str, Any]
    where, kwargs = str(name), {"trust_remote_code": False}  # None would ask on a terminal
    if not Path(name).is_dir():
        where, _, revision = where.partition("@")
        kwargs["revision"] = revision or "main"
        if Path(where).is_dir():  # transformers would take it for the repository
            raise BANError(
                f"{str(name)!r}: there is a folder {where} here, which would be loaded in place of "
                "that commit. Run this from another folder."
            )
    try:
        config = AutoConfig.from_pretrained(where, **kwargs)
    except (OSError, ValueError) as error:
        raise BANError(
            f"{str(name)!r} cannot be loaded: it must be a folder written by save_pretrained, or "
            f"a Hub id such as 'ns/name@revision'. ({error})"
        ) from error
    try:
        model = auto_class(config).from_pretrained(where, **kwargs)
    except SafetensorError as error:
        raise BANError(f"{str(name)!r} has weights that cannot be read: {error}") from error
    # Out of the mapped file, where they lie at odd addresses: a convolution's last bit depends on
    # that, and so would a student on whether its teacher was loaded or stayed in memory.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def load_renamed_weights(model: nn.Module, checkpoint: str | Path) -> bool:
    """Load a checkpoint whose weights have other names than the model's; say whether it was one.

    `save_pretrained` writes some architectures (ViT is one) under the names of their first release.
    `Trainer` resumes without the way back, with a warning and random weights in their place
    (https://github.com/huggingface/transformers/issues/43701).
    """
    file = Path(checkpoint) / SAFE_WEIGHTS_NAME
    if not isinstance(model, PreTrainedModel) or not file.is_file():
        return False
    with safe_open(file, "pt") as weights:
        if set(weights.keys()) <= model.state_dict().keys():
            return False
    model.load_state_dict(type(model).from_pretrained(checkpoint).state_dict())
    return True
