"""What distillation adds to the arguments of a training; no heavy import, so that help is quick."""

from dataclasses import dataclass, field
from typing import Any

#: Number formats that a teacher's outputs may be kept in.
CACHE_DTYPES = ("float32", "float16")


def _argument(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass
class DistillationArguments:
    """The objective, its weights, and how teacher and student are run."""

    objective: str = _argument(
        "kd",
        "What is distilled: kd, cwtm, dkpp or dkd. A recipe also takes NAME+label, which is NAME "
        "with label_weight=1, and several, kd,kd+label,cwtm,dkpp: students of one teacher, one "
        "objective after another.",
    )
    temperature: float = _argument(
        1.0, "Temperature of the softmax in the objective. The paper uses 1."
    )
    teacher_weight: float = _argument(1.0, "Weight of the objective in the loss.")
    label_weight: float | None = _argument(
        None,
        "Weight of the label cross-entropy in the loss: 0 is BAN, 1 is BAN+L. By default 0; in a "
        "sequence of language models, which BAN does not train, 1.",
    )
    lr_milestones: list[float] | None = _argument(  # noqa: RUF009
        None,
        "Fractions of the training at which the learning rate is multiplied by lr_gamma, in place "
        "of lr_scheduler_type. The paper: 0.3 0.6 0.8.",
    )
    lr_gamma: float = _argument(0.2, "What each milestone multiplies the learning rate by.")
    decay_norms_and_biases: bool | None = _argument(
        None,
        "Weight decay on the biases and the parameters of normalization layers: true as in the "
        "paper, false for none; by default as transformers.Trainer does, which knows a BatchNorm "
        "by its name only.",
    )
    fast: bool | None = _argument(
        None,
        "Train convolutional networks, the teacher too, in bfloat16 where the hardware computes "
        "it, and channels-last (--no_fast: as transformers.Trainer does). By default where there "
        "is a teacher, and in every generation of a sequence.",
    )
    teacher_batch_size: int | None = _argument(
        None,
        "Images or sentences that the teacher runs on at a time, of all micro-batches of a step. "
        "By default a micro-batch; 32 images on the fast path of a CPU, whose cache they fit. On "
        "a GPU more may be faster under gradient accumulation.",
    )
    teacher_cache: str | None = _argument(
        None,
        "Folder to store the teacher's outputs in, and to read them from if they are there: every "
        "further student of this teacher then costs what labels cost. A sequence stores those of "
        "its first teacher only, which other runs may share.",
    )
    teacher_cache_dtype: str = _argument(
        "float32",
        "float32 keeps the teacher's outputs as they are; float16 rounds them, for the student "
        "that fills the cache, too, and takes half the space.",
    )
    logging_nan_inf_filter: bool = _argument(
        False,
        "Leave losses that are no number out of the logs. Not by default: it waits for the GPU at "
        "every step, and under a teacher and in a sequence such a loss stops the training anyway.",
    )
    greater_is_better: bool | None = _argument(
        None,
        "Whether metric_for_best_model is better when higher. By default not for a loss, an "
        "error, a divergence or a perplexity.",
    )
    hub_license: str | None = _argument(
        None, "License of the weights for the model cards, such as apache-2.0."
    )
