"""What a results dictionary (`results.json`) holds, and what its numbers are called.

It has `title`, `command`, `hardware`, `seed` or `seeds`, `metric`, `dataset` (`name`),
`generations`, `ensembles`, `controls` and `versions`. An entry of the three lists has a `name` and
its `test`: for images (`metric` is `error`, or not there) `error` (percent), `nll`, `ece` and `n`;
for texts (`metric` is `perplexity`) `perplexity`, `nll` (nats per word), `n` and, where the text's
source is known, `above_entropy`: what of `nll` is more than the entropy, which nobody can avoid. An
ensemble also has its `members`, a control its `kind` (network or ensemble) and `size`.
`ban_hf.aggregate` puts the runs of several seeds into the same shape, each measured number become
`{"mean", "std", "values"}`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A number in an entry's `test`: its key, the heading of its column, its digits."""

    name: str
    heading: str
    digits: int


@dataclass(frozen=True)
class Measure:
    """What a task is measured by.

    Args:
        title: of the leading metric, in a sentence.
        unit: of the leading metric.
        items: what the test set is counted in.
        metrics: columns of the table, the leading metric first; differences are of the first two.
    """

    title: str
    unit: str
    items: str
    metrics: tuple[Metric, ...]

    @property
    def leading(self) -> Metric:
        """The metric that is drawn, and watched while training."""
        return self.metrics[0]

    def heading(self, split: str) -> str:
        """The leading metric of a split, as the heading of a column."""
        return " ".join([split, self.title, *([self.unit] if self.unit else [])])


MEASURES = {
    "error": Measure(
        "error",
        "%",
        "items",
        (
            Metric("error", "test error %", 2),
            Metric("nll", "NLL", 3),
            Metric("ece", "ECE %", 2),
        ),
    ),
    "perplexity": Measure(
        "perplexity",
        "",
        "words",
        (
            Metric("perplexity", "test perplexity", 2),
            Metric("nll", "nats per word", 4),
            Metric("above_entropy", "above the entropy", 4),
        ),
    ),
}


def measure_of(results: Results) -> Measure:
    """What a results dictionary was measured by, without the metrics that none of it has.

    Raises:
        ValueError: if its `metric` is none that we know.
    """
    name = results.get("metric", "error")
    if name not in MEASURES:
        raise ValueError(f"metric={name!r} of the results must be one of {', '.join(MEASURES)}.")
    measure = MEASURES[name]
    if any("above_entropy" in entry["test"] for entry in entries_of(results)):
        return measure
    known = tuple(metric for metric in measure.metrics if metric.name != "above_entropy")
    return Measure(measure.title, measure.unit, measure.items, known)


def entries_of(results: Results) -> Iterable[Results]:
    """Every row: generations, ensembles, controls."""
    for part in ("generations", "ensembles", "controls"):
        yield from results.get(part) or []


def mean_of(value: Any) -> float | None:
    """A number, or the mean of an aggregated one; None for what is missing or not finite."""
    number = value["mean"] if isinstance(value, Mapping) else value
    return number if number is not None and math.isfinite(number) else None


def best_possible(results: Results) -> float | None:
    """The perplexity of the source of the test text itself, where its entropy is known."""
    entropy = results["dataset"].get("test_entropy")
    return None if entropy is None else math.exp(entropy)


def subtitle(results: Results) -> str:
    """Data, size of the test set and seeds in one line."""
    seeds = results.get("seeds") or [results["seed"]]
    n = results["generations"][0]["test"].get("n")
    items = [f"{n:,} test {measure_of(results).items}"] if n else []
    parts = [results["dataset"]["name"], *items]
    if len(seeds) == 1:
        return " · ".join([*parts, f"one seed ({seeds[0]})"])
    named = ", ".join(map(str, seeds))
    return " · ".join([*parts, f"mean ± standard deviation over {len(seeds)} seeds ({named})"])
