"""The character-aware language model of Kim et al. (2016) as a transformers model.

`save_pretrained` copies this file and `modeling_lstm.py` beside the weights, so a saved model loads
with `trust_remote_code=True` where torch and transformers are installed and this package is not.
"""

from collections.abc import Sequence

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.functional import embedding
from torch.nn.utils.rnn import pad_sequence
from transformers import initialization as init

from .configuration import NUM_MARKS, CharCNNLSTMConfig
from .modeling_lstm import RecurrentCausalLM

PADDING, START, END = range(3)  # what comes before the alphabet


def character_table(words: Sequence[str], max_word_length: int) -> tuple[Tensor, list[str]]:
    """The characters of each word, as ids, and the alphabet, all of their characters in order.

    A word is its start mark, its first `max_word_length` characters, its end mark, and padding.
    Words such as `<unk>` are spelled like all others.

    Shapes: V words give the table `(V, max_word_length + 2)`, with ids below 3 + len(alphabet).
    """
    alphabet = sorted(set().union(*words))
    ids = {character: i for i, character in enumerate(alphabet, start=NUM_MARKS)}
    rows = [[START, *(ids[character] for character in w[:max_word_length]), END] for w in words]
    table = torch.zeros(len(words), max_word_length + 2, dtype=torch.long)  # (V, L), all PADDING
    spelled = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # (V, longest)
    table[:, : spelled.shape[1]] = spelled
    return table, alphabet


class Highway(nn.Module):
    """A highway layer (Srivastava et al. 2015), F features to F.

    t = sigmoid(W_T x + b_T - 2);  y = t relu(W_H x + b_H) + (1 - t) x

    The -2 makes it carry its input at first.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(size, size)
        self.gate = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x) - 2)  # (N, F)
        return t * torch.relu(self.transform(x)) + (1 - t) * x


class CharacterCNN(nn.Module):
    """Words as features, from their characters: convolutions, maximum over time, highway layers.

    f_k = max_i tanh(<C[:, i : i + w], H_k> + b_k), of width w, then the highway layers on all f_k.

    i runs over the windows that lie inside the word and its marks; a word shorter than w has one
    window, from its start, filled up with zeros. So features do not depend on how far the table
    pads. (Kim's code takes the maximum over windows of padding too.)

    Shapes: N words of L characters `(N, L)` to `(N, F)`, F = sum(filter_counts).
    """

    def __init__(self, config: CharCNNLSTMConfig) -> None:
        super().__init__()
        filters = list(zip(config.filter_counts, config.filter_widths, strict=True))
        size, features = config.character_size, sum(config.filter_counts)
        self.widths = list(config.filter_widths)
        self.embed_characters = nn.Embedding(config.num_characters, size)
        self.convolutions = nn.ModuleList(nn.Conv1d(size, count, w) for count, w in filters)
        self.highways = nn.Sequential(
            *(Highway(features) for _ in range(config.num_highway_layers))
        )

    def forward(self, characters: LongTensor) -> Tensor:
        real = characters != PADDING  # (N, L)
        x = self.embed_characters(characters) * real[..., None]  # (N, L, D)
        x = x.transpose(1, 2)  # (N, D, L)
        features = []
        for width, convolution in zip(self.widths, self.convolutions, strict=True):
            scores = convolution(x)  # (N, count, L - w + 1)
            starts = torch.arange(scores.shape[2], device=x.device)  # (L - w + 1,)
            last = (real.sum(1) - width).clamp(min=0)  # (N,)
            outside = starts > last[:, None]  # (N, L - w + 1)
            scores = scores.masked_fill(outside[:, None], -torch.inf)
            features.append(torch.tanh(scores.amax(2)))  # (N, count); tanh keeps the order
        return self.highways(torch.cat(features, dim=1))


class CharCNNLSTMForCausalLM(RecurrentCausalLM):
    """An LSTM language model whose words are read as characters.

    x_t = CharacterCNN(characters of w_t);  h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1});
    z_t = W dropout(h_t) + b

    with dropout also between the layers, but not on x_t. Shapes: words `(B, T)` to logits
    `(B, T, V)`, state (h, c), each `(layers, B, H)`. `characters` `(V, L)` is the table of
    `character_table`, saved with the weights: a model from a config alone has an empty one, and
    says so, until `create_language_model(words=...)` or `from_pretrained` fills it in.

    Source: Kim, Jernite, Sontag & Rush, *Character-Aware Neural Language Models*, AAAI 2016, arXiv
    1508.06615, Table 2.
    """

    config_class = CharCNNLSTMConfig
    characters: Tensor

    def __init__(self, config: CharCNNLSTMConfig) -> None:
        super().__init__(config, input_size=sum(config.filter_counts))
        self.encoder = CharacterCNN(config)
        table = torch.zeros(config.vocab_size, config.max_word_length + 2, dtype=torch.long)
        self.register_buffer("characters", table)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.characters)

    def embed_words(self, input_ids: LongTensor) -> Tensor:
        """Encode each distinct word once, and copy its features to all its positions."""
        words, positions = input_ids.unique(return_inverse=True)  # (N,), (B, T)
        characters = embedding(words, self.characters)  # (N, L)
        if not characters[:, 0].all():
            raise ValueError(
                "characters, the table of the words' characters, is empty: make the model with "
                "create_language_model(name, words=...), or load one that was."
            )
        return embedding(positions, self.encoder(characters))  # (B, T, F)
