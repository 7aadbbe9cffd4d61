"""The teacher: checked against its student, frozen, and asked for logits."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode and take its parameters out of every gradient."""
    return teacher.eval().requires_grad_(False)


def check_teacher(teacher: nn.Module, student: nn.Module) -> None:
    """Hold that a teacher can teach a student.

    Raises:
        ValueError: if they are the same object or share weights that are to be trained, or have
            another number of classes or another order of labels.
    """
    taught = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    if teacher is student or any(id(parameter) in taught for parameter in teacher.parameters()):
        raise ValueError(
            "teacher and model are the same object or share trainable weights, so that nothing "
            "would be learnt: give the student fresh weights, such as type(model)(config)."
        )
    if isinstance(teacher, PreTrainedModel) and isinstance(student, PreTrainedModel):
        _check_labels(teacher.config, student.config)


def _check_labels(teacher_config: PretrainedConfig, student_config: PretrainedConfig) -> None:
    teacher_labels, student_labels = teacher_config.id2label, student_config.id2label
    if len(teacher_labels) != len(student_labels):
        raise ValueError(
            f"teacher has {len(teacher_labels)} classes and model has {len(student_labels)}: "
            "build the student with the teacher's num_labels, or choose another teacher."
        )
    if _unnamed(teacher_labels) or _unnamed(student_labels):
        return
    for i, label in student_labels.items():
        if teacher_labels[i] != label:
            raise ValueError(
                f"teacher and model name their classes differently: class {i} is "
                f"{teacher_labels[i]!r} to the teacher and {label!r} to the model. Build the "
                "student with the teacher's id2label and order the labels of the data by it."
            )


def _unnamed(id2label: dict[int, str]) -> bool:
    """Whether these are the placeholders that `transformers` puts where no names were given."""
    return all(name == f"LABEL_{i}" for i, name in id2label.items())


def teacher_logits(teacher: nn.Module, inputs: dict) -> Tensor:
    """The teacher's logits `(N, C)` for a batch, in evaluation mode and without a graph."""
    if teacher.training:  # somebody's callback or evaluation switched it: BatchNorm would move
        teacher.eval()
    with torch.no_grad():
        outputs = teacher(**{k: v for k, v in inputs.items() if k != "labels"})
    logits = getattr(outputs, "logits", None)
    if logits is None:
        raise ValueError(
            f"teacher gives no logits, but {type(outputs).__name__}: it must have a head, as "
            "AutoModelForImageClassification and AutoModelForSequenceClassification give it."
        )
    return logits
