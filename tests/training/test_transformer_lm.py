"""Transformer language models: padding, ignored words, one shift, the same words."""

import pytest
import torch
import torch.nn.functional as F
from tiny import VOCABULARY, arguments, distance, gpt2, history, text
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from ban_hf import BANTrainer
from ban_hf.data.windows import IGNORED
from ban_hf.objectives import OBJECTIVES


class Sentences(Dataset):
    """Sentences of 2 to 8 words, padded to 8 on the right; padding is ignored."""

    def __init__(self, n: int = 16, seed: int = 0) -> None:
        lengths = torch.arange(n) % 7 + 2  # (n,)
        self.attention_mask = (torch.arange(8) < lengths[:, None]).long()  # (n, 8)
        self.input_ids = text(8 * n, seed).view(n, 8) * self.attention_mask
        self.labels = self.input_ids.masked_fill(self.attention_mask == 0, IGNORED)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, i: int) -> dict:
        names = ("input_ids", "attention_mask", "labels")
        return {name: getattr(self, name)[i] for name in names}


def distil(tmp_path, student=None, data=None, **overrides) -> BANTrainer:
    options = dict(per_device_train_batch_size=16, max_steps=1, eval_strategy="no") | overrides
    extra = {"processing_class": options.pop("processing_class", None)}
    teacher = options.pop("teacher", None) or gpt2(2)
    args = arguments(tmp_path, **options)
    data = Sentences() if data is None else data
    return BANTrainer(student or gpt2(1), args, teacher=teacher, train_dataset=data, **extra)


def logits_of(model, data) -> torch.Tensor:
    """What predicts a word that counts, with that word: `(N, V)`, `(N,)`; shifted once."""
    with torch.no_grad():
        logits = model(input_ids=data.input_ids, attention_mask=data.attention_mask).logits
    targets = data.labels[:, 1:]
    return logits[:, :-1][targets != IGNORED], targets[targets != IGNORED]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_plain_formula_over_the_words_that_count(objective, tmp_path):
    data = Sentences()
    trainer = distil(tmp_path, objective=objective, label_weight=0.5, teacher_weight=0.7)
    trainer.train()
    (z, labels), (t, _) = logits_of(gpt2(1), data), logits_of(gpt2(2), data)
    line = history(trainer)[0]
    assert line["label_loss"] == pytest.approx(F.cross_entropy(z, labels).item(), rel=1e-5)
    if objective != "dkpp":  # whose noise is of other places
        teacher_loss = OBJECTIVES[objective](z, t, labels).mean().item()
        assert line["teacher_loss"] == pytest.approx(teacher_loss, rel=1e-5)
    total = 0.7 * line["teacher_loss"] + 0.5 * line["label_loss"]
    assert line["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("options", [{}, dict(objective="cwtm", temperature=2.0)])
def test_words_are_equal_whatever_the_padding_of_their_micro_batch(options, tmp_path):
    options |= dict(label_weight=0.5, max_steps=2)
    whole = distil(tmp_path, **options)
    parts = distil(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, **options
    )
    for trainer in (whole, parts):
        trainer.train()
    assert distance(whole.model, gpt2(1)) > 1e-3
    assert distance(whole.model, parts.model) < 1e-6


def test_what_stands_under_the_padding_does_not_matter(tmp_path):
    other = Sentences()
    other.input_ids = other.input_ids + (1 - other.attention_mask) * 5
    trainers = [distil(tmp_path, data=data, max_steps=3) for data in (Sentences(), other)]
    for trainer in trainers:
        trainer.train()
    assert distance(trainers[0].model, trainers[1].model) < 1e-6


@pytest.mark.parametrize("teacher", [True, False])
def test_perplexity_is_that_of_the_words_that_count(teacher, tmp_path):
    data = Sentences(13, seed=4)
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    trainer = BANTrainer(gpt2(1), args, teacher=gpt2(2) if teacher else None, eval_dataset=data)
    measured = trainer.evaluate()
    loss = F.cross_entropy(*logits_of(gpt2(1), data))
    assert measured["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert measured["eval_perplexity"] == pytest.approx(loss.exp().item(), rel=1e-5)


# Bad input


def test_a_language_model_without_labels_is_refused(tmp_path):
    class Unlabelled(Sentences):
        def __getitem__(self, i: int) -> dict:
            return {name: v for name, v in super().__getitem__(i).items() if name != "labels"}

    with pytest.raises(ValueError, match="need labels, which tell the words that count"):
        distil(tmp_path, data=Unlabelled()).train()


def word_tokenizer(words) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w0")


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path):
    words = [f"w{i}" for i in range(VOCABULARY)]
    swapped = [words[0], words[2], words[1], *words[3:]]
    gpt2(2).save_pretrained(tmp_path / "teacher")
    word_tokenizer(words).save_pretrained(tmp_path / "teacher")
    load = dict(teacher=tmp_path / "teacher")
    distil(tmp_path, processing_class=word_tokenizer(words), **load)
    with pytest.raises(ValueError, match=r"'w2' is 1 here and 2 in .*teacher"):
        distil(tmp_path, processing_class=word_tokenizer(swapped), **load)


def test_a_teacher_with_fewer_words_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocabulary of 16 and model one of 17"):
        distil(tmp_path, teacher=gpt2(2, vocab_size=16))
