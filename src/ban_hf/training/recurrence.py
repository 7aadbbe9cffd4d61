"""Hidden states that are carried from window to window, for student and teacher.

In truncated back-propagation through time a text is read in order, a window at a time. The state
after a window is where the next one starts; gradients stop there. It starts from nothing at each
epoch and each evaluation.
"""

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import ENSEMBLE

State = Any  # a tensor, None, or a tuple of states


def is_recurrent(model: nn.Module) -> bool:
    """Whether a model takes a `state` and gives one, or an ensemble has such a member."""
    if isinstance(model, PreTrainedModel) and model.config.model_type == ENSEMBLE:
        return any(map(is_recurrent, model.get_submodule("members").children()))
    return "state" in inspect.signature(model.forward).parameters


def check_windows(name: str, dataset: Any, batch_size: int, args: TrainingArguments) -> None:
    """Raise unless a text is read as it was laid out: a batch is one window of every column.

    The dataset may be a dictionary of several; the batch size is that of a process.
    """
    for key, part in dataset.items() if isinstance(dataset, dict) else ():
        check_windows(f"{name}[{key!r}]", part, batch_size, args)
    if not isinstance(dataset, TokenWindows):
        return
    if args.n_gpu > 1:
        raise BANError(
            "TokenWindows cannot be read by several GPUs of one process, which would cut the "
            "hidden states apart: start with `accelerate launch` or `torchrun`, a process a GPU."
        )
    disorderly = {
        "auto_find_batch_size": args.auto_find_batch_size,
        "ignore_data_skip": args.ignore_data_skip,
        "accelerator_config.split_batches": args.accelerator_config.split_batches,
    }
    for argument, is_set in disorderly.items():
        if is_set:
            raise BANError(
                f"{argument} would read TokenWindows out of order, with the hidden states of other "
                "words: leave it out."
            )
    together = batch_size * args.world_size
    if dataset.columns != together:
        split = "train" if name == "train_dataset" else "eval"
        raise BANError(
            f"{name} is laid out in {dataset.columns} columns, but a batch has {batch_size} "
            f"items on each of {args.world_size} processes, so that windows would not follow one "
            f"another: build it with TokenWindows(tokens, columns={together}), or set "
            f"per_device_{split}_batch_size."
        )


class CarriedState(TrainerCallback):
    """The hidden states of student and teacher in a text that is read in order, by their role.

    It is a callback, so that an epoch begins without states. Saved with a checkpoint they let a
    training resume in the middle of an epoch.
    """

    def __init__(self) -> None:
        self.reads_in_order = False  # until a text is
        self.recurrent: set[str] = set()
        self.states: dict[str, State] = {}
        self._resumed: dict[str, State] = {}

    def add(self, role: str, model: nn.Module) -> None:
        """Add the student or the teacher, in place of an earlier one."""
        self.recurrent.discard(role)
        if is_recurrent(model):
            self.recurrent.add(role)

    def carries(self, role: str) -> bool:
        """Whether a model continues from the state after the last window."""
        return self.reads_in_order and role in self.recurrent

    def check_accumulation(self, args: TrainingArguments) -> None:
        """Raise where a student would continue from states of old weights within a step."""
        if self.carries("student") and args.gradient_accumulation_steps > 1:
            raise BANError(
                f"gradient_accumulation_steps={args.gradient_accumulation_steps} with a recurrent "
                "model would not mean a larger batch: the micro-batches are windows that follow "
                "one another, so each update would see a longer text with states of old weights. "
                "Set it to 1; for a larger batch raise per_device_train_batch_size (more columns)."
            )

    def give(self, role: str) -> dict[str, State]:
        """What a model is called with besides its batch."""
        return {"state": self.states.get(role)} if self.carries(role) else {}

    def keep(self, role: str, outputs: Any) -> None:
        """Keep the state that a model gave, without its graph, for the next window."""
        if self.carries(role):
            if outputs.state is None:
                raise BANError(f"{role} takes a state but returns none to continue from.")
            self.states[role] = _detach(outputs.state)

    @contextlib.contextmanager
    def another_text(self, reads_in_order: bool) -> Iterator[None]:
        """Read another text from its beginning, then continue with this one."""
        before = self.reads_in_order, self.states
        self.reads_in_order, self.states = reads_in_order, {}
        try:
            yield
        finally:
            self.reads_in_order, self.states = before

    def save(self, checkpoint: str, args: TrainingArguments) -> None:
        """Write the states into a checkpoint, each process its own columns'."""
        if self.reads_in_order:
            torch.save(self.states, _file(checkpoint, args))

    def load(self, checkpoint: str, args: TrainingArguments) -> None:
        """Read what `save` wrote; it is used when the epoch that it belongs to resumes."""
        if not self.reads_in_order:
            return
        file = _file(checkpoint, args)
        if not file.is_file():
            raise BANError(
                f"{checkpoint} has no {file.name}: it was not saved by a training on windows of a "
                "text with as many processes, and cannot be resumed by one."
            )
        # Among several processes on a CPU the device is cpu:0, which torch.load does not know.
        where = "cpu" if args.device.type == "cpu" else args.device
        self._resumed = torch.load(file, map_location=where, weights_only=True)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Resumed within an epoch, state.epoch is a fraction above that epoch.
        half_way = not float(state.epoch or 0).is_integer()
        self.states = self._resumed if half_way else {}
        self._resumed = {}


def _file(checkpoint: str, args: TrainingArguments) -> Path:
    return Path(checkpoint) / f"carried_state_{args.process_index}.pth"


def _detach(state: State) -> State:
    """A state without its graph; tuples of states stay tuples."""
    if state is None:
        return None
    return state.detach() if isinstance(state, torch.Tensor) else tuple(map(_detach, state))
