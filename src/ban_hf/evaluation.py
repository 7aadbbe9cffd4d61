"""A finished family on the test set: generations, ensembles, and controls of equal cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ban_hf.data.windows import TokenWindows
from ban_hf.facts import versions
from ban_hf.generations import LOG, ensemble_members
from ban_hf.heads import load_classifier
from ban_hf.lineage import Record, load_family
from ban_hf.measurement import ImageTest, TextTest


def measure_family(
    output_dir: str | Path,
    test_dataset: Dataset,
    *,
    controls: Sequence[str | Path] = (),
    batch_size: int = 500,
    entropy: float | None = None,
) -> dict[str, Any]:
    """Measure what `train_generations` left under a directory; what `write_report` takes.

    Ensembles are those of generations 1 to 2, 1 to 3, ..., 1 to k (of 0 and 1 where k is 1). Where
    controls are given, other label-trained networks (each a family of generation 0 alone), each
    ensemble has beside it one of as many label-trained networks, generation 0 the first of them.

    Args:
        output_dir: of the family.
        test_dataset: of images with `labels`, or `TokenWindows` of a text.
        controls: directories of label-trained networks.
        batch_size: of the measurement on images; a text has its columns.
        entropy: of a text under its source, nats per word, where it is known.

    Returns:
        `metric`, and `generations`, `ensembles` and `controls`, each a list of rows with their
        `test` metrics (see `ban_hf.results`).
    """
    output_dir = Path(output_dir)
    lineage = load_family(output_dir)
    test: ImageTest | TextTest = (
        TextTest(test_dataset, entropy)
        if isinstance(test_dataset, TokenWindows)
        else ImageTest(test_dataset, batch_size)
    )

    def predict(folder: Path) -> Any:
        return test.predict(load_classifier(folder))

    students = [predict(output_dir / f"generation-{r.generation}") for r in lineage.generations]
    first = ensemble_members(len(students) - 1).start
    others = [predict(Path(folder) / "generation-0") for folder in controls]
    rows = [
        _generation_row(record, output_dir, test.metric) | {"test": test.metrics([predictions])}
        for record, predictions in zip(lineage.generations, students, strict=True)
    ]
    for row, predictions, teacher in zip(rows[1:], students[1:], students, strict=False):
        row["teacher_agreement"] = test.agreement(predictions, teacher)
    return {
        "metric": test.metric,
        "generations": rows,
        "ensembles": _ensembles(
            f"Ens*{{k}} of generations {first}-{{last}}", students[first:], test, first
        ),
        "controls": _controls([students[0], *others], test) if others else [],
        "seed": lineage.generations[0].seed["family_seed"],
        "hardware": lineage.generations[0].training["hardware"],
        "versions": versions(),
    }


def _generation_row(record: Record, output_dir: Path, metric: str) -> dict[str, Any]:
    """What the record and the log of a generation say of its training."""
    folder = output_dir / f"generation-{record.generation}"
    log = json.loads((folder / LOG).read_text("utf-8"))
    evaluations = [line for line in log if f"eval_{metric}" in line]
    losses = [line.get("label_loss", line["loss"]) for line in log if "loss" in line]
    row = {
        "generation": record.generation,
        "name": _row_name(record),
        "seed": record.seed["seed"],
        "train_loss": losses[-1] if losses else None,
        "seconds": record.training["seconds"],
    }
    if evaluations:
        best = min(evaluations, key=lambda line: line[f"eval_{metric}"])
        row["validation"] = {metric: evaluations[-1][f"eval_{metric}"]}
        row["best_validation"] = {metric: best[f"eval_{metric}"], "epoch": best["epoch"]}
    return row


def _row_name(record: Record) -> str:
    """As the paper names them: with labels beside the teacher it is BAN+L."""
    if record.objective is None:
        return "labels"
    return f"BAN{'+L' if record.objective['label_weight'] else ''}-{record.generation}"


def _ensembles(
    name: str, members: Sequence[Any], test: ImageTest | TextTest, first: int = 1
) -> list[dict[str, Any]]:
    """Rows of the ensembles of the first 2, 3, ... members, numbered from `first`."""
    return [
        {
            "name": name.format(k=k, last=first + k - 1),
            "members": list(range(first, first + k)),
            "test": test.metrics(members[:k]),
        }
        for k in range(2, len(members) + 1)
    ]


def _controls(members: Sequence[Any], test: ImageTest | TextTest) -> list[dict[str, Any]]:
    """Rows of the label-trained networks but the first, which is generation 0, and of ensembles."""
    networks = [
        {
            "name": f"labels again, network {i}",
            "kind": "network",
            "size": 1,
            "test": test.metrics([predictions]),
        }
        for i, predictions in enumerate(members[1:], start=2)
    ]
    ensembles = _ensembles("Ens*{k} of label-trained networks", members, test)
    return networks + [
        {"name": e["name"], "kind": "ensemble", "size": len(e["members"]), "test": e["test"]}
        for e in ensembles
    ]
