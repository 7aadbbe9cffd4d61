"""The arguments of one generation: those of `transformers`, and a handful more."""

import copy
import math
from dataclasses import dataclass, field

from torch import nn
from transformers import SchedulerType, TrainingArguments

from ban_hf.errors import BANError, did_you_mean
from ban_hf.objectives import OBJECTIVES
from ban_hf.tasks.catalog import LOWER_IS_BETTER
from ban_hf.training.performance import fast_arguments

#: Number formats that a teacher's outputs may be kept in.
CACHE_DTYPES = ("float32", "float16")

#: NAME+label is the objective NAME with label_weight=1, as the paper's BAN+L is kd+label.
WITH_LABELS = "+label"


@dataclass
class BANTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what distillation adds.

    The loss is `teacher_weight * objective + label_weight * label cross-entropy`: BAN is
    (kd, 1, 0), the defaults; BAN+L is (kd, 1, 1), the default of `train_generations` for language
    models. `label_weight` stays None until the task is known: `BANTrainer` takes it as 0, a
    sequence as the task's `default_label_weight`. Without a teacher none of the first four matters.

    Raises:
        BANError: for an unknown objective, a temperature that is not above 0, a negative weight,
            both weights 0, or milestones that are not rising fractions of the training.
    """

    objective: str = field(
        default="kd",
        metadata={
            "help": f"What is distilled: one of {', '.join(OBJECTIVES)}. NAME{WITH_LABELS} is NAME "
            "with label_weight=1. A recipe takes several, kd,kd+label,cwtm,dkpp: students of one "
            "teacher, one objective after another."
        },
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
            "help": "Weight decay on the biases and the parameters of normalization layers: true "
            "as in the paper, false for none; by default as transformers.Trainer does, which knows "
            "a BatchNorm by its name only."
        },
    )

    fast: bool | None = field(
        default=None,
        metadata={
            "help": "Train convolutional networks, the teacher too, in bfloat16 where the hardware "
            "computes it, and channels-last (--no_fast: as transformers.Trainer does). By default "
            "where there is a teacher, and in every generation of a sequence."
        },
    )
    teacher_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images or sentences that the teacher runs on at a time, of all "
            "micro-batches of a step. By default a micro-batch; 32 images on the fast path of a "
            "CPU, whose cache they fit. On a GPU more may be faster under gradient accumulation."
        },
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder to store the teacher's outputs in, and to read them from if they "
            "are there: every further student of this teacher then costs what labels cost. A "
            "sequence stores those of its first teacher only, which other runs may share."
        },
    )
    teacher_cache_dtype: str = field(
        default="float32",
        metadata={
            "help": "float32 keeps the teacher's outputs as they are; float16 rounds them, for the "
            "student that fills the cache, too, and takes half the space."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are no number out of the logs. Not by default: it waits for "
            "the GPU at every step, and such a loss stops the training anyway."
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
        metadata={"help": "License of the weights for the model cards, such as apache-2.0."},
    )

    def __post_init__(self) -> None:
        metric = (self.metric_for_best_model or "loss").removeprefix("eval_")
        if self.greater_is_better is None and metric in LOWER_IS_BETTER:
            self.greater_is_better = False  # Trainer knows it of a loss only
        super().__post_init__()
        self._read_objectives()
        if not 0 < self.temperature < math.inf:
            raise BANError(
                f"temperature={self.temperature} must be above 0 and finite; the paper uses 1."
            )
        label_weight = self.label_weight or 0.0
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

    # Lists of objectives and `+label`. To be removed: they belong to the recipe.

    def each_objective(self) -> dict[str, "BANTrainingArguments"]:
        """These arguments with one objective each, by the names that the objectives were given.

        Of several, `label_weight` is that of those without `+label`. Where it is not given, and one
        has it, that is 0: `kd,kd+label` is BAN and BAN+L, of a language model, too.
        """
        return {name: self._of_objective(name) for name in self.objective.split(",")}

    def check_one_objective(self) -> None:
        """Raise if there are several objectives, which only a recipe trains."""
        if "," in self.objective:
            raise BANError(
                f"objective={self.objective!r} names several, which a recipe, run_image_family or "
                "run_language_family trains one after another: give one of them here."
            )

    def _of_objective(self, name: str) -> "BANTrainingArguments":
        args = copy.copy(self)
        args.objective = name.removesuffix(WITH_LABELS)
        if args.objective != name:
            args.label_weight = 1.0
        elif args.label_weight is None and WITH_LABELS in self.objective:
            args.label_weight = 0.0
        return args

    def _read_objectives(self) -> None:
        """Check each name, and resolve `+label` where there is but one."""
        names = [name.strip() for name in self.objective.split(",")]
        for name in names:
            if name.removesuffix(WITH_LABELS) not in OBJECTIVES:
                known = [*OBJECTIVES, *(known + WITH_LABELS for known in OBJECTIVES)]
                raise BANError(
                    f"objective={name!r} is unknown.{did_you_mean(name, known)} "
                    f"There is {', '.join(OBJECTIVES)}."
                )
        self.objective = ",".join(names)
        self._check_labels(names)
        if len(names) == 1:
            alone = self._of_objective(names[0])
            self.objective, self.label_weight = alone.objective, alone.label_weight

    def _check_labels(self, names: list[str]) -> None:
        """Raise unless `+label` and `label_weight` agree and no two objectives are the same."""
        marked = [name for name in names if name.endswith(WITH_LABELS)]
        possible = (1,) if len(marked) == len(names) else (0, 1)
        if marked and self.label_weight is not None and self.label_weight not in possible:
            raise BANError(
                f"label_weight={self.label_weight:g} contradicts objective={marked[0]!r}, which is "
                "label_weight=1: leave one of them out."
            )
        seen: dict[tuple[str, float], str] = {}
        for name in names:
            args = self._of_objective(name)
            same = seen.setdefault((args.objective, args.label_weight or 0.0), name)
            if same != name:
                raise BANError(
                    f"objective={self.objective!r}: {same!r} and {name!r} are the same with "
                    "label_weight=1: leave one of them out, or give label_weight=0."
                )
        if len(seen) < len(names):
            raise BANError(f"objective={self.objective!r} names one twice: leave it out.")


def sequence_arguments(args: BANTrainingArguments, model: nn.Module) -> BANTrainingArguments:
    """The arguments of a sequence of such networks: fast, unless they say otherwise."""
    args = copy.copy(args)
    args.fast = args.fast is not False
    return fast_arguments(args, model) if args.fast else args
