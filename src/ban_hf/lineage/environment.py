"""What a record says of a run: its arguments, weights, versions and machine.

torch is imported only by the functions that read a network or ask for the device.
"""

import hashlib
import importlib.metadata
import os
import platform
from typing import TYPE_CHECKING, Any

from ban_hf.lineage.files import plain_json

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

#: Arguments that do not change what is learned: a run may be continued with others.
INCIDENTAL = frozenset(
    "output_dir run_name project report_to disable_tqdm do_train do_eval do_predict use_cpu "
    "resume_from_checkpoint eval_on_start per_device_eval_batch_size "
    "eval_accumulation_steps prediction_loss_only skip_memory_metrics torch_empty_cache_steps "
    "local_rank ddp_timeout ddp_backend teacher_cache".split()
)
INCIDENTAL_PREFIXES = tuple("logging_ log_ save_ hub_ push_to_hub dataloader_ trackio_".split())
#: Exceptions from these prefixes: they decide which samples are seen and which checkpoint is best.
DECIDING = frozenset({"dataloader_drop_last"})
DECIDING_THE_BEST = frozenset({"save_strategy", "save_steps"})
PACKAGES = ("ban-hf", "torch", "transformers", "accelerate", "datasets", "timm", "huggingface-hub")


def canonical_arguments(args: "TrainingArguments") -> dict[str, Any]:
    """The arguments that decide what is learned, and the number of processes."""
    deciding = DECIDING | (DECIDING_THE_BEST if args.load_best_model_at_end else frozenset())
    kept = {
        name: value
        for name, value in args.to_dict().items()
        if name in deciding or not (name in INCIDENTAL or name.startswith(INCIDENTAL_PREFIXES))
    }
    return plain_json(kept | {"world_size": args.world_size})


def weights_digest(model: "nn.Module") -> str:
    """sha256 of a network's parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Python's version and those of the packages that results depend on, and of further ones."""
    found = {name: importlib.metadata.version(name) for name in (*PACKAGES, *more)}
    return {"python": platform.python_version()} | found


def hardware() -> str:
    """The machine in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"
