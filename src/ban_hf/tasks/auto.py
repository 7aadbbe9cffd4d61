"""From a model to its task: the Auto classes, by the model's class and never by a shape."""

import copy
from pathlib import Path
from typing import Any

import torch
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
from ban_hf.models.adapters import base_of, has_adapter, is_adapted
from ban_hf.tasks import heads
from ban_hf.tasks.adapters import attach, base_name, check_adapter, find_adapter, head_config
from ban_hf.tasks.base import Task, first_member

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
    then by `loss_type`. The task of an ensemble is that of its members, of an adapter its base's.

    Raises:
        BANError: naming the class and the tasks, if there is none.
    """
    model = base_of(model)
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
    model = base_of(model)
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


def check_teacher(task: Task, teacher: nn.Module) -> None:
    """Raise for a teacher that is known to be of another of our tasks than its student."""
    model = first_member(teacher)
    if TASKS.get(task.name) is not task or not isinstance(model, PreTrainedModel):
        return
    known = [each.name for each in _tasks_that_know(model)]
    if known and task.name not in known:
        raise BANError(
            f"teacher is a {type(model).__name__}, for {known[0]}, and model is for {task.name}: "
            "what one predicts the other does not. Choose a teacher with the student's head."
        )


def _auto_class(task: Task) -> Any:
    return getattr(transformers, task.facts.auto_class)


def _tasks_that_know(model: PreTrainedModel | PretrainedConfig) -> list[Task]:
    """The tasks whose Auto class knows a model's class, or one that it is derived from."""
    config = model if isinstance(model, PretrainedConfig) else model.config
    names, found = _class_names(model), []
    for task in TASKS.values():
        heads = _auto_class(task)._model_mapping.get(type(config), ())  # a class, or several (DeiT)
        heads = heads if isinstance(heads, tuple) else (heads,)
        known = {head.__name__ for head in heads}
        if task.facts.model_class is not None:
            known &= {task.facts.model_class}
        if known & set(names):
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


def check_loadable(model: nn.Module) -> None:
    """Raise unless `load_model` will give a model again; for use before it is trained.

    Of a model its class must be known. Of an adapter also its base, by the name that it has of it.
    """
    base = base_of(model)
    config = copy.copy(base.config)
    config.architectures = [type(base).__name__]
    auto_class(config)
    if is_adapted(model):
        with torch.random.fork_rng(devices=[]):
            check_adapter(model, _load_base(model.active_peft_config, "model", config)[0])
    elif has_adapter(model):
        raise BANError(
            f"model is a {type(model).__name__} with layers of an adapter in it: wrap it by "
            "peft.get_peft_model, which saves the adapter alone."
        )


def build_model(config: PretrainedConfig) -> PreTrainedModel:
    """A freshly initialized model of a saved config, with the head that it was saved with."""
    model: PreTrainedModel = auto_class(config).from_config(config)
    return model


def load_model(name: str | Path, *, merged: bool = False) -> PreTrainedModel:
    """Load a model with its head from a local folder or from the Hub; never runs remote code.

    Of an adapter this is its base with the adapter's layers in it.

    Args:
        name: a folder that `save_pretrained` wrote, or a Hub id, with `@revision` if wanted.
        merged: whether an adapter is added to the weights of its base.

    Raises:
        BANError: if there is no such folder or id, no task knows its head, or the base of an
            adapter is missing or another one.
    """
    where, revision = _locate(name)
    try:
        adapter = find_adapter(where, revision)
    except OSError as error:
        raise _not_found(name, error) from error
    if adapter is None:
        return _load_weights(name)[0]
    head = head_config(where, revision)
    with torch.random.fork_rng(devices=[]):  # a head that the adapter has is drawn in the base
        base, fresh = _load_base(
            adapter, f"{str(name)!r}", None if head is None else member_config(head)
        )
    return attach(base, adapter, where, revision, fresh=fresh, merged=merged)


def _load_base(
    adapter: Any, whose: str, config: PretrainedConfig | None
) -> tuple[PreTrainedModel, set[str]]:
    """The base of an adapter, by the name that it has of it; see `_load_weights`."""
    base = base_name(adapter)
    try:
        return _load_weights(base, config)
    except BANError as error:
        raise BANError(
            f"{whose} is an adapter of {base!r}, which cannot be loaded: put its base there, or "
            f"write where it is as base_model_name_or_path into its adapter_config.json. ({error})"
        ) from error


def _not_found(name: str | Path, error: Exception) -> BANError:
    return BANError(
        f"{str(name)!r} cannot be loaded: it must be a folder written by save_pretrained, or a Hub "
        f"id such as 'ns/name@revision'. ({error})"
    )


def _locate(name: str | Path) -> tuple[str, str | None]:
    """A folder and None, or a repository and its revision."""
    if Path(name).is_dir():
        return str(name), None
    where, _, revision = str(name).partition("@")
    if Path(where).is_dir():  # transformers would take it for the repository
        raise BANError(
            f"{str(name)!r}: there is a folder {where} here, which would be loaded in place of "
            "that commit. Run this from another folder."
        )
    return where, revision or "main"


def _load_weights(
    name: str | Path, config: PretrainedConfig | None = None
) -> tuple[PreTrainedModel, set[str]]:
    """A model, and the names of those of its weights that its files do not hold as it has them.

    The config, by default the saved one, may have another head.
    """
    where, revision = _locate(name)
    kwargs: dict[str, Any] = {"trust_remote_code": False}  # None would ask on a terminal
    if revision is not None:
        kwargs["revision"] = revision
    if config is None:
        try:
            config = AutoConfig.from_pretrained(where, **kwargs)
        except (OSError, ValueError) as error:
            raise _not_found(name, error) from error
        found = auto_class(config)
    else:
        found, kwargs["config"] = auto_class(config), config
        kwargs["ignore_mismatched_sizes"] = True
    verbosity = transformers.logging.get_verbosity()
    if "config" in kwargs:  # it warns of a new head, which the adapter holds, or `attach` refuses
        transformers.logging.set_verbosity_error()
    try:
        model, info = found.from_pretrained(where, output_loading_info=True, **kwargs)
    except SafetensorError as error:
        raise BANError(f"{str(name)!r} has weights that cannot be read: {error}") from error
    except OSError as error:
        raise BANError(f"{str(name)!r} has no weights that can be loaded: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    # Copied out of the mapped file, where tensors are not aligned: the last bit of a convolution
    # depends on that, and so would a student on whether its teacher was loaded.
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model, set(info["missing_keys"]) | {weight for weight, *_ in info["mismatched_keys"]}
