"""Who taught whom: the record of a generation, and the chain of records of a family.

Plain data, no network. A record is written as `lineage.json` (UTF-8, sorted keys) into the folder
of its generation, and into the ensemble's. It names the sha256 of every file beside it, and a
student's record names the sha256 of its teacher's record and weights: a hash chain. Hashes prove
integrity, not authorship.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = "ban_hf.lineage/1"
RECORD = "lineage.json"


@dataclass
class Record:
    """One generation or ensemble. The fields of `lineage.json`.

    Attributes:
        kind: `generation` or `ensemble`.
        family: name of the sequence.
        generation: 0 for the network trained on labels alone; None for an ensemble.
        teacher: None for generation 0; else `path`, `generation`, `lineage_sha256`, `weights_sha256`.
        members: of an ensemble, each as `teacher` is given; else empty.
        objective: `name`, `temperature`, `teacher_weight`, `label_weight`; None for generation 0.
        architecture: `model_type`, `class`, `config_sha256`, `num_parameters`.
        seed: `seed`, from which all else is drawn, and `init_sha256` of the fresh weights.
        data: what is known of the data: name, splits, fingerprints.
        training: canonical arguments, their sha256, `steps`, `epochs`, `world_size`, `seconds`.
        metrics: `name`, `value`, `split`, `n`, `higher_is_better` of each.
        files: `path`, `size`, `sha256` of every file but the record and the README.
        code: versions.
        created: RFC 3339, UTC.
    """

    kind: str
    family: str
    generation: int | None = None
    teacher: dict[str, Any] | None = None
    members: list[dict[str, Any]] = field(default_factory=list)
    objective: dict[str, Any] | None = None
    architecture: dict[str, Any] = field(default_factory=dict)
    seed: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    code: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    schema: str = SCHEMA

    def write(self, folder: Path) -> None:
        """Write `lineage.json`, with the files of the folder as they are now."""
        self.files = describe_files(folder)
        write_json(folder / RECORD, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Record":
        """Read a folder's record.

        Raises:
            ValueError: if it is no record of this schema.
        """
        data = json.loads((folder / RECORD).read_text("utf-8"))
        if data.get("schema") != SCHEMA or "kind" not in data:
            raise ValueError(f"{folder / RECORD} is not a record of schema {SCHEMA}.")
        return cls(**data)

    def metric(self, name: str, split: str) -> float | None:
        """A metric's value, or None if it was not measured."""
        found = (m["value"] for m in self.metrics if (m["name"], m["split"]) == (name, split))
        return next(found, None)


@dataclass
class Lineage:
    """A family: its generations from 0 upwards, and their ensemble if there is one."""

    family: str
    generations: list[Record]
    ensemble: Record | None = None


def reference(folder: Path, base: Path) -> dict[str, Any]:
    """How a student or an ensemble names another folder of its family."""
    record = Record.read(folder)
    weights = [f["sha256"] for f in record.files if f["path"].endswith(".safetensors")]
    return {
        "path": os.path.relpath(folder, base),
        "generation": record.generation,
        "lineage_sha256": sha256_of_file(folder / RECORD),
        "weights_sha256": weights,
    }


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Path, size in bytes and sha256 of every file of a folder but its record and README."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [
        {
            "path": p.relative_to(folder).as_posix(),
            "size": p.stat().st_size,
            "sha256": sha256_of_file(p),
        }
        for p in files
        if p.name not in (RECORD, "README.md")
    ]


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(data: Any) -> str:
    """Hex digest of plain data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    os.replace(partial, path)
