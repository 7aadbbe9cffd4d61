"""The arguments of one training: those of `transformers`, and a handful more."""

import copy
import math
from dataclasses import dataclass

from torch import nn
from transformers import SchedulerType, TrainingArguments

from ban_hf.errors import BANError, did_you_mean
from ban_hf.lineage.catalog import LOWER_IS_BETTER
from ban_hf.objectives import OBJECTIVES
from ban_hf.training.distillation import CACHE_DTYPES, DistillationArguments
from ban_hf.training.performance import (
    computes_bfloat16,
    forget_precision,
    is_convolutional,
)


@dataclass
class BANTrainingArguments(DistillationArguments, TrainingArguments):
    """`transformers.TrainingArguments` with what distillation adds.

    The loss is `teacher_weight * objective + label_weight * label cross-entropy`: BAN is
    (kd, 1, 0), the defaults; BAN+L is (kd, 1, 1), the default of `train_generations` for language
    models. `label_weight` stays None until the task is known: `BANTrainer` takes it as 0, a
    sequence as the task's `default_label_weight`. Without a teacher none of the first four matters.

    Raises:
        BANError: for an unknown objective, a temperature that is not above 0, a negative weight,
            both weights 0, or milestones that are not rising fractions of the training.
    """

    def __post_init__(self) -> None:
        metric = (self.metric_for_best_model or "loss").removeprefix("eval_")
        if self.greater_is_better is None and metric in LOWER_IS_BETTER:
            self.greater_is_better = False  # Trainer knows it of a loss only
        super().__post_init__()
        self.check()

    def check(self) -> None:
        """Raise for values that mean nothing; a search of hyperparameters sets them later, too."""
        _require(
            self.objective in OBJECTIVES,
            f"objective={self.objective!r} is unknown."
            f"{did_you_mean(self.objective, OBJECTIVES)} It is one of {', '.join(OBJECTIVES)}. "
            "BAN+L is objective='kd' with label_weight=1; kd+label and lists, as in "
            "kd,kd+label, are arguments of a recipe.",
        )
        _require(
            0 < self.temperature < math.inf,
            f"temperature={self.temperature} must be above 0 and finite; the paper uses 1.",
        )
        label_weight = self.known_label_weight
        _require(
            0 <= self.teacher_weight < math.inf and 0 <= label_weight < math.inf,
            f"teacher_weight={self.teacher_weight} and label_weight={label_weight} "
            "must not be negative, and finite.",
        )
        _require(self.seed >= 0, f"seed={self.seed} must not be negative.")
        _require(
            self.teacher_weight + label_weight > 0,
            "teacher_weight and label_weight are both 0: there is nothing to learn from. "
            "BAN is teacher_weight=1, label_weight=0; BAN+L is both 1.",
        )
        milestones = list(self.lr_milestones or [])
        _require(
            milestones == sorted(set(milestones)) and all(0 < m < 1 for m in milestones),
            f"lr_milestones={milestones} must be rising fractions of the training between 0 "
            "and 1, such as 0.3 0.6 0.8 for epochs 60, 120, 160 of 200.",
        )
        other_schedule = self.warmup_steps or self.lr_scheduler_type != SchedulerType.LINEAR
        _require(
            not (milestones and other_schedule),
            "lr_milestones is a schedule of its own, without warm-up: leave out warmup_steps "
            "and lr_scheduler_type, or take lr_milestones out of the configuration.",
        )
        size = self.teacher_batch_size
        _require(size is None or size >= 1, f"teacher_batch_size={size} must be at least 1.")
        _require(
            self.teacher_cache_dtype in CACHE_DTYPES,
            f"teacher_cache_dtype={self.teacher_cache_dtype!r} must be one of "
            f"{', '.join(CACHE_DTYPES)}.",
        )
        _require(
            self.teacher_cache is None or bool(self.teacher_cache.strip()),
            "teacher_cache is empty: name a folder, or leave it out.",
        )

    @property
    def known_label_weight(self) -> float:
        """`label_weight`, which is 0 until the task is known."""
        return self.label_weight or 0.0


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BANError(message)


def fast_arguments(
    args: BANTrainingArguments, model: nn.Module | None, *, default: bool = True
) -> BANTrainingArguments:
    """The arguments as they are, or, of a fast training, a copy with the fastest number format.

    A precision that is given stays.

    Args:
        args: of a training.
        model: the network that is trained; None where it is built later, in the format of `args`.
        default: `fast`, where it is not given.
    """
    if not (default if args.fast is None else args.fast):
        return args
    args = copy.copy(args)
    args.fast = True
    is_given = args.bf16 or args.fp16
    convolves = model is not None and is_convolutional(model)
    if convolves and not is_given and computes_bfloat16(args.device):
        args.bf16, args.mixed_precision = True, "bf16"
    forget_precision(but=args.mixed_precision)
    return args


def describe(model: nn.Module, args: BANTrainingArguments) -> str:
    """How a network is trained here, in words."""
    number = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    layout = ", channels-last" if args.fast and is_convolutional(model) else ""
    return f"{type(model).__name__} on {args.device.type}: {number}{layout}"
