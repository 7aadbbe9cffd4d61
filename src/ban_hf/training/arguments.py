"""The arguments of one training: those of `transformers`, and a handful more."""

import copy
import math
from dataclasses import dataclass

from torch import nn
from transformers import SchedulerType, TrainingArguments

from ban_hf.errors import BANError, did_you_mean
from ban_hf.lineage.names import LOWER_IS_BETTER
from ban_hf.objectives import OBJECTIVES
from ban_hf.training.distillation import CACHE_DTYPES, DistillationArguments
from ban_hf.training.performance import fast_arguments


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
        if self.objective not in OBJECTIVES:
            raise BANError(
                f"objective={self.objective!r} is unknown."
                f"{did_you_mean(self.objective, OBJECTIVES)} It is one of {', '.join(OBJECTIVES)}. "
                "BAN+L is objective='kd' with label_weight=1; kd+label and lists, as in "
                "kd,kd+label, are arguments of a recipe."
            )
        if not 0 < self.temperature < math.inf:
            raise BANError(
                f"temperature={self.temperature} must be above 0 and finite; the paper uses 1."
            )
        label_weight = self.known_label_weight
        if not (0 <= self.teacher_weight < math.inf and 0 <= label_weight < math.inf):
            raise BANError(
                f"teacher_weight={self.teacher_weight} and label_weight={label_weight} "
                "must not be negative, and finite."
            )
        if self.seed < 0:
            raise BANError(f"seed={self.seed} must not be negative.")
        if self.teacher_weight == label_weight == 0:
            raise BANError(
                "teacher_weight and label_weight are both 0: there is nothing to learn from. "
                "BAN is teacher_weight=1, label_weight=0; BAN+L is both 1."
            )
        self._check_milestones()
        self._check_teacher_arguments()

    @property
    def known_label_weight(self) -> float:
        """`label_weight`, which is 0 until the task is known."""
        return self.label_weight or 0.0

    def _check_teacher_arguments(self) -> None:
        if self.teacher_batch_size is not None and self.teacher_batch_size < 1:
            raise BANError(f"teacher_batch_size={self.teacher_batch_size} must be at least 1.")
        if self.teacher_cache_dtype not in CACHE_DTYPES:
            raise BANError(
                f"teacher_cache_dtype={self.teacher_cache_dtype!r} must be one of "
                f"{', '.join(CACHE_DTYPES)}."
            )
        if self.teacher_cache is not None and not self.teacher_cache.strip():
            raise BANError("teacher_cache is empty: name a folder, or leave it out.")

    def _check_milestones(self) -> None:
        milestones = list(self.lr_milestones or [])
        if milestones != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
            raise BANError(
                f"lr_milestones={milestones} must be rising fractions of the training between 0 "
                "and 1, such as 0.3 0.6 0.8 for epochs 60, 120, 160 of 200."
            )
        if milestones and (self.warmup_steps or self.lr_scheduler_type != SchedulerType.LINEAR):
            raise BANError(
                "lr_milestones is a schedule of its own, without warm-up: leave out warmup_steps "
                "and lr_scheduler_type, or take lr_milestones out of the configuration."
            )


def sequence_arguments(args: BANTrainingArguments, model: nn.Module) -> BANTrainingArguments:
    """The arguments of a sequence of such networks: fast, unless they say otherwise."""
    args = copy.copy(args)
    args.fast = args.fast is not False
    return fast_arguments(args, model) if args.fast else args
