"""Tiny models, data and trainings that the tests share."""

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from ban_hf import (
    BANTrainer,
    BANTrainingArguments,
    LSTMConfig,
    LSTMForCausalLM,
    TokenWindows,
    create_classifier,
)

CLASSES = 5
VOCABULARY = 17


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


def lstm(seed: int = 0, **overrides) -> LSTMForCausalLM:
    """A recurrent language model of some 1,500 parameters: two layers, no dropout."""
    torch.manual_seed(seed)
    config = dict(vocab_size=VOCABULARY, hidden_size=8, dropout=0.0, initializer_range=0.3)
    return LSTMForCausalLM(LSTMConfig(**config | overrides))


def gpt2(seed: int = 0, **overrides) -> GPT2LMHeadModel:
    """A transformer language model of some 4,000 parameters, no dropout."""
    torch.manual_seed(seed)
    config = dict(vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    special = dict(bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(GPT2Config(**config | dropout | special | overrides))


def text(n: int = 400, seed: int = 0) -> torch.Tensor:
    """Random words `(n,)`, each of them likely to be followed by the next number."""
    rng = torch.Generator().manual_seed(seed)
    steps = torch.randint(1, 4, (n,), generator=rng).clamp(max=2)  # (n,)
    return steps.cumsum(0) % VOCABULARY


def windows(n: int = 400, columns: int = 4, seed: int = 0, **overrides) -> TokenWindows:
    """A short text in windows of 7 words."""
    return TokenWindows(text(n, seed), columns, **dict(window=7) | overrides)


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


def reader(
    student, output_dir, teacher=None, data=None, evaluation=None, callbacks=None, **overrides
) -> BANTrainer:
    """A trainer of a language model on a short text, four columns at a time."""
    options = dict(
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        lr_scheduler_type="constant",
        learning_rate=1.0,
        max_grad_norm=0.25,
        label_weight=1.0,
        max_steps=-1,
        num_train_epochs=2,
    )
    return BANTrainer(
        student,
        arguments(output_dir, **options | overrides),
        teacher=teacher,
        train_dataset=windows() if data is None else data,
        eval_dataset=windows(200, seed=1, warmup=14) if evaluation is None else evaluation,
        data_collator=default_data_collator,
        callbacks=callbacks,
    )


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
