"""From a corpus' name to the words of its splits as numbers, and the tokenizer for more text."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ban_hf.data.grammar import ENGLISH, VERSION
from ban_hf.data.sources import (
    FILE_BUILDERS,
    BuiltIn,
    Origin,
    check_column,
    locate,
    only_column,
    read_splits,
)
from ban_hf.errors import BANError

logger = logging.getLogger(__name__)

EOS = "<eos>"
"""Ends each line."""
UNK = "<unk>"
"""Replaces every word that is not in the vocabulary."""
WARM_UP = 2
"""Windows before each column in a measurement, so that the number of columns does not matter."""
GRAMMAR_WORDS = {"train": 8_000, "validation": 5_000, "test": 20_000}
HELD_OUT = 0.05
"""Share of the lines that validation and test each get, where there is one split only."""
BUILT_IN_TEXTS = {
    "grammar": BuiltIn("grammar"),
    # The main revision of this one is a script, which `datasets` does not run.
    "ptb": BuiltIn("ptb-text-only/ptb_text_only", revision="refs/convert/parquet"),
    "wikitext2": BuiltIn("Salesforce/wikitext", config="wikitext-2-v1"),
}
_SPLITS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}
_TEXT_FILES = (".txt", ".tokens", ".raw")


@dataclass
class TextSplits:
    """A corpus as word ids, in reading order.

    `entropy` and `test_entropy` are known of the built-in grammar only, in nats per word: the
    entropy of the source, and the loss of the true grammar on this test text (without its first
    word, which is no target for :class:`TokenWindows` either). No model has a lower expected loss.

    `source` has the origin of the text, its words by split, and a digest of them; plain JSON.
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
    """The number of columns, fewer if a column of its own text would be shorter than a window.

    Every process has the same number. (With several processes a short text may be too short.)
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
            whole training split, so that perplexities compare. The grammar has any number; its
            default is 8,000.

    Returns:
        The splits.

    Raises:
        BANError: an unknown dataset or column (with a near match), missing or ambiguous split
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
    raw, source = _read_corpus(name, config, revision, text_column)
    texts = {split: read_words(text) for split, text in raw.items()}
    for split, text in raw.items():
        if texts[split].count(EOS) > text.count("\n"):
            logger.warning("%s: %s is in the %s text, not only at line ends", name, EOS, split)
    words = vocabulary(texts["train"], vocabulary_size)
    if train_words is not None and train_words > len(texts["train"]):
        raise BANError(
            f"train_words={train_words}: must be from 1 to {len(texts['train'])}, the words of the "
            "training split"
        )
    texts["train"] = texts["train"][:train_words]
    return _splits(texts, words, source)


def vocabulary(text: list[str], size: int | None = None) -> list[str]:
    """The most frequent words of a text; `<unk>` counts as often as the words that it replaces."""
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


# The text of each split


def _read_corpus(
    name: str, config: str | None, revision: str | None, text_column: str | None
) -> tuple[dict[str, str], Origin]:
    """Text of the splits train, validation and test, each line ended; and its origin."""
    path, origin = locate(name, BUILT_IN_TEXTS, config, revision)
    files = _text_files(path)
    if files and text_column is not None:
        raise BANError(f"text_column={text_column!r}: a text file has no columns: leave it out")
    if files:
        texts = {split: _read(file) for split, file in files.items()}
    else:
        offline = (
            "grammar needs none, and a folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt "
            "can be given, or as BAN_HF_DATA the folder above ptb/."
        )
        data = read_splits(name, path, origin, BUILT_IN_TEXTS, offline)
        texts = {split: _join(part, split, text_column) for split, part in data.items()}
    if list(texts) == ["train"]:
        texts = _hold_out(texts["train"], name)
    lacking = [split for split in _SPLITS if split not in texts]
    if lacking:
        raise BANError(
            f"--dataset_name {name}: no {' and no '.join(lacking)} split; there is "
            f"{', '.join(texts)}. Needed are train, validation and test, or train alone, whose "
            "last lines are then held out."
        )
    for split, text in texts.items():
        if not text.strip():
            raise BANError(f"--dataset_name {name}: no words in the {split} split")
    return {split: texts[split] for split in _SPLITS}, origin


def _text_files(path: Path) -> dict[str, Path]:
    """The text file of each split; none if `path` is, or holds, files for `datasets`."""
    if path.is_file():
        return {} if path.suffix in FILE_BUILDERS else {"train": path}
    if not path.is_dir():
        return {}
    files = sorted(file for file in path.iterdir() if file.suffix in _TEXT_FILES)
    ptb = {split: path / f"ptb.{names[0]}.txt" for split, names in _SPLITS.items()}
    if set(ptb.values()) <= set(files):  # there may be ptb.char.train.txt, too
        return ptb
    found = {s: [f for f in files if any(n in f.name for n in _SPLITS[s])] for s in _SPLITS}
    if not any(found.values()) and any(f.suffix in FILE_BUILDERS for f in path.rglob("*")):
        return {}
    for split, matches in found.items():
        if len(matches) != 1:
            raise BANError(
                f"--dataset_name {path}: {len(matches) or 'no'} text files of the {split} split. "
                f"Needed is one ({', '.join(_TEXT_FILES)}) with {' or '.join(_SPLITS[split])} in "
                f"its name; there is {', '.join(file.name for file in files) or 'none'}."
            )
    return {split: matches[0] for split, matches in found.items()}


def _read(path: Path) -> str:
    raw = path.read_bytes()
    try:
        text = raw.decode().removeprefix("\ufeff")  # a byte order mark
    except UnicodeDecodeError as error:
        raise BANError(
            f"{path}: not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}); convert it, for "
            "example with iconv"
        ) from error
    if not text.strip():
        raise BANError(f"{path}: no words in this file")
    return text if text.endswith("\n") else text + "\n"


def _join(data: datasets.Dataset, split: str, column: str | None) -> str:
    """The rows as lines; a row's own line break at its end is not doubled."""
    strings = {
        name: feature
        for name, feature in data.features.items()
        if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")
    }
    if column is None:
        column = only_column([*strings], "strings", "text_column", data.features)
    check_column("text_column", column, strings, "strings")
    rows = list(data[column])
    if None in rows:
        raise BANError(f"{split} row {rows.index(None)}: {column} is empty (null)")
    return "".join(row.removesuffix("\n") + "\n" for row in rows)


def _hold_out(text: str, name: str) -> dict[str, str]:
    """The first lines for training, the next for validation, the last for test."""
    lines = text.split("\n")[:-1]
    count = max(1, round(HELD_OUT * len(lines)))
    if len(lines) <= 2 * count:
        raise BANError(f"--dataset_name {name}: {len(lines)} lines are too few for three splits")
    logger.warning("%s: one split; %d of %d lines held out, twice", name, count, len(lines))
    parts = {
        "train": lines[: -2 * count],
        "validation": lines[-2 * count : -count],
        "test": lines[-count:],
    }
    return {split: "\n".join([*part, ""]) for split, part in parts.items()}


# The tokenizer


def read_words(text: str) -> list[str]:
    """Words of a text: it is split at white space, and each line break gives `<eos>`."""
    return text.replace("\n", f" {EOS} ").split()


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that does what :func:`read_words` does and numbers the words.

    `<eos>` is also the padding, on the left: a prompt after it begins a line, and no word is added
    to the vocabulary. Decoding writes a space before each word, also the first: a pipeline appends
    the generated words to the prompt as they are.

    Args:
        words: the vocabulary in the order of ids, `<eos>` and `<unk>` among them.
    """
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNK)
    backend = Tokenizer(model)
    # Python's split() also splits at the control characters 1c to 1f, unlike WhitespaceSplit.
    control = Replace(Regex("[\x1c-\x1f]"), " ")
    backend.normalizer = Sequence([control, Replace("\n", f" {EOS} ")])
    backend.pre_tokenizer = WhitespaceSplit()
    backend.decoder = decoders.Replace(Regex("^"), " ")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNK,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=EOS,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,  # "a<eos>" is one unknown word, to the corpus reader too
    )
