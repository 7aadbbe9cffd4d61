"""Trainings by `transformers.Trainer` and by `BANTrainer`, as forms to be timed."""

import tempfile
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ban_hf import BANTrainingArguments
from benchmarks.timing import Form, StepClock

WARM_UP = 2  # steps at the beginning of a training that are not timed
LEARNING_RATE, MOMENTUM = 0.01, 0.9

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def arguments(
    batch: int, kind: type[TrainingArguments] = BANTrainingArguments, **more: Any
) -> TrainingArguments:
    """One epoch of SGD that writes nothing; the rest is as `transformers` has it by default."""
    defaults = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": batch,
        "learning_rate": LEARNING_RATE,
        "optim": "sgd",
        "optim_args": f"momentum={MOMENTUM}",
        "max_grad_norm": 0,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }
    return kind(tempfile.gettempdir(), **defaults | more)


def silent(trainer: Trainer) -> Trainer:
    """The trainer, without the line that it prints at its end."""
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def as_form(trainer: Trainer) -> Form:
    """One training from the first epoch on, each time; a student that has learnt goes on."""
    callback = StepClock(trainer.args.device)
    silent(trainer).add_callback(callback)

    def form() -> list[float]:
        trainer.model.__dict__.pop("forward", None)  # accelerate wraps it again, for bfloat16
        trainer.train()
        return callback.clock.seconds()[WARM_UP - 1 :]

    return form


class NaiveDistiller(Trainer):
    """Distillation as it is commonly written: a `Trainer` whose `compute_loss` runs the teacher.

    Args:
        teacher: a frozen model in evaluation mode.
        label_weight: of the model's own loss.
    """

    def __init__(self, *args: Any, teacher: nn.Module, label_weight: float, **more: Any) -> None:
        super().__init__(*args, **more)
        self.teacher, self.label_weight = teacher.to(self.args.device), label_weight

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The loss of a batch."""
        labels = {name: inputs[name] for name in ("labels", "shift_labels") if name in inputs}
        asked = {name: value for name, value in inputs.items() if name not in labels}
        outputs = model(**asked, **labels if self.label_weight else {})
        with torch.no_grad():
            taught = self.teacher(**asked)
        loss = kl_divergence(outputs.logits, taught.logits)
        if self.label_weight:
            loss = loss + self.label_weight * outputs.loss
        return (loss, outputs) if return_outputs else loss


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Of two `(..., C)`, the mean over items."""
    classes = student_logits.shape[-1]
    return F.kl_div(
        student_logits.view(-1, classes).log_softmax(1),
        teacher_logits.view(-1, classes).softmax(1),
        reduction="batchmean",
    )
