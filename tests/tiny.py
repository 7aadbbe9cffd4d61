"""Tiny models and data that the tests share."""

import torch
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification

from ban_hf import BANTrainingArguments

CLASSES = 5


def vit(seed: int = 0, **overrides) -> ViTForImageClassification:
    """A vision transformer of some 3,000 parameters: no BatchNorm, no dropout."""
    torch.manual_seed(seed)
    config = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(ViTConfig(**config | overrides))


def confident(model: torch.nn.Module, scale: float = 100.0) -> torch.nn.Module:
    """Spread a fresh classifier's logits, so that its confidences differ from item to item."""
    with torch.no_grad():
        model.classifier.weight.mul_(scale)
    return model


class Images(Dataset):
    """Random images `(3, size, size)` with random labels."""

    def __init__(self, n: int = 32, size: int = 8, seed: int = 0, labels: bool = True) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.pixel_values = torch.randn(n, 3, size, size, generator=rng)
        self.labels = torch.randint(0, CLASSES, (n,), generator=rng) if labels else None

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, i: int) -> dict:
        item = {"pixel_values": self.pixel_values[i]}
        return item if self.labels is None else item | {"labels": self.labels[i]}


def arguments(output_dir, **overrides) -> BANTrainingArguments:
    """Quick, silent, on the CPU; SGD, so that a wrong scale of the loss shows in the weights."""
    defaults = dict(
        output_dir=str(output_dir),
        per_device_train_batch_size=16,
        learning_rate=0.1,
        optim="sgd",
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    return BANTrainingArguments(**defaults | overrides)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}
