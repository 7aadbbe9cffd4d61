"""What is saved and recorded of an adapter (PEFT): the adapter alone, and what its base is."""

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from msgspec.structs import replace
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, extract_commit_hash

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import as_name
from ban_hf.lineage.files import BASE_CONFIG, model_files, read_json, sha256_of_json
from ban_hf.lineage.record import Adapter, Architecture, architecture, file_entry
from ban_hf.models.adapters import (
    REPLACED,
    adapter_type,
    base_of,
    deciding_config,
    is_adapted,
    is_same,
    parameter_count,
)
from ban_hf.tasks.adapters import NAME, base_name

if TYPE_CHECKING:
    from peft import PeftModel


def save_head(model: nn.Module, folder: Path) -> None:
    """Write the config of a student's base beside its adapter: its class and its labels.

    It is not named config.json, by which transformers takes a folder for a whole model.
    """
    base: PreTrainedModel = base_of(model)
    config: PretrainedConfig = copy.deepcopy(base.config)
    config.architectures = [type(base).__name__]
    config.to_json_file(folder / BASE_CONFIG)


def check_saved(model: "PeftModel", loaded: PreTrainedModel) -> None:
    """Raise unless a trained adapter, loaded from where it was saved, has the model's weights."""
    ours, theirs = base_of(model).state_dict(), loaded.state_dict()
    same = {name for name in ours.keys() & theirs.keys() if is_same(theirs[name], ours[name])}
    if other := sorted(name for name in ours.keys() - same if REPLACED not in name):
        raise BANError(
            f"{other[0]} was trained, or changed, and is not saved with the adapter: add its "
            "module to modules_to_save of the adapter that model_init gives."
        )


def pin_base(model: "PeftModel") -> Adapter:
    """Let an adapter name its base by an absolute path or a commit; what a record says of both.

    Raises:
        BANError: if the adapter names no base, or one that has no config or safetensors.
    """
    config = model.peft_config[NAME]
    name = base_name(config).partition("@")[0]

    def find(file: str) -> Path | None:
        found = cached_file(
            name, file, revision=config.revision, _raise_exceptions_for_missing_entries=False
        )
        return None if found is None else Path(found)

    def fetch(file: str) -> Path:
        if (found := find(file)) is None:
            raise BANError(
                f"model has an adapter of {name!r}, which has no {file}: save the base by "
                "save_pretrained, and load it from that folder."
            )
        return found

    path = fetch("config.json")
    if Path(name).is_dir():
        name = config.base_model_name_or_path = os.path.abspath(name)
    else:
        config.revision = extract_commit_hash(str(path), None)
    known = {file for file in (SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE) if find(file)}
    files = sorted(model_files(known, lambda file: read_json(fetch(file))))
    return Adapter(
        type=adapter_type(config),
        config_sha256=sha256_of_json(deciding_config(config)),
        base=as_name(Path(name).name) if Path(name).is_dir() else name,
        base_revision=None if Path(name).is_dir() else config.revision,
        base_files=tuple(file_entry(fetch(file), file) for file in files),
    )


def network_architecture(model: nn.Module) -> Architecture:
    """Type, class, canonical config and size of a network, and its adapter if it is a `PeftModel`.

    Its adapter then names its base as `pin_base` has it.
    """
    base = base_of(model)
    found = replace(architecture(base), num_parameters=parameter_count(base))
    return replace(found, adapter=pin_base(model)) if is_adapted(model) else found
