"""From a corpus' name to the words of its splits as numbers."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ban_hf.data.corpus import read_corpus
from ban_hf.data.grammar import ENGLISH, VERSION
from ban_hf.data.tokenizer import EOS, UNK, read_words, word_tokenizer
from ban_hf.errors import BANError

logger = logging.getLogger(__name__)

WARM_UP = 2  # windows before each column of a measurement, so that its width makes no difference
GRAMMAR_WORDS = {"train": 8_000, "validation": 5_000, "test": 20_000}


@dataclass
class TextSplits:
    """A corpus as word ids, in reading order.

    `entropy` and `test_entropy` are known of the built-in grammar only, in nats per word: of the
    source, and what the true grammar itself loses on this very test text (its first word left out,
    which is no target for :class:`TokenWindows` either). No model can be expected to lose less.

    `source` says where the text came from, how many words each split has, and which; plain JSON.
    """

    train: Tensor  # (n,) int64
    validation: Tensor  # (n,) int64
    test: Tensor  # (n,) int64
    words: list[str]  # in the order of ids
    source: dict[str, Any]
    entropy: float | None = None
    test_entropy: float | None = None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Reads any text as the corpus was read."""
        return word_tokenizer(self.words)


def evaluation_columns(splits: TextSplits, columns: int, window: int, processes: int = 1) -> int:
    """As many columns as asked for, fewer where a column of its own text would be under a window.

    Every process has as many. (With several processes a very short text may be too short.)
    """
    shortest = min(len(splits.validation), len(splits.test))
    possible = (shortest - 1 - WARM_UP * window) // window // processes
    return processes * max(1, min(columns, possible))


def load_text(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    text_column: str | None = None,
    vocabulary_size: int | None = None,
    train_words: int | None = None,
) -> TextSplits:
    """Load a corpus and number its words.

    Each line is split at white space, and `<eos>` is added at its end, at an empty line's, too. The
    vocabulary is that of the training split, by falling frequency (ties in alphabetical order), in
    any case with `<eos>` and `<unk>`; every other word becomes `<unk>`. (The grammar's vocabulary
    is all of its words, in alphabetical order.)

    Args:
        name: `grammar` (sentences of :data:`ban_hf.data.ENGLISH`, no download), `ptb` or
            `wikitext2` (from `$BAN_HF_DATA/<name>` where that folder exists, else from the Hub), a
            folder with one text file for each split (`ptb.train.txt`, `wiki.valid.tokens`, ...), a
            text file (of which the last lines are held out: 5% for validation, then 5% for test), a
            Hub id, or a folder or a parquet, arrow, csv or json file that `datasets` loads.
        config: of a Hub dataset that has several.
        revision: of a Hub dataset.
        text_column: by default the only column of strings. A row is one line or several.
        vocabulary_size: at most this many words, `<eos>` and `<unk>` among them.
        train_words: train on the first words only, so many. The vocabulary is still that of the
            whole training split, so that perplexities compare. Of the grammar any number can be
            had; the default is 8,000.

    Returns:
        The splits.

    Raises:
        ValueError: an unknown dataset or column (with a near match), missing or ambiguous split
            files, an empty text, one that is not UTF-8 (with the byte), a number out of range.
    """
    if train_words is not None and train_words < 1:
        raise BANError(f"train_words={train_words}: must be at least 1")
    if vocabulary_size is not None and (name == "grammar" or vocabulary_size < 3):
        raise BANError(
            f"vocabulary_size={vocabulary_size}: must be at least 3 ({EOS}, {UNK} and a word), and "
            "left out for the grammar, which has a vocabulary of its own"
        )
    if name == "grammar":
        return _grammar(GRAMMAR_WORDS | ({"train": train_words} if train_words else {}))
    raw, source = read_corpus(name, config, revision, text_column)
    texts = {split: read_words(text) for split, text in raw.items()}
    for split, text in raw.items():
        if texts[split].count(EOS) > text.count("\n"):
            logger.warning("%s: %s stands in the %s text, beside its line ends", name, EOS, split)
    words = vocabulary(texts["train"], vocabulary_size)
    if train_words is not None and train_words > len(texts["train"]):
        raise BANError(
            f"train_words={train_words}: must be from 1 to {len(texts['train'])}, the words of the "
            "training split"
        )
    texts["train"] = texts["train"][:train_words]
    return _splits(texts, words, source)


def vocabulary(text: list[str], size: int | None = None) -> list[str]:
    """The most frequent words of a text; `<unk>` counts as often as what it stands for."""
    counts = Counter(text)
    special = {EOS: counts.pop(EOS, 0), UNK: counts.pop(UNK, 0)}
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = ranked if size is None else ranked[: size - len(special)]
    special[UNK] += sum(counts[word] for word in ranked[len(kept) :])
    frequency = special | {word: counts[word] for word in kept}
    return sorted(frequency, key=lambda word: (-frequency[word], word))


def _grammar(sizes: dict[str, int]) -> TextSplits:
    texts = {split: ENGLISH.text(size, seed=split) for split, size in sizes.items()}
    losses = [-logp for logp in ENGLISH.log_probabilities(texts["test"])[1:]]
    words = sorted({*ENGLISH.words, EOS, UNK})  # all, drawn or not: no text has an unknown one
    splits = _splits(texts, words, {"id": "grammar", "config": None, "revision": VERSION})
    splits.entropy, splits.test_entropy = ENGLISH.entropy, sum(losses) / len(losses)
    return splits


def _splits(texts: dict[str, list[str]], words: list[str], source: Mapping[str, Any]) -> TextSplits:
    number = {word: i for i, word in enumerate(words)}
    ids = {
        split: torch.tensor([number.get(word, number[UNK]) for word in text])  # (n,)
        for split, text in texts.items()
    }
    facts = {
        "tokens": {split: len(text) for split, text in texts.items()},
        "vocabulary": len(words),
        "words_sha256": hashlib.sha256("\n".join(words).encode()).hexdigest(),
    }
    return TextSplits(ids["train"], ids["validation"], ids["test"], words, {**source, **facts})
