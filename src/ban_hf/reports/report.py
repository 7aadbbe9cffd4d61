"""What a run measured, as a table and a picture.

Both are made from a results dictionary alone, one run's or an aggregated one. See
`lineage.results` for what it holds.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ban_hf.lineage.family_results import (
    Results,
    best_possible,
    entries_of,
    mean_of,
    measure_of,
    subtitle,
)
from ban_hf.lineage.record import write_json
from ban_hf.reports.plotting import plot_generations

MISSING = "–"


def markdown_table(results: Results) -> str:
    """The results by generation, then the ensembles, then the controls, as a Markdown table."""
    metrics = measure_of(results).metrics
    rows = [
        [
            entry["name"],
            *(cell(entry["test"].get(metric.name), metric.digits) for metric in metrics),
            cell(entry.get("teacher_agreement"), 2),
        ]
        for entry in entries_of(results)
    ]
    headings = ["generation", *(metric.heading for metric in metrics)]
    return table([*headings, "agreement with its teacher %"], rows)


def write_report(results: Results, output_dir: str | os.PathLike[str]) -> None:
    """Write `results.json`, `results.md` and `results.png`, each whole or not at all."""
    folder, document = Path(output_dir), _document(results)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    partial = folder / "results.md.tmp"
    partial.write_text(document, encoding="utf-8")
    partial.replace(folder / "results.md")
    plot_generations(results, folder / "results.png")


def _document(results: Results) -> str:
    parts = [
        f"# {results['title']}",
        f"{subtitle(results)}.{_best_possible_sentence(results)}",
        f"```bash\n{results['command']}\n```\n\nHardware: {results['hardware']}.",
        markdown_table(results),
        _training_table(results),
    ]
    if results.get("differences"):
        parts.insert(4, _difference_table(results))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    picture = f"![Test {measure_of(results).title} by generation](results.png)"
    return "\n\n".join([*parts, f"{picture}\n\n{versions}"]) + "\n"


def _best_possible_sentence(results: Results) -> str:
    best = best_possible(results)
    if best is None:
        return ""
    return f" The best possible perplexity, that of the source of the text, is {best:.2f}."


def _training_table(results: Results) -> str:
    measure = measure_of(results)
    name, digits = measure.leading.name, measure.leading.digits
    rows = []
    for entry in results["generations"]:
        best = entry.get("best_validation") or {}
        rows.append(
            [
                entry["name"],
                cell(entry.get("train_loss"), 3),
                cell((entry.get("validation") or {}).get(name), digits),
                cell(best.get(name), digits),
                cell(best.get("epoch"), 0),
                cell(entry.get("seconds"), 0),
            ]
        )
    validation = f"{measure.heading('validation')}: last"
    headings = ["training loss", validation, "best", "epoch of the best", "seconds"]
    return table(["generation", *headings], rows)


def _difference_table(results: Results) -> str:
    metrics = measure_of(results).metrics[:2]
    rows = []
    for entry in results["differences"]:
        row = [entry["name"]]
        for metric in metrics:
            value = entry[metric.name]
            row.append(cell(value, metric.digits, sign="+"))
            row.append(f"{value['negative']} / {value['positive']}")
        rows.append(row)
    headings = [part for metric in metrics for part in (metric.heading, "seeds lower / higher")]
    return table(["paired difference", *headings], rows)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))


def cell(value: Any, digits: int, sign: str = "") -> str:
    """A number, or the mean ± standard deviation of an aggregated one; a dash for none."""
    mean, std = mean_of(value), value["std"] if isinstance(value, Mapping) else None
    if mean is None:
        return MISSING
    text = f"{mean:{sign}.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"
