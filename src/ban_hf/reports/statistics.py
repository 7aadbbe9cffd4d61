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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ban_hf.errors import BANError
from ban_hf.lineage.names import MEASURES
from ban_hf.lineage.results import Array, Entry, Outcomes, Results, finite, item_losses

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
    """Values of several seeds.

    Attributes:
        mean: of the values.
        std: sample standard deviation; None of one value.
        values: the finite ones.
    """

    mean: float
    std: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Estimate(Spread):
    """The leading metric over seeds, in its unit.

    Attributes:
        low: lower end of the 95 % interval of the mean; None without outcomes of single items.
        high: its upper end.
        seeds: those that have a value.
    """

    low: float | None
    high: float | None
    seeds: tuple[int, ...]

    @property
    def items_only(self) -> bool:
        """Whether the interval is over the test items alone, because there is one seed."""
        return len(self.seeds) == 1


@dataclass(frozen=True)
class Difference(Estimate):
    """A column minus another, paired by seed.

    Attributes:
        greater_is_better: of the metric.
    """

    greater_is_better: bool

    @property
    def better(self) -> int:
        """The number of seeds in which the column is better."""
        return sum(value > 0 if self.greater_is_better else value < 0 for value in self.values)

    @property
    def worse(self) -> int:
        """The number of seeds in which the column is worse."""
        return sum(value < 0 if self.greater_is_better else value > 0 for value in self.values)

    @property
    def gain(self) -> float:
        """By how much the column is better, on average."""
        return self.mean if self.greater_is_better else -self.mean

    @property
    def is_better(self) -> bool:
        """Whether it is shown to be better: the whole interval is, over more than one seed."""
        return self._is_above if self.greater_is_better else self._is_below

    @property
    def is_worse(self) -> bool:
        """Whether it is shown to be worse."""
        return self._is_below if self.greater_is_better else self._is_above

    @property
    def _is_below(self) -> bool:
        return self.high is not None and self.high < 0 and not self.items_only

    @property
    def _is_above(self) -> bool:
        return self.low is not None and self.low > 0 and not self.items_only


@dataclass(frozen=True)
class Share:
    """A share of a gain, 1 for all of it, with its 95 % interval."""

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


def estimate(
    results: Results, row: str, column: str, replicates: int = REPLICATES
) -> Estimate | None:
    """The leading test metric of a cell, with its interval; None where it is not measured."""
    seeds = tuple(results.measured(row, column))
    known = spread(e.value(results.metric) for e in results.measured(row, column).values())
    if known is None:
        return None
    drawn = _bootstrap(results, row, [column], seeds, replicates)
    low, high = (None, None) if drawn is None else _middle(drawn[column])
    return Estimate(known.mean, known.std, known.values, low, high, seeds)


def paired_difference(
    results: Results,
    row: str,
    column: str,
    base: str,
    replicates: int = REPLICATES,
    *,
    seeds: Collection[int] | None = None,
) -> Difference | None:
    """The leading test metric of a column minus that of another, in the seeds that both have.

    Formula: mean_s (metric(column, s) - metric(base, s)). The metric is 100 mean(loss) percent of
    images (loss 0 or 1), exp(mean(loss)) of words (loss in nats).

    Args:
        results: of a family or a table.
        row: name of the row.
        column: name of the column.
        base: name of the column that is subtracted.
        replicates: of the bootstrap.
        seeds: those to use, where several differences are compared; by default all.

    Returns:
        The difference; None where no seed has both.

    Raises:
        BANError: if the two were not measured on the same test items.
    """
    shared = _shared(results, row, [column, base], seeds)
    ours, theirs = results.measured(row, column), results.measured(row, base)
    pairs = ((ours[s].value(results.metric), theirs[s].value(results.metric)) for s in shared)
    known = spread(a - b for a, b in pairs if a is not None and b is not None)
    if known is None:
        return None
    drawn = _bootstrap(results, row, [column, base], shared, replicates)
    low, high = None, None
    if drawn is not None:
        low, high = _middle(drawn[column] - drawn[base])
    greater = MEASURES[results.metric].leading.greater_is_better
    return Difference(known.mean, known.std, known.values, low, high, shared, greater)


def share_of_gain(
    results: Results, row: str, column: str, base: str, full: str, replicates: int = REPLICATES
) -> Share | None:
    """How much of what `full` gains on `base` a column gains: 0 for none, 1 for all of it.

    Formula: (base - column) / (base - full), each the mean over the seeds that all three have.

    Returns:
        The share; None where no seed has all three, without intervals, and where the interval of
        the gain itself holds 0: a ratio to what may be nothing can be anything. The few replicates
        without a gain that are left then have no share and are dropped.
    """
    names = [column, base, full]
    shared = _shared(results, row, names, None)
    drawn = _bootstrap(results, row, names, shared, replicates) if shared else None
    if drawn is None:
        return None
    means = {
        name: statistics.fmean(
            value
            for seed, entry in results.measured(row, name).items()
            if seed in shared and (value := entry.value(results.metric)) is not None
        )
        for name in names
    }
    sign = -1 if MEASURES[results.metric].leading.greater_is_better else 1
    gains = sign * (drawn[base] - drawn[full])  # (R,)
    if np.quantile(gains, 0.025) <= 0:
        return None
    kept = gains > 0  # (R,)
    shares = sign * (drawn[base] - drawn[column])[kept] / gains[kept]
    value = (means[base] - means[column]) / (means[base] - means[full])
    low, high = _middle(shares)
    return Share(value, low, high)


def metric_difference(
    results: Results, row: str, column: str, base: str, metric: str
) -> Spread | None:
    """Any test metric of a column minus that of another, paired by seed; without an interval."""
    ours, theirs = results.cell(row, column), results.cell(row, base)
    pairs = ((ours[s].value(metric), theirs[s].value(metric)) for s in ours if s in theirs)
    return spread(a - b for a, b in pairs if a is not None and b is not None)


def _shared(
    results: Results, row: str, columns: Sequence[str], seeds: Collection[int] | None
) -> tuple[int, ...]:
    """The seeds that all columns have."""
    cells = [results.measured(row, name) for name in columns]
    shared = (seed for seed in cells[0] if all(seed in cell for cell in cells))
    return tuple(seed for seed in shared if seeds is None or seed in seeds)


def _middle(replicates: Array) -> tuple[float, float]:
    """The ends of the middle 95 % of replicates `(R,)`."""
    low, high = np.quantile(replicates, [0.025, 0.975]).tolist()
    return low, high


def _bootstrap(
    results: Results,
    row: str,
    columns: Sequence[str],
    seeds: Sequence[int],
    replicates: int,
) -> dict[str, Array] | None:
    """Means of each column in replicates, `(R,)`, with seeds and items drawn together.

    Columns are in one order, so that two swapped see the same draws.
    """
    names = sorted(set(columns))
    if not seeds:
        return None
    entries = [results.measured(row, name)[seed] for name in names for seed in seeds]
    found = _losses(results, entries)
    if found is None:
        return None
    losses, counts = found  # (N, K S), (N,)
    shape = (-1, len(names), len(seeds))
    metric = METRICS[results.metric]
    generator = np.random.default_rng(SEED)
    sums = np.concatenate([*_draw_items(generator, losses, counts, replicates)])  # (R, K S + 1)
    drawn = metric(sums[:, :-1] / sums[:, -1:]).reshape(shape)  # (R, K, S)
    s = len(seeds)
    weights = generator.multinomial(s, np.full(s, 1 / s), size=replicates) / s  # (R, S)
    means = np.einsum("rks,rs->kr", drawn, weights)  # (K, R)
    return dict(zip(names, means, strict=True))


def _losses(results: Results, entries: Sequence[Entry]) -> tuple[Array, Array] | None:
    """Summed losses of every item in every entry, `(N, E)`, and the items' counts, `(N,)`.

    None where an entry has no outcomes of single items.
    """
    if len(entries) == 1 and entries[0].outcomes is None:
        return _losses_of_error(results, entries[0])
    found = [item_losses(entry, results.labels) for entry in entries]
    losses, counts = [], []
    for pair in found:
        if pair is None:
            return None
        losses.append(pair[0])
        counts.append(pair[1])
    for entry, own in zip(entries, counts, strict=True):
        if not np.array_equal(own, counts[0]):
            raise BANError(
                f"results of row={entry.row!r}: column {entry.column!r}, seed {entry.seed}, was "
                f"measured on other test items than column {entries[0].column!r}, seed "
                f"{entries[0].seed}. Measure both on one test set."
            )
    return np.column_stack(losses), counts[0]


def _losses_of_error(results: Results, entry: Entry) -> tuple[Array, Array] | None:
    """Of a single error rate over n items: as many wrong ones as it says, `(n, 1)` and `(n,)`."""
    value, n = entry.value(results.metric), entry.test.get("n")
    if results.metric not in ("error", "accuracy") or value is None or not n:
        return None
    error = value if results.metric == "error" else 100 - value
    wrong = np.arange(int(n)) < round(error * n / 100)  # (n,)
    return wrong.astype(float)[:, None], np.ones(int(n))


def _draw_items(
    generator: np.random.Generator, losses: Array, counts: Array, replicates: int
) -> Iterator[Array]:
    """Sums of losses and counts over items drawn with replacement, `(CHUNK, K S + 1)` at a time.

    Items with the same losses everywhere are one kind, and how often a kind is drawn is
    multinomial: the same law as drawing items, with at most 2^(K S) kinds of images.
    """
    kinds, sizes = np.unique(np.column_stack([losses, counts]), axis=0, return_counts=True)
    n = len(losses)
    for start in range(0, replicates, CHUNK):
        size = min(CHUNK, replicates - start)
        yield generator.multinomial(n, sizes / n, size=size) @ kinds


def half_width(found: Estimate) -> tuple[float, float] | None:
    """How far a picture's bar reaches below and above the mean; None where that is not known.

    With several seeds it is their standard deviation, with one the 95 % interval over test items.
    """
    if found.std is not None:
        return found.std, found.std
    if found.low is None or found.high is None:
        return None
    return max(0.0, found.mean - found.low), max(0.0, found.high - found.mean)


def has_outcomes(results: Results) -> bool:
    """Whether outcomes of single items were kept of every network that was measured."""
    measured = [entry for entry in results.entries if entry.value(results.metric) is not None]
    return all(isinstance(entry.outcomes, Outcomes) for entry in measured)


def is_measured(results: Results) -> bool:
    """Whether any network has a value of the leading metric."""
    return any(entry.value(results.metric) is not None for entry in results.entries)


def mean_over_seeds(results: Results, row: str, column: str, metric: str) -> Spread | None:
    """A test metric of a cell over its seeds."""
    return spread(entry.value(metric) for entry in results.measured(row, column).values())


def best_possible(results: Results) -> float | None:
    """The perplexity of the source of the test text itself, where its entropy is known."""
    entropy = results.dataset.get("test_entropy")
    return None if entropy is None else math.exp(entropy)
