"""A finished family on the test set: generations, ensembles, and controls of equal cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ban_hf.data.windows import TokenWindows
from ban_hf.jobs.continuation import given_generations, noted_teacher
from ban_hf.jobs.measurement import ImageTest, TextTest, measured_by
from ban_hf.lineage.environment import versions
from ban_hf.lineage.record import LOG, RECORD, Record, load_family, read_json
from ban_hf.lineage.results import method_of
from ban_hf.sequence import ensemble_members
from ban_hf.tasks.heads import load_classifier


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
    A family that goes on from a generation of another one begins with that: what stands before it
    is not measured.

    Args:
        output_dir: of the family, trained here or pulled from the Hub.
        test_dataset: of images with `labels`, or `TokenWindows` of a text.
        controls: directories of label-trained networks.
        batch_size: of the measurement on images; a text has its columns.
        entropy: of a text under its source, nats per word, where it is known.

    Returns:
        `metric`, and `generations`, `ensembles` and `controls`, each a list of rows with their
        `test` metrics (see `ban_hf.lineage.results`).
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

    note = read_json(output_dir / RECORD) if (output_dir / RECORD).is_file() else {}
    before = given_generations(noted_teacher(note), output_dir)[:-1]
    records = lineage.generations[len(before) :]
    networks = [predict(output_dir / f"generation-{r.generation}") for r in records]
    first, last = (int(r.generation or 0) for r in (records[0], records[-1]))
    begin = ensemble_members(first, last).start
    others = [predict(Path(folder) / "generation-0") for folder in controls]
    rows = [
        _generation_row(record, output_dir, test.metric) | measured_by(test, [predictions])
        for record, predictions in zip(records, networks, strict=True)
    ]
    for row, predictions, teacher in zip(rows[1:], networks[1:], networks, strict=False):
        row["teacher_agreement"] = test.agreement(predictions, teacher)
    return {
        "metric": test.metric,
        "generations": rows,
        "ensembles": _ensembles(
            f"Ens*{{k}} of generations {begin}-{{last}}", networks[begin - first :], test, begin
        ),
        "controls": _controls([] if first else networks[:1], others, test),
        # Of the last: the first may have been pulled, and be of another run.
        "seed": records[-1].seed["family_seed"],
        "hardware": records[-1].training["hardware"],
        "versions": versions(),
    }


def _generation_row(record: Record, output_dir: Path, metric: str) -> dict[str, Any]:
    """What the record and the log of a generation say of its training."""
    path = output_dir / f"generation-{record.generation}" / LOG
    log = json.loads(path.read_text("utf-8")) if path.is_file() else []  # it is not published
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
    method = method_of(record.objective)
    return method if method == "labels" else f"{method}-{record.generation}"


def _ensembles(
    name: str, members: Sequence[Any], test: ImageTest | TextTest, first: int = 1
) -> list[dict[str, Any]]:
    """Rows of the ensembles of the first 2, 3, ... members, numbered from `first`."""
    return [
        {
            "name": name.format(k=k, last=first + k - 1),
            "members": list(range(first, first + k)),
            **measured_by(test, members[:k]),
        }
        for k in range(2, len(members) + 1)
    ]


def _controls(
    own: Sequence[Any], others: Sequence[Any], test: ImageTest | TextTest
) -> list[dict[str, Any]]:
    """Rows of other label-trained networks, and of ensembles of them with the family's own one."""
    if not others:
        return []
    networks = [
        {
            "name": f"labels again, network {i}",
            "kind": "network",
            "size": 1,
            **measured_by(test, [predictions]),
        }
        for i, predictions in enumerate(others, start=len(own) + 1)
    ]
    ensembles = _ensembles("Ens*{k} of label-trained networks", [*own, *others], test)
    return networks + [
        {k: v for k, v in ensemble.items() if k != "members"}
        | {"kind": "ensemble", "size": len(ensemble["members"])}
        for ensemble in ensembles
    ]
