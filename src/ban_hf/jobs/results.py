"""From finished jobs to results: one entry for each network and ensemble that was measured."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ban_hf.jobs.job import Job
from ban_hf.lineage.catalog import LOWER_IS_BETTER, MEASURES
from ban_hf.lineage.environment import hardware, versions
from ban_hf.lineage.record import LOG, Record
from ban_hf.lineage.results import Entry

#: What is kept of each epoch's log: a step's mean over the epoch, or an evaluation.
LOGGED = (
    *("loss", "label_loss", "learning_rate", "ground_truth_term", "dark_knowledge_term"),
    *("teacher_agreement", "teacher_confidence", "effective_sample_size"),
    *(f"eval_{metric}" for metric in (*MEASURES, "teacher_agreement", "teacher_kl")),
)


def entry_of(
    job: Job,
    home: Path,
    found: Mapping[str, Any],
    *,
    row: str,
    column: str,
    seed: int,
    metric: str,
) -> Entry:
    """What was measured of a finished job's network (see `evaluation`), and how it was trained."""
    entry = {
        "row": row,
        "column": column,
        "seed": seed,
        "test": {k: v for k, v in found["test"].items() if not k.startswith("teacher_")},
        "teacher_agreement": found["test"].get("teacher_agreement"),
        **{name: found.get(name) for name in ("outcomes", "reliability", "parameters", "code")},
        "network": _network(job, home),
        "job": job.folder,
        "arguments": job.digest,
        "members": [member.folder for member in job.members],
        "teachers": [teacher.folder for teacher in job.teachers],
    }
    if not job.members:
        record, log = Record.read(home / job.folder), read_log(home / job.folder)
        # Without a validation there is no curve.
        curve = zip(log.get(f"eval_{metric}", ()), log.get("epoch", ()), strict=False)
        known = [(value, at) for value, at in curve if value is not None]
        sign = 1 if metric in LOWER_IS_BETTER else -1
        best = min(known, key=lambda pair: sign * pair[0], default=None)
        losses = [v for v in log.get("label_loss", log.get("loss", ())) if v is not None]
        entry |= {
            "validation": {metric: known[-1][0]} if known else None,
            "best_validation": {metric: best[0], "epoch": best[1]} if best else None,
            "log": log,
            "train_loss": losses[-1] if losses else None,
            "network_seed": record.seed.seed,
            "configuration": dict(job.arguments),
        }
    return msgspec.convert(entry, Entry)


def read_log(folder: Path) -> dict[str, tuple[float | None, ...]]:
    """The log of a training: a list for each name, a number for each epoch, to four digits."""
    path = folder / LOG
    if not path.is_file():  # it is not published
        return {}
    epochs: dict[float, dict[str, float]] = {}
    for line in json.loads(path.read_text("utf-8")):
        kept = {name: line[name] for name in LOGGED if line.get(name) is not None}
        if kept:
            epochs.setdefault(line["epoch"], {"epoch": line["epoch"]}).update(kept)
    lines = [epochs[epoch] for epoch in sorted(epochs)]
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: tuple(_rounded(line.get(name)) for line in lines) for name in names}


def environment_of(jobs: Iterable[Job], home: Path) -> dict[str, Any]:
    """Hardware and versions that some jobs ran on."""
    records = [Record.read(home / job.folder) for job in jobs if job.saved]
    found = sorted({record.training.hardware for record in records if record.training.hardware})
    last = {k: v for record in records for k, v in record.code.items() if k != "git_commit"}
    return {"hardware": "; ".join(found) or hardware(), "versions": last or versions()}


def _network(job: Job, home: Path) -> str:
    """Name of a network, or of an ensemble's members."""
    if job.members:
        return " + ".join(_network(member, home) for member in job.members)
    if "network" in job.arguments:
        return str(job.arguments["network"]["name"])
    return str(Record.read(home / job.folder).architecture.class_name)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
