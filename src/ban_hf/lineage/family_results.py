"""What a results dictionary (`results.json`) holds, and what its numbers are called.

It has `title`, `command`, `hardware`, `seed` or `seeds`, `metric`, `dataset` (`name`),
`generations`, `ensembles`, `controls` and `versions`. An entry of the three lists has a `name` and
its `test`: for images (`metric` is `error`, or not there) `error` (percent), `nll`, `ece` and `n`;
for texts (`metric` is `perplexity`) `perplexity`, `nll` (nats per word), `n` and, where the text's
source is known, `above_entropy`: what of `nll` is more than the entropy, which nobody can avoid. An
ensemble also has its `members`, a control its `kind` (network or ensemble) and `size`. Where
students of one teacher by several objectives are compared, a generation and an ensemble have the
`method` that they learnt by.
`reports.aggregate` puts the runs of several seeds into the same shape, each measured number become
`{"mean", "std", "values"}`. `results_of` makes one, less its `command`, from the records of a
family: there `seed` is a list where generations come from runs of several seeds.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ban_hf.errors import BANError
from ban_hf.lineage.results import MEASURES, Measure, data_name, method_of

Results = Mapping[str, Any]


def measure_of(results: Results) -> Measure:
    """What a results dictionary was measured by, without the metrics that none of it has.

    Raises:
        ValueError: if its `metric` is none that we know.
    """
    name = results.get("metric", "error")
    if name not in MEASURES:
        raise BANError(f"metric={name!r} of the results must be one of {', '.join(MEASURES)}.")
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


def spread(numbers: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation (None of one) and the values that are known; None of none."""
    values = [value for value in numbers if value is not None and math.isfinite(value)]
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def best_possible(results: Results) -> float | None:
    """The perplexity of the source of the test text itself, where its entropy is known."""
    entropy = results["dataset"].get("test_entropy")
    return None if entropy is None else math.exp(entropy)


def subtitle(results: Results) -> str:
    """Data, size of the test set and seeds in one line."""
    n = results["generations"][0]["test"].get("n")
    items = [f"{n:,} test {measure_of(results).items}"] if n else []
    return " · ".join([results["dataset"]["name"], *items, _seeds(results)])


def _seeds(results: Results) -> str:
    seeds, own = results.get("seeds") or [], results.get("seed")
    if isinstance(own, list):
        return f"one run of each generation (seeds {', '.join(map(str, own))})"
    if len(seeds) > 1:
        named = ", ".join(map(str, seeds))
        return f"mean ± standard deviation over {len(seeds)} seeds ({named})"
    return f"one seed ({seeds[0] if seeds else own})"


def is_measured(results: Results) -> bool:
    """Whether a generation has a value of the leading metric, so that there is a line to draw."""
    leading, rows = measure_of(results).leading.name, results["generations"]
    return any(mean_of(row["test"].get(leading)) is not None for row in rows)


def results_of(
    generations: Sequence[Mapping[str, Any]], ensemble: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The results dictionary of a family, from its records (`lineage.json`) alone.

    Args:
        generations: the records, in order; the first need not be generation 0.
        ensemble: the ensemble's record, if there is one.

    Returns:
        `metric` is the first of `MEASURES` that a record has of the test split. Where none has
        any, rows have no values: `is_measured` says so, and there is nothing to draw.
    """
    records = [*generations, *([ensemble] if ensemble else [])]
    if not records:
        raise BANError("generations is empty: give the record of one generation at least.")
    last, rows = records[-1], [_generation_row(record) for record in generations]
    rows_of_ensembles = [_ensemble_row(ensemble)] if ensemble else []
    tests = [row["test"] for row in (*rows, *rows_of_ensembles)]
    seeds = [record["seed"].get("family_seed") for record in generations]
    known = list(dict.fromkeys(seed for seed in seeds if seed is not None))
    trainings = [record["training"] for record in generations]
    return {
        "title": f"Family {last['family']}",
        "dataset": {"name": data_name(last) or "data of unknown name"},
        "seed": known[0] if len(known) == 1 else known,
        "hardware": next((t["hardware"] for t in trainings if t.get("hardware")), "not recorded"),
        "versions": dict(last["code"]),
        "metric": next((name for name in MEASURES if any(name in t for t in tests)), "error"),
        "generations": rows,
        "ensembles": rows_of_ensembles,
        "controls": [],
    }


def _generation_row(record: Mapping[str, Any]) -> dict[str, Any]:
    measured = _test_metrics(record)
    method, generation = method_of(record.get("objective")), record["generation"]
    return {
        "generation": generation,
        "name": method if method == "labels" else f"{method}-{generation}",
        "seed": record["seed"].get("seed"),
        "seconds": record["training"].get("seconds"),
        "teacher_agreement": measured.get("teacher_agreement"),
        "test": measured,
    }


def _ensemble_row(record: Mapping[str, Any]) -> dict[str, Any]:
    members = [member["generation"] for member in record["members"]]
    name = f"Ens*{len(members)} of generations {', '.join(map(str, members))}"
    return {"name": name, "members": members, "test": _test_metrics(record)}


def _test_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    measured = [metric for metric in record["metrics"] if metric["split"] == "test"]
    values = {metric["name"]: metric["value"] for metric in measured}
    if "perplexity" in values and "loss" in values:
        values.setdefault("nll", values["loss"])  # of a language model they are the same
    n = next((metric["n"] for metric in measured if metric.get("n")), None)
    return values | ({"n": n} if n else {})
