"""What a training takes of time and disk: arithmetic, and how it is said in words."""

import math
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import TrainingArguments

#: What a step with a teacher costs, in steps with labels, where it was not measured: the teacher's
#: forward pass is a third of a step. On two cores it was 1.27 (Wide-ResNet) to 1.37 (LSTM).
STUDENT_STEP = 1.3
SMALL_FILES = 30_000  # bytes of a checkpoint's random state, schedule, arguments and log


def seconds_now(device: torch.device) -> float:
    """A clock that is read when the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Footprint:
    """Bytes on disk of a network, and of a checkpoint of its training."""

    weights: int
    checkpoint: int

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, args: TrainingArguments) -> "Footprint":
        """Of a training whose optimizer has made a step, and so has its state."""
        # Tied weights are saved once.
        tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
        weights = sum(tensor.nbytes for tensor in tensors.values())
        states = [value for state in optimizer.state.values() for value in state.values()]
        state = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
        return cls(weights, weights + SMALL_FILES + (0 if args.save_only_model else state))

    def checkpoints(self, args: TrainingArguments, steps: int, epochs: float) -> int:
        """Of the checkpoints of a training where they are most.

        The new one is written before an old one is removed, and `load_best_model_at_end` keeps the
        best one beside the last.
        """
        saves = count_events(args.save_strategy, args.save_steps, steps, epochs)
        limit = args.save_total_limit
        if limit is None or limit < 1:
            return saves * self.checkpoint
        kept = max(limit, 2) if args.load_best_model_at_end else limit
        return min(saves, kept + 1) * self.checkpoint


def count_events(strategy: str, every: float | None, steps: int, epochs: float) -> int:
    """How often a training evaluates, or saves: at most, where only the best are saved.

    Args:
        strategy: `no`, `epoch`, `steps` or `best`.
        every: steps in between, or a fraction of them all.
        steps: of the training.
        epochs: of the training.
    """
    if strategy == "no":
        return 0
    if strategy != "steps":
        return math.ceil(epochs)
    every = every or 1
    return math.ceil(steps / (every if every >= 1 else math.ceil(steps * every)))


def format_duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def format_step(seconds: float) -> str:
    """Seconds of a step in words, which may be few."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
