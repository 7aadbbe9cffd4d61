"""The teacher: checked against its student, frozen, and asked."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ban_hf.errors import BANError
from ban_hf.training.ensemble import is_language_model


def freeze(teacher: nn.Module) -> nn.Module:
    """Put a teacher into evaluation mode and take its parameters out of every gradient."""
    return teacher.eval().requires_grad_(False)


def check_teacher(teacher: nn.Module, student: nn.Module, tokenizer: Any = None) -> None:
    """Hold that a teacher can teach a student.

    Args:
        teacher: a model; where it was loaded from a folder with a tokenizer, that is looked at too.
        student: a model.
        tokenizer: of the student, if it has one.

    Raises:
        ValueError: if they are the same object or share weights that are to be trained, or have
            another number of classes or words, or another order of them.
    """
    taught = {id(parameter) for parameter in student.parameters() if parameter.requires_grad}
    if teacher is student or any(id(parameter) in taught for parameter in teacher.parameters()):
        raise BANError(
            "teacher and model are the same object or share trainable weights, so that nothing "
            "would be learnt: give the student fresh weights, such as type(model)(config)."
        )
    if isinstance(teacher, PreTrainedModel) and isinstance(student, PreTrainedModel):
        _check_labels(teacher.config, student.config)
        if is_language_model(student):
            _check_words(teacher.config, student.config)
            if isinstance(tokenizer, PreTrainedTokenizerBase):
                _check_tokenizer(teacher.config.name_or_path, tokenizer)


def _check_words(teacher_config: PretrainedConfig, student_config: PretrainedConfig) -> None:
    sizes = teacher_config.get_text_config().vocab_size, student_config.get_text_config().vocab_size
    if sizes[0] != sizes[1]:
        raise BANError(
            f"teacher has a vocabulary of {sizes[0]} and model one of {sizes[1]}: build the "
            "student with the teacher's vocabulary, or choose another teacher."
        )
    digests = [getattr(c, "vocabulary_sha256", None) for c in (teacher_config, student_config)]
    if None not in digests and digests[0] != digests[1]:
        raise BANError(
            "teacher and model have other words, or the same in another order: encode the text "
            "with the teacher's tokenizer and build the student from its words."
        )


def _check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = Path(name)
    if not name or not (folder / "tokenizer_config.json").is_file():  # a fresh model has no name
        return
    theirs, ours = (
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab(),
        tokenizer.get_vocab(),
    )
    for word, index in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(word) != index:
            raise BANError(
                f"teacher and processing_class number their words differently: {word!r} is "
                f"{index} here and {theirs.get(word)} in {folder}. Use the teacher's tokenizer: "
                f"AutoTokenizer.from_pretrained({str(folder)!r})."
            )


def _check_labels(teacher_config: PretrainedConfig, student_config: PretrainedConfig) -> None:
    teacher_labels, student_labels = teacher_config.id2label, student_config.id2label
    if len(teacher_labels) != len(student_labels):
        raise BANError(
            f"teacher has {len(teacher_labels)} classes and model has {len(student_labels)}: "
            "build the student with the teacher's num_labels, or choose another teacher."
        )
    if _unnamed(teacher_labels) or _unnamed(student_labels):
        return
    for i, label in student_labels.items():
        if teacher_labels[i] != label:
            raise BANError(
                f"teacher and model name their classes differently: class {i} is "
                f"{teacher_labels[i]!r} to the teacher and {label!r} to the model. Build the "
                "student with the teacher's id2label and order the labels of the data by it."
            )


def _unnamed(id2label: dict[int, str]) -> bool:
    """Whether these are the placeholders that `transformers` puts where no names were given."""
    return all(name == f"LABEL_{i}" for i, name in id2label.items())


def ask_teacher(teacher: nn.Module, inputs: dict[str, Any]) -> Any:
    """The teacher's outputs for a batch without labels, in evaluation mode and without a graph.

    Raises:
        ValueError: if they have no logits.
    """
    if teacher.training:  # somebody's callback or evaluation switched it: BatchNorm would move
        teacher.eval()
    with torch.inference_mode():
        outputs = teacher(**inputs)
    if getattr(outputs, "logits", None) is None:
        raise BANError(
            f"teacher gives no logits, but {type(outputs).__name__}: it must have a head, as "
            "AutoModelForImageClassification and AutoModelForCausalLM give it."
        )
    return outputs
