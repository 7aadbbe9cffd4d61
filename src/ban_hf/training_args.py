"""The arguments of one generation: those of `transformers`, and a handful more."""

import difflib
import math
from dataclasses import dataclass, field

from transformers import SchedulerType, TrainingArguments

from ban_hf.objectives import OBJECTIVES

#: Metrics whose best value is the lowest.
LOWER_IS_BETTER = ("loss", "error", "nll", "ece", "teacher_kl", "perplexity")


@dataclass
class BANTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what distillation adds.

    The loss is `teacher_weight * objective + label_weight * label cross-entropy`: BAN is
    (kd, 1, 0), the defaults; BAN+L is (kd, 1, 1), the default of `train_generations` for language
    models. Without a teacher none of the first four matters.

    Raises:
        ValueError: for an unknown objective, a temperature that is not above 0, a negative weight,
            both weights 0, or milestones that are not rising fractions of the training.
    """

    objective: str = field(
        default="kd",
        metadata={"help": f"What is distilled: one of {', '.join(OBJECTIVES)}."},
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature of the softmax in the objective. The paper uses 1."},
    )
    teacher_weight: float = field(
        default=1.0, metadata={"help": "Weight of the objective in the loss."}
    )
    label_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the label cross-entropy in the loss: 0 is BAN, 1 is BAN+L. By "
            "default 0; in a sequence of language models, which BAN does not train, 1."
        },
    )
    lr_milestones: list[float] | None = field(
        default=None,
        metadata={
            "help": "Fractions of the training at which the learning rate is multiplied by "
            "lr_gamma, in place of lr_scheduler_type. The paper: 0.3 0.6 0.8."
        },
    )
    lr_gamma: float = field(
        default=0.2, metadata={"help": "What each milestone multiplies the learning rate by."}
    )
    decay_norms_and_biases: bool | None = field(
        default=None,
        metadata={
            "help": "Weight decay on the biases and the parameters of normalisation layers: true "
            "as in the paper, false for none; by default as transformers.Trainer does, which knows "
            "a BatchNorm by its name only."
        },
    )

    greater_is_better: bool | None = field(
        default=None,
        metadata={
            "help": "Whether metric_for_best_model is better when higher; by default not for a "
            f"loss, nor for {', '.join(LOWER_IS_BETTER[1:])}."
        },
    )

    hub_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the weights for the model cards, such as apache-2.0."},
    )

    def __post_init__(self) -> None:
        metric = (self.metric_for_best_model or "loss").removeprefix("eval_")
        if self.greater_is_better is None and metric in LOWER_IS_BETTER:
            self.greater_is_better = False  # Trainer knows it of a loss only
        super().__post_init__()
        self.label_weight_is_default = self.label_weight is None
        self.label_weight: float = 0.0 if self.label_weight is None else self.label_weight
        if self.objective not in OBJECTIVES:
            near = difflib.get_close_matches(self.objective, OBJECTIVES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"objective={self.objective!r} is unknown.{hint} There is {', '.join(OBJECTIVES)}."
            )
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be above 0 and finite; the paper uses 1."
            )
        if not (0 <= self.teacher_weight < math.inf and 0 <= self.label_weight < math.inf):
            raise ValueError(
                f"teacher_weight={self.teacher_weight} and label_weight={self.label_weight} "
                "must not be negative, and finite."
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must not be negative.")
        if self.teacher_weight == self.label_weight == 0:
            raise ValueError(
                "teacher_weight and label_weight are both 0: there is nothing to learn from. "
                "BAN is teacher_weight=1, label_weight=0; BAN+L is both 1."
            )
        self._check_milestones()

    def _check_milestones(self) -> None:
        milestones = list(self.lr_milestones or [])
        if milestones != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
            raise ValueError(
                f"lr_milestones={milestones} must be rising fractions of the training between 0 "
                "and 1, such as 0.3 0.6 0.8 for epochs 60, 120, 160 of 200."
            )
        if milestones and (self.warmup_steps or self.lr_scheduler_type != SchedulerType.LINEAR):
            raise ValueError(
                "lr_milestones is a schedule of its own, without warm-up: leave out warmup_steps "
                "and lr_scheduler_type, or take lr_milestones out of the configuration."
            )
