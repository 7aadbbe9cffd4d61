"""The number format and memory layout in which this machine trains a network fastest.

A convolutional network runs in bfloat16 (autocast; weights and optimizer stay float32) where the
hardware computes that, and in channels-last order everywhere. Both change results by rounding only.

All that relies on private parts of transformers, accelerate and torch is here, each in a function
whose docstring names the part. Look here first when a new release of them breaks something.
"""

import functools
import logging
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch import nn
from torch._dynamo.utils import counters
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import SAFE_WEIGHTS_NAME, is_torch_tf32_available

logger = logging.getLogger(__name__)


def is_convolutional(model: nn.Module) -> bool:
    """Whether a network convolves images throughout, not in a first layer of patches only."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; software that imitates them is far slower."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return False


def forget_precision(but: str) -> None:
    """Let the next trainer have a precision other than the last one's, which accelerate refuses.

    Private part: `AcceleratorState._shared_state`.
    """
    if AcceleratorState._shared_state.get("_mixed_precision", but) != but:
        AcceleratorState._reset_state()


def allow_fast_products(args: TrainingArguments) -> None:
    """Let a GPU multiply float32 matrices as TF32, unless `tf32` is given."""
    if args.device.type == "cuda" and args.tf32 is None and is_torch_tf32_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def to_channels_last(model: nn.Module) -> nn.Module:
    """Put a convolutional network's weights into channels-last order, in place.

    Its activations follow: (N, C, H, W) in memory as (N, H, W, C).
    """
    if is_convolutional(model):
        model.to(memory_format=torch.channels_last)
    return model


def can_share_weights(args: TrainingArguments, accelerator: Accelerator) -> bool:
    """Whether others may hold weights of a model that is trained: not if they are cut or cast."""
    is_cut = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    return not (is_cut or args.fp16_full_eval or args.bf16_full_eval)


@functools.cache
def log_once(line: str) -> None:
    """Log a line once in a process, not for each generation."""
    logger.info(line)


def describe_compilation() -> str:
    """What `torch.compile` made of the networks of this process so far, in words.

    Private part: `torch._dynamo.utils.counters`.
    """
    graphs, breaks = counters["stats"]["unique_graphs"], counters["graph_break"]
    reasons = "".join(f"; {count} x {reason}" for reason, count in breaks.items())
    return f"torch.compile: {graphs} graphs, {sum(breaks.values())} graph breaks{reasons}"


def prepare_frozen(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Prepare a model that is not trained, such as a teacher.

    Private part: `Accelerator._models`. If it stayed in that list it would be taken for the
    prepared student in an evaluation before training, which then runs without autocast.
    """
    prepared: nn.Module = accelerator.prepare_model(model, evaluation_mode=True)
    accelerator._models.pop()
    return prepared


def load_renamed_weights(model: nn.Module, checkpoint: str | Path) -> bool:
    """Load a checkpoint whose weights have other names than the model's; False if it is not one.

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
