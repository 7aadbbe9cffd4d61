"""What a training takes of time and disk, and the progress of one: a bar, a line an evaluation."""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainingArguments

from ban_hf.lineage.files import format_bytes

#: What a step with a teacher costs, in steps with labels, where it was not measured: the teacher's
#: forward pass is a third of a step. On two cores it was 1.27 (Wide-ResNet) to 1.37 (LSTM).
STUDENT_STEP = 1.3
SMALL_FILES = 30_000  # bytes of a checkpoint's random state, schedule, arguments and log
#: Steps before the first line: those that warm up, and those that are timed.
SKIPPED, TIMED = 5, 20
LONG = 60.0  # seconds of a generation for which that line is printed


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
    """How often a training evaluates, or saves: at most, where only the best are saved."""
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


class GenerationProgress(ProgressCallback):
    """The progress bar of `Trainer`, and one line for each evaluation in place of its logs.

    Before them, where a generation takes more than a minute, a line after some steps that says how
    long it and those after it will take at this pace, and how much disk the whole sequence.
    """

    def __init__(self, generation: int, generations: int) -> None:
        super().__init__()
        self.generation, self.generations = generation, generations

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_step_end(args, state, control, **kwargs)
        done = state.global_step - self.first_step
        if done == SKIPPED:
            self.timed_from = seconds_now(args.device)
        elif done == SKIPPED + TIMED:
            step = (seconds_now(args.device) - self.timed_from) / TIMED
            if state.is_world_process_zero and self._times(step, state)[0] > LONG:
                self._announce(step, args, state, kwargs["model"], kwargs["optimizer"])

    def _announce(
        self, step: float, args: Any, state: Any, model: nn.Module, optimizer: Optimizer
    ) -> None:
        """Say what is to come of time and disk, as far as steps and parameters tell it."""
        here, all_of_them = map(format_duration, self._times(step, state))
        disk = Footprint.of(model, optimizer, args)
        needed = (self.generations + 1) * disk.weights
        needed += (max(2, self.generations) if self.generations else 0) * disk.weights
        epochs = min(state.num_train_epochs, state.max_steps)  # which of a stream is endless
        needed += disk.checkpoints(args, state.max_steps, epochs)
        tqdm.write(
            f"generation {self.generation}/{self.generations} · {format_step(step)} a step · "
            f"{here} for this generation, {all_of_them} for all · "
            f"about {format_bytes(needed)} of disk"
        )

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """No bar: evaluations are short, and the line follows."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Nothing: the dictionaries are in the generation's log."""

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any
    ) -> None:
        metrics = metrics or {}
        if not state.is_world_process_zero or "eval_loss" not in metrics:
            return
        if "eval_error" in metrics:
            result = f"validation error {metrics['eval_error']:.2f} %"
        elif "eval_perplexity" in metrics:
            result = f"validation perplexity {metrics['eval_perplexity']:.2f}"
        else:
            result = f"validation loss {metrics['eval_loss']:.4f}"
        left = ""
        if steps := state.global_step - self.first_step:  # by the steps of this call so far
            step = (time.monotonic() - self.started) / steps
            here, all_of_them = map(format_duration, self._times(step, state))
            left = f" · {here} left ({all_of_them} for all generations)"
        done = f"epoch {state.epoch:g}/{state.num_train_epochs:g}"
        if state.num_train_epochs > state.max_steps:  # a stream, whose epochs are not known
            done = f"step {state.global_step}/{state.max_steps}"
        tqdm.write(f"generation {self.generation}/{self.generations} · {done} · {result}{left}")

    def _times(self, step: float, state: Any) -> tuple[float, float]:
        """Seconds left of this generation and of the sequence, at so many a step.

        Generation 0 has no teacher, and is the cheapest.
        """
        here = step * (state.max_steps - state.global_step)
        later = step if self.generation else STUDENT_STEP * step
        return here, here + later * state.max_steps * (self.generations - self.generation)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_train_end(args, state, control, **kwargs)
