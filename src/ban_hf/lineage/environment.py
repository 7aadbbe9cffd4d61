"""What a record says of a run: arguments, network, data, versions and machine, as plain JSON."""

import hashlib
import importlib.metadata
import json
import os
import platform
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ban_hf.lineage.record import sha256_of_json

#: Arguments that do not change what is learnt: a run may be continued with others.
INCIDENTAL = frozenset(
    "output_dir run_name project report_to disable_tqdm do_train do_eval do_predict use_cpu "
    "resume_from_checkpoint eval_on_start per_device_eval_batch_size "
    "eval_accumulation_steps prediction_loss_only skip_memory_metrics torch_empty_cache_steps "
    "local_rank ddp_timeout ddp_backend teacher_cache".split()
)
INCIDENTAL_PREFIXES = (
    "logging_",
    "log_",
    "save_",
    "hub_",
    "push_to_hub",
    "dataloader_",
    "trackio_",
)
#: What these prefixes cover, and yet decides: which samples are seen, and which checkpoint is best.
DECIDING = frozenset({"dataloader_drop_last"})
DECIDING_THE_BEST = frozenset({"save_strategy", "save_steps"})
#: Fields of a config that a forward, a save or another release of transformers may change.
TRANSIENT = frozenset(
    "problem_type dtype torch_dtype transformers_version _name_or_path architectures auto_map "
    "use_cache".split()
)
PACKAGES = ("ban-hf", "torch", "transformers", "accelerate", "datasets", "timm", "huggingface-hub")


def plain_json(data: Any) -> Any:
    """Data as it reads back from a JSON file."""
    return json.loads(json.dumps(data, default=str))


def canonical_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The arguments that decide what is learnt, and the number of processes."""
    deciding = DECIDING | (DECIDING_THE_BEST if args.load_best_model_at_end else frozenset())
    kept = {
        name: value
        for name, value in args.to_dict().items()
        if name in deciding or not (name in INCIDENTAL or name.startswith(INCIDENTAL_PREFIXES))
    }
    return plain_json(kept | {"world_size": args.world_size})


def architecture(model: PreTrainedModel) -> dict[str, Any]:
    """Type, class, canonical config and size of a network."""
    return {
        "model_type": model.config.model_type,
        "class": type(model).__name__,
        "config_sha256": sha256_of_json(_canonical(model.config.to_dict())),
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }


def _canonical(config: Any) -> Any:
    """A config without its transient fields, and those of the configs within it."""
    if isinstance(config, dict):
        return {k: _canonical(v) for k, v in config.items() if k not in TRANSIENT}
    return [_canonical(v) for v in config] if isinstance(config, list) else config


def weights_digest(model: nn.Module) -> str:
    """sha256 of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Python's version and those of the packages that results depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | found


def hardware() -> str:
    """The machine in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"
