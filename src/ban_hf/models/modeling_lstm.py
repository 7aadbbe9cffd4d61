"""The word-level LSTM language model as a transformers model.

`save_pretrained` copies this file and `recurrent.py` beside the weights, so a saved model loads
with `trust_remote_code=True` where torch and transformers are installed and this package is not.
"""

from torch import LongTensor, Tensor, nn

from .recurrent import RecurrentCausalLM, RecurrentConfig


class LSTMConfig(RecurrentConfig):
    """What it takes to rebuild an LSTM language model; its other fields are `RecurrentConfig`'s.

    Fields: `tie_word_embeddings`, whether the softmax reads the embedding's weights (Press & Wolf
    2017, Inan et al. 2017).

    The paper (Table 6) says one layer of 1500 units and 52M parameters. With 10,000 words and tied
    weights one layer comes to 33.0M and two to 51.0M; `num_hidden_layers` builds either.
    """

    model_type = "ban_lstm"

    tie_word_embeddings: bool = True


class LSTMForCausalLM(RecurrentCausalLM):
    """Embedding, LSTM and softmax over the words, all of H units (Zaremba et al. 2014).

    x_t = dropout(E w_t);  h_t, c_t = LSTM(x_t, h_{t-1}, c_{t-1});  z_t = W dropout(h_t) + b

    with dropout also between the layers, and W = E where they are tied. Shapes: words `(B, T)` to
    logits `(B, T, V)`, state (h, c), each `(layers, B, H)`.

    Source: Zaremba, Sutskever & Vinyals, *Recurrent Neural Network Regularization*, arXiv
    1409.2329: the sizes, the places of dropout and the uniform initialisation.
    """

    config_class = LSTMConfig
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config, input_size=config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def embed_words(self, input_ids: LongTensor) -> Tensor:
        return self.dropout(self.embed_tokens(input_ids))  # (B, T, H)
