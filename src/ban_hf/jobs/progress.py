"""The progress of a generation: a bar, and one line for each evaluation."""

import time
from typing import Any

from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import ProgressCallback

from ban_hf.jobs.footprint import (
    STUDENT_STEP,
    Footprint,
    format_duration,
    format_step,
    seconds_now,
)
from ban_hf.lineage.files import format_bytes

#: Steps before the first line: those that warm up, and those that are timed.
SKIPPED, TIMED = 5, 20
LONG = 60.0  # seconds of a generation for which that line is printed


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
        needed += disk.checkpoints(args, state.max_steps, state.num_train_epochs)
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
        return (
            f" · {format_duration(here)} left ({format_duration(all_of_them)} for all generations)"
        )

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
