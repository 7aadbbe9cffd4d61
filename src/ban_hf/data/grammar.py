"""Sentences from a small probabilistic grammar of English, whose entropy is known exactly.

A verb agrees in number with its subject, at any distance:

    the dogs near a cat that sees these birds are happy <eos>
    mary thinks that the teacher that some friends help sleeps and two boys follow each other <eos>

No sentence has two derivations: a noun has one modifier at most, so that each belongs to the
nearest noun, and only whole sentences are linked. So a sentence's probability is the product of the
probabilities of the rules that made it, and the least possible loss of a language model is known.
"""

import math
from bisect import bisect
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from random import Random

import numpy as np

from ban_hf.errors import BANError

VERSION = "ban_hf.grammar/1"
"""Raise it with every change of the rules or of how they are drawn: the text changes."""

START = "sentence"
RULES: dict[str, dict[str, float]] = {
    # A phrase, its expansions, and their weights. "" is nothing; # is s or p throughout a rule.
    "sentence": {"clause more <eos>": 1},
    "more": {"": 7, "LINK clause": 3},
    "clause": {"noun_phrase_# predicate_#": 1},
    "noun_phrase": {"noun_phrase_#": 1},
    "noun_phrase_s": {"NAME": 2, "DETERMINER_s noun_s": 8},
    "noun_phrase_p": {"DETERMINER_p noun_p": 1},
    "noun_#": {"ADJECTIVE noun_#": 2, "NOUN_# modifier_#": 8},
    "modifier_#": {"": 12, "PREPOSITION noun_phrase": 4, "that relative_#": 4},
    "relative_#": {"predicate_#": 3, "gap": 1},
    "gap": {"noun_phrase_# TRANSITIVE_#": 1},  # "(the dog that) the cats see"
    "predicate_#": {
        "INTRANSITIVE_# place": 4,
        "TRANSITIVE_# object_#": 7,
        "BE_# ADJECTIVE": 3,
        "THINK_# that clause": 1,
    },
    "place": {"": 5, "ADVERB": 2, "PREPOSITION noun_phrase": 3},
    "object_s": {"noun_phrase": 1},
    "object_p": {"noun_phrase": 9, "each other": 1},
}
WORDS = {
    # By Zipf's law: the n-th of a class is drawn n times less often than the first.
    "DETERMINER_s": "the a this every one",
    "DETERMINER_p": "the some these two many",
    "NAME": "mary john peter susan tom julia robert laura",
    "ADJECTIVE": "small young big happy tired clever hungry lazy famous brave polite quiet",
    "PREPOSITION": "near with behind beside above below",
    "ADVERB": "today often quietly again slowly there",
    "LINK": "and but because while",
    "BE_s": "is was",
    "BE_p": "are were",
}
STEMS = {  # the same; a plural noun ends in s, and so does the verb of a singular one
    "NOUN": "dog cat boy girl teacher bird friend doctor horse king neighbour student farmer robot "
    "lawyer painter tiger singer sailor spider",
    "INTRANSITIVE": "sleep sing wait laugh run dance smile jump swim whisper yawn listen",
    "TRANSITIVE": "see know like help follow love chase meet find greet admire visit remember fear",
    "THINK": "think say believe hope",
}


class Grammar:
    """A probabilistic context-free grammar without left recursion.

    Args:
        rules: of each symbol its expansions, with weights. An expansion is a row of symbols and
            words, split by spaces; what has no rules is a word. An expansion with `#` stands for
            two, one with `s` and one with `p` in its place; a symbol with `#`, for two symbols.
            A `sentence` must end in a word of its own, `<eos>`.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, float]]) -> None:
        self.rules: dict[str, dict[tuple[str, ...], float]] = {}  # probabilities
        for symbol, expansions in rules.items():
            for one, numbers in _numbers(symbol, "sp"):
                weights = {
                    tuple(option.split()): weight
                    for expansion, weight in expansions.items()
                    for option, _ in _numbers(expansion, numbers)
                }
                total = math.fsum(weights.values())  # the same in every version of Python
                self.rules[one] = {option: w / total for option, w in weights.items()}
        parts = {part for options in self.rules.values() for option in options for part in option}
        self.words = sorted(parts - self.rules.keys())

    # Drawing

    def sentences(self, seed: str) -> Iterator[tuple[list[str], float]]:
        """Endless independent sentences, each with the logarithm of its probability.

        The same for a seed on every machine: of `random.Random` only `random()` is used, whose
        stream Python guarantees.
        """
        rng = Random(f"{VERSION} {seed}")
        options = {symbol: list(weights.items()) for symbol, weights in self.rules.items()}
        bounds = {s: list(accumulate(w.values())) for s, w in self.rules.items()}
        while True:
            words, logp, stack = [], 0.0, [START]
            while stack:
                part = stack.pop()
                if part in options:
                    drawn = bisect(bounds[part], rng.random(), hi=len(bounds[part]) - 1)
                    expansion, probability = options[part][drawn]
                    logp += math.log(probability)
                    stack.extend(reversed(expansion))
                else:
                    words.append(part)
            yield words, logp

    def text(self, size: int, seed: str) -> list[str]:
        """The first `size` words of the sentences, of which the last may be cut short."""
        words: list[str] = []
        for sentence, _ in self.sentences(seed):
            words += sentence
            if len(words) >= size:
                break
        return words[:size]

    # What is known of it

    @cached_property
    def uses(self) -> dict[str, float]:
        """Expected uses of each symbol in a sentence: u = start + M' u, so (I - M')^-1 start.

        M_ij is how often an expansion of symbol i holds symbol j, on average.
        """
        rows = list(self.rules)
        counts = np.array(
            [[sum(p * e.count(j) for e, p in self.rules[i].items()) for j in rows] for i in rows]
        )  # (symbols, symbols)
        start = np.array([float(symbol == START) for symbol in rows])  # (symbols,)
        uses = np.linalg.solve(np.eye(len(start)) - counts.T, start)  # (symbols,)
        return dict(zip(self.rules, uses.tolist(), strict=True))

    @property
    def expected_length(self) -> float:
        """Of a sentence, in words, `<eos>` among them."""
        return sum(
            self.uses[symbol] * p * sum(part not in self.rules for part in expansion)
            for symbol, options in self.rules.items()
            for expansion, p in options.items()
        )

    @property
    def sentence_entropy(self) -> float:
        """Nats per sentence: the entropy of each symbol's rules, as often as it is used."""
        return sum(
            -self.uses[symbol] * p * math.log(p)
            for symbol, options in self.rules.items()
            for p in options.values()
        )

    @property
    def entropy(self) -> float:
        """Nats per word: the least expected loss of any model of this language."""
        return self.sentence_entropy / self.expected_length

    # Reading

    def log_probabilities(self, words: list[str]) -> list[float]:
        """Log-probability of each word of a text, given all that come before it; exact.

        Keeps each row of symbols and words that can still follow, with its probability: two of
        them after "the", until a noun tells the number, else one.

        Raises:
            BANError: a word that cannot follow the words before it.
        """
        logps = []
        rows: dict[tuple[str, ...], float] = {(START,): 1.0}
        for i, word in enumerate(words):
            rows = self._after(word, rows)
            probability = sum(rows.values())
            if not probability:
                raise BANError(f"words[{i}]={word!r} cannot follow {' '.join(words[:i][-10:])!r}")
            logps.append(math.log(probability))
            rows = {row or (START,): p / probability for row, p in rows.items()}
        return logps

    def _after(self, word: str, rows: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
        """The rows once `word` is taken off their beginning, with probabilities."""
        after: dict[tuple[str, ...], float] = {}
        pending = list(rows.items())
        while pending:
            (first, *rest), p = pending.pop()
            if first in self.rules:
                options = self.rules[first].items()
                pending += [((*option, *rest), p * q) for option, q in options]
            elif first == word:
                after[tuple(rest)] = after.get(tuple(rest), 0.0) + p
        return after


def _numbers(template: str, numbers: str) -> list[tuple[str, str]]:
    """A rule's text in the singular and the plural, each with its number; as it is without `#`."""
    if "#" not in template:
        return [(template, numbers)]
    return [(template.replace("#", number), number) for number in numbers]


def _zipf(words: list[str]) -> dict[str, float]:
    return {word: 1 / rank for rank, word in enumerate(words, start=1)}


def _lexicon() -> dict[str, dict[str, float]]:
    """Rules of all word classes."""
    lexicon = {name: _zipf(words.split()) for name, words in WORDS.items()}
    for name, words in STEMS.items():
        stems, with_s = words.split(), [f"{word}s" for word in words.split()]
        singular, plural = (stems, with_s) if name == "NOUN" else (with_s, stems)
        lexicon |= {f"{name}_s": _zipf(singular), f"{name}_p": _zipf(plural)}
    return lexicon


ENGLISH = Grammar(RULES | _lexicon())
