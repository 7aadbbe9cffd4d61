"""What a run measured, as a table and a picture.

A results dictionary (`results.json`) holds `title`, `command`, `hardware`, `seed` or `seeds`,
`dataset` (`name`), `generations`, `ensembles`, `controls` and `versions`. An entry of the three
lists has a `name` and a `test` with `error` (percent), `nll`, `ece` and `n`; an ensemble also has
its `members`, a control its `kind` (network or ensemble) and `size`. `ban_hf.aggregate` puts the
runs of several seeds into the same shape, each measured number become `{"mean", "std", "values"}`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ban_hf.lineage import write_json
from ban_hf.plotting import Results, mean_of, plot_generations, subtitle

MISSING = "–"
COLUMNS = (("error", "test error %", 2), ("nll", "NLL", 3), ("ece", "ECE %", 2))


def markdown_table(results: Results) -> str:
    """The results by generation, then the ensembles, then the controls, as a Markdown table."""
    headings = [heading for _, heading, _ in COLUMNS]
    rows = [
        [
            entry["name"],
            *(_cell(entry["test"].get(metric), digits) for metric, _, digits in COLUMNS),
            _cell(entry.get("teacher_agreement"), 2),
        ]
        for entry in entries_of(results)
    ]
    return _table(["generation", *headings, "agreement with its teacher %"], rows)


def write_report(results: Results, output_dir: str | os.PathLike[str]) -> None:
    """Write `results.json`, `results.md` and `results.png`, each whole or not at all."""
    folder, document = Path(output_dir), _document(results)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results)
    partial = folder / "results.md.tmp"
    partial.write_text(document, encoding="utf-8")
    partial.replace(folder / "results.md")
    plot_generations(results, folder / "results.png")


def entries_of(results: Results) -> Iterable[Results]:
    """Every row: generations, ensembles, controls."""
    for part in ("generations", "ensembles", "controls"):
        yield from results.get(part) or []


def _document(results: Results) -> str:
    parts = [
        f"# {results['title']}",
        f"{subtitle(results)}.",
        f"```bash\n{results['command']}\n```\n\nHardware: {results['hardware']}.",
        markdown_table(results),
        _training_table(results),
    ]
    if results.get("differences"):
        parts.insert(4, _difference_table(results["differences"]))
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n\n".join([*parts, f"![Test error by generation](results.png)\n\n{versions}"]) + "\n"


def _training_table(results: Results) -> str:
    rows = []
    for entry in results["generations"]:
        best = entry.get("best_validation") or {}
        rows.append(
            [
                entry["name"],
                _cell(entry.get("train_loss"), 3),
                _cell((entry.get("validation") or {}).get("error"), 2),
                _cell(best.get("error"), 2),
                _cell(best.get("epoch"), 0),
                _cell(entry.get("seconds"), 0),
            ]
        )
    headings = ["training loss", "validation error %: last", "best", "epoch of the best", "seconds"]
    return _table(["generation", *headings], rows)


def _difference_table(differences: Sequence[Results]) -> str:
    rows = [
        [
            entry["name"],
            _cell(entry["error"], 2, sign="+"),
            f"{entry['error']['negative']} / {entry['error']['positive']}",
            _cell(entry["nll"], 3, sign="+"),
            f"{entry['nll']['negative']} / {entry['nll']['positive']}",
        ]
        for entry in differences
    ]
    seeds = "seeds lower / higher"
    return _table(["paired difference", "test error %", seeds, "NLL", seeds], rows)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))


def _cell(value: Any, digits: int, sign: str = "") -> str:
    mean, std = mean_of(value), value["std"] if isinstance(value, Mapping) else None
    if mean is None:
        return MISSING
    text = f"{mean:{sign}.{digits}f}"
    return text if std is None else f"{text} ± {std:.{digits}f}"
