"""What watches a training: a guard against losses that are no number, and a line an epoch."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

NEVER = torch.iinfo(torch.int64).max


class FiniteLossGuard(TrainerCallback):
    """Stops a training whose loss or weights became NaN or infinite, before they are saved.

    Losses are noted on the device at every step and read only where the training is about to log,
    evaluate, save or end, so that a GPU need not wait for the CPU. The weights are looked at before
    a save and at the end: a finite loss can have a gradient that is not.

    Args:
        gather: brings a tensor of every process together, as `Accelerator.gather` does; a loss
            that is bad on one process stops them all.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.gather = gather
        self.first_bad_step: Tensor | None = None

    def note(self, finite: Tensor, step: int) -> None:
        """Remember the step, if its loss is the first that is not finite."""
        bad_step = torch.where(finite, NEVER, step)  # ()
        earlier = bad_step if self.first_bad_step is None else self.first_bad_step
        self.first_bad_step = torch.minimum(earlier, bad_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.first_bad_step = None

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self._check(args, state, model if control.should_save else None)

    def on_epoch_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self._check(args, state, model if control.should_save else None)

    def on_train_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self._check(args, state, model)

    def _check(self, args: Any, state: Any, model: nn.Module | None) -> None:
        if self.first_bad_step is None:
            return
        if model is not None and not _is_finite(model):
            self.first_bad_step = self.first_bad_step.clamp(max=state.global_step)
        step = int(self.gather(self.first_bad_step.reshape(1)).min())
        if step == NEVER:
            return
        folder = args.output_dir
        checkpoint = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "There was no save."
        raise FloatingPointError(
            f"The loss or a weight became NaN or infinite at step {step}: the training stopped. "
            f"{kept} Lower learning_rate, set max_grad_norm, or train in a higher precision."
        )


def _is_finite(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


class GenerationProgress(ProgressCallback):
    """The progress bar of `Trainer`, and one line for each evaluation in place of its logs."""

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
        tqdm.write(
            f"generation {self.generation}/{self.generations} · "
            f"epoch {state.epoch:g}/{state.num_train_epochs:g} · {result}{self._time_left(state)}"
        )

    def _time_left(self, state: Any) -> str:
        """Of this generation and of the sequence, by the steps of this call so far."""
        done = state.global_step - self.first_step
        if not done:
            return ""
        step = (time.monotonic() - self.started) / done
        here = step * (state.max_steps - state.global_step)
        later = step * state.max_steps * (self.generations - self.generation)
        return f" · {_duration(here)} left ({_duration(here + later)} for all generations)"

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not args.disable_tqdm:
            super().on_train_end(args, state, control, **kwargs)


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes} min" if minutes else f"{seconds:.0f} s"
