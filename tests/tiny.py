"""Tiny models, data and trainings that the tests share."""

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from ban_hf import BANTrainer, BANTrainingArguments, create_classifier

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


def cifar(seed: int = 0, **overrides) -> PreTrainedModel:
    """A Wide-ResNet: BatchNorm throughout."""
    torch.manual_seed(seed)
    return create_classifier("cifar_wrn_10_1", num_labels=CLASSES, stem_stride=2, **overrides)


def timm_model(name: str, seed: int = 0, image_size: int = 32) -> PreTrainedModel:
    """A stock timm network in its `TimmWrapper`."""
    torch.manual_seed(seed)
    return create_classifier(name, num_labels=CLASSES, image_size=image_size)


def bert(seed: int = 0) -> BertForSequenceClassification:
    """A text classifier of some 4,000 parameters, with dropout."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config)


def confident(model: nn.Module, scale: float = 2.0) -> nn.Module:
    """Spread a fresh ViT's logits: classes and confidences then differ from item to item."""
    with torch.no_grad():
        logits = model(Images(64).pixel_values).logits  # (N, C)
        spread = scale / logits.std(0).mean()
        model.classifier.weight.mul_(spread)
        model.classifier.bias.copy_(-spread * logits.mean(0))
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
    """Quick, silent, on the CPU; SGD unclipped, so that a wrong scale of the loss shows."""
    defaults = dict(
        output_dir=str(output_dir),
        per_device_train_batch_size=16,
        learning_rate=0.1,
        optim="sgd",
        max_grad_norm=0.0,
        max_steps=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    return BANTrainingArguments(**defaults | overrides)


def trained(
    student, output_dir, teacher=None, data=None, evaluation=None, callbacks=None, **overrides
) -> BANTrainer:
    """A trainer that has trained, by default on 32 random images."""
    trainer = BANTrainer(
        student,
        arguments(output_dir, **overrides),
        teacher=teacher,
        train_dataset=Images() if data is None else data,
        eval_dataset=evaluation,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's state."""
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def distance(model: nn.Module, other: nn.Module | dict[str, torch.Tensor]) -> float:
    """The largest difference of two models' states; 0 where they are bit-identical."""
    mine, others = weights(model), other if isinstance(other, dict) else weights(other)
    assert mine.keys() == others.keys()
    return max(float((mine[k].double() - others[k].double()).abs().max()) for k in mine)


def history(trainer: BANTrainer) -> list[dict[str, float]]:
    """What was logged at each logging step and evaluation, without times and epochs."""
    other = ("runtime", "per_second", "preparation_time", "total_flos", "train_loss", "epoch")
    lines = [
        {name: value for name, value in line.items() if not name.endswith(other)}
        for line in trainer.state.log_history
    ]
    return [line for line in lines if line.keys() != {"step"}]
