"""The arguments of one generation: those of `transformers`, and a handful more."""

import difflib
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ban_hf.objectives import OBJECTIVES


@dataclass
class BANTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what distillation adds.

    The loss is `teacher_weight * objective + label_weight * label cross-entropy`: BAN is
    (kd, 1, 0), the defaults; BAN+L is (kd, 1, 1). Without a teacher none of the first four matters.

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
    label_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the label cross-entropy in the loss: 0 is BAN, 1 is BAN+L."},
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective not in OBJECTIVES:
            near = difflib.get_close_matches(self.objective, OBJECTIVES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"objective={self.objective!r} is unknown.{hint} There is {', '.join(OBJECTIVES)}."
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature} must be above 0; the paper uses 1.")
        if not (self.teacher_weight >= 0 and self.label_weight >= 0):
            raise ValueError(
                f"teacher_weight={self.teacher_weight} and label_weight={self.label_weight} "
                "must not be negative."
            )
        if self.teacher_weight == self.label_weight == 0:
            raise ValueError(
                "teacher_weight and label_weight are both 0: there is nothing to learn from. "
                "BAN is teacher_weight=1, label_weight=0; BAN+L is both 1."
            )
        self._check_milestones()

    def _check_milestones(self) -> None:
        milestones = self.lr_milestones or []
        if milestones != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
            raise ValueError(
                f"lr_milestones={milestones} must be rising fractions of the training between 0 "
                "and 1, such as 0.3 0.6 0.8 for epochs 60, 120, 160 of 200."
            )
        if milestones and self.warmup_steps:
            raise ValueError("lr_milestones has no warm-up: leave out warmup_steps, or milestones.")
