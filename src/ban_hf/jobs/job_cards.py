"""The model cards of a table's networks."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ban_hf.jobs.job import Job
from ban_hf.jobs.networks import NETWORK
from ban_hf.lineage.record import RECORD, Record, read_json
from ban_hf.reports.model_card import render_card

TASKS = {"image": "image-classification", "text": "text-generation"}


def write_cards(jobs: Mapping[tuple[str, str], Job], home: Path, folder: Path) -> None:
    """Write the card of each network, `ROW/COLUMN.md`.

    Networks of several teachers have none, since a record cannot name them, nor have those that
    learned from such, nor ensembles, which are measured and not saved. Nor have those whose
    weights, or their teachers', were deleted since: results stand without them.

    Args:
        jobs: by row and column; all of them done.
        home: of the jobs' folders.
        folder: of the cards; those of an earlier report are replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for (row, column), job in jobs.items():
        if not _has_chain(job):
            continue
        chain = [home / one.name / NETWORK for one in _chain(job)]
        if not all((network / RECORD).is_file() for network in chain):
            continue
        records = [_record(network) for network in chain]
        ours = "auto_map" in read_json(chain[-1] / "config.json")
        card = render_card(
            records[-1],
            family=records,
            pipeline_tag=TASKS[job.arguments["task"]],
            remote_code=ours,
            own_class=ours,
        )
        (folder / row).mkdir(parents=True, exist_ok=True)
        card.save(folder / row / f"{column}.md")


def _has_chain(job: Job) -> bool:
    """Whether records tell who taught whom, back to labels alone."""
    return not job.members and len(job.teachers) < 2 and all(map(_has_chain, job.teachers))


def _chain(job: Job) -> list[Job]:
    """A job and those that teach it, generation 0 first."""
    return [*(before for teacher in job.teachers for before in _chain(teacher)), job]


def _record(network: Path) -> dict[str, Any]:
    """The record of a network without when and how fast it was made.

    So the same jobs give the same cards, however often they were killed.
    """
    record = Record.read(network)
    record.training.pop("seconds", None)
    return asdict(record) | {"created": None}
