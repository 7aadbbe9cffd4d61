"""The built-in grammar: exact entropies and probabilities, agreement, the same text everywhere."""

import hashlib
import math
import statistics
from collections import Counter, defaultdict
from itertools import islice

import pytest

from ban_hf.data import ENGLISH, Grammar, load_text


def drawn(count, seed="test"):
    return list(islice(ENGLISH.sentences(seed), count))


def enumerate_all(grammar, row, probability=1.0):
    """Every word sequence that a row of symbols can become, for a grammar without recursion."""
    for i, part in enumerate(row):
        if part in grammar.rules:
            for option, p in grammar.rules[part].items():
                yield from enumerate_all(
                    grammar, (*row[:i], *option, *row[i + 1 :]), probability * p
                )
            return
    yield row, probability


FINITE = Grammar(
    {
        "sentence": {"DET_# noun_# VERB_# place <eos>": 1},
        "noun_#": {"NOUN_#": 2, "ADJ NOUN_#": 1},
        "place": {"": 3, "there": 1},
        "DET_s": {"the": 2, "a": 1},
        "DET_p": {"the": 1},
        "NOUN_s": {"dog": 2, "cat": 1},
        "NOUN_p": {"dogs": 1},
        "VERB_s": {"runs": 1},
        "VERB_p": {"run": 1},
        "ADJ": {"big": 1, "old": 4},
    }
)


# Closed forms


def test_finite_grammar_is_what_its_sentences_say():
    sentences = Counter()
    for words, probability in enumerate_all(FINITE, ("sentence",)):
        sentences[words] += probability
    assert len(sentences) == 2 * (2 * 2 * 3 + 1 * 1 * 3)  # place, then determiner, noun, adjective
    assert math.fsum(sentences.values()) == pytest.approx(1, abs=1e-14)
    assert sentences["the", "old", "dogs", "run", "<eos>"] == pytest.approx(
        1 / 2 * 1 / 3 * 4 / 5 * 3 / 4
    )
    length = sum(p * len(words) for words, p in sentences.items())
    entropy = -sum(p * math.log(p) for p in sentences.values())
    assert FINITE.expected_length == pytest.approx(length, rel=1e-13)
    assert FINITE.sentence_entropy == pytest.approx(entropy, rel=1e-13)
    assert FINITE.entropy == pytest.approx(entropy / length, rel=1e-13)
    for words, p in sentences.items():
        assert sum(FINITE.log_probabilities(list(words))) == pytest.approx(math.log(p), abs=1e-12)


def test_recursive_grammar_has_the_entropy_of_a_geometric_law():
    p = 0.8
    grammar = Grammar({"sentence": {"a sentence": p, "<eos>": 1 - p}})
    assert grammar.expected_length == pytest.approx(1 / (1 - p))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert grammar.entropy == pytest.approx(entropy)  # a coin is thrown for every word


def test_closed_forms_agree_with_a_large_sample():
    sentences = drawn(10_000)
    lengths, losses = [len(words) for words, _ in sentences], [-logp for _, logp in sentences]
    for sample, expected in (
        (lengths, ENGLISH.expected_length),
        (losses, ENGLISH.sentence_entropy),
    ):
        error = statistics.stdev(sample) / math.sqrt(len(sample))
        assert error < 0.01 * expected
        assert abs(statistics.mean(sample) - expected) < 4 * error
    assert ENGLISH.entropy == ENGLISH.sentence_entropy / ENGLISH.expected_length
    uses = Counter(word for words, _ in sentences for word in words)
    assert set(uses) == set(ENGLISH.words)
    assert uses["mary"] / uses["john"] == pytest.approx(2, rel=0.1)  # Zipf's law in a class


# Probabilities of texts


def test_next_words_have_probabilities_that_sum_to_one():
    text = [word for words, _ in drawn(5, "prefix") for word in words]
    for i in (*range(0, 20, 3), len(text) - 1):
        total = 0.0
        for word in ENGLISH.words:
            try:
                total += math.exp(ENGLISH.log_probabilities([*text[:i], word])[-1])
            except ValueError:
                continue
        assert total == pytest.approx(1, abs=1e-12), text[:i]


def test_each_sentence_has_the_probability_of_its_only_derivation():
    sentences = drawn(300, "parse")
    for words, derivation in sentences:
        assert sum(ENGLISH.log_probabilities(words)) == pytest.approx(derivation, abs=1e-9)
    text = [word for words, _ in sentences for word in words]
    total = sum(ENGLISH.log_probabilities(text))  # independent sentences, one after another
    assert total == pytest.approx(sum(p for _, p in sentences), rel=1e-12)


def test_probabilities_sum_over_the_derivations_of_an_ambiguous_sentence():
    grammar = Grammar(
        {"sentence": {"x y <eos>": 1}, "x": {"a": 1, "a a": 3}, "y": {"a": 1, "a a": 3}}
    )
    assert sum(grammar.log_probabilities("a a a <eos>".split())) == pytest.approx(
        math.log(2 * 1 / 4 * 3 / 4)
    )


def test_every_sentence_has_one_derivation():
    """The grammar is LL(1), so unambiguous, once "the" shows its number, as the noun after it does.

    In an LL(1) grammar the next word tells which expansion of a symbol was taken.
    """
    rules = {symbol: list(options) for symbol, options in ENGLISH.rules.items()}
    for number in "sp":
        rules[f"DETERMINER_{number}"] = [
            (f"{w}_{number}" if w == "the" else w,) for (w,) in rules[f"DETERMINER_{number}"]
        ]
    first, follow = defaultdict(set), defaultdict(set)  # "" in first: it may be nothing

    def first_of(row):
        found = set()
        for part in row:
            begins = first[part] if part in rules else {part}
            found |= begins - {""}
            if "" not in begins:
                return found
        return found | {""}

    for _ in range(2 * len(rules)):  # more than enough passes
        for symbol, options in rules.items():
            for option in options:
                first[symbol] |= first_of(option)
                for i, part in enumerate(option):
                    after = first_of(option[i + 1 :])
                    follow[part] |= after - {""} | (follow[symbol] if "" in after else set())
    for symbol, options in rules.items():
        chosen_by = [
            first_of(o) - {""} | (follow[symbol] if "" in first_of(o) else set()) for o in options
        ]
        assert sum(map(len, chosen_by)) == len(set().union(*chosen_by)), symbol


# Agreement


@pytest.mark.parametrize(
    ("frame", "right", "wrong"),
    [
        ("the dog {} <eos>", "sleeps", "sleep"),
        ("the dogs near the cat behind mary {} happy <eos>", "are", "is"),
        ("the dog that the cats that a bird fears chase {} <eos>", "sleeps", "sleep"),
        ("the dog that the cats that a bird {} chase sleeps <eos>", "fears", "fear"),
        ("the girls with a dog that sees some birds {} each other <eos>", "like", "likes"),
        ("the dog sleeps and some cats with the bird {} <eos>", "run", "runs"),
        ("the small dogs that {} the big cat near them", "see", "sees"),
    ],
)
def test_verbs_agree_with_their_subjects(frame, right, wrong):
    words = frame.format(right).split()
    until = words.index("them") if "them" in words else len(words)
    assert all(math.isfinite(p) for p in ENGLISH.log_probabilities(words[:until]))
    with pytest.raises(ValueError, match=rf"words\[\d+\]='{wrong}' cannot follow"):
        ENGLISH.log_probabilities(frame.format(wrong).split())


# The text


def test_text_is_the_same_on_every_machine():
    text = ENGLISH.text(1_000, seed="train")
    # Another digest is another language: then raise VERSION, and measure the recipes again.
    assert (
        hashlib.sha256(" ".join(text).encode()).hexdigest()
        == "45aeea2f9ec611260027f0cb4fbde1c18a14f3b65a3f885cf63908db710b9984"
    )
    assert ENGLISH.text(300, seed="train") == text[:300]
    assert ENGLISH.text(1_000, seed="test") != text
    assert text == [word for words, _ in drawn(200, "train") for word in words][:1_000]


def test_load_text_grammar():
    splits = load_text("grammar")
    parts = splits.train, splits.validation, splits.test
    assert [len(part) for part in parts] == [8_000, 5_000, 20_000]
    assert splits.words == sorted({*ENGLISH.words, "<unk>"})
    texts = [[splits.words[i] for i in part] for part in parts]
    assert "<unk>" not in texts[0] + texts[1] + texts[2]
    assert texts[0][:5_000] != texts[1] != texts[2][:5_000] != texts[0][:5_000]
    assert splits.entropy == ENGLISH.entropy
    losses = [-p for p in ENGLISH.log_probabilities(texts[2])[1:]]
    assert splits.test_entropy == pytest.approx(statistics.mean(losses), rel=1e-12)
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    assert abs(splits.test_entropy - splits.entropy) < 4 * error
    few = load_text("grammar", train_words=100)
    assert few.train.tolist() == splits.train[:100].tolist()
    assert (few.words, few.test.tolist()) == (splits.words, splits.test.tolist())
    assert few.source["tokens"]["train"] == 100
    assert (few.source["id"], few.source["revision"]) == ("grammar", "ban_hf.grammar/1")
