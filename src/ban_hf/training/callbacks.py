"""What watches a training: a guard against losses that are no number, and a line an epoch."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ban_hf.errors import BANError
from ban_hf.jobs.cost import STUDENT_STEP, Footprint, duration, seconds_now, size, step_time

NEVER = torch.iinfo(torch.int64).max

#: Steps before the first line: those that warm up, and those that are timed.
SKIPPED, TIMED = 5, 20
LONG = 60.0  # seconds of a generation for which that line is printed


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
        self._forget()

    def _forget(self) -> None:
        self.first_bad_step: Tensor | None = None
        self._losses: list[Tensor] = []  # of the steps since it was looked at
        self._steps: list[int] = []

    def note(self, loss: Tensor, step: int) -> None:
        """Remember a loss, to be looked at later: together with others it costs next to nothing."""
        self._losses.append(loss.detach())
        self._steps.append(step)
        if len(self._losses) == 256:
            self._look_back()

    def _look_back(self) -> None:
        if not self._losses:
            return
        losses = torch.stack([loss.reshape(-1).sum() for loss in self._losses])  # (n,)
        steps = torch.tensor(self._steps, device=losses.device)  # (n,)
        bad_step = torch.where(losses.isfinite(), NEVER, steps).min()  # ()
        earlier = bad_step if self.first_bad_step is None else self.first_bad_step
        self.first_bad_step = torch.minimum(earlier, bad_step)
        self._losses, self._steps = [], []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._forget()

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
        self._look_back()
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


def check_trained(steps: int) -> None:
    """Hold that a training has made a step.

    Raises:
        ValueError: naming what may be the cause.
    """
    if not steps:
        raise BANError(
            "Not one step was trained: look at num_train_epochs, max_steps, "
            "per_device_train_batch_size and dataloader_drop_last."
        )


def _is_finite(model: nn.Module) -> bool:
    tensors = (*model.parameters(), *model.buffers())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


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
        here, all_of_them = map(duration, self._times(step, state))
        disk = Footprint.of(model, optimizer, args)
        needed = (self.generations + 1) * disk.weights + disk.ensembles([self.generations])
        needed += disk.checkpoints(args, state.max_steps, state.num_train_epochs)
        tqdm.write(
            f"generation {self.generation}/{self.generations} · {step_time(step)} a step · {here} "
            f"for this generation, {all_of_them} for all · about {size(needed)} of disk"
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
        tqdm.write(
            f"generation {self.generation}/{self.generations} · "
            f"epoch {state.epoch:g}/{state.num_train_epochs:g} · {result}{self._time_left(state)}"
        )

    def _time_left(self, state: Any) -> str:
        """Of this generation and of the sequence, by the steps of this call so far."""
        done = state.global_step - self.first_step
        if not done:
            return ""
        here, all_of_them = self._times((time.monotonic() - self.started) / done, state)
        return f" · {duration(here)} left ({duration(all_of_them)} for all generations)"

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
