"""The language models: equations, state, padding, loss, generation, saving, and by name."""

import copy
import hashlib

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainingArguments,
    pipeline,
)

from ban_hf import (
    CharCNNLSTMConfig,
    CharCNNLSTMForCausalLM,
    LSTMConfig,
    LSTMForCausalLM,
    create_language_model,
)
from ban_hf.data import word_tokenizer
from ban_hf.models.factory import LANGUAGE_PRESETS, vocabulary_digest
from ban_hf.models.modeling_lstm import CharacterCNN, character_table
from ban_hf.tasks.auto import build_model, load_model

WORDS = "the a cat cats dog sat on mat ran <unk> <eos> extraordinarily".split()
V, H = len(WORDS), 8
SMALL = {
    "lstm_200": {"hidden_size": H},
    "char_cnn_lstm_small": {
        "hidden_size": H,
        "filter_widths": (1, 3),
        "filter_counts": (3, 4),
        "dropout": 0.0,
    },
}
both = pytest.mark.parametrize("name", SMALL)


def tiny(name: str, seed: int = 0, **fields):
    """A small model with weights so large that its predictions are far from uniform."""
    torch.manual_seed(seed)
    fields = {**SMALL[name], "initializer_range": 0.8, **fields}
    return create_language_model(name, words=WORDS, **fields)


def text(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    """Words without `<eos>`."""
    return torch.randint(0, 10, (rows, length), generator=torch.Generator().manual_seed(seed))


def random_state(model, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    layers = model.config.num_hidden_layers
    h, c = torch.randn(2, layers, rows, H, generator=torch.Generator().manual_seed(2))
    return h.tanh(), c


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


# Sizes and equations


@pytest.mark.parametrize(
    ("name", "fields", "parameters"),
    [
        ("lstm_1500", {}, 51_034_000),  # the paper: 52M
        ("lstm_1500", {"num_hidden_layers": 1}, 33_022_000),
        ("lstm_1500", {"num_layers": 1, "tie_word_embeddings": False}, 48_022_000),
        ("lstm_650", {"tie_word_embeddings": False}, 19_780_400),  # Zaremba's medium, 20M
        ("lstm_200", {}, 2_653_200),
        ("char_cnn_lstm_large", {"num_characters": 48 + 3}, 19_373_165),  # Kim et al.: 19M
        ("char_cnn_lstm_small", {"num_characters": 48 + 3}, 5_312_515),  # and 5M
    ],
)
def test_parameters_at_10000_words(name, fields, parameters):
    kinds = (CharCNNLSTMForCausalLM, CharCNNLSTMConfig), (LSTMForCausalLM, LSTMConfig)
    model, config = kinds[name.startswith("lstm")]
    with torch.device("meta"):
        network = model(config(**{**LANGUAGE_PRESETS[name], "vocab_size": 10_000, **fields}))
    assert sum(p.numel() for p in network.parameters()) == parameters


def lstm_by_hand(lstm: nn.LSTM, x: torch.Tensor, state) -> tuple[torch.Tensor, tuple]:
    """The LSTM's equations, one word at a time. `x` is `(B, T, E)`."""
    h, c = list(state[0]), list(state[1])
    outputs = []
    for word in x.unbind(1):
        for k in range(len(h)):
            w_ih, w_hh, b_ih, b_hh = lstm.all_weights[k]
            gates = word @ w_ih.T + b_ih + h[k] @ w_hh.T + b_hh
            i, f, g, o = gates.chunk(4, dim=1)
            c[k] = f.sigmoid() * c[k] + i.sigmoid() * g.tanh()
            h[k] = word = o.sigmoid() * c[k].tanh()
        outputs.append(word)
    return torch.stack(outputs, 1), (torch.stack(h), torch.stack(c))


@pytest.mark.parametrize("tied", [True, False])
def test_lstm_forward_by_hand(tied):
    model = tiny("lstm_200", tie_word_embeddings=tied).eval()
    words, state = text(3, 5), random_state(model, 3)
    hidden, (h, c) = lstm_by_hand(model.lstm, model.embed_tokens.weight[words], state)
    decoder = model.embed_tokens if tied else model.lm_head
    out = model(words, state=state)
    close(out.logits, hidden @ decoder.weight.T + model.lm_head.bias)
    close(out.state, (h, c))
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied


def features_by_hand(encoder: CharacterCNN, ids: list[int]) -> torch.Tensor:
    """One word's features, from its ids without padding."""
    x = encoder.embed_characters.weight[ids]  # (L, D)
    features = []
    for convolution in encoder.convolutions:
        filters, width = convolution.weight, convolution.kernel_size[0]  # (count, D, w)
        filled = torch.cat([x, x.new_zeros(max(0, width - len(x)), x.shape[1])])
        windows = [filled[i : i + width].T for i in range(len(filled) - width + 1)]  # (D, w)
        scores = [(filters * window).sum((1, 2)) + convolution.bias for window in windows]
        features.append(torch.stack(scores).tanh().amax(0))
    y = torch.cat(features)
    for layer in encoder.highways:
        t = torch.sigmoid(layer.gate.weight @ y + layer.gate.bias - 2)
        g = torch.relu(layer.transform.weight @ y + layer.transform.bias)
        y = t * g + (1 - t) * y
    return y


def test_char_cnn_forward_by_hand():
    name, wide = "char_cnn_lstm_small", {"filter_widths": (1, 3, 7), "filter_counts": (2, 3, 4)}
    model = tiny(name, **wide, num_highway_layers=2).eval()
    alphabet = sorted(set("".join(WORDS)))
    spelled = [[1, *(3 + alphabet.index(character) for character in w), 2] for w in WORDS]
    features = torch.stack([features_by_hand(model.encoder, ids) for ids in spelled])
    words, state = text(3, 5), random_state(model, 3)
    hidden, _ = lstm_by_hand(model.lstm, features[words], state)
    expected = hidden @ model.lm_head.weight.T + model.lm_head.bias
    close(model(words, state=state).logits, expected)


def test_character_table():
    table, alphabet = character_table(["ab", "", "abcd"], max_word_length=3)
    assert alphabet == ["a", "b", "c", "d"]
    assert table.tolist() == [[1, 3, 4, 2, 0], [1, 2, 0, 0, 0], [1, 3, 4, 5, 2]]


def test_features_do_not_depend_on_how_far_the_table_pads():
    short, long = (tiny("char_cnn_lstm_small", max_word_length=n).eval() for n in (15, 40))
    words = torch.arange(V)[None]
    close(short.embed_words(words), long.embed_words(words))


def test_char_cnn_gradients():
    model = tiny("char_cnn_lstm_small", hidden_size=2).double()
    words = text(2, 3)
    names, parameters = zip(*model.named_parameters(), strict=True)

    def run(*values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, named, words).logits

    assert torch.autograd.gradcheck(run, parameters, fast_mode=True)


def test_gradient_reaches_the_tied_weight_from_both_uses():
    tied = tiny("lstm_200")
    untied = tiny("lstm_200", tie_word_embeddings=False)
    untied.load_state_dict(tied.state_dict())
    words = text(2, 6)
    for model in (tied, untied):
        model(words, labels=words).loss.backward()
    parts = untied.embed_tokens.weight.grad, untied.lm_head.weight.grad
    assert all(part.abs().sum() > 0 for part in parts)
    close(tied.embed_tokens.weight.grad, sum(parts))


@both
def test_dropout_is_active_in_training_only(name):
    plain, dropped = tiny(name, dropout=0.0), tiny(name, dropout=0.5)
    words = text(2, 5)
    assert torch.equal(plain.eval()(words).logits, dropped.eval()(words).logits)
    dropped.train()
    assert not torch.equal(dropped(words).logits, dropped(words).logits)


def test_dropout_before_within_and_after_the_lstm():
    """On the input, but not after highway layers, as Kim et al. do; between layers; before z."""
    words, seen = text(2, 5), []
    lstm = tiny("lstm_200", dropout=0.9)
    lstm.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    lstm(text(4, 20))
    assert (seen[0] == 0).float().mean() > 0.8
    assert (lstm.embed_words(words) == 0).float().mean() > 0.7
    assert lstm.lstm.dropout == 0.9
    assert tiny("lstm_200", dropout=0.9, num_layers=1).lstm.dropout == 0
    spelled = tiny("char_cnn_lstm_small", dropout=0.9)
    assert torch.equal(spelled.embed_words(words), spelled.embed_words(words))


# State and padding


@both
def test_state_carries_over(name):
    model = tiny(name).eval()
    words = text(3, 10)
    whole = model(words)
    first = model(words[:, :4])
    second = model(words[:, 4:], state=first.state)
    close(torch.cat([first.logits, second.logits], 1), whole.logits)
    close(second.state, whole.state)
    assert [part.shape for part in whole.state] == [(2, 3, H)] * 2
    assert model(words, use_cache=False).state is None


MASKS = {
    "left": [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]],
    "right": [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]],
    "both": [[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]],
    "inside": [[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1]],
    "empty row": [[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]],
}


@both
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_padding_changes_nothing(name, mask):
    model = tiny(name).eval()
    words, state, mask = text(3, 6), random_state(model, 3), torch.tensor(mask)
    out = model(words, attention_mask=mask, state=state)
    assert torch.equal(model(words, attention_mask=mask.bool(), state=state).logits, out.logits)
    h, c = state
    top = model.lm_head(h[-1])  # what the state says before the first word
    for row in range(3):
        real, mine = mask[row].bool(), slice(row, row + 1)
        if not real.any():
            close(out.logits[row], top[row].expand(6, -1))
            assert all(
                torch.equal(a[:, row], b[:, row]) for a, b in zip(out.state, state, strict=True)
            )
            continue
        alone = model(words[mine, real], state=(h[:, mine], c[:, mine]))
        close(out.logits[row, real], alone.logits[0])
        close(tuple(part[:, mine] for part in out.state), alone.state)
        said = torch.cat([top[mine], alone.logits[0]])
        close(out.logits[row], said[mask[row].long().cumsum(0)])


def test_gradients_do_not_come_from_padding():
    model = tiny("lstm_200")
    words, mask = text(2, 6), torch.tensor(MASKS["both"][::2])
    model(words, attention_mask=mask).state[0].sum().backward()
    used = words[mask.bool()].unique()
    moved = model.embed_tokens.weight.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(moved, used)


# Loss


@both
def test_loss_is_the_cross_entropy_of_the_next_word(name):
    model = tiny(name).eval()
    words = text(3, 6)
    labels = words.clone()
    labels[0, 2] = labels[2, 5] = -100
    out = model(words, labels=labels)
    logits, targets = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    close(out.loss, cross_entropy(logits, targets))
    summed = model(words, labels=labels, num_items_in_batch=torch.tensor(40)).loss
    close(summed, cross_entropy(logits, targets, reduction="sum") / 40)
    shifted = model(words, labels=labels, shift_labels=text(3, 6, seed=5)).loss
    close(shifted, cross_entropy(out.logits.flatten(0, 1), text(3, 6, seed=5).flatten()))
    close(model(words, shift_labels=text(3, 6, seed=5)).loss, shifted)
    assert model(words).loss is None
    assert model(words, return_dict=False)[0].equal(out.logits)


def test_trainer_trains_and_evaluates(tmp_path):
    """It sees one label column, gives num_items_in_batch and leaves the state alone."""
    model = tiny("lstm_200")
    data = [{"input_ids": row, "labels": row} for row in text(8, 6)]
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", num_train_epochs=1, disable_tqdm=True
    )
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data)
    assert trainer.label_names == ["labels"]
    assert trainer.model_accepts_loss_kwargs
    before = model(text(2, 6)).logits
    trainer.train()
    assert not torch.equal(before, model(text(2, 6)).logits)
    assert trainer.predict(data).predictions.shape == (8, 6, V)
    trainer.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generate(text(1, 3), max_new_tokens=4).shape[1] <= 7


# Generation


def greedy(model, words: torch.Tensor, steps: int, state=None) -> torch.Tensor:
    """One row, continued by reading all of it again for every word."""
    for _ in range(steps):
        logits = model(words, state=state).logits[:, -1]
        words = torch.cat([words, logits.argmax(-1, keepdim=True)], 1)
        if words[0, -1] == model.config.eos_token_id:
            break
    return words


def new_words(model, sequence: torch.Tensor, prompt: int) -> list[int]:
    """What comes after the prompt, to the first `<eos>`."""
    new = sequence[prompt:].tolist()
    eos = model.config.eos_token_id
    return new[: new.index(eos) + 1] if eos in new else new


@both
@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
def test_greedy_generation(name, given):
    model = tiny(name, seed=4).eval()
    words, state = text(4, 5), random_state(model, 4) if given else None
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    made = model.generate(words, state=state, max_new_tokens=8)
    assert set(lengths[1:]) == {1}
    again = model.generate(words, state=state, max_new_tokens=8, use_cache=False)
    assert torch.equal(made, again)
    assert max(lengths) == made.shape[1] - 1
    hook.remove()
    for row in range(4):
        alone = None if state is None else tuple(part[:, row : row + 1] for part in state)
        expected = greedy(model, words[row : row + 1], 8, alone)[0, 5:].tolist()
        assert new_words(model, made[row], 5) == expected


@both
@pytest.mark.parametrize("side", ["left", "right"])
def test_generation_from_a_padded_batch(name, side):
    model = tiny(name, seed=4).eval()
    words, mask = text(3, 6), torch.tensor(MASKS[side])
    made = model.generate(words, attention_mask=mask, max_new_tokens=8)
    for row in range(3):
        prompt = words[row, mask[row].bool()][None]
        expected = greedy(model, prompt, 8)[0, prompt.shape[1] :].tolist()
        assert new_words(model, made[row], 6) == expected


def test_generation_finds_the_padding_of_a_vocabulary_that_has_a_word_for_it():
    torch.manual_seed(4)
    fields = {"hidden_size": H, "initializer_range": 0.8}
    model = create_language_model("lstm_200", words=[*WORDS, "<pad>"], **fields).eval()
    assert model.generation_config.pad_token_id == V
    prompt = text(1, 4)
    padded = torch.cat([torch.full((1, 3), V), prompt], 1)
    made = model.generate(padded, max_new_tokens=5)
    assert torch.equal(made[:, 3:], model.generate(prompt, max_new_tokens=5))


def beam_search(model, prompt: torch.Tensor, beams: int, steps: int, state) -> list[list[int]]:
    """All continuations of all beams, each read from the start; no `<eos>`."""
    kept = [(0.0, prompt[0].tolist())]
    for _ in range(steps):
        longer = []
        for score, words in kept:
            logits = model(torch.tensor([words]), state=state).logits[0, -1]
            logits[model.config.eos_token_id] = -torch.inf
            logp = log_softmax(logits, -1).tolist()
            longer += [(score + more, [*words, word]) for word, more in enumerate(logp)]
        kept = sorted(longer, reverse=True)[:beams]
    return [words for _, words in kept]


@both
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam_search(name, use_cache):
    model = tiny(name, seed=4).eval()
    prompts, state = text(3, 3), random_state(model, 3)
    made = model.generate(
        prompts,
        state=state,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=5,
        suppress_tokens=[model.config.eos_token_id],
        renormalize_logits=True,
        use_cache=use_cache,
    ).view(3, 3, 8)
    for row in range(3):
        alone = tuple(part[:, row : row + 1] for part in state)
        assert made[row].tolist() == beam_search(model, prompts[row : row + 1], 3, 5, alone)


def test_generation_goes_on_from_the_state_it_gives_back():
    model = tiny("lstm_200", seed=4).eval()
    kwargs = {"suppress_tokens": [model.config.eos_token_id]}
    whole = model.generate(text(2, 4), max_new_tokens=9, **kwargs)
    first = model.generate(
        text(2, 4), max_new_tokens=5, return_dict_in_generate=True, **kwargs
    )  # its state has not read the last word yet
    assert torch.equal(first.sequences, whole[:, :9])
    rest = model.generate(
        first.sequences[:, -1:], state=first.past_key_values, max_new_tokens=4, **kwargs
    )
    assert torch.equal(rest[:, 1:], whole[:, 9:])


@both
def test_pipeline(name, tmp_path):
    model = tiny(name, seed=4).eval()
    model.save_pretrained(tmp_path)
    word_tokenizer(WORDS).save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path), batch_size=2)
    prompts = ["the cat sat", "a dog"]
    outputs = write(prompts, max_new_tokens=6, do_sample=False, return_full_text=False)
    for prompt, (output,) in zip(prompts, outputs, strict=True):
        ids = torch.tensor([[WORDS.index(word) for word in prompt.split()]])
        new = greedy(model, ids, 6)[0, ids.shape[1] :].tolist()
        assert output["generated_text"].split() == [WORDS[i] for i in new if WORDS[i] != "<eos>"]


# Initialisation, saving and loading


@both
def test_initialization_is_uniform_and_a_function_of_the_seed(name):
    first, again, other = (tiny(name, seed, initializer_range=0.3) for seed in (0, 0, 1))
    for a, b, c in zip(*(m.parameters() for m in (first, again, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert a.abs().max() <= 0.3
    weights = torch.cat([p.flatten() for p in first.parameters()])
    assert weights.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.05)
    copied = copy.deepcopy(first).eval()
    assert torch.equal(copied(text(2, 3)).logits, first.eval()(text(2, 3)).logits)


@both
@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, load_model])
def test_round_trip_is_bit_identical(name, load, tmp_path):
    model = tiny(name).eval()
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = load(tmp_path)
    assert type(loaded) is type(model)
    mine, other = model.state_dict(), loaded.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[key], other[key]) for key in mine)
    words = text(3, 6)
    assert torch.equal(loaded.eval()(words).logits, model(words).logits)
    if name == "lstm_200":
        assert loaded.lm_head.weight is loaded.embed_tokens.weight
    saved = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    assert loaded.config.to_dict() == {**saved, "_name_or_path": str(tmp_path)}
    assert loaded.generation_config.eos_token_id == WORDS.index("<eos>")


def test_config_survives_and_rebuilds(tmp_path):
    for name in SMALL:
        tiny(name, dropout=0.25).save_pretrained(tmp_path / name)
        config = AutoConfig.from_pretrained(tmp_path / name)
        assert (config.dropout, config.num_layers) == (0.25, 2)
        assert config.keys_to_ignore_at_inference == ["state"]
        model = build_model(config)
        if name.startswith("char_cnn"):
            with pytest.raises(ValueError, match="the table of the words' characters, is empty"):
                model(text(1, 2))
            model.load_state_dict(tiny(name).state_dict())
        assert model(text(1, 2)).logits.shape == (1, 2, V)


def test_a_checkpoint_that_lacks_a_weight_gets_it_drawn_but_not_the_table(tmp_path):
    model = tiny("char_cnn_lstm_small")
    lacking = ("lm_head.weight", "characters")
    kept = {k: v for k, v in model.state_dict().items() if k not in lacking}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = CharCNNLSTMForCausalLM.from_pretrained(tmp_path)
    assert 0.5 < loaded.lm_head.weight.abs().max() <= 0.8
    assert torch.equal(loaded.lm_head.bias, model.lm_head.bias)
    assert not loaded.characters.any()
    with pytest.raises(ValueError, match="is empty"):
        loaded(text(1, 2))


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(name, dtype):
    model = tiny(name).eval()
    words, mask = text(3, 6), torch.tensor(MASKS["both"])
    expected = model(words, attention_mask=mask, state=random_state(model, 3)).logits
    out = model.to(dtype)(words, attention_mask=mask, state=random_state(model, 3))
    assert out.logits.dtype == out.state[0].dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.bfloat16: 0.2, torch.float16: 0.03}[dtype]
    torch.testing.assert_close(out.logits.float(), expected, rtol=0, atol=tolerance)
    assert model.generate(words, attention_mask=mask, max_new_tokens=2).shape[1] <= 8


@both
def test_autocast(name):
    model = tiny(name)
    words, mask = text(3, 6), torch.tensor(MASKS["both"])
    with torch.autocast("cpu", torch.bfloat16):
        out = model(words, attention_mask=mask, labels=words)
        out = model(words, labels=words, state=out.state)
    out.loss.backward()
    assert out.loss.isfinite()


# By name, and errors


def test_words_set_what_follows_from_them():
    config = tiny("char_cnn_lstm_small").config
    eos = WORDS.index("<eos>")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (eos, eos, eos)
    assert config.vocabulary_sha256 == vocabulary_digest(WORDS)
    assert config.vocab_size == V
    assert config.num_characters == 3 + len(set("".join(WORDS)))
    assert config.max_word_length == len("extraordinarily")
    plain = create_language_model("lstm_200", vocab_size=5).config
    assert plain.vocabulary_sha256 is plain.eos_token_id is None


def test_the_digest_knows_order_and_boundaries():
    different = [["a", "b"], ["b", "a"], ["ab"], ["a b"], ["a", "b", ""], ['a", "b']]
    assert len({vocabulary_digest(words) for words in different}) == len(different)
    digest = hashlib.sha256(b'["a", "b"]').hexdigest()  # part of published configs: never changes
    assert vocabulary_digest(("a", "b")) == digest


def test_long_words_are_cut_and_short_vocabularies_fit_the_filters():
    model = create_language_model("char_cnn_lstm_small", words=["x" * 99, "y"])
    assert model.characters.shape == (2, 65 + 2)
    model = create_language_model("char_cnn_lstm_small", words=["x", "y"])
    assert model.characters.shape == (2, 6)
    assert model(torch.tensor([[0, 1]])).logits.shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("lstm_65", {"vocab_size": 5}, "'lstm_65' is no language model. Did you mean 'lstm_650'"),
        ("zzz", {"vocab_size": 5}, "There are lstm_200, lstm_650"),
        ("lstm_200", {"vocab_size": 5, "hiden_size": 3}, "Did you mean 'hidden_size'"),
        ("lstm_200", {"vocab_size": 5, "filter_widths": [1]}, "filter_widths: not taken by lstm_2"),
        ("lstm_200", {}, "give words or vocab_size"),
        ("char_cnn_lstm_small", {"vocab_size": 5}, "give words"),
        ("lstm_200", {"words": "abc"}, "must be a list of words"),
        ("lstm_200", {"words": []}, "must be a list of words"),
        ("lstm_200", {"words": ["a", "b", "a"]}, "holds a word twice"),
        ("lstm_200", {"words": ["a", "b"], "vocab_size": 3}, "vocab_size is 3, but words has 2"),
        ("lstm_200", {"words": ["a"], "vocabulary_sha256": "x"}, "sha256 follow from words"),
        ("lstm_200", {"vocab_size": 0}, "vocab_size=0 must be a whole number of at least 1"),
        ("lstm_200", {"vocab_size": 5, "hidden_size": 1.5}, "hidden_size=1.5 must be a whole"),
        ("lstm_200", {"vocab_size": 5, "num_layers": 0}, "num_hidden_layers=0 must be"),
        ("lstm_200", {"vocab_size": 5, "dropout": 1.0}, "dropout=1.0 must be at least 0 and less"),
        ("lstm_200", {"vocab_size": 5, "initializer_range": -1.0}, "initializer_range=-1.0"),
        ("lstm_200", {"vocab_size": 5, "dropout": "a"}, "dropout='a' must be a number"),
        ("char_cnn_lstm_small", {"words": ["a"], "filter_widths": [1]}, "must go together"),
        (
            "char_cnn_lstm_small",
            {"words": ["a"], "filter_widths": [], "filter_counts": []},
            "must go together, one or more of each",
        ),
        ("char_cnn_lstm_small", {"words": ["a"], "filter_widths": 3}, "filter_widths=3 must"),
        ("char_cnn_lstm_small", {"words": ["a"], "max_word_length": 3}, "max_word_length=4 or"),
        ("char_cnn_lstm_small", {"words": ["a"], "tie_word_embeddings": True}, "nothing can be"),
    ],
)
def test_wrong_arguments(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_language_model(name, **kwargs)


@pytest.mark.parametrize(
    ("words", "kwargs", "message"),
    [
        (text(2, 0), {}, r"at least one of each, not torch.int64 \(2, 0\)"),
        (torch.zeros(3, dtype=torch.long), {}, r"\(batch, time\) .* not torch.int64 \(3,\)"),
        (torch.zeros(2, 3), {}, "whole numbers .* not torch.float32"),
        (torch.tensor([[3, V]]), {}, f"holds the words 3 to {V}, but .* vocab_size={V}"),
        (torch.tensor([[3, -1]]), {}, "holds the words -1 to 3"),
        (text(2, 3), {"attention_mask": torch.ones(2, 4)}, r"is \(2, 4\), but input_ids is \(2, 3"),
    ],
)
def test_wrong_words(words, kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny("lstm_200")(words, **kwargs)


@pytest.mark.parametrize("shape", [(2, 3, H), (1, 2, H), (2, 2, H + 1)])
def test_a_state_of_another_shape(shape):
    h, c = torch.zeros(2, 2, H), torch.zeros(shape)
    for state in ((h, c), (c, h)):
        with pytest.raises(ValueError, match=r"these words need \(2, 2, 8\).* begin again"):
            tiny("lstm_200")(text(2, 3), state=state)
