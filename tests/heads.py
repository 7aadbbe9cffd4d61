"""Classes of three architectures for each common head, tiny, with batches: what tests share."""

import copy
from functools import cache

import torch
from tiny import arguments
from tiny_heads import batch, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from ban_hf import BANTrainer

BLANK = 0  # of CTC
TEMPERATURE, LABEL_WEIGHT = 2.0, 0.5
#: A class of three architectures for each common head, by its Auto class.
CLASSES = {
    "ImageClassification": "ViT ConvNext Swin",
    "SequenceClassification": "Bert DistilBert ModernBert GPT2 Llama",
    "AudioClassification": "Wav2Vec2ForSequenceClassification HubertForSequenceClassification "
    "ASTForAudioClassification",
    "VideoClassification": "VideoMAE Vivit Timesformer",
    "MultipleChoice": "Bert DistilBert Roberta",
    "NextSentencePrediction": "Bert FNet MobileBert",
    "TokenClassification": "Bert DistilBert ModernBert",
    "AudioFrameClassification": "Wav2Vec2 WavLM UniSpeechSat",
    "MaskedLM": "Bert DistilBert ModernBert",
    "CausalLM": "GPT2LMHeadModel Llama Qwen2 Mixtral Bart XLNetLMHeadModel",
    "Seq2SeqLM": "T5ForConditionalGeneration BartForConditionalGeneration MarianMTModel",
    "SpeechSeq2Seq": "WhisperForConditionalGeneration Speech2TextForConditionalGeneration "
    "MoonshineForConditionalGeneration",
    "ImageTextToText": "LlavaForConditionalGeneration Idefics3ForConditionalGeneration "
    "Florence2ForConditionalGeneration",
    "QuestionAnswering": "Bert DistilBert ModernBert",
    "SemanticSegmentation": "Segformer MobileNetV2",
    "CTC": "Wav2Vec2 Hubert WavLM",
}
#: The same classes with labels of another kind.
KINDS = {"multi_label_classification", "regression"}


def cases() -> list[tuple[str, str, str | None]]:
    """Auto class, class and `problem_type`."""
    found: list[tuple[str, str, str | None]] = []
    for head, names in CLASSES.items():
        for name in names.split():
            is_whole = any(part in name for part in ("For", "LMHead", "MTModel"))
            found.append((f"AutoModelFor{head}", name if is_whole else f"{name}For{head}", None))
    for kind in sorted(KINDS):
        found.append(("AutoModelForSequenceClassification", "BertForSequenceClassification", kind))
        found.append(("AutoModelForImageClassification", "ViTForImageClassification", kind))
    return found


CASES = cases()
FIRST = list({(auto, kind): (auto, name, kind) for auto, name, kind in reversed(CASES)}.values())


@cache
def _model(auto_class: str, name: str, kind: str | None, seed: int) -> PreTrainedModel:
    model = tiny_model(auto_class, name, seed)
    model.config.problem_type = kind
    if auto_class == "AutoModelForCTC":
        assert model.config.pad_token_id == BLANK
        model.config.ctc_loss_reduction = "mean" if name.startswith("Hubert") else "sum"
    return model


def model_of(case: tuple[str, str, str | None], seed: int) -> PreTrainedModel:
    return copy.deepcopy(_model(*case, seed))


def batch_of(case: tuple[str, str, str | None], rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """A batch whose rows have different numbers of items that count, where a head allows it."""
    auto_class, _, kind = case
    inputs = batch(_model(*case, 1), auto_class, rows, seed)
    if kind is not None:
        shape = rows, _model(*case, 1).config.num_labels
        inputs["labels"] = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        if kind == "multi_label_classification":
            inputs["labels"] = inputs["labels"].round()
    return inputs


def rows_of(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    count = len(next(iter(inputs.values())))
    return [{name: value[i] for name, value in inputs.items()} for i in range(count)]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def trainer(case, folder, data, teacher: int | PreTrainedModel | None = 2, **options) -> BANTrainer:
    """A trainer of a case; its teacher is a model, or that of a seed."""
    settings = dict(
        per_device_train_batch_size=8,
        learning_rate=1.0,
        max_steps=1,
        lr_scheduler_type="constant",
        temperature=TEMPERATURE,
        label_weight=LABEL_WEIGHT,
        remove_unused_columns=False,
        fast=False,
    )
    return BANTrainer(
        model_of(case, 1),
        arguments(folder, **settings | options),
        teacher=model_of(case, teacher) if isinstance(teacher, int) else teacher,
        train_dataset=data,
        eval_dataset=data,
        data_collator=collate,
    )
