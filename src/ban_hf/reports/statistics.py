"""How sure a table's figures are: means over seeds, differences paired by seed, intervals.

An interval is the middle 95 % of a crossed bootstrap (Owen, *The pigeonhole bootstrap*, 2007): a
replicate draws seeds with replacement, and test items with replacement, the same items for every
seed and every column. So what an item's difficulty does to both of two columns cancels.

What it is worth: the part over the items is good, there being thousands of images or some 165
blocks of words. The part over the seeds is rough. Drawing from S seeds spreads the mean by
(S - 1) / S of the variance it has, half of it for two and two thirds for three, so that an interval
is too short where seeds differ more than items do. With one seed only items are drawn: the interval
says nothing then of what another seed would do, and `items_only` holds.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ban_hf.errors import BANError
from ban_hf.lineage.family_results import Results, mean_of, spread
from ban_hf.reports.outcomes import item_losses

REPLICATES = 2000
SEED = 0  # of the bootstrap: the same results give the same report
CHUNK = 100  # replicates at a time: 8 MB for 10,000 items no two of which went alike

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds, in percent or perplexity.

    Args:
        mean: of the seeds.
        std: standard deviation over the seeds, None of one seed.
        low: lower end of the 95 % interval of the mean.
        high: upper end.
        values: of the seeds.
        seeds: those it is measured in.
    """

    mean: float
    std: float | None
    low: float
    high: float
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def items_only(self) -> bool:
        """Whether the interval is over the test items alone, for want of a second seed."""
        return len(self.seeds) == 1


class Difference(Estimate):
    """A column minus another, paired by seed, in percent points or perplexity."""

    @property
    def lower(self) -> int:
        """The number of seeds in which it is below 0."""
        return sum(value < 0 for value in self.values)

    @property
    def is_below(self) -> bool:
        """Whether it is shown to be below 0: its whole interval is, over more than one seed."""
        return self.high < 0 and not self.items_only

    @property
    def is_above(self) -> bool:
        """Whether it is shown to be above 0."""
        return self.low > 0 and not self.items_only


@dataclass(frozen=True)
class Share:
    """A share of a gain, 1 for all of it, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class _Bootstrap:
    """Metrics of columns in the seeds that all of them have, `(S,)`, and in replicates, `(R,)`."""

    seeds: tuple[int, ...]
    values: dict[str, Array]
    replicates: dict[str, Array]


def measured(results: Results, row: str, column: str) -> dict[int, dict[str, Any]]:
    """A cell's entries by seed, without those whose metric is missing or not finite."""
    found = {
        entry["seed"]: entry
        for entry in results["entries"]
        if (entry["row"], entry["column"]) == (row, column)
        and mean_of(entry["test"].get(results["metric"])) is not None
    }
    return dict(sorted(found.items()))


def interval(
    results: Results, row: str, column: str, replicates: int = REPLICATES
) -> Estimate | None:
    """The test metric of a column, with its interval; None where it is not measured."""
    drawn = _bootstrap(results, row, [column], None, replicates)
    if drawn is None:
        return None
    return Estimate(**_summary(drawn, drawn.values[column], drawn.replicates[column]))


def paired_difference(
    results: Results,
    row: str,
    column: str,
    base: str,
    replicates: int = REPLICATES,
    *,
    seeds: Collection[int] | None = None,
) -> Difference | None:
    """The test metric of a column minus that of another, in the seeds that both have.

    Formula: mean_s (metric(column, s) - metric(base, s)); metric is 100 mean(loss) percent of
    images (loss 0 or 1), exp(mean(loss)) of words (loss in nats).

    Args:
        results: of a table.
        row: name of the row.
        column: name of the column.
        base: name of the column that is subtracted.
        replicates: of the bootstrap.
        seeds: those to keep to, where several differences are set side by side; all, if None.

    Returns:
        The difference, below 0 where `column` is better; None where no seed has both.

    Raises:
        ValueError: if the two were not measured on the same test items.
    """
    drawn = _bootstrap(results, row, [column, base], seeds, replicates)
    if drawn is None:
        return None
    values = drawn.values[column] - drawn.values[base]  # (S,)
    means = drawn.replicates[column] - drawn.replicates[base]  # (R,)
    return Difference(**_summary(drawn, values, means))


def share_of_gain(
    results: Results, row: str, column: str, base: str, full: str, replicates: int = REPLICATES
) -> Share | None:
    """How much of what `full` gains on `base` a column gains: 0 for none, 1 for all of it.

    Formula: (base - column) / (base - full), each the mean over the seeds that all three have.

    Returns:
        The share; None where no seed has all three, and where the interval of the gain itself
        holds 0: a ratio to what may be nothing can be anything. The few replicates without a gain
        that are left then have no share and are dropped.
    """
    drawn = _bootstrap(results, row, [column, base, full], None, replicates)
    if drawn is None:
        return None
    means = {name: values.mean() for name, values in drawn.values.items()}
    gains = drawn.replicates[base] - drawn.replicates[full]  # (R,)
    if np.quantile(gains, 0.025) <= 0:
        return None
    kept = gains > 0  # (R,)
    shares = (drawn.replicates[base] - drawn.replicates[column])[kept] / gains[kept]
    value = (means[base] - means[column]) / (means[base] - means[full])
    low, high = np.quantile(shares, [0.025, 0.975])
    return Share(float(value), float(low), float(high))


def _summary(drawn: _Bootstrap, values: Array, replicates: Array) -> dict[str, Any]:
    """The fields of an `Estimate`, from its values `(S,)` and its means in replicates `(R,)`."""
    numbers = tuple(values.tolist())
    low, high = np.quantile(replicates, [0.025, 0.975]).tolist()
    found = spread(numbers) or {}
    return found | {"low": low, "high": high, "values": numbers, "seeds": drawn.seeds}


def _bootstrap(
    results: Results,
    row: str,
    columns: Sequence[str],
    seeds: Collection[int] | None,
    replicates: int,
) -> _Bootstrap | None:
    """Draw seeds and items; columns in one order, so that two swapped see the same draws."""
    names = sorted(set(columns))
    cells = [measured(results, row, name) for name in names]
    shared = [s for s in cells[0] if all(s in cell for cell in cells)]
    shared = [s for s in shared if seeds is None or s in seeds]
    if not shared:
        return None
    entries = [cell[seed] for cell in cells for seed in shared]
    losses, counts = _losses(results, row, entries)  # (N, K S), (N,)
    shape = (-1, len(names), len(shared))
    values = _metric(results, losses.sum(0) / counts.sum()).reshape(shape)[0]  # (K, S)
    generator = np.random.default_rng(SEED)
    sums = np.concatenate([*_draw_items(generator, losses, counts, replicates)])  # (R, K S + 1)
    drawn = _metric(results, sums[:, :-1] / sums[:, -1:]).reshape(shape)  # (R, K, S)
    s = len(shared)
    weights = generator.multinomial(s, np.full(s, 1 / s), size=replicates) / s  # (R, S)
    means = np.einsum("rks,rs->kr", drawn, weights)  # (K, R)
    return _Bootstrap(
        tuple(shared), dict(zip(names, values, strict=True)), dict(zip(names, means, strict=True))
    )


def _losses(results: Results, row: str, entries: Sequence[dict[str, Any]]) -> tuple[Array, Array]:
    """Summed losses of every item in every entry, `(N, E)`, and the items' counts, `(N,)`."""
    labels = results.get("labels")
    losses, counts = zip(*(item_losses(entry, labels) for entry in entries), strict=True)
    for entry, own in zip(entries, counts, strict=True):
        if not np.array_equal(own, counts[0]):
            raise BANError(
                f"results of row={row!r}: column {entry['column']!r}, seed {entry['seed']}, was "
                f"measured on other test items than column {entries[0]['column']!r}, seed "
                f"{entries[0]['seed']}. Measure both on one test set."
            )
    return np.column_stack(losses), counts[0]


def _draw_items(
    generator: np.random.Generator, losses: Array, counts: Array, replicates: int
) -> Iterator[Array]:
    """Sums of losses and counts over items drawn with replacement, `(CHUNK, K S + 1)` at a time.

    Items that went alike everywhere are one kind, and how often a kind is drawn is multinomial:
    the same law as drawing items, with at most 2^(K S) kinds of images instead of 10,000 items.
    """
    kinds, sizes = np.unique(np.column_stack([losses, counts]), axis=0, return_counts=True)
    n = len(losses)
    for start in range(0, replicates, CHUNK):
        size = min(CHUNK, replicates - start)
        yield generator.multinomial(n, sizes / n, size=size) @ kinds


def _metric(results: Results, mean_loss: Array) -> Array:
    return 100 * mean_loss if results["metric"] == "error" else np.exp(mean_loss)
