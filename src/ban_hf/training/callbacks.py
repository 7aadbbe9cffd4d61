"""A guard against losses and weights that are not finite."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from ban_hf.errors import BANError

NEVER = torch.iinfo(torch.int64).max


class FiniteLossGuard(TrainerCallback):
    """Stops a training whose loss or weights became NaN or infinite, before they are saved.

    Losses are noted on the device at every step and read only before the training logs, evaluates,
    saves or ends, so that a GPU need not wait for the CPU. The weights are checked before a save
    and at the end: a finite loss can have a gradient that is not.

    Args:
        gather: brings a tensor of every process together, as `Accelerator.gather` does; a loss
            that is bad on one process stops them all.
    """

    def __init__(self, gather: Callable[[Tensor], Tensor]) -> None:
        self.gather = gather
        self._forget()

    def _forget(self) -> None:
        self.first_bad_step: Tensor | None = None
        self._losses: list[Tensor] = []  # of the steps since the last check
        self._steps: list[int] = []

    def note(self, loss: Tensor, step: int) -> None:
        """Remember a loss, to be checked later: together with others that costs next to nothing."""
        self._losses.append(loss.detach())
        self._steps.append(step)
        if len(self._losses) == 256:
            self._check_losses()

    def _check_losses(self) -> None:
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
        self._check_losses()
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
    """Raise unless a training has made a step.

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
