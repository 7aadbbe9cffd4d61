"""How sure a result is: means over seeds, differences paired by seed, and intervals.

An interval is the middle 95 % of a crossed bootstrap (Owen, *The pigeonhole bootstrap*, 2007). A
replicate draws seeds with replacement and test items with replacement, the same items for every
seed and every column, so that the difficulty of an item cancels in a difference.
`scipy.stats.bootstrap` resamples one axis alone, or its samples independently of each other; this
module needs two crossed axes, so the bootstrap is written here.

The part of an interval over items is good: there are thousands of images, or some 165 blocks of
words. The part over seeds is rough. Drawing from S seeds gives the mean (S - 1) / S of its
variance, half of it for two seeds, so that an interval is too short where seeds differ more than
items do. With one seed only items are drawn; such an interval says nothing of another seed.

Results without outcomes of single items have no intervals, with one exception: the error of one
network in one seed follows from the number of wrong items alone.
"""

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ban_hf.errors import BANError
from ban_hf.lineage.catalog import MEASURES, finite
from ban_hf.lineage.results import Array, Entry, Results, item_losses

REPLICATES = 2000
SEED = 0  # of the bootstrap: the same results give the same report
CHUNK = 100  # replicates at a time: 8 MB for 10,000 items that all differ
#: A metric from the mean loss of an item: 0 or 1 of a class, nats of a word.
METRICS: dict[str, Callable[[Array], Array]] = {
    "error": lambda loss: 100 * loss,
    "accuracy": lambda loss: 100 - 100 * loss,
    "perplexity": np.exp,
    "loss": lambda loss: loss,
}


@dataclass(frozen=True)
class Spread:
    """Values of several seeds."""

    mean: float
    std: float | None  # sample standard deviation; None of one value
    values: tuple[float, ...]  # the finite ones


@dataclass(frozen=True)
class Estimate(Spread):
    """The leading metric over seeds, in its unit."""

    low: float | None  # the 95 % interval of the mean; None without outcomes of single items
    high: float | None
    seeds: tuple[int, ...]  # those that have a value

    @property
    def items_only(self) -> bool:
        """Whether the interval is over the test items alone, because there is one seed."""
        return len(self.seeds) == 1


@dataclass(frozen=True)
class Difference(Estimate):
    """A column minus another, paired by seed."""

    sign: int  # of a difference that is better

    @property
    def better(self) -> int:
        """The number of seeds in which the column is better."""
        return sum(self.sign * value > 0 for value in self.values)

    @property
    def gain(self) -> float:
        """By how much the column is better, on average."""
        return self.sign * self.mean

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be better: the whole interval is, over more than one seed."""
        return self._is_shown(self.sign)

    @property
    def is_worse(self) -> bool:
        """Whether it is shown to be worse."""
        return self._is_shown(-self.sign)

    def _is_shown(self, sign: int) -> bool:
        if self.low is None or self.high is None or self.items_only:
            return False
        return sign * self.low > 0 and sign * self.high > 0


@dataclass(frozen=True)
class Share:
    """A share of a gain, with its 95 % interval."""

    value: float
    low: float
    high: float


def spread(numbers: Iterable[float | None]) -> Spread | None:
    """Mean and sample standard deviation of the numbers that are finite; None without any."""
    values = [value for number in numbers if (value := finite(number)) is not None]
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, tuple(values))


def estimate(results: Results, row: str, column: str) -> Estimate | None:
    """The leading test metric of a cell, with its interval; None where it is not measured."""
    cell = results.measured(row, column)
    known = spread(entry.value(results.metric) for entry in cell.values())
    if known is None:
        return None
    drawn = _bootstrap(results, row, [column], [*cell])
    low, high = (None, None) if drawn is None else _middle(drawn[column])
    return Estimate(known.mean, known.std, known.values, low, high, tuple(cell))


def paired_difference(
    results: Results,
    row: str,
    column: str,
    base: str,
    seeds: Collection[int] | None = None,
) -> Difference | None:
    """The leading test metric of a column minus that of another, in the seeds that both have.

    Formula: mean_s (metric(column, s) - metric(base, s)). The metric is 100 mean(loss) percent of
    images (loss 0 or 1), exp(mean(loss)) of words (loss in nats).

    None where no seed has both. Where several differences are compared, `seeds` are those to use.

    Raises:
        BANError: if the two were not measured on the same test items.
    """
    shared = shared_seeds(results, row, [column, base])
    shared = tuple(seed for seed in shared if seeds is None or seed in seeds)
    known = metric_difference(results, row, column, base, results.metric, shared)
    if known is None:
        return None
    drawn = _bootstrap(results, row, [column, base], shared)
    low, high = (None, None) if drawn is None else _middle(drawn[column] - drawn[base])
    return Difference(known.mean, known.std, known.values, low, high, shared, _sign(results))


def share_of_gain(results: Results, row: str, column: str, base: str, full: str) -> Share | None:
    """How much of what `full` gains on `base` a column gains: 0 for none, 1 for all of it.

    Formula: (base - column) / (base - full), each the mean over the seeds that all three have.

    None where no seed has all three, without intervals, and where the interval of the gain itself
    holds 0: a ratio to what may be nothing can be anything. The few replicates without a gain that
    are left then have no share and are dropped.
    """
    names = [column, base, full]
    shared = shared_seeds(results, row, names)
    drawn = _bootstrap(results, row, names, shared)
    if drawn is None:
        return None
    sign = _sign(results)
    gains = sign * (drawn[full] - drawn[base])  # (R,)
    if np.quantile(gains, 0.025) <= 0:
        return None
    kept = gains > 0  # (R,)
    low, high = _middle(sign * (drawn[column] - drawn[base])[kept] / gains[kept])

    def mean(name: str) -> float:
        values = (results.cell(row, name)[seed].value(results.metric) for seed in shared)
        return statistics.fmean(value for value in values if value is not None)

    return Share((mean(base) - mean(column)) / (mean(base) - mean(full)), low, high)


def metric_difference(
    results: Results,
    row: str,
    column: str,
    base: str,
    metric: str,
    seeds: Collection[int] | None = None,
) -> Spread | None:
    """Any test metric of a column minus that of another, paired by seed; without an interval."""
    ours, theirs = results.cell(row, column), results.cell(row, base)
    shared = (seed for seed in ours if seed in theirs and (seeds is None or seed in seeds))
    pairs = ((ours[seed].value(metric), theirs[seed].value(metric)) for seed in shared)
    return spread(a - b for a, b in pairs if a is not None and b is not None)


def shared_seeds(results: Results, row: str, columns: Iterable[str]) -> tuple[int, ...]:
    """The seeds in which all columns are measured."""
    first, *others = [results.measured(row, name) for name in columns]
    return tuple(seed for seed in first if all(seed in cell for cell in others))


def _sign(results: Results) -> int:
    """Of a difference that is better."""
    return 1 if MEASURES[results.metric].leading.greater_is_better else -1


def _middle(replicates: Array) -> tuple[float, float]:
    """The ends of the middle 95 % of replicates `(R,)`."""
    low, high = np.quantile(replicates, [0.025, 0.975]).tolist()
    return low, high


def _bootstrap(
    results: Results, row: str, columns: Sequence[str], seeds: Sequence[int]
) -> dict[str, Array] | None:
    """Means of each column in replicates, `(R,)`, with seeds and items drawn together.

    Columns are in one order, so that two swapped see the same draws. Items with the same losses
    everywhere are one kind, and how often a kind is drawn is multinomial: the same law as drawing
    items, with at most 2^(K S) kinds of images.
    """
    names, s = sorted(set(columns)), len(seeds)
    found = _losses(
        results, [results.measured(row, name)[seed] for name in names for seed in seeds]
    )
    if found is None:
        return None
    losses, counts = found  # (N, K S), (N,)
    n, generator = len(losses), np.random.default_rng(SEED)
    kinds, sizes = np.unique(np.column_stack([losses, counts]), axis=0, return_counts=True)
    chunks = [
        generator.multinomial(n, sizes / n, size=CHUNK) @ kinds for _ in range(REPLICATES // CHUNK)
    ]
    sums = np.concatenate(chunks)  # (R, K S + 1)
    drawn = METRICS[results.metric](sums[:, :-1] / sums[:, -1:]).reshape(-1, len(names), s)
    weights = generator.multinomial(s, np.full(s, 1 / s), size=REPLICATES) / s  # (R, S)
    means = np.einsum("rks,rs->kr", drawn, weights)  # (K, R)
    return dict(zip(names, means, strict=True))


def _losses(results: Results, entries: Sequence[Entry]) -> tuple[Array, Array] | None:
    """Summed losses of every item in every entry, `(N, E)`, and the items' counts, `(N,)`.

    None without an entry, and where one has no outcomes of single items.
    """
    if len(entries) == 1 and entries[0].outcomes is None:
        return _losses_of_error(results, entries[0])
    found = [item_losses(entry, results.labels) for entry in entries]
    known = [pair for pair in found if pair is not None]
    if not known or len(known) < len(found):
        return None
    counts = known[0][1]
    for entry, (_, own) in zip(entries, known, strict=True):
        if not np.array_equal(own, counts):
            raise BANError(
                f"results of row={entry.row!r}: column {entry.column!r}, seed {entry.seed}, was "
                f"measured on other test items than column {entries[0].column!r}, seed "
                f"{entries[0].seed}. Measure both on one test set."
            )
    return np.column_stack([losses for losses, _ in known]), counts


def _losses_of_error(results: Results, entry: Entry) -> tuple[Array, Array] | None:
    """Of a single error rate over n items: as many wrong ones as it says, `(n, 1)` and `(n,)`."""
    value, n = entry.value(results.metric), entry.test.get("n")
    if results.metric not in ("error", "accuracy") or value is None or not n:
        return None
    error = value if results.metric == "error" else 100 - value
    wrong = np.arange(int(n)) < round(error * n / 100)  # (n,)
    return wrong.astype(float)[:, None], np.ones(int(n))


def is_measured(results: Results) -> bool:
    """Whether any network has a value of the leading metric."""
    return any(entry.value(results.metric) is not None for entry in results.entries)


def best_possible(results: Results) -> float | None:
    """The perplexity of the source of the test text itself, where its entropy is known."""
    entropy = results.dataset.get("test_entropy")
    return None if entropy is None else math.exp(entropy)
