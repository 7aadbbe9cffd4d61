"""A teacher that sees otherwise than its student: how it reads a batch, and how it is compared.

A batch is the student's. A `Pairing` makes of it what the teacher reads: its own columns, and
pixels of its own size and normalization. It brings the teacher's items into the student's classes.
What cannot be brought together is refused. Where both see the same it does nothing.
"""

import inspect
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TimmWrapperConfig,
)
from transformers.utils import IMAGE_PROCESSOR_NAME

from ban_hf.errors import BANError
from ban_hf.lineage.files import read_json
from ban_hf.models.adapters import has_adapter
from ban_hf.models.configuration import CifarNetConfig
from ban_hf.tasks.base import Items, Task, first_member, members_of

TOKENIZER_FILE = "tokenizer_config.json"
TEXTS = ("input_ids", "decoder_input_ids", "labels")  # what a model may read word by word

logger = logging.getLogger(__name__)


class PixelFormat(NamedTuple):
    """What `pixel_values` are: (pixel / 255 - mean) / std, and squares of `size`, where known."""

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


class PixelConversion(NamedTuple):
    """From the student's pixels to the teacher's."""

    ours: PixelFormat
    theirs: PixelFormat

    def __call__(self, pixels: Tensor) -> Tensor:
        """`(..., channels, H, W)` as the teacher reads them: (x std_s + mean_s - mean_t) / std_t.

        Then a resize, bilinear with antialiasing, as image processors do it.
        """
        dtype = torch.promote_types(pixels.dtype, torch.float32)
        of_ours, of_theirs = (
            [torch.tensor(x, dtype=dtype, device=pixels.device)[:, None, None] for x in form[1:]]
            for form in self
        )  # mean, std: (channels, 1, 1) each
        found = (pixels * of_ours[1] + of_ours[0] - of_theirs[0]) / of_theirs[1]
        size = self.theirs.size
        if size is not None and self.ours.size not in (None, size):
            flat = found.flatten(0, -4)  # (N, channels, H, W)
            flat = F.interpolate(flat, size=(size, size), mode="bilinear", antialias=True)
            found = flat.unflatten(0, pixels.shape[:-3])
        return found.to(pixels.dtype)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """How a teacher reads its student's batches, and how the two are compared.

    Attributes:
        task: of both.
        teacher: as it is given, not wrapped.
        student: not wrapped either; it says how labels are read.
        not_read: columns that the student takes and the teacher does not.
        pixels: from the student's to the teacher's; None where they are the same, or not known.
        context: the words that the teacher can read, where the student can read more.
        order: the teacher's number of each class of the student; None where they are the same.
        words: the first words, which both have, of vocabularies of different sizes.
        student_has_more: whether the student has others besides.
    """

    task: Task
    teacher: nn.Module
    student: nn.Module
    not_read: frozenset[str] = frozenset()
    pixels: PixelConversion | None = None
    context: int | None = None
    order: tuple[int, ...] | None = None
    words: int | None = None
    student_has_more: bool = False

    def teacher_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch as the teacher gets it: without labels, and with its own columns and pixels.

        Raises:
            BANError: for a text that is longer than the teacher can read.
        """
        found = without(self.task.forward_inputs(self.teacher, inputs), self.not_read)
        if self.context is not None:
            for name in TEXTS:
                if name in found and found[name].shape[-1] > self.context:
                    raise BANError(
                        f"{name} has {found[name].shape[-1]} words, and the teacher, a "
                        f"{type(self.teacher).__name__}, reads at most {self.context}: cut the "
                        f"texts with the tokenizer's max_length={self.context} and truncation, or "
                        "choose a teacher with a longer context."
                    )
        if self.pixels is not None and "pixel_values" in found:
            found = found | {"pixel_values": self.pixels(found["pixel_values"])}
        return found

    def items(self, inputs: dict[str, Any], outputs: Any) -> Items:
        """The teacher's items of a batch, with the classes and the labels of the student."""
        items = self.task.items(self.student, inputs, outputs)
        logits = self.task.logits(self.teacher, inputs, outputs)  # (N, C)
        items = items._replace(logits=logits)
        if self.order is not None:
            items = items._replace(logits=logits[:, torch.tensor(self.order, device=logits.device)])
        if self.words is not None:
            common = self.words if self.student_has_more else None
            items = items._replace(logits=logits[:, : self.words], common=common)
        return items


def pair(
    task: Task,
    teacher: nn.Module,
    student: nn.Module,
    processor: Any = None,
    teacher_name: str | Path | None = None,
) -> Pairing:
    """How a teacher teaches a student.

    Args:
        task: of both.
        teacher: a model.
        student: a model.
        processor: the student's tokenizer or image processor, if it is known.
        teacher_name: the folder or Hub id that the teacher was loaded from, by default what its
            config says.

    Raises:
        BANError: for other classes, another tokenizer, a vocabulary of another size whose words are
            not known to be the same, and what `Task.check_pair` refuses.
    """
    task.check_pair(teacher, student)
    known: dict[str, Any] = {"not_read": foreign_inputs(teacher, [student]) - set(task.label_names)}
    if not (isinstance(teacher, PreTrainedModel) and isinstance(student, PreTrainedModel)):
        return Pairing(task=task, teacher=teacher, student=student, **known)
    name = str(teacher_name or teacher.config.name_or_path)
    if task.classes == "names":
        known["order"] = class_order(teacher.config, student.config)
    kinds = {student.main_input_name, teacher.main_input_name}
    if kinds == {"input_ids"}:
        tokenizer = processor if isinstance(processor, PreTrainedTokenizerBase) else None
        sizes = check_vocabularies(teacher.config, student.config, name, tokenizer)
        if sizes is not None and task.classes == "words":
            known |= {"words": min(sizes), "student_has_more": sizes[1] > sizes[0]}
        theirs, ours = context(teacher), context(student)
        known["context"] = theirs if theirs and (ours is None or theirs < ours) else None
    elif kinds == {"pixel_values"} and (teacher_name or not has_adapter(teacher)):
        # By its base's name it is not known what an adapter reads.
        known["pixels"] = _conversion(teacher, student, processor, name)
    return Pairing(task=task, teacher=teacher, student=student, **known)


# Columns and options


def call_options(model: nn.Module) -> dict[str, Any]:
    """What a model is called with besides a batch: outputs by name, and no cache for generation.

    With a cache a decoder of transformers reads texts that are packed into a row as one.
    """
    options: dict[str, Any] = {}
    parameters = inspect.signature(type(model).forward).parameters
    if isinstance(model, PreTrainedModel) and model.config.return_dict is False:
        options["return_dict"] = True
    caches = {"use_cache", "cache", "past_key_values"} & parameters.keys()
    if caches and "state" not in parameters:  # which our recurrent networks give back by it
        options["use_cache"] = False
    return options


def named_inputs(model: nn.Module) -> frozenset[str] | None:
    """The names that a model's `forward` takes, of an ensemble those of its members.

    None where they do not tell which columns it reads, since it takes any as keywords.
    """
    found: set[str] = set()
    for member in members_of(model):
        parameters = inspect.signature(type(member).forward).parameters
        takes_any = any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters.values())
        # The keywords of transformers' own models are options, not columns.
        is_named = isinstance(member, PreTrainedModel) and member.main_input_name in parameters
        if takes_any and not is_named:
            return None
        found |= parameters.keys() - {"self"}
    return frozenset(found)


def foreign_inputs(model: nn.Module, others: Iterable[nn.Module]) -> frozenset[str]:
    """The names that others take and a model does not, as far as their `forward`s tell."""
    own = named_inputs(model)
    if own is None:
        return frozenset()
    return frozenset().union(*(named_inputs(other) or () for other in others)) - own


def without(inputs: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """A batch without some of its columns."""
    if names.isdisjoint(inputs):
        return inputs
    return {name: value for name, value in inputs.items() if name not in names}


# Classes and words


def class_order(teacher: PretrainedConfig, student: PretrainedConfig) -> tuple[int, ...] | None:
    """The teacher's number of each class of the student, by name.

    None where they are in the same order, or one of the two has no names of its own.

    Raises:
        BANError: for another number of classes, or other names.
    """
    theirs, ours = teacher.id2label, student.id2label
    if len(theirs) != len(ours):
        raise BANError(
            f"teacher has {len(theirs)} classes and model has {len(ours)}: build the student with "
            "the teacher's num_labels, or choose another teacher."
        )
    if theirs == ours or _are_placeholders(theirs) or _are_placeholders(ours):
        return None
    numbers = {name: i for i, name in theirs.items()}
    labels = [ours[i] for i in range(len(ours))]
    for i, label in enumerate(labels):
        if label not in numbers:
            raise BANError(
                f"teacher and model name their classes differently: the teacher has none called "
                f"{label!r}, which is class {i} of the model. Build the student with the teacher's "
                "id2label and number the labels of the data by it."
            )
    if len(set(labels)) < len(labels):
        raise BANError(
            "teacher and model have their classes in different orders, and some have the same "
            "name: give each class of id2label a name of its own."
        )
    return tuple(numbers[label] for label in labels)


def _are_placeholders(id2label: dict[int, str]) -> bool:
    """Whether these are the names that `transformers` gives where there are none."""
    return all(name == f"LABEL_{i}" for i, name in id2label.items())


def check_vocabularies(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    teacher_name: str,
    tokenizer: PreTrainedTokenizerBase | None,
) -> tuple[int, int] | None:
    """The sizes of two vocabularies if they differ: of one tokenizer's words, and padding.

    Raises:
        BANError: where the two do not read the same words, as far as their configs and tokenizers
            tell; of different sizes the tokenizers must tell.
    """
    configs = [config.get_text_config().to_dict() for config in (teacher, student)]
    digests = {config.get("vocabulary_sha256") for config in configs} - {None}
    if len(digests) > 1:
        raise BANError(
            "teacher and model have other words, or the same in another order: encode the text "
            "with the teacher's tokenizer and build the student from its words."
        )
    theirs, ours = (config.get("vocab_size") for config in configs)
    words = None if tokenizer is None else _common_words(teacher_name, tokenizer)
    if theirs == ours or theirs is None or ours is None:
        return None
    if words is None or words > min(theirs, ours):
        why = (
            "it is not known that their words are the same: give the tokenizer as "
            "processing_class, and have the teacher's beside its weights"
            if words is None
            else f"their tokenizer has {words}: build the student with more"
        )
        raise BANError(
            f"teacher has a vocabulary of {theirs} and model one of {ours}, and {why}; or build "
            "the student with the teacher's vocabulary, or choose another teacher."
        )
    return theirs, ours


def _common_words(teacher_name: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How many numbers the words of a student's and its teacher's tokenizer take, if known.

    It is known where the teacher's tokenizer is on this machine.

    Raises:
        BANError: unless both number all words alike.
    """
    file = _local_file(teacher_name, TOKENIZER_FILE)
    if file is None:
        return None
    from transformers import AutoTokenizer  # half loaded when the Auto classes load this module

    folder = file.parent
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()
    ours = tokenizer.get_vocab()
    different = sorted(ours.items() - theirs.items(), key=lambda item: item[1])
    different += sorted(theirs.items() - ours.items(), key=lambda item: item[1])
    if different:
        word = different[0][0]
        raise BANError(
            f"teacher and processing_class number their words differently: {word!r} is "
            f"{ours.get(word)} here and {theirs.get(word)} in {folder}. Use the teacher's "
            f"tokenizer: AutoTokenizer.from_pretrained({str(folder)!r})."
        )
    return max(ours.values()) + 1


def context(model: nn.Module) -> int | None:
    """The words that a model can read, of an ensemble all its members; None for any number."""
    lengths = []
    for member in members_of(model):
        config = member.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)  # by any name, unlike to_dict()
        if longest is not None and longest > 0:
            lengths.append(int(longest))
    return min(lengths, default=None)


def _local_file(name: str, file: str) -> Path | None:
    """A file beside a model's weights; None if it is not on this machine."""
    if not name:  # a fresh model, which has none
        return None
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    repo_id, _, revision = name.partition("@")
    if repo_id.count("/") > 1:  # a folder that is not there
        return None
    cached = try_to_load_from_cache(repo_id, file, revision=revision or None)
    return Path(cached) if isinstance(cached, str) else None


# Pixels


def _conversion(
    teacher: PreTrainedModel, student: PreTrainedModel, processor: Any, teacher_name: str
) -> PixelConversion | None:
    """From the student's pixels to the teacher's, where both are known and differ."""
    file = _local_file(teacher_name, IMAGE_PROCESSOR_NAME)
    theirs = pixel_format(read_json(file) if file else None, first_member(teacher).config)
    is_known = isinstance(processor, BaseImageProcessor)
    ours = pixel_format(processor.to_dict() if is_known else None, first_member(student).config)
    if theirs is None or ours is None:
        return None
    found = PixelConversion(ours, theirs)
    sizes_differ = None not in (ours.size, theirs.size) and ours.size != theirs.size
    if ours[1:] == theirs[1:] and not sizes_differ:
        return None
    if len(ours.mean) != len(theirs.mean):
        raise BANError(
            f"teacher reads images of {len(theirs.mean)} channels and model of {len(ours.mean)}: "
            "choose another teacher."
        )
    logger.warning(
        "The teacher reads other images than the student: pixel_values are converted for it from "
        "%s to %s.",
        ours,
        theirs,
    )
    return found


def pixel_format(
    processor: Mapping[str, Any] | None, config: PretrainedConfig
) -> PixelFormat | None:
    """What the `pixel_values` of a model are, however images are cut to their size, if known.

    Args:
        processor: the model's image processor, if it has one.
        config: of the model, for one without.
    """
    if processor is None and isinstance(config, CifarNetConfig):
        if not (config.image_mean and config.image_std):
            return None
        return PixelFormat(config.image_size, tuple(config.image_mean), tuple(config.image_std))
    if processor is None:
        found = config.to_dict() if isinstance(config, TimmWrapperConfig) else {}
        of_timm = found.get("pretrained_cfg")
    else:
        of_timm = processor.get("data_config")
    if of_timm:
        _, height, width = of_timm["input_size"]
        size = height if height == width else None
        return PixelFormat(size, tuple(of_timm["mean"]), tuple(of_timm["std"]))
    if processor is None:
        return None
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        channels = len(mean or (0.0,) * 3)
        mean, std = (0.0,) * channels, (1.0,) * channels
    if mean is None or std is None:
        return None
    # In units of pixel / 255, whatever the processor scales pixels by.
    rescales = processor.get("do_rescale", True)
    scale = 255 * processor.get("rescale_factor", 1 / 255) if rescales else 255.0
    return PixelFormat(
        _square(processor), tuple(x / scale for x in mean), tuple(x / scale for x in std)
    )


def _square(processor: Mapping[str, Any]) -> int | None:
    """The side of the squares that an image processor makes; None if it makes others."""
    crops = processor.get("do_center_crop")
    if not crops and not processor.get("do_resize", True):
        return None
    size = processor.get("crop_size" if crops else "size")
    height, width = (
        (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    )
    return int(height) if height and height == width else None
