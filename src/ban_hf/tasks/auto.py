"""From a model to its task: the Auto classes, by the model's class and never by a shape."""

import copy
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
    TimmWrapperConfig,
)

from ban_hf.errors import BANError, did_you_mean
from ban_hf.lineage.catalog import ENSEMBLE
from ban_hf.tasks import heads
from ban_hf.tasks.base import Task

#: The tasks by name: the Hub's pipeline tag, where it has one for them.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        heads.ImageClassification(),
        heads.SequenceClassification(),
        heads.AudioClassification(),
        heads.VideoClassification(),
        heads.MultipleChoice(),
        heads.NextSentencePrediction(),
        heads.TokenClassification(),
        heads.AudioFrameClassification(),
        heads.QuestionAnswering(),
        heads.SemanticSegmentation(),
        heads.Seq2SeqLanguageModeling(),
        heads.MaskedLanguageModeling(),
        heads.CausalLanguageModeling(),
        heads.SpeechSeq2Seq(),
        heads.CTC(),
        heads.ImageTextToText(),
    )
}


def task_of(model: nn.Module | PretrainedConfig) -> Task:
    """The task of a model, or of the model that a config was saved with.

    It is found by the class, or one that it is derived from, in the mappings of the Auto classes,
    then by `loss_type`. The task of an ensemble is that of its members.

    Raises:
        BANError: naming the class and the tasks, if there is none.
    """
    if isinstance(model, PreTrainedModel | PretrainedConfig):
        config = model if isinstance(model, PretrainedConfig) else model.config
        if config.model_type == ENSEMBLE:
            members = config.to_dict()["members"]
            if not members:
                raise BANError("An ensemble without members has no task.")
            return task_of(member_config(members[0]))
        known = _tasks_that_know(model)
        if known:
            return known[0]
    for task in TASKS.values() if isinstance(model, PreTrainedModel) else ():
        if task.facts.loss_type is not None and task.facts.loss_type == model.loss_type:
            return task
    names = _class_names(model)
    raise BANError(
        f"{names[0] if names else 'a model without a head'} cannot be distilled: there must be a "
        f"head for one of {', '.join(TASKS)}, and the model must be known to the Auto classes "
        "(`AutoModelForImageClassification.register`). For a class of your own give BANTrainer "
        "its task, by name or as a Task."
    )


def _class_names(model: nn.Module | PretrainedConfig) -> list[str]:
    """The names of a model's class and its bases, or of the class that a config was saved with."""
    if isinstance(model, nn.Module):
        return [cls.__name__ for cls in type(model).__mro__]
    if isinstance(model, TimmWrapperConfig) and not model.architectures:  # as timm writes it
        return ["TimmWrapperForImageClassification"]
    return list(model.architectures or [])


def resolve_task(task: str | Task | None, model: nn.Module) -> Task:
    """The task that is named or given, or else the model's own.

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
        fitting = [known.name for known in _tasks_that_know(model)]
        if fitting and task not in fitting:
            raise BANError(
                f"task={task!r} does not fit {type(model).__name__}, whose task is {fitting[0]!r}: "
                "leave task out."
            )
    return TASKS[task]


def _auto_class(task: Task) -> Any:
    return getattr(transformers, task.facts.auto_class)


def _tasks_that_know(model: PreTrainedModel | PretrainedConfig) -> list[Task]:
    """The tasks whose Auto class knows a model's class, or one that it is derived from."""
    config = model if isinstance(model, PretrainedConfig) else model.config
    names, found = _class_names(model), []
    for task in TASKS.values():
        heads = _auto_class(task)._model_mapping.get(type(config), ())  # a class, or several (DeiT)
        heads = heads if isinstance(heads, tuple) else (heads,)
        if any(head.__name__ in names for head in heads):
            found.append(task)
    return found


def member_config(member: dict[str, Any]) -> PretrainedConfig:
    """The config of a member, from what the config of its ensemble holds."""
    # from_dict, since some configs (timm's) read other names than their constructor takes; it may
    # change what it reads.
    found: PretrainedConfig = CONFIG_MAPPING[member["model_type"]].from_dict(copy.deepcopy(member))
    return found


def auto_class(config: PretrainedConfig) -> Any:
    """The Auto class of the model that a config was saved with; see `task_of`."""
    return _auto_class(task_of(config))


def check_loadable(model: PreTrainedModel) -> None:
    """Raise unless `load_model` will know a model's class; for use before it is trained."""
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
