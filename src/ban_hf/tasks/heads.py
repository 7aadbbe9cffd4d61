"""The heads that can be taught: what is theirs alone. All else is in `tasks.base`."""

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import CATALOG, UNSHIFTED, Activation
from ban_hf.tasks.base import (
    Items,
    Labels,
    Output,
    Task,
    Transcripts,
    class_labels,
    first_member,
)

#: What turns the logits of each `problem_type` of transformers into a prediction.
ACTIVATIONS: dict[str, Activation] = {
    "single_label_classification": "softmax",
    "multi_label_classification": "sigmoid",
    "regression": "identity",
}
#: Heads whose own loss leaves out labels where the attention mask is 0.
HIDING = {
    "BioGptForTokenClassification",
    "GraniteSpeechForConditionalGeneration",
    "GraniteSpeechPlusForConditionalGeneration",
    "MraForTokenClassification",
    "Qwen2AudioForConditionalGeneration",
    "XLMRobertaXLForTokenClassification",
    "YosoForTokenClassification",
}
#: Methods of speech models that tell how many frames so many samples make.
FRAME_COUNTS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")


class ClassTask(Task):
    """A head whose classes have names, `id2label`."""

    classes = "names"


class Classification(ClassTask):
    """A prediction for each row: logits `(B, C)`.

    The `problem_type` of the config says what is predicted, as in transformers: one class, labels
    `(B,)`; several labels, each true or not, floats `(B, C)`; or numbers, floats `(B,)` or
    `(B, C)`. Where it is not given, a head of one number is a regression, and labels that are
    floats are those of several labels.
    """

    def activation(self, model: nn.Module, inputs: dict[str, Any]) -> Activation:
        kind = problem_type(model)
        if kind is None:
            labels = inputs.get("labels")
            return "sigmoid" if labels is not None and labels.is_floating_point() else "softmax"
        if kind not in ACTIVATIONS:
            raise BANError(
                f"{type(model).__name__} has problem_type={kind!r}: transformers knows "
                f"{', '.join(ACTIVATIONS)}."
            )
        return ACTIVATIONS[kind]

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        activation, labels = self.activation(model, inputs), inputs.get("labels")
        if activation == "softmax" or labels is None:
            return class_labels(labels, outputs.logits[..., 0])
        wanted = outputs.logits.shape  # (B, C)
        one_number = wanted[1] == 1 and labels.shape == wanted[:1]
        if labels.shape != wanted and not one_number:
            raise BANError(
                f"labels of problem_type={problem_type(model)!r} must have the shape "
                f"{tuple(wanted)}, not {tuple(labels.shape)}."
            )
        if not labels.is_floating_point():
            raise BANError(
                f"labels of problem_type={problem_type(model)!r} must be floats, not "
                f"{labels.dtype}, as transformers computes their loss: cast the column."
            )
        weights = torch.ones(len(labels), device=labels.device)  # (B,)
        return Labels(labels.reshape(wanted).float(), weights)

    def class_numbers(self, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        is_softmax = self.activation(model, inputs) == "softmax"
        return super().class_numbers(model, inputs) if is_softmax else []

    def check_pair(self, teacher: nn.Module, student: nn.Module) -> None:
        kinds = [problem_type(model) for model in (teacher, student)]
        if kinds[1] is None and isinstance(student, PreTrainedModel):
            # As a first forward with labels would write it.
            student.config.problem_type = kinds[1] = kinds[0]
        theirs, ours = (ACTIVATIONS.get(kind or "", "softmax") for kind in kinds)
        if theirs != ours:
            raise BANError(
                f"teacher has problem_type={kinds[0]!r} and model has {kinds[1]!r}: set the same "
                "in both configs, since it says how their outputs and labels are read."
            )


def problem_type(model: nn.Module) -> str | None:
    """The `problem_type` of a classifier, where its config decides it without labels."""
    model = first_member(model)
    if not isinstance(model, PreTrainedModel):
        return None
    kind: str | None = model.config.problem_type
    return "regression" if kind is None and model.config.num_labels == 1 else kind


class ImageClassification(Classification):
    """What an image shows."""

    facts = CATALOG["image-classification"]


class SequenceClassification(Classification):
    """What a sentence, or a pair of sentences, says."""

    facts = CATALOG["text-classification"]


class AudioClassification(Classification):
    """What a recording has in it."""

    facts = CATALOG["audio-classification"]


class VideoClassification(Classification):
    """What a video shows."""

    facts = CATALOG["video-classification"]


class MultipleChoice(Task):
    """One of a row's choices: inputs `(B, choices, T)`, logits `(B, choices)`, labels `(B,)`."""

    facts = CATALOG["multiple-choice"]


class NextSentencePrediction(Task):
    """Whether a sentence follows another: logits `(B, 2)`, labels `(B,)`, 0 for yes."""

    facts = CATALOG["next-sentence-prediction"]


class TokenClassification(ClassTask):
    """A class for each token: logits `(B, T, C)`, labels `(B, T)`, not shifted.

    Without labels all tokens count that the attention mask shows.
    """

    facts = CATALOG["token-classification"]

    def leading(self, activation: Activation, names: Sequence[str]) -> str:
        return super().leading(activation, names) if has_entities(names) else "error"

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        mask = inputs.get("attention_mask")  # (B, T)
        visible = {"labels": _visible_labels(model, inputs)}
        values, weights = super().labels(model, visible, outputs)
        if values is None and mask is not None:
            weights = mask.reshape(-1).float()  # (N,)
        return Labels(values, weights)


def has_entities(names: Sequence[str]) -> bool:
    """Whether classes are parts of entities, ``B-PER`` and ``I-PER``, beside ``O``.

    Raises:
        BANError: if some are and others are not.
    """
    others = [name for name in names if name != "O"]
    tagged = [name for name in others if re.match("[BIES]-.", name)]
    if tagged and len(tagged) < len(others):
        other = next(name for name in others if name not in tagged)
        raise BANError(
            f"id2label has classes with a scheme of entities, such as {tagged[0]!r}, and others "
            f"without, such as {other!r}: write all but 'O' as B-TYPE and I-TYPE (in a scheme of "
            "ends and single tokens also E-TYPE and S-TYPE), or none of them."
        )
    return bool(tagged)


class AudioFrameClassification(ClassTask):
    """A class for each frame of a recording: logits `(B, T, C)`, labels one-hot `(B, T, C)`.

    With labels all frames count, as in the models' own loss; without, those of the recording.
    """

    facts = CATALOG["audio-frame-classification"]
    smooths = False  # they are one-hot

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        labels, logits = inputs.get("labels"), outputs.logits  # (B, T, C)
        if labels is None:
            return Labels(None, _frames_that_count(model, inputs, logits.shape[1]).reshape(-1))
        if labels.shape != logits.shape:
            raise BANError(
                f"labels of audio frames must be one-hot, {tuple(logits.shape)} as the model's "
                f"logits, not {tuple(labels.shape)}."
            )
        return class_labels(labels.argmax(-1), logits[..., 0])

    def class_numbers(self, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        return []  # one-hot


class QuestionAnswering(Task):
    """Where an answer starts and ends in a text: two groups of items, logits `(B, T)` each.

    Positions `(B,)` are read as transformers reads them: a negative one is 0, and one beyond the
    text does not count.
    """

    facts = CATALOG["question-answering"]
    label_names = ("start_positions", "end_positions")
    outputs = (Output("start_logits"), Output("end_logits"))

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        rows, length = outputs.start_logits.shape
        found = [inputs.get(name) for name in self.label_names]  # (B,) each
        if found == [None, None]:
            return Labels(None, outputs.start_logits.new_ones(2 * rows, dtype=torch.float32))
        if found[0] is None or found[1] is None:
            raise BANError(
                "question answering needs start_positions and end_positions, both or none: add "
                "the column that is missing."
            )
        positions = torch.stack([x.reshape(rows) for x in found if x is not None], 1)  # (B, 2)
        positions = positions.clamp(0, length)
        return class_labels(positions.masked_fill(positions == length, IGNORED), positions)

    def class_numbers(self, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        return []  # positions


class SemanticSegmentation(ClassTask):
    """A class for each pixel: logits `(B, C, h, w)`, labels `(B, H, W)`.

    The logits are resized to the labels, as the models do for their own loss. Pixels of the label
    `semantic_loss_ignore_index` (255) do not count. Without labels the logits stay as they are.
    """

    facts = CATALOG["image-segmentation"]
    outputs = (Output(class_axis=1),)

    def logits(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Tensor:
        logits, labels = outputs.logits, inputs.get("labels")
        if labels is not None:
            logits = F.interpolate(
                logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
            )  # (B, C, H, W)
        return super().logits(model, inputs, SimpleNamespace(logits=logits))

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        labels = inputs.get("labels")  # (B, H, W)
        if labels is None:
            return class_labels(None, outputs.logits[:, 0])
        if labels.ndim != 3 or len(labels) != len(outputs.logits) or labels.is_floating_point():
            raise BANError(
                "labels must be a map of class numbers for each image, "
                f"({len(outputs.logits)}, height, width), not {tuple(labels.shape)} of "
                f"{labels.dtype}."
            )
        (maps,) = self.class_numbers(model, inputs)
        return class_labels(maps, maps)

    def class_numbers(self, model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
        config = first_member(model).config.to_dict()
        ignored = config.get("semantic_loss_ignore_index", config.get("loss_ignore_index", 255))
        found = [labels.long() for labels in super().class_numbers(model, inputs)]
        return [labels.masked_fill(labels == ignored, IGNORED) for labels in found]


class LanguageModeling(Task):
    """A word at each place: logits `(B, T, V)`, labels `(B, T)`."""

    classes = "words"
    needs_labels = True
    default_label_weight = 1.0  # without labels a language model hardly trains

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        if inputs.get("labels") is None:
            raise self.labels_needed()
        return super().labels(model, inputs, outputs)

    def labels_needed(self) -> BANError:
        """The error for a batch without labels."""
        return BANError(
            f"Batches for {self.name} need labels, which tell the words that count from the "
            "others: use the data collator of transformers for it, such as "
            "DataCollatorForLanguageModeling or DataCollatorForSeq2Seq."
        )


class MaskedLanguageModeling(LanguageModeling):
    """The words that were masked: labels are -100 at all others, and not shifted."""

    facts = CATALOG["fill-mask"]


class CausalLanguageModeling(LanguageModeling):
    """The next word at each place.

    As everywhere in transformers `labels` are the words themselves and are shifted by one place
    here, once. `shift_labels` come first and are shifted already: windows of a text have them, so
    that the last word of a window is not lost.

    The decoder of an encoder gets its words shifted, made from the labels by the model itself; its
    labels are not. So the labels stay among its inputs. Without them some models (FSMT) would also
    prepare to generate, and let a word see those after it.
    """

    facts = CATALOG["text-generation"]
    label_names = ("labels", "shift_labels")

    def shifts(self, model: nn.Module) -> bool:
        return not (_has_encoder(model) or is_a(model, UNSHIFTED))

    def forward_inputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        if not _has_encoder(model):
            return super().forward_inputs(model, inputs)
        if inputs.get("labels") is None and inputs.get("decoder_input_ids") is None:
            raise self.labels_needed()
        return inputs

    def check_pair(self, teacher: nn.Module, student: nn.Module) -> None:
        super().check_pair(teacher, student)
        if self.shifts(teacher) != self.shifts(student):
            raise BANError(
                "Of teacher and model one predicts the word at each place, and the other the one "
                f"after it ({type(teacher).__name__}, {type(student).__name__}): choose a teacher "
                "of the student's kind."
            )

    def labels(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Labels:
        labels = inputs.get("shift_labels")  # (B, T)
        if labels is None:
            labels = _visible_labels(model, inputs)
            if labels is not None and self.shifts(model):
                labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]  # (B, T)
        return super().labels(model, {"labels": labels}, outputs)


class Seq2SeqLanguageModeling(CausalLanguageModeling):
    """The words of an answer to a text."""

    facts = CATALOG["text2text-generation"]


class SpeechSeq2Seq(CausalLanguageModeling):
    """The words of a recording, one after another."""

    facts = CATALOG["automatic-speech-recognition"]


class ImageTextToText(CausalLanguageModeling):
    """The words of an answer to images and a text."""

    facts = CATALOG["image-text-to-text"]


def _has_encoder(model: nn.Module) -> bool:
    model = first_member(model)
    return isinstance(model, PreTrainedModel) and bool(model.config.is_encoder_decoder)


def is_a(model: nn.Module, names: set[str]) -> bool:
    """Whether a model's class, or one that it is derived from, has one of these names."""
    return any(cls.__name__ in names for cls in type(first_member(model)).__mro__)


def _visible_labels(model: nn.Module, inputs: dict[str, Any]) -> Tensor | None:
    """The labels of a batch, without those that the attention mask hides from some heads."""
    labels, mask = inputs.get("labels"), inputs.get("attention_mask")  # (B, T), (B, T)
    if labels is None or mask is None or not is_a(model, HIDING):
        return labels
    return labels.masked_fill(mask == 0, IGNORED)


class CTC(Task):
    """The text of a recording, by alignment: logits `(B, T, V)` of frames, labels `(B, L)`.

    Frames are the items that a teacher teaches. The label loss is that of rows: of each text, and
    the mean over them, also where `ctc_loss_reduction` is "sum", with which a model reports the
    sum over a batch. Padding of labels is -100, or the blank (`pad_token_id`).
    """

    facts = CATALOG["ctc"]
    labels_items = smooths = False

    def check_pair(self, teacher: nn.Module, student: nn.Module) -> None:
        super().check_pair(teacher, student)
        theirs, ours = (first_member(model).config for model in (teacher, student))
        for name in ("vocab_size", "pad_token_id"):
            if getattr(theirs, name) != getattr(ours, name):
                raise BANError(
                    f"teacher has {name}={getattr(theirs, name)} and model has "
                    f"{getattr(ours, name)}: of frames they would say other things. Build the "
                    "student with the teacher's tokens."
                )

    def items(self, model: nn.Module, inputs: dict[str, Any], outputs: Any) -> Items:
        frames = _frames_that_count(model, inputs, outputs.logits.shape[1])  # (B, T)
        logits, rows = self.logits(model, inputs, outputs), len(frames)
        items, labels = Items(logits, None, frames.reshape(-1), rows), inputs.get("labels")
        if labels is None:
            return items
        config = first_member(model).config
        return items._replace(
            transcripts=Transcripts(
                labels,
                frames.sum(1).long(),
                torch.ones(rows, device=labels.device),
                blank=config.pad_token_id,
                zero_infinity=config.ctc_zero_infinity,
                by_length=config.ctc_loss_reduction == "mean",
            )
        )


def _frames_that_count(model: nn.Module, inputs: dict[str, Any], frames: int) -> Tensor:
    """1 for the frames of a recording, 0 for its padding: `(B, T)` float32."""
    plain, mask = first_member(model), inputs.get("attention_mask")  # (B, samples)
    recording = inputs[plain.main_input_name]  # (B, samples), or more axes
    if mask is None:
        return torch.ones(len(recording), frames, device=recording.device)
    lengths_of = next((getattr(plain, x) for x in FRAME_COUNTS if x in dir(plain)), None)
    if lengths_of is None:
        raise BANError(
            f"{type(plain).__name__} does not tell how many frames a recording has, so that padded "
            "ones cannot be told from others: give recordings of one length, without "
            "attention_mask."
        )
    lengths = lengths_of(mask.sum(-1))  # (B,)
    return (torch.arange(frames, device=mask.device) < lengths[:, None]).float()
