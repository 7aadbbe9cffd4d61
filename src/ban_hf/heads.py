"""Which Auto class a classifier belongs to, and how it is loaded by it."""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)

TASKS = {
    AutoModelForImageClassification: MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification: MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING,
}


def auto_class(config: PretrainedConfig):
    """The Auto class of the model that a config was saved with.

    Raises:
        ValueError: if it has no head for image or sequence classification or language modelling.
    """
    for auto, mapping in TASKS.items():
        head = mapping.get(type(config), None)
        if head is not None and head.__name__ in (config.architectures or []):
            return auto
    raise ValueError(
        f"{', '.join(config.architectures or ['a model without a head'])} cannot be distilled: "
        "there must be a head for image or sequence classification, or a causal language model."
    )


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
    where, kwargs = str(name), {}
    if not Path(name).is_dir():
        where, _, revision = where.partition("@")
        kwargs = {"revision": revision or "main"}
    try:
        config = AutoConfig.from_pretrained(where, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(name)!r} cannot be loaded: it must be a folder written by save_pretrained, or "
            f"a Hub id such as 'ns/name@revision'. ({error})"
        ) from error
    return auto_class(config).from_pretrained(where, **kwargs)
