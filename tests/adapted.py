"""Tiny bases in folders, and adapters of them."""

from pathlib import Path

import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BatchEncoding

KINDS = ("gpt2", "bert")


def save_base(kind: str, folder: Path) -> Path:
    """A base on its own: a language model, or an encoder without a head of its own."""
    model = tiny.gpt2(7, initializer_range=0.3) if kind == "gpt2" else tiny.bert(7).bert
    model.save_pretrained(folder)
    return folder


def adapter(base: Path, seed: int = 0, trained: bool = False, **overrides) -> PeftModel:
    """A fresh LoRA adapter of a base in a folder; `trained` gives it random weights that count."""
    torch.manual_seed(seed)
    if "gpt2" in base.name:
        model = AutoModelForCausalLM.from_pretrained(base)
        options = {"task_type": "CAUSAL_LM"}
    else:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=tiny.CLASSES)
        options = {"task_type": "SEQ_CLS"}
    model = get_peft_model(model, LoraConfig(**dict(r=2, lora_alpha=4) | options | overrides))
    if trained:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(std=0.3)
    return model.eval()


def sentences(n: int = 24, seed: int = 0, length: int = 6) -> list[dict]:
    """Random sentences with a class each, which reads both bases' words."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, tiny.VOCABULARY, (n, length), generator=rng)
    labels = torch.randint(0, tiny.CLASSES, (n,), generator=rng)
    return [{"input_ids": row, "labels": y} for row, y in zip(ids, labels, strict=True)]


def texts(n: int = 24, seed: int = 0) -> list[dict]:
    """Random texts as a language model reads them."""
    return [row | {"labels": row["input_ids"].clone()} for row in sentences(n, seed)]


def data(kind: str, n: int = 24, seed: int = 0) -> list[dict]:
    """What a base of a kind learns from."""
    return texts(n, seed) if kind == "gpt2" else sentences(n, seed)


def batch(kind: str) -> BatchEncoding:
    """A batch of it, without labels."""
    return BatchEncoding({"input_ids": torch.stack([row["input_ids"] for row in data(kind, 4, 9)])})


@torch.no_grad()
def logits(model: torch.nn.Module, kind: str) -> torch.Tensor:
    """What a model predicts for that batch, in evaluation mode."""
    return model.eval()(**batch(kind)).logits
