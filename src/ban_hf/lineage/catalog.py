"""What things are called: tasks, metrics, methods, generations, data.

Records, results, cards and the command line need these words without torch, so nothing of ours is
imported here. What a task does with a model is in `ban_hf.tasks`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from msgspec import Struct

#: Characters that a name cannot hold, since it is written in Markdown and in one line.
MARKUP = "`|<>[]*\\"


def method_of(objective: Mapping[str, Any] | None) -> str:
    """How a generation learned, as the paper names it: labels, BAN, BAN+L, CWTM, DKPP, ..."""
    if not objective:
        return "labels"
    name = "BAN" if objective["name"] == "kd" else str(objective["name"]).upper()
    return f"{name}+L" if objective["label_weight"] else name


def finite(value: float | None) -> float | None:
    """The number, or None if it is missing or not finite."""
    return value if value is not None and math.isfinite(value) else None


def counted(generations: Sequence[int]) -> str:
    """Numbers in words: `1`, `1 and 2`, `1 to 3`, `1, 3 and 4`."""
    *others, last = generations
    if len(others) > 1 and list(generations) == list(range(others[0], last + 1)):
        return f"{others[0]} to {last}"
    return f"{', '.join(map(str, others))} and {last}" if others else str(last)


def as_name(text: str) -> str:
    """A text as a name: `_` for what cannot stand in one."""
    kept = "".join("_" if c in MARKUP or not c.isprintable() else c for c in text[:200])
    return kept or "_"


def source_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where a record's data came from: `id`, `config`, `revision`, as far as it is recorded."""
    source: Mapping[str, Any] | None = record["data"].get("source", record["data"])
    return source or {}


def data_name(record: Mapping[str, Any]) -> str | None:
    """A Hub id as it is; of a local path only the last part, which gives no machine away."""
    data_id = source_of(record).get("id")
    if not data_id:
        return None
    local = data_id.startswith(("/", ".", "~")) or data_id.count("/") > 1
    return as_name(PurePosixPath(data_id).name if local else data_id)


# Metrics


class Metric(Struct, frozen=True):
    """A number that a network is measured by."""

    name: str  # in results and records and, after `eval_`, in logs
    heading: str  # of its column
    unit: str  # of differences, in a sentence
    digits: int  # after the point
    greater_is_better: bool = False


class Measure(Struct, frozen=True):
    """What a task is measured by."""

    metrics: tuple[Metric, ...]  # columns of a table, the leading metric first
    unit: str = ""  # of the leading metric on an axis
    items: str = "items"  # what the test set is counted in

    @property
    def leading(self) -> Metric:
        """The metric that is drawn, compared, and watched while training."""
        return self.metrics[0]

    @property
    def title(self) -> str:
        """The leading metric in a sentence: `error`, `entity F1`."""
        return self.leading.heading.removeprefix("test ").removesuffix(" %")

    def heading(self, split: str) -> str:
        """The leading metric of a split, as the heading of a column."""
        return f"{split} {self.title} {self.unit}".rstrip()


def _percent(name: str, heading: str) -> Metric:
    return Metric(name, f"{heading} %", "points", 2, greater_is_better=True)


ERROR = Metric("error", "test error %", "points", 2)
NLL = Metric("nll", "NLL", "nats", 3)
OF_CLASSES = (NLL, Metric("ece", "ECE %", "points", 2))
OF_WORDS = (
    Metric("nll", "nats per word", "nats", 4),
    Metric("above_entropy", "above the entropy", "nats", 4),
)
#: By the name of the leading metric; of several that were measured the first here leads.
MEASURES = {
    "entity_f1": Measure(
        (
            _percent("entity_f1", "test entity F1"),
            _percent("precision", "precision"),
            _percent("recall", "recall"),
            Metric("error", "token error %", "points", 2),
            NLL,
        ),
        "%",
        "tokens",
    ),
    "exact_match": Measure(
        (_percent("exact_match", "test exact match"), _percent("span_f1", "span F1"), NLL),
        "%",
        "positions",
    ),
    "macro_f1": Measure(
        (_percent("macro_f1", "test macro F1"), _percent("average_precision", "mAP"), NLL), "%"
    ),
    "miou": Measure(
        (
            _percent("miou", "test mean IoU"),
            Metric("error", "pixel error %", "points", 2),
            NLL,
        ),
        "%",
        "pixels",
    ),
    "rmse": Measure(
        (
            Metric("rmse", "test RMSE", "in RMSE", 4),
            Metric("pearson", "Pearson r", "in r", 4, greater_is_better=True),
            Metric("spearman", "Spearman rho", "in rho", 4, greater_is_better=True),
        )
    ),
    "token_error": Measure(
        (
            Metric("token_error", "test token error %", "points", 2),
            Metric("wer", "WER %", "points", 2),
        ),
        "%",
        "tokens",
    ),
    "error": Measure((ERROR, *OF_CLASSES), "%"),
    "perplexity": Measure(
        (Metric("perplexity", "test perplexity", "in perplexity", 2), *OF_WORDS), items="words"
    ),
    "accuracy": Measure((_percent("accuracy", "test accuracy"), *OF_CLASSES), "%"),
    "loss": Measure((Metric("loss", "test loss", "nats", 4),)),
}
# Tasks

#: What turns the logits of an item into its prediction: see `ban_hf.objectives`.
Activation = Literal["softmax", "sigmoid", "identity"]
#: The leading metric of a head whose items are not one class: by what turns its logits into one.
LEADING: dict[Activation, str] = {"sigmoid": "macro_f1", "identity": "rmse"}
#: The `model_type` of a `BornAgainEnsemble`, whose task is that of its members.
ENSEMBLE = "born_again_ensemble"


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a task without its code."""

    name: str  # the key in `CATALOG`; the Hub's pipeline tag, unless `tag` differs
    auto_class: str  # of `transformers`, that loads its models
    metrics: tuple[Metric, ...] = MEASURES["loss"].metrics  # the first is drawn and watched
    loss_type: str | None = None  # what `transformers` takes the loss of its models to be
    noun: str = "model"  # what a card calls its models
    tag: str | None = None  # the Hub's pipeline tag, where it is not the name
    model_class: str | None = None  # the one whose models it is of, where the Auto class has others
    purpose: str = ""  # what a pipeline does, and what it is called with; empty without a pipeline
    example: str = ""

    @property
    def headline(self) -> Metric:
        """The metric that tables lead with, and that a training is watched by."""
        return self.metrics[0]

    @property
    def pipeline_tag(self) -> str:
        """The Hub's name of what its models are for."""
        return self.tag or self.name

    @property
    def is_of_words(self) -> bool:
        """Whether its items are words of a text that is written."""
        return self.headline.name == "perplexity"


#: By name. Of a model that several tasks know, the first of them is the task.
CATALOG = {
    facts.name: facts
    for facts in (
        TaskFacts(
            "image-classification",
            "AutoModelForImageClassification",
            MEASURES["error"].metrics,
            "ForImageClassification",
            noun="image classifier",
            purpose="To classify an image",
            example='"image.png"',
        ),
        TaskFacts(
            "text-classification",
            "AutoModelForSequenceClassification",
            MEASURES["error"].metrics,
            "ForSequenceClassification",
            noun="text classifier",
            purpose="To classify a text",
            example='"Some text."',
        ),
        TaskFacts(
            "audio-classification",
            "AutoModelForAudioClassification",
            MEASURES["error"].metrics,
            "ForAudioClassification",
            noun="classifier of recordings",
            purpose="To classify a recording",
            example='"recording.wav"',
        ),
        TaskFacts(
            "video-classification",
            "AutoModelForVideoClassification",
            MEASURES["error"].metrics,
            "ForVideoClassification",
            noun="classifier of videos",
            purpose="To classify a video",
            example='"video.mp4"',
        ),
        TaskFacts(
            "multiple-choice",
            "AutoModelForMultipleChoice",
            MEASURES["error"].metrics,
            noun="multiple-choice model",
        ),
        TaskFacts(
            "next-sentence-prediction",
            "AutoModelForNextSentencePrediction",
            MEASURES["error"].metrics,
            noun="next-sentence model",
            tag="text-classification",
        ),
        TaskFacts(
            "token-classification",
            "AutoModelForTokenClassification",
            MEASURES["entity_f1"].metrics,
            "ForTokenClassification",
            noun="token classifier",
            purpose="To tag the words of a text",
            example='"Some text."',
        ),
        TaskFacts(
            "audio-frame-classification",
            "AutoModelForAudioFrameClassification",
            MEASURES["error"].metrics,
            noun="classifier of audio frames",
            tag="audio-classification",
        ),
        TaskFacts(
            "question-answering",
            "AutoModelForQuestionAnswering",
            MEASURES["exact_match"].metrics,
            "ForQuestionAnswering",
            noun="question-answering model",
        ),
        TaskFacts(
            "image-segmentation",
            "AutoModelForSemanticSegmentation",
            MEASURES["miou"].metrics,
            "ForSemanticSegmentation",
            noun="segmentation model",
            purpose="To segment an image",
            example='"image.png"',
        ),
        TaskFacts(
            "text2text-generation",
            "AutoModelForSeq2SeqLM",
            MEASURES["perplexity"].metrics,
            noun="sequence-to-sequence model",
        ),
        TaskFacts(
            "fill-mask",
            "AutoModelForMaskedLM",
            MEASURES["perplexity"].metrics,
            "ForMaskedLM",
            noun="masked language model",
            purpose="To fill a gap",
            example='f"Some {fill.tokenizer.mask_token}."',
        ),
        TaskFacts(
            "text-generation",
            "AutoModelForCausalLM",
            MEASURES["perplexity"].metrics,
            "ForCausalLM",
            noun="language model",
            purpose="To write on from a few words",
            example='"the company", max_new_tokens=20, do_sample=True',
        ),
        TaskFacts(
            "automatic-speech-recognition",
            "AutoModelForSpeechSeq2Seq",
            MEASURES["perplexity"].metrics,
            noun="speech recognizer",
            purpose="To write down a recording",
            example='"recording.wav"',
        ),
        TaskFacts(
            "ctc",
            "AutoModelForCTC",
            MEASURES["token_error"].metrics,
            "ForCTC",
            noun="speech recognizer",
            tag="automatic-speech-recognition",
            purpose="To write down a recording",
            example='"recording.wav"',
        ),
        TaskFacts(
            "image-text-to-text",
            "AutoModelForImageTextToText",
            MEASURES["perplexity"].metrics,
            noun="vision-language model",
            purpose="To ask about an image",
            example='"image.png", text="What is this?"',
        ),
    )
}

#: Causal language models whose labels are the next words already: they are not shifted again.
UNSHIFTED = set(
    "BartForCausalLM BigBirdPegasusForCausalLM BlenderbotForCausalLM BlenderbotSmallForCausalLM "
    "CpmAntForCausalLM FlaubertWithLMHeadModel MBartForCausalLM MarianForCausalLM MvpForCausalLM "
    "PLBartForCausalLM PegasusForCausalLM TrOCRForCausalLM WhisperForCausalLM XLMWithLMHeadModel "
    "XLNetLMHeadModel".split()
)

#: Metrics of all tasks, and of a trainer, whose best value is the lowest.
LOWER_IS_BETTER = {"teacher_kl"} | {
    metric.name
    for measure in MEASURES.values()
    for metric in measure.metrics
    if not metric.greater_is_better
}
