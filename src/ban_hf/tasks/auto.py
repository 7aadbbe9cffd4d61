"""From a model to its task: the Auto classes, by the model's class and never by a shape."""

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
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

from ban_hf.errors import BANError, did_you_mean
from ban_hf.lineage.names import ENSEMBLE
from ban_hf.tasks.base import Task
from ban_hf.tasks.classification import ImageClassification, SequenceClassification
from ban_hf.tasks.language import CausalLanguageModeling

#: The tasks by the Hub's pipeline tag.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (ImageClassification(), SequenceClassification(), CausalLanguageModeling())
}
#: The Auto class of each task, and the classes of models that it knows.
AUTO_CLASSES: dict[str, tuple[Any, Any]] = {
    "image-classification": (
        AutoModelForImageClassification,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    ),
    "text-classification": (
        AutoModelForSequenceClassification,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    ),
    "text-generation": (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
}
#: The task of a class that no Auto class knows, by what `transformers` takes its loss to be.
TASK_OF_LOSS = {
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "text-generation",
}


def task_of(model: nn.Module | PretrainedConfig) -> Task:
    """The task of a model, or of the model that a config was saved with.

    It is found by the class, or one that it is derived from, in the mappings of the Auto classes,
    then by `loss_type`. The task of an ensemble is that of its members.

    Raises:
        BANError: naming the class and the tasks, if there is none.
    """
    names = class_names(model)
    if isinstance(model, PreTrainedModel | PretrainedConfig):
        config = model if isinstance(model, PretrainedConfig) else model.config
        if config.model_type == ENSEMBLE:
            return task_of(member_config(first_member(config)))
        for name in AUTO_CLASSES:
            if _knows(name, config, names):
                return TASKS[name]
    if isinstance(model, PreTrainedModel) and model.loss_type in TASK_OF_LOSS:
        return TASKS[TASK_OF_LOSS[model.loss_type]]
    raise BANError(
        f"{names[0] if names else 'a model without a head'} cannot be distilled: there must be a "
        f"head for one of {', '.join(TASKS)}, and the model must be known to the Auto classes "
        "(`AutoModelForImageClassification.register`). For a class of your own give BANTrainer "
        "its task, by name or as a Task."
    )


def class_names(model: nn.Module | PretrainedConfig) -> list[str]:
    """The names of a model's class and its bases, or of the class that a config was saved with."""
    if isinstance(model, nn.Module):
        return [cls.__name__ for cls in type(model).__mro__]
    if isinstance(model, TimmWrapperConfig) and not model.architectures:  # as timm writes it
        return ["TimmWrapperForImageClassification"]
    return list(model.architectures or [])


def resolve_task(task: str | Task | None, model: nn.Module) -> Task:
    """The task that is named, or the model's own.

    Args:
        task: a name in `TASKS`, a task, or None.
        model: of the training.

    Raises:
        BANError: for a name that is unknown, or that does not fit a model with a task of its own.
    """
    if isinstance(task, Task):
        return task
    if task is None:
        return task_of(model)
    if task not in TASKS:
        raise BANError(
            f"task={task!r} is unknown.{did_you_mean(task, TASKS)} There is {', '.join(TASKS)}."
        )
    if isinstance(model, PreTrainedModel):
        names = class_names(model)
        fitting = [name for name in AUTO_CLASSES if _knows(name, model.config, names)]
        if fitting and task not in fitting:
            raise BANError(
                f"task={task!r} does not fit {type(model).__name__}, whose task is {fitting[0]!r}: "
                "leave task out."
            )
    return TASKS[task]


def _knows(task: str, config: PretrainedConfig, names: list[str]) -> bool:
    """Whether the Auto class of a task knows one of these classes, for such a config."""
    heads = AUTO_CLASSES[task][1].get(type(config), ())  # a class, or several (DeiT)
    heads = heads if isinstance(heads, tuple) else (heads,)
    return any(head.__name__ in names for head in heads)


def first_member(config: PretrainedConfig) -> dict[str, Any]:
    """The config of an ensemble's first member, as the ensemble's config holds it."""
    members: list[dict[str, Any]] = config.to_dict()["members"]
    if not members:
        raise BANError("An ensemble without members has no task.")
    return members[0]


def member_config(member: dict[str, Any]) -> PretrainedConfig:
    """The config of a member, from what the config of its ensemble holds."""
    # from_dict, since some configs (timm's) read other names than their constructor takes; it may
    # change what it reads.
    found: PretrainedConfig = CONFIG_MAPPING[member["model_type"]].from_dict(copy.deepcopy(member))
    return found


def auto_class(config: PretrainedConfig) -> Any:
    """The Auto class of the model that a config was saved with.

    Raises:
        BANError: see `task_of`.
    """
    return AUTO_CLASSES[task_of(config).name][0]


def check_loadable(model: PreTrainedModel) -> None:
    """Raise unless a model can be loaded again once it is saved; for use before it is trained.

    Raises:
        BANError: if `load_model` will not know its class.
    """
    config = copy.copy(model.config)
    config.architectures = [type(model).__name__]
    auto_class(config)


def build_model(config: PretrainedConfig) -> PreTrainedModel:
    """A freshly initialized model of a saved config, with the head that it was saved with."""
    model: PreTrainedModel = auto_class(config).from_config(config)
    return model


def load_model(name: str | Path) -> PreTrainedModel:
    """Load a model with its head from a local folder or from the Hub; never runs remote code.

    Args:
        name: a folder that `save_pretrained` wrote, or a Hub id, with `@revision` if wanted.

    Raises:
        BANError: if there is no such folder or id, or no task knows its head.
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
        model: PreTrainedModel = auto_class(config).from_pretrained(where, **kwargs)
    except SafetensorError as error:
        raise BANError(f"{str(name)!r} has weights that cannot be read: {error}") from error
    # Copied out of the mapped file, where tensors are not aligned: the last bit of a convolution
    # depends on that, and so would a student on whether its teacher was loaded.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model
