"""Language models by name.

| name | network | source |
| --- | --- | --- |
| `lstm_200` | 2 layers of 200, no dropout | Zaremba et al. 2014, small |
| `lstm_650` | 2 layers of 650, dropout 0.5 | Zaremba et al. 2014, medium |
| `lstm_1500` | 2 layers of 1500, dropout 0.65 | Zaremba et al. 2014, large; BAN, Table 6 |
| `char_cnn_lstm_small` | 525 filters, 1 highway layer, 2 LSTM layers of 300 | Kim et al. 2016 |
| `char_cnn_lstm_large` | 1100 filters, 2 highway layers, 2 LSTM layers of 650 | as in Table 6 |

The words of an LSTM are tied to its softmax. For `lstm_1500` the BAN paper says one layer and 52M
parameters: with 10,000 words and tied weights one layer comes to 33.0M and two to 51.0M, so two is
what is built, and `num_hidden_layers=1` builds the other. `char_cnn_lstm_large` comes to 19.4M
(the paper: 19M) with 10,000 words and the 48 characters of Penn Treebank.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from ban_hf.errors import BANError, did_you_mean

from .modeling_char_cnn_lstm import (
    NUM_MARKS,
    CharCNNLSTMConfig,
    CharCNNLSTMForCausalLM,
    character_table,
)
from .modeling_lstm import LSTMConfig, LSTMForCausalLM

LANGUAGE_PRESETS: dict[str, dict[str, Any]] = {
    "lstm_200": {"hidden_size": 200, "dropout": 0.0, "initializer_range": 0.1},
    "lstm_650": {"hidden_size": 650, "dropout": 0.5, "initializer_range": 0.05},
    "lstm_1500": {"hidden_size": 1500, "dropout": 0.65, "initializer_range": 0.04},
    "char_cnn_lstm_small": {
        "filter_widths": (1, 2, 3, 4, 5, 6),
        "filter_counts": (25, 50, 75, 100, 125, 150),
        "num_highway_layers": 1,
        "hidden_size": 300,
    },
    "char_cnn_lstm_large": {
        "filter_widths": (1, 2, 3, 4, 5, 6, 7),
        "filter_counts": (50, 100, 150, 200, 200, 200, 200),
        "num_highway_layers": 2,
        "hidden_size": 650,
    },
}

LONGEST_WORD = 65  # characters that are read where max_word_length is not given, as in Kim et al.


def create_language_model(
    name: str,
    *,
    words: Sequence[str] | None = None,
    vocab_size: int | None = None,
    **config: Any,
) -> PreTrainedModel:
    """A freshly initialised language model; nothing is downloaded.

    The weights are a function of torch's global random state: seed it before.

    Args:
        name: one of `LANGUAGE_PRESETS`, see the table at the top of this module.
        words: the vocabulary in the order of the ids. Sets the digest by which models know that
            they share it, the ids of `<eos>`, which begins and ends a text, and of `<pad>`, where
            they are among the words, and the character table.
        vocab_size: their number; enough for an LSTM where `words` is left out.
        **config: fields of the config, in place of the preset's (`dropout=0.2`,
            `num_hidden_layers=1`, `tie_word_embeddings=False`).

    Raises:
        ValueError: an unknown name or field (with the near matches), or words that are missing,
            not distinct, or at odds with another argument.
    """
    if name not in LANGUAGE_PRESETS:
        raise BANError(
            f"name={name!r} is no language model.{did_you_mean(name, LANGUAGE_PRESETS)} "
            f"There are {', '.join(LANGUAGE_PRESETS)}."
        )
    spelled = name.startswith("char_cnn")
    config_class = CharCNNLSTMConfig if spelled else LSTMConfig
    _check_fields(name, config_class, config)
    if words is None:
        if spelled or vocab_size is None:
            raise BANError(f"give words{'' if spelled else ' or vocab_size'}: {name} needs them")
        return LSTMForCausalLM(
            LSTMConfig(**{**LANGUAGE_PRESETS[name], **config}, vocab_size=vocab_size)
        )
    _check_words(words, vocab_size, config)
    fields = {**LANGUAGE_PRESETS[name], **_special_ids(words), **config}
    fields |= {"vocab_size": len(words), "vocabulary_sha256": vocabulary_digest(words)}
    if not spelled:
        return LSTMForCausalLM(LSTMConfig(**fields))
    return _spelled_model(words, fields)


def vocabulary_digest(words: Sequence[str]) -> str:
    """sha256 of the words in the order of their ids."""
    return hashlib.sha256(json.dumps(list(words)).encode()).hexdigest()


def _spelled_model(words: Sequence[str], fields: dict[str, Any]) -> CharCNNLSTMForCausalLM:
    longest = min(max(map(len, words)), LONGEST_WORD)
    widest = max(fields["filter_widths"], default=1)
    fields.setdefault("max_word_length", max(longest, widest - 2))
    table, alphabet = character_table(words, fields["max_word_length"])
    config = CharCNNLSTMConfig(**fields, num_characters=NUM_MARKS + len(alphabet))
    model = CharCNNLSTMForCausalLM(config)
    model.characters.copy_(table)
    return model


def _special_ids(words: Sequence[str]) -> dict[str, int]:
    ids = {}
    if "<eos>" in words:
        eos = words.index("<eos>")
        ids = {"bos_token_id": eos, "eos_token_id": eos, "pad_token_id": eos}
    if "<pad>" in words:
        ids["pad_token_id"] = words.index("<pad>")
    return ids


def _check_words(words: Sequence[str], vocab_size: int | None, config: dict[str, Any]) -> None:
    if isinstance(words, str) or not words:
        raise BANError(f"words={words!r} must be a list of words, in the order of their ids")
    if len(set(words)) < len(words):
        raise BANError("words holds a word twice: each id needs its own")
    if vocab_size not in (None, len(words)):
        raise BANError(f"vocab_size is {vocab_size}, but words has {len(words)}")
    implied = {"num_characters", "vocabulary_sha256"} & config.keys()
    if implied:
        raise BANError(f"{', '.join(sorted(implied))} follow from words: leave them out")


def _check_fields(name: str, config_class: Any, config: dict[str, Any]) -> None:
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    known = {field.name for field in dataclasses.fields(config_class)} - common - {"vocab_size"}
    known |= config_class.attribute_map.keys()
    unknown = sorted(config.keys() - known)
    if unknown:
        hints = "".join(did_you_mean(field, known) for field in unknown)
        raise BANError(
            f"{', '.join(unknown)}: not taken by {name}.{hints} It takes "
            f"{', '.join(sorted(known))}."
        )
