"""The configs of our models; they need no torch.

`save_pretrained` copies this file beside the weights of our networks.
"""

from collections.abc import Sequence
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig

NUM_MARKS = 3  # of a spelled word: padding, start and end


class CifarNetConfig(PreTrainedConfig):
    """What it takes to rebuild a CIFAR network; `num_labels` and `id2label` as in every config.

    Fields: `architecture`, a name such as `"cifar_wrn_28_2"`; `model_args`, its keyword arguments
    (`stem_stride`, `dropout`, `compression`); `image_size` and `num_channels` of the images it was
    made for; `image_mean` and `image_std`, their normalization per channel, where recorded.
    """

    model_type = "ban_cifar"

    architecture: str = "cifar_wrn_28_2"
    model_args: dict[str, Any] | None = None
    image_size: int = 32
    num_channels: int = 3
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    # set here, because a loss with problem_type=None writes its guess into the config
    problem_type: Literal["single_label_classification"] | None = "single_label_classification"


class RecurrentConfig(PreTrainedConfig):
    """The fields that all of our recurrent language models have.

    Fields: `vocab_size`; `hidden_size` and `num_hidden_layers` (also `num_layers`) of the LSTM;
    `dropout`; `initializer_range`, r of the uniform initialization in [-r, r]; the ids of the
    special words; `vocabulary_sha256`, a digest of the words in the order of their ids, where they
    are known: one model can teach another only if it is equal.
    """

    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012
    attribute_map = {"num_layers": "num_hidden_layers"}  # noqa: RUF012

    vocab_size: int = 10_000
    hidden_size: int = 650
    num_hidden_layers: int = 2
    dropout: float = 0.5
    initializer_range: float = 0.05
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    vocabulary_sha256: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.check_at_least(1, "vocab_size", "hidden_size", "num_hidden_layers")
        for name in ("dropout", "initializer_range"):
            if not isinstance(getattr(self, name), int | float):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and less than 1")
        if self.initializer_range < 0:
            raise ValueError(f"initializer_range={self.initializer_range} must not be negative")

    def check_at_least(self, least: int, *names: str) -> None:
        """Raise unless these fields are whole numbers of at least `least`."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


class LSTMConfig(RecurrentConfig):
    """What it takes to rebuild an LSTM language model; its other fields are `RecurrentConfig`'s.

    Fields: `tie_word_embeddings`, whether the softmax reads the embedding's weights (Press & Wolf
    2017, Inan et al. 2017).

    The paper (Table 6) says one layer of 1500 units and 52M parameters. With 10,000 words and tied
    weights one layer comes to 33.0M and two to 51.0M; `num_hidden_layers` builds either.
    """

    model_type = "ban_lstm"

    tie_word_embeddings: bool = True


class CharCNNLSTMConfig(RecurrentConfig):
    """What it takes to rebuild the model; its other fields are `RecurrentConfig`'s.

    Fields: `num_characters`, three marks (padding, start and end of a word) and the alphabet;
    `max_word_length`, characters of a word that are read, without the marks; `character_size` of
    their embedding; `filter_widths` in characters, and `filter_counts`, the filters of each width;
    `num_highway_layers`.
    """

    model_type = "ban_char_cnn_lstm"

    num_characters: int = 51
    max_word_length: int = 65
    character_size: int = 15
    filter_widths: Sequence[int] = (1, 2, 3, 4, 5, 6, 7)
    filter_counts: Sequence[int] = (50, 100, 150, 200, 200, 200, 200)
    num_highway_layers: int = 2
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("filter_widths", "filter_counts"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(n, int) for n in value):
                raise ValueError(f"{name}={value!r} must be a list of whole numbers")
            setattr(self, name, list(value))
        self.check_at_least(1, "max_word_length", "character_size")
        self.check_at_least(NUM_MARKS, "num_characters")
        self.check_at_least(0, "num_highway_layers")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings: words come from characters, nothing can be tied")
        widths, counts = self.filter_widths, self.filter_counts
        if not widths or len(widths) != len(counts) or min(*widths, *counts) < 1:
            raise ValueError(
                f"filter_widths={widths} and filter_counts={counts} must go together, one or more "
                "of each and all at least 1"
            )
        if max(widths) > self.max_word_length + 2:
            raise ValueError(
                f"filter_widths={widths} are wider than a word with its two marks: give "
                f"max_word_length={max(widths) - 2} or more, not {self.max_word_length}"
            )


class BornAgainEnsembleConfig(PreTrainedConfig):
    """The configs of an ensemble's members, in order, and their `weights` (None: equal ones)."""

    model_type = "born_again_ensemble"
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012
    weights: list[float] | None = None

    def __init__(
        self,
        members: Sequence[dict[str, Any]] = (),
        weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.members = [dict(member) for member in members]
        if weights is not None:  # equal ones are not written: a file says one thing in one way
            self.weights = list(weights)
        super().__init__(**kwargs)


for _config in (CifarNetConfig, LSTMConfig, CharCNNLSTMConfig, BornAgainEnsembleConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
