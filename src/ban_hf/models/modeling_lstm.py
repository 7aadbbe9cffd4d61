"""Our recurrent language models as transformers models: words, or their characters, into an LSTM.

`RecurrentCausalLM` has what they share: the carried state, padding, loss and generation.
`save_pretrained` copies this file beside the weights, so a saved model loads with
`trust_remote_code=True` where torch and transformers are installed and this package is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import FloatTensor, LongTensor, Tensor, nn
from torch.nn.functional import embedding
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration import NUM_MARKS, CharCNNLSTMConfig, LSTMConfig, RecurrentConfig

State = tuple[Tensor, Tensor]
PADDING, START, END = range(3)  # what comes before the alphabet, in a word's characters


@dataclass
class RecurrentCausalLMOutput(ModelOutput):
    """Outputs of a recurrent language model: V words, L layers of H units.

    Fields: `loss`, a scalar, where there are labels; `logits` `(B, T, V)`; `state`, the pair
    (h, c), each `(L, B, H)`, after the last word of each row; `hidden_states`, only on request, of
    the last layer alone: the input of the output layer, a tuple of one `(B, T, H)`.
    """

    loss: FloatTensor | None = None
    logits: FloatTensor | None = None
    state: State | None = None
    hidden_states: tuple[FloatTensor, ...] | None = None


class RecurrentCausalLM(PreTrainedModel, GenerationMixin):
    """An LSTM between words as vectors, which a subclass makes, and a softmax over the vocabulary.

    A subclass has `embed_words` and calls `post_init` at the end of its constructor.
    """

    _is_stateful = True

    def __init__(self, config: RecurrentConfig, input_size: int) -> None:
        super().__init__(config)
        layers, size = config.num_hidden_layers, config.hidden_size
        between = config.dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(input_size, size, layers, dropout=between, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(size, config.vocab_size)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw all weights and biases from U(-r, r), r = `initializer_range` (Zaremba 2014)."""
        r = self.config.initializer_range
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -r, r)

    def embed_words(self, input_ids: LongTensor) -> Tensor:
        """The words `(B, T)` as the vectors `(B, T, E)` that the LSTM reads."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        input_ids: LongTensor,
        attention_mask: Tensor | None = None,
        labels: LongTensor | None = None,
        state: State | None = None,
        use_cache: bool = True,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> RecurrentCausalLMOutput:
        """The logits of the next word at every place, the loss and the state.

        Shapes: `input_ids`, `attention_mask` and `labels` `(B, T)`; logits `(B, T, V)`; state
        (h, c), each `(L, B, H)`.

        Args:
            input_ids: words. A text that is read in parts gives the words that are new.
            attention_mask: 0 where a place is padding, at either end or anywhere. Padding does not
                move the state: the logits there are those after the last real word before it.
            labels: the same words as `input_ids`, shifted in here; -100 does not count.
            state: the state to begin from, as the last call gave it; zeros without one.
            use_cache: whether to give the state back.
            output_hidden_states: whether to give what the output layer takes.
            **kwargs: for the loss: `shift_labels` `(B, T)`, targets that are already shifted, goes
                before `labels`; the mean over all targets becomes their sum divided by
                `num_items_in_batch`, where a trainer gives it.

        Raises:
            ValueError: words that are no ids or not of the vocabulary (the latter on a CPU only),
                or a mask or state of another shape.
        """
        self._check_words(input_ids, attention_mask)
        words = self.embed_words(input_ids).to(self.dtype)  # (B, T, E)
        state = self._first_state(words, state)
        hidden, state = self._run(words, attention_mask, state)
        hidden = self.dropout(hidden).contiguous()  # (B, T, H), given as (T, B, H)
        logits = self.lm_head(hidden)  # (B, T, V)
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return RecurrentCausalLMOutput(
            loss, logits, state if use_cache else None, (hidden,) if output_hidden_states else None
        )

    def _run(self, words: Tensor, attention_mask: Tensor | None, state: State) -> Any:
        """The last layer's output `(B, T, H)`, and the state."""
        if words.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):  # many CPUs have no LSTM in half precision
                return self._run(words, attention_mask, state)
        first, *_, last = self.lstm.parameters()
        storages = {each.untyped_storage().data_ptr() for each in (first, last)}
        if first.is_cuda and len(storages) > 1:
            self.lstm.flatten_parameters()  # as cuDNN wants them: not so after loading
        if attention_mask is None or bool(attention_mask.all()):
            return self.lstm(words, state)
        return self._run_padded(words, attention_mask != 0, state)

    def _run_padded(self, words: Tensor, mask: Tensor, state: State) -> tuple[Tensor, State]:
        """Run the real words alone; each place then shows the output of the last one up to it.

        Before the first real word that is the output of the state that we began from.
        """
        lengths = mask.sum(1)  # (B,)
        order = (~mask).long().argsort(dim=1, stable=True)  # (B, T) real words first
        words = words.take_along_dim(order[..., None], dim=1)  # (B, T, E)
        packed = pack_padded_sequence(
            words, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        packed, (h, c) = self.lstm(packed, state)
        outputs, _ = pad_packed_sequence(packed, batch_first=True)  # (B, longest, H)
        outputs = torch.cat([state[0][-1][:, None], outputs], dim=1)  # (B, 1 + longest, H)
        hidden = outputs.take_along_dim(mask.cumsum(1)[..., None], dim=1)  # (B, T, H)
        moved = (lengths > 0)[:, None]  # (B, 1)
        return hidden, (torch.where(moved, h, state[0]), torch.where(moved, c, state[1]))

    def _first_state(self, words: Tensor, state: State | None) -> State:
        shape = (self.config.num_hidden_layers, len(words), self.config.hidden_size)  # (L, B, H)
        if state is None:
            return words.new_zeros(shape), words.new_zeros(shape)
        h, c = state
        if not tuple(h.shape) == tuple(c.shape) == shape:
            raise ValueError(
                f"state has h {tuple(h.shape)} and c {tuple(c.shape)}, but these words need "
                f"{shape}: (layers, batch, hidden). Carry the state of the same model and the same "
                "rows (state[0][:, rows] keeps some of them), or begin again with state=None."
            )
        return h.to(words.dtype), c.to(words.dtype)

    def _check_words(self, input_ids: Tensor, attention_mask: Tensor | None) -> None:
        if input_ids.ndim != 2 or input_ids.numel() == 0 or input_ids.is_floating_point():
            raise ValueError(
                "input_ids must be whole numbers (batch, time) with at least one of each, not "
                f"{input_ids.dtype} {tuple(input_ids.shape)}."
            )
        if attention_mask is not None and attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)}, but input_ids is "
                f"{tuple(input_ids.shape)}: give one value per word of this call."
            )
        if input_ids.device.type == "cpu":  # elsewhere it would wait for the device
            low, high = input_ids.aminmax()
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids holds the words {int(low)} to {int(high)}, but the vocabulary has "
                    f"vocab_size={self.config.vocab_size}: is it another tokenizer's text?"
                )

    # Generation: the state takes the place of a cache.

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # which is for keys and values

    def prepare_inputs_for_generation(
        self, input_ids: LongTensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What `forward` gets in a step: the words that the state has not seen, and their mask."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask[:, -inputs["input_ids"].shape[1] :]
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Carry the state to the next step: since 5.24 transformers carries `cache` alone."""
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        if outputs.get("state") is not None:
            model_kwargs["state"] = outputs["state"]
        return model_kwargs

    def _expand_inputs_for_generation(
        self, *, expand_size: int = 1, state: State | None = None, **kwargs: Any
    ) -> tuple[LongTensor, dict[str, Any]]:
        """Repeat every row for its beams or samples; in a state rows are the second axis."""
        words, kwargs = super()._expand_inputs_for_generation(expand_size=expand_size, **kwargs)
        if state is not None:
            kwargs["state"] = tuple(part.repeat_interleave(expand_size, 1) for part in state)
        return words, kwargs

    def _reorder_cache(self, state: State, beam_idx: LongTensor) -> State:
        """The state of the beams that beam search goes on with."""
        h, c = state
        return h.index_select(1, beam_idx), c.index_select(1, beam_idx)


class LSTMForCausalLM(RecurrentCausalLM):
    """Embedding, LSTM and softmax over the words, all of H units (Zaremba et al. 2014).

    x_t = dropout(E w_t);  h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1});  z_t = W dropout(h_t) + b

    with dropout also between the layers, and W = E where they are tied. Shapes: words `(B, T)` to
    logits `(B, T, V)`, state (h, c), each `(layers, B, H)`.

    Source: Zaremba, Sutskever & Vinyals, *Recurrent Neural Network Regularization*, arXiv
    1409.2329: the sizes, the places of dropout and the uniform initialization.
    """

    config_class = LSTMConfig
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config, input_size=config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def embed_words(self, input_ids: LongTensor) -> Tensor:
        return self.dropout(self.embed_tokens(input_ids))  # (B, T, H)


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
