"""Does the fast path come to the same error? Two results of the same job and seeds, side by side.

    python -m benchmarks.same_error results/cifar100_cpu results/cifar100_cpu_fast

Nothing is trained: the folders hold the `results.json` of each seed's finished run as `seed-1.json`
and so on. The second is the fast one.
"""

import argparse
import statistics
from pathlib import Path

from ban_hf.lineage.results import ROW, Results
from ban_hf.reports.reading import read_results
from benchmarks import report

METRICS = {"error": 2, "nll": 3}  # digits


def read(folder: Path) -> Results:
    """The results of all seeds."""
    return read_results(sorted(folder.glob("seed-*.json")))


def rows_of(plain: Results, fast: Results) -> list[list[str]]:
    """A row for each generation and metric, of the seeds that both have."""
    rows = []
    for column in plain.columns:
        before, after = (results.cell(ROW, column.name) for results in (plain, fast))
        seeds = sorted(before.keys() & after.keys())
        if column.size > 1 or column.kind == "control" or not seeds:
            continue
        for metric, digits in METRICS.items():
            pairs = [(before[seed].test[metric], after[seed].test[metric]) for seed in seeds]
            cells = [
                f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
                for values in zip(*pairs, strict=True)
            ]
            differences = [there - here for here, there in pairs]
            each = ", ".join(f"{difference:+.{digits}f}" for difference in differences)
            mean = f"{statistics.mean(differences):+.{digits}f}"
            rows.append([column.heading, metric, *cells, mean, each])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plain", type=Path, help="folder of results without the fast path")
    parser.add_argument("fast", type=Path, help="folder of results with it")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="folder")
    options = parser.parse_args()
    options.command = f"python -m benchmarks.same_error {options.plain} {options.fast}"
    head = ["generation", "metric", "float32", "fast", "fast - float32", "by seed"]
    fast = read(options.fast)
    rows = rows_of(read(options.plain), fast)
    parts = [
        f"Test set, mean ± standard deviation over the seeds {', '.join(map(str, fast.seeds))}. On "
        "the machine of these runs, without bfloat16 instructions, fast is channels-last in "
        "float32.",
        report.table(head, rows, words=2),
    ]
    report.write("same_error", options, "The fast path and the error", parts, {"rows": rows})


if __name__ == "__main__":
    main()
