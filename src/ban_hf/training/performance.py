"""The number format and memory layout in which this machine trains a network fastest.

A convolutional network runs in bfloat16 (autocast; weights and optimizer stay float32) where the
hardware computes that, and in channels-last order everywhere. Both change results by rounding only.
"""

import copy
import functools
import logging

import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch._dynamo.utils import counters
from transformers.utils import is_torch_tf32_available

from ban_hf.training.arguments import BANTrainingArguments

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


def fast_arguments(args: BANTrainingArguments, model: nn.Module) -> BANTrainingArguments:
    """The arguments with the fastest number format for a network; a precision that is given stays.

    Returns:
        A copy, or `args` itself where nothing is to be changed.
    """
    is_given = args.bf16 or args.fp16
    if is_convolutional(model) and not is_given and computes_bfloat16(args.device):
        args = copy.copy(args)
        args.bf16, args.mixed_precision = True, "bf16"
    # accelerate remembers the precision of the trainer made last, and refuses another.
    state = AcceleratorState._shared_state
    if state.get("_mixed_precision", args.mixed_precision) != args.mixed_precision:
        AcceleratorState._reset_state()
    return args


def sequence_arguments(args: BANTrainingArguments, model: nn.Module) -> BANTrainingArguments:
    """The arguments of a sequence of such networks: fast, unless they say otherwise."""
    args = copy.copy(args)
    args.fast = args.fast is not False
    return fast_arguments(args, model) if args.fast else args


def allow_fast_products(args: BANTrainingArguments) -> None:
    """Let a GPU multiply float32 matrices as TF32, unless `tf32` says otherwise."""
    if args.device.type == "cuda" and args.tf32 is None and is_torch_tf32_available():
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def lay_out(model: nn.Module) -> nn.Module:
    """Put a convolutional network's weights into channels-last order, in place.

    Its activations follow: (N, C, H, W) in memory as (N, H, W, C).
    """
    if is_convolutional(model):
        model.to(memory_format=torch.channels_last)
    return model


@functools.cache
def tell_once(line: str) -> None:
    """Log a line, but not again for each generation."""
    logger.info(line)


def describe(model: nn.Module, args: BANTrainingArguments) -> str:
    """How a network is trained here, in words."""
    number = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    layout = ", channels-last" if args.fast and is_convolutional(model) else ""
    return f"{type(model).__name__} on {args.device.type}: {number}{layout}"


def describe_compilation() -> str:
    """What `torch.compile` made of the networks of this process so far, in words."""
    graphs, breaks = counters["stats"]["unique_graphs"], counters["graph_break"]
    reasons = "".join(f"; {count} x {reason}" for reason, count in breaks.items())
    return f"torch.compile: {graphs} graphs, {sum(breaks.values())} graph breaks{reasons}"
