"""A finished family on the test set: generations, ensembles, and controls of equal cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from ban_hf.data import collate
from ban_hf.ensemble import mean_logits
from ban_hf.facts import versions
from ban_hf.generations import LOG, ensemble_members
from ban_hf.heads import load_classifier
from ban_hf.lineage import Record, load_family
from ban_hf.metrics import (
    agreement,
    error_rate,
    expected_calibration_error,
    negative_log_likelihood,
)


def measure_family(
    output_dir: str | Path,
    test_dataset: Dataset,
    *,
    controls: Sequence[str | Path] = (),
    batch_size: int = 500,
) -> dict[str, Any]:
    """Measure what `train_generations` left under a directory; what `write_report` takes.

    Ensembles are those of generations 1 to 2, 1 to 3, ..., 1 to k (of 0 and 1 where k is 1). Where
    controls are given, other label-trained networks (each a family of generation 0 alone), each
    ensemble has beside it one of as many label-trained networks, generation 0 the first of them.

    Args:
        output_dir: of the family.
        test_dataset: of items with `labels`.
        controls: directories of label-trained networks.
        batch_size: of the measurement.

    Returns:
        `generations`, `ensembles` and `controls`, each a list of rows with their `test` metrics:
        `error` (%), `nll` (nats), `ece` (%) and `n`.
    """
    output_dir = Path(output_dir)
    lineage = load_family(output_dir)
    loader = DataLoader(test_dataset, batch_size, collate_fn=collate)
    labels = torch.cat([batch["labels"].cpu() for batch in loader])  # (N,)

    def predict(folder: Path) -> Tensor:
        return predict_logits(load_classifier(folder), loader)  # (N, C)

    students = [predict(output_dir / f"generation-{r.generation}") for r in lineage.generations]
    first = ensemble_members(len(students) - 1).start
    others = [predict(Path(folder) / "generation-0") for folder in controls]
    rows = [
        _generation_row(record, output_dir) | {"test": _metrics(logits, labels)}
        for record, logits in zip(lineage.generations, students, strict=True)
    ]
    for row, logits, teacher in zip(rows[1:], students[1:], students, strict=False):
        row["teacher_agreement"] = agreement(logits, teacher).item()
    return {
        "generations": rows,
        "ensembles": _ensembles(
            f"Ens*{{k}} of generations {first}-{{last}}", students[first:], labels, first
        ),
        "controls": _controls([students[0], *others], labels) if others else [],
        "seed": lineage.generations[0].seed["family_seed"],
        "hardware": lineage.generations[0].training["hardware"],
        "versions": versions(),
    }


def predict_logits(model: PreTrainedModel, loader: DataLoader) -> Tensor:
    """A model's logits `(N, C)` for all items of a loader, in order, on the CPU."""
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    with torch.no_grad():
        parts = [
            model(**{k: v.to(model.device) for k, v in batch.items() if k != "labels"}).logits.cpu()
            for batch in loader
        ]
    return torch.cat(parts)  # (N, C)


def _generation_row(record: Record, output_dir: Path) -> dict[str, Any]:
    """What the record and the log of a generation say of its training."""
    folder = output_dir / f"generation-{record.generation}"
    log = json.loads((folder / LOG).read_text("utf-8"))
    evaluations = [line for line in log if "eval_error" in line]
    losses = [line.get("label_loss", line["loss"]) for line in log if "loss" in line]
    row = {
        "generation": record.generation,
        "name": "labels" if record.generation == 0 else f"BAN-{record.generation}",
        "seed": record.seed["seed"],
        "train_loss": losses[-1] if losses else None,
        "seconds": record.training["seconds"],
    }
    if evaluations:
        best = min(evaluations, key=lambda line: line["eval_error"])
        row["validation"] = {"error": evaluations[-1]["eval_error"]}
        row["best_validation"] = {"error": best["eval_error"], "epoch": best["epoch"]}
    return row


def _ensembles(
    name: str, members: Sequence[Tensor], labels: Tensor, first: int = 1
) -> list[dict[str, Any]]:
    """Rows of the ensembles of the first 2, 3, ... members' logits, numbered from `first`."""
    return [
        {
            "name": name.format(k=k, last=first + k - 1),
            "members": list(range(first, first + k)),
            "test": _metrics(mean_logits(members[:k]), labels),
        }
        for k in range(2, len(members) + 1)
    ]


def _controls(members: Sequence[Tensor], labels: Tensor) -> list[dict[str, Any]]:
    """Rows of the label-trained networks but the first, which is generation 0, and of ensembles."""
    networks = [
        {
            "name": f"labels again, network {i}",
            "kind": "network",
            "size": 1,
            "test": _metrics(logits, labels),
        }
        for i, logits in enumerate(members[1:], start=2)
    ]
    ensembles = _ensembles("Ens*{k} of label-trained networks", members, labels)
    return networks + [
        {"name": e["name"], "kind": "ensemble", "size": len(e["members"]), "test": e["test"]}
        for e in ensembles
    ]


def _metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    return {
        "error": error_rate(logits, labels).item(),
        "nll": negative_log_likelihood(logits, labels).item(),
        "ece": expected_calibration_error(logits, labels).item(),
        "n": len(labels),
    }
