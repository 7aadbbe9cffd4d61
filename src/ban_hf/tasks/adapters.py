"""Load adapters (PEFT), each with the base that it names."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available

from ban_hf.errors import BANError
from ban_hf.lineage.files import BASE_CONFIG, read_json
from ban_hf.models.adapters import (
    REPLACED,
    base_of,
    base_weights,
    check_kind,
    is_same,
    merge,
    used_weights,
)

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

NAME = "default"  # of an adapter, as peft names it: its files lie in the folder itself


def find_adapter(where: str, revision: str | None) -> "PeftConfig | None":
    """The config of the adapter that a folder or repository holds; None if it holds none."""
    if find_adapter_config_file(where, revision=revision) is None:
        return None
    if not is_peft_available():
        raise BANError(f"{where!r} holds an adapter: pip install 'ban-hf[adapters]' to load it.")
    from peft import PeftConfig

    return PeftConfig.from_pretrained(where, revision=revision)


def base_name(config: "PeftConfig") -> str:
    """The base of an adapter as `load_model` takes it: a folder, or `ns/name@revision`."""
    name = config.base_model_name_or_path
    if not name:
        raise BANError(
            "model is an adapter whose base has no name: save the base by save_pretrained, and "
            "load it from that folder (or write the folder as base_model_name_or_path into "
            "adapter_config.json)."
        )
    return f"{name}@{config.revision}" if config.revision and not Path(name).is_dir() else name


def head_config(where: str, revision: str | None) -> dict[str, Any] | None:
    """The config of a base with the head that it was trained with, where it is saved."""
    if Path(where).is_dir():
        file = Path(where, BASE_CONFIG)
        return read_json(file) if file.is_file() else None
    found = cached_file(
        where, BASE_CONFIG, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    return None if found is None else read_json(Path(found))


def attach(
    base: PreTrainedModel,
    config: "PeftConfig",
    where: str,
    revision: str | None,
    *,
    fresh: set[str],
    merged: bool,
) -> PreTrainedModel:
    """A base with a saved adapter in it; its weights, where they are trained, require a gradient.

    Args:
        base: changed in place.
        config: of the adapter.
        where: the adapter's folder or repository.
        revision: of the repository.
        fresh: names of the base's weights that its files do not hold.
        merged: whether to add the adapter to the base's weights, for a network without layers of
            an adapter.
    """
    from peft import PeftModel

    config.inference_mode = False
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        with torch.random.fork_rng(devices=[]):  # loading draws from what students draw from
            model = PeftModel(base, config, NAME)
            check_kind(model)
            found = model.load_adapter(
                where, NAME, is_trainable=True, torch_device="cpu", **options
            )
    except (RuntimeError, SafetensorError, OSError) as error:
        raise BANError(f"{where!r} holds an adapter that cannot be loaded: {error}") from error
    used = used_weights(base_of(model))
    named = base_weights(base_of(model)).items()
    lacking = sorted(name for name, weight in named if name in fresh and id(weight) in used)
    if wrong := [*found.missing_keys, *found.unexpected_keys, *lacking]:
        raise BANError(
            f"{where!r} holds an adapter that does not fit its base, "
            f"{config.base_model_name_or_path!r}: {wrong[0]} is missing, or not expected. Name the "
            "right base in its adapter_config.json, or save the base with its head."
        )
    model.eval()
    return merge(model) if merged else base_of(model)


def check_adapter(model: "PeftModel", base: PreTrainedModel) -> None:
    """Raise unless a fresh model's adapter, saved alone, gives the model again.

    Args:
        model: as `model_init` gave it.
        base: as it is loaded by the name that the adapter has of it.
    """
    from peft import get_peft_model_state_dict

    check_kind(model)
    if list(model.peft_config) != [NAME]:
        raise BANError(
            f"model_init gave a model with the adapters {', '.join(model.peft_config)}: it must "
            f"have one, named {NAME!r}."
        )
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    saved = {tensor.data_ptr() for tensor in state.values()}
    for name, weight in model.named_parameters():
        if weight.requires_grad and weight.data_ptr() not in saved:
            raise BANError(
                f"model_init gave an adapter beside which {name} is trained, but would not be "
                "saved: freeze it, or add its module to modules_to_save."
            )
    for where, module in base_of(model).named_modules():
        counts = isinstance(module, _BatchNorm) and module.track_running_stats
        if counts and ".modules_to_save." not in f".{where}." and REPLACED not in f".{where}.":
            raise BANError(
                f"model_init gave an adapter of a base with BatchNorm ({where}), whose statistics "
                "would move and are not saved with the adapter: add it to modules_to_save."
            )
    ours, used = base_weights(base_of(model)), used_weights(base_of(model))
    for name, weight in base.named_parameters():
        is_used = name not in ours or id(ours[name]) in used  # no head that is replaced
        if is_used and not (name in ours and is_same(weight, ours[name])):
            raise BANError(
                f"model_init gave an adapter of a base whose {name} is not that of "
                f"{base_name(model.peft_config[NAME])!r}, which the adapter names as its base, and "
                "without which it is saved: load the base from there, in the dtype of its files, "
                "and initialize the adapter in a way that leaves the base as it is; or save the "
                "base by save_pretrained and load it from that folder."
            )
