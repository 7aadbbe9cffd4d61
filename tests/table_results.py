"""Made-up results of a table, whose figures are known before they are measured."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ban_hf.lineage.results import Results, block_losses, pack_classes
from ban_hf.reports.reading import read_results, table_of_version_1

IMAGES = 1000
COLUMNS = {
    "teacher": "Teacher",
    "ban": "BAN",
    "cwtm": "CWTM",
    "ban-2": "BAN-2",
    "ban-3": "BAN-3",
    "ens2": "Ens*2",
    "ens3": "Ens*3",
}


def labels(images: int = IMAGES) -> np.ndarray:
    return np.arange(images) % 10


def entry(column: str, seed: int, test: dict, outcomes: dict, **changes: Any) -> dict:
    name = f"{column}-{seed}"
    return {
        "row": "net",
        "column": column,
        "seed": seed,
        "job": name,
        "code": "c0de",
        "arguments": name,
        "network": "cifar_densenet_22_12",
        "parameters": {"all": 74738, "trainable": 74738},
        "members": [],
        "test": test,
        "validation": None,
        "train_loss": 0.5,
        "log": {},
        "outcomes": outcomes,
    } | changes


def image_entry(column: str, seed: int, wrong: Any, **changes: Any) -> dict:
    """A network that is wrong on these images, of `(N,)` booleans, or on the first so many."""
    wrong = np.arange(IMAGES) < wrong if isinstance(wrong, int) else np.asarray(wrong)
    truth = labels(len(wrong))
    test = {"error": 100 * wrong.mean().item(), "nll": 1.5, "ece": 4.25, "n": len(wrong)}
    predicted = pack_classes(np.where(wrong, (truth + 1) % 10, truth))
    return entry(column, seed, test, {"predicted": predicted}, **changes)


def text_entry(column: str, seed: int, nll: Any, **changes: Any) -> dict:
    """A language model of these losses, of `(N,)` nats a word."""
    nll = np.asarray(nll, dtype=float)
    mean = nll.mean().item()
    test = {"perplexity": float(np.exp(mean)), "nll": mean, "n": len(nll)}
    validation = {"perplexity": float(np.exp(mean)) + 1}
    outcomes = msgspec.to_builtins(block_losses(nll))
    return entry(column, seed, test, outcomes, **{"validation": validation} | changes)


def table(entries: list[dict], **changes: Any) -> Results:
    """A table of one row that holds these entries, see `table_data`."""
    return table_of_version_1(table_data(entries, **changes))


def table_data(
    entries: list[dict], *, claims: Any = (), metric: str = "error", **changes: Any
) -> dict:
    """The same as it is in a file of schema `ban_hf.table/1`."""
    is_image = metric == "error"
    columns = [
        {"name": name, "heading": heading, "in_paper": name != "ens3", "ensemble": "ens" in name}
        for name, heading in COLUMNS.items()
    ]
    used = {one["column"] for one in entries}
    return {
        "schema": "ban_hf.table/1",
        "table": "table2",
        "title": "DenseNets on CIFAR-100",
        "source": "Furlanello et al. 2018, Table 2",
        "task": "image" if is_image else "text",
        "metric": metric,
        "budget": {"name": "cpu", "says": "60 epochs (paper: 200)"},
        "dataset": {"name": "cifar100"},
        "seeds": sorted({one["seed"] for one in entries}),
        "order": {
            "rows": ["net", "other", "half"],
            "columns": [column["name"] for column in columns],
        },
        "columns": [column for column in columns if column["name"] in used],
        "rows": [{"name": "net", "heading": "DenseNet", "paper": {}, "paper_parameters": {}}],
        "claims": list(claims),
        "figures": {},
        "labels": pack_classes(labels()) if is_image else None,
        "command": "ban-hf reproduce table2",
        "hardware": "CPU, 2 cores (x86_64)",
        "versions": {"torch": "2.15"},
        "entries": entries,
    } | changes


def family_rows(path: Path) -> dict[str, Any]:
    """The `results.json` of a family, its networks as plain rows of what was measured."""
    results = read_results([path])
    parts: dict[str, list[dict]] = {"generations": [], "ensembles": [], "controls": []}
    kinds = {"labels": "generations", "student": "generations", "ensemble": "ensembles"}
    for column in results.columns:
        (entry,) = results.cell("family", column.name).values()
        row = msgspec.to_builtins(entry) | {"name": column.heading, "size": column.size}
        row |= {"seed": entry.network_seed, "generation": column.generation}
        members = column.name.partition("ensemble-")[2].split("-")
        row["members"] = [int(number) for number in members if number]
        row |= {"kind": "ensemble" if column.size > 1 else "network", "method": column.method}
        parts[kinds.get(column.kind, "controls")].append(row)
    facts = msgspec.to_builtins(results)
    keys = ("title", "command", "hardware", "dataset", "versions", "metric")
    return {key: facts.get(key) for key in keys} | parts | {"seed": results.seeds[0]}
