"""Several seeds of one job as one result: means, standard deviations, paired differences.

    python -m ban_hf.reports.aggregate OUT_DIR RESULTS.json [RESULTS.json ...]

One seed tells little: networks that differ in the seed alone differ in error too. Differences are
paired by seed, since a generation and its teacher share the data split and the family's seed.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ban_hf.errors import BANError
from ban_hf.lineage.family_results import Results, entries_of, measure_of, spread
from ban_hf.reports.report import write_report


def aggregate(runs: Sequence[Results]) -> dict[str, Any]:
    """Pool the runs of several seeds: mean, standard deviation and paired differences.

    Args:
        runs: results of the same job, each from another seed.

    Returns:
        Results of the same shape, in which a measured number is `{"mean", "std", "values"}`, with
        `differences`: generation k minus generation 0, and each ensemble minus the control
        ensemble of its size, of the same seed, and in how many seeds each is negative or positive.

    Raises:
        ValueError: where a seed comes twice, or the runs did not measure the same things.
    """
    if not runs:
        raise BANError("runs is empty: there is nothing to aggregate.")
    seeds = [seed for run in runs for seed in run.get("seeds") or [run["seed"]]]
    if len(set(seeds)) < len(seeds):
        raise BANError(f"runs hold seeds {seeds}: one comes twice, which is no further evidence.")
    _check_same_job(runs)
    pooled = {key: runs[0].get(key) for key in ("title", "command", "hardware", "dataset")}
    pooled |= {"metric": runs[0]["metric"]} if "metric" in runs[0] else {}
    for part in ("generations", "ensembles", "controls"):
        columns = zip(*(run.get(part) or [] for run in runs), strict=True)
        pooled[part] = [_pool(entries) for entries in columns]
    differences = _differences(runs)
    return pooled | {"seeds": seeds, "differences": differences, "versions": runs[0]["versions"]}


def _check_same_job(runs: Sequence[Results]) -> None:
    for run in runs:
        if "differences" in run:
            raise BANError("runs hold one that is aggregated already: give the single seeds.")
        data = [one["dataset"]["name"] for one in (runs[0], run)]
        if data[0] != data[1]:
            raise BANError(f"runs are on different data: {data[0]}, {data[1]}.")
        metrics = [measure_of(one).leading.name for one in (runs[0], run)]
        if metrics[0] != metrics[1]:
            raise BANError(f"runs are measured by different metrics: {', '.join(metrics)}.")
        names = [[entry["name"] for entry in entries_of(one)] for one in (runs[0], run)]
        if names[0] != names[1]:
            raise BANError(f"runs measured different things: {names[0]}, {names[1]}.")


def _pool(entries: Sequence[Results]) -> dict[str, Any]:
    first = entries[0]
    pooled = {
        key: first[key]
        for key in ("generation", "name", "method", "members", "kind", "size")
        if key in first
    }
    for key in ("teacher_agreement", "train_loss", "seconds"):
        if key in first:
            pooled[key] = spread(entry.get(key) for entry in entries)
    for key in ("test", "validation", "best_validation"):
        parts = [entry.get(key) or {} for entry in entries]
        if parts[0]:
            pooled[key] = {m: spread(part.get(m) for part in parts) for m in parts[0] if m != "n"}
            pooled[key] |= {"n": parts[0]["n"]} if "n" in parts[0] else {}
    return pooled


def _differences(runs: Sequence[Results]) -> list[dict[str, Any]]:
    first = runs[0]
    pairs = [("generations", k, "generations", 0) for k in range(1, len(first["generations"]))]
    sizes = {
        control["size"]: index
        for index, control in enumerate(first.get("controls") or [])
        if control["kind"] == "ensemble"
    }
    for index, ensemble in enumerate(first.get("ensembles") or []):
        if (size := len(ensemble["members"])) in sizes:
            pairs.append(("ensembles", index, "controls", sizes[size]))
    return [_difference(runs, *pair) for pair in pairs]


def _difference(
    runs: Sequence[Results], part: str, index: int, base_part: str, base_index: int
) -> dict[str, Any]:
    names = runs[0][part][index]["name"], runs[0][base_part][base_index]["name"]
    difference: dict[str, Any] = {"name": f"{names[0]} minus {names[1]}"}
    for metric in (metric.name for metric in measure_of(runs[0]).metrics[:2]):
        values = [
            run[part][index]["test"][metric] - run[base_part][base_index]["test"][metric]
            for run in runs
        ]
        signs = {"negative": sum(v < 0 for v in values), "positive": sum(v > 0 for v in values)}
        difference[metric] = (spread(values) or {}) | signs
    return difference


def pool(paths: Sequence[Path]) -> dict[str, Any]:
    """What one or more `results.json` of a job say: one as it is, several aggregated.

    Raises:
        ValueError: where a file is none, or they are not of the same job; see `aggregate`.
    """
    runs = [_read(path) for path in paths]
    return runs[0] if len(runs) == 1 else aggregate(runs)


def _read(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BANError(f"{path} is not JSON: {error}") from error
    for key in ("title", "command", "hardware", "dataset", "generations", "versions"):
        if key not in results:
            raise BANError(f"{path} is not the results.json of a run: it has no {key}.")
    return dict(results)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make one report from the results of one or more seeds."""
    parser = argparse.ArgumentParser(
        prog="python -m ban_hf.reports.aggregate",
        description="Make results.json, results.md and results.png from what one or more runs left "
        "behind. Several runs are of the same job with different seeds: the report then gives mean "
        "and standard deviation over the seeds, and the differences paired by seed.",
        epilog="Example: ... aggregate results/cifar100 outputs/seed-*/results.json",
    )
    parser.add_argument("out_dir", type=Path, help="folder for the report; made if not there")
    parser.add_argument("results", type=Path, nargs="+", help="a run's results.json, one per seed")
    options = parser.parse_args(arguments)
    try:
        report = pool(options.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_report(report, options.out_dir)
    print(f"Wrote results.json, results.md and results.png to {options.out_dir}")


if __name__ == "__main__":
    main()
