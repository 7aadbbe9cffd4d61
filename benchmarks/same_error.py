"""Does the fast path come to the same error? Two results of the same job and seeds, side by side.

    python -m benchmarks.same_error results/cifar100_cpu results/cifar100_cpu_fast

Nothing is trained: the folders are what `ban_hf.reports.aggregate` made of finished runs, with
the seeds' own results beside it, `seed-1.json` and so on. The second is the fast one.
"""

import argparse
import json
import statistics
from pathlib import Path

from benchmarks import report

METRICS = {"error": 2, "nll": 3}  # digits


def seeds_of(folder: Path) -> dict[int, dict[str, dict[str, float]]]:
    """Test metrics by seed and generation."""
    found = {}
    for file in sorted(folder.glob("seed-*.json")):
        results = json.loads(file.read_text("utf-8"))
        found[results["seed"]] = {row["name"]: row["test"] for row in results["generations"]}
    return found


def rows_of(plain: Path, fast: Path) -> list[list[str]]:
    """A row for each generation and metric that both have."""
    before, after = seeds_of(plain), seeds_of(fast)
    seeds = sorted(before.keys() & after.keys())
    names = [name for name in before[seeds[0]] if name in after[seeds[0]]]
    rows = []
    for name in names:
        for metric, digits in METRICS.items():
            pairs = [(before[s][name][metric], after[s][name][metric]) for s in seeds]
            cells = [
                f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
                for values in zip(*pairs, strict=True)
            ]
            differences = [there - here for here, there in pairs]
            each = ", ".join(f"{difference:+.{digits}f}" for difference in differences)
            mean = f"{statistics.mean(differences):+.{digits}f}"
            rows.append([name, metric, *cells, mean, each])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plain", type=Path, help="folder of results without the fast path")
    parser.add_argument("fast", type=Path, help="folder of results with it")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder")
    options = parser.parse_args()
    options.command = f"python -m benchmarks.same_error {options.plain} {options.fast}"
    head = ["generation", "metric", "float32", "fast", "fast - float32", "by seed"]
    rows = rows_of(options.plain, options.fast)
    seeds = sorted(seeds_of(options.fast))
    parts = [
        f"Test set, mean ± standard deviation over the seeds {', '.join(map(str, seeds))}. On the "
        "machine of these runs, without bfloat16 instructions, fast is channels-last in float32.",
        report.table(head, rows, words=2),
    ]
    report.write("same_error", options, "The fast path and the error", parts, {"rows": rows})


if __name__ == "__main__":
    main()
