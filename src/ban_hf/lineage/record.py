"""Who taught whom: the record of a generation, and the chain of records of a family.

Plain data, no network. A record is written as `lineage.json` (UTF-8, sorted keys) into the folder
of its generation, and into the ensemble's. It names the sha256 of every file beside it, and a
student's record names the sha256 of its teacher's record and weights: a hash chain. Hashes prove
integrity, not authorship.
"""

import hashlib
import itertools
import json
import math
import os
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from ban_hf.errors import BANError

SCHEMA = "ban_hf.lineage/1"
RECORD = "lineage.json"
LOG = "training_log.json"  # beside the record, while it is at home
#: What a model, its processor or tokenizer is loaded from; a pickle is not among it.
LOADED = ".safetensors .json .txt .model .jinja .py .bpe .codes .spm .tiktoken .tokenizer".split()
SHOWN = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")  # cards and their pictures
CHECKPOINTS = "checkpoints"  # beside the generations, while one is in training


@dataclass
class Record:
    """One generation or ensemble. The fields of `lineage.json`.

    Attributes:
        kind: `generation` or `ensemble`.
        family: name of the sequence.
        generation: 0 for the network trained on labels alone; None for an ensemble.
        teacher: None for generation 0; else `path` (relative), `generation`, `lineage_sha256`,
            `weights_sha256`.
        members: of an ensemble, each as `teacher` is given; else empty.
        objective: `name`, `temperature`, `teacher_weight`, `label_weight`; None for generation 0.
        architecture: `model_type`, `class`, `config_sha256`, `num_parameters`.
        seed: `seed`, from which all else is drawn, `family_seed`, from which it is drawn itself,
            `init_sha256` of the fresh and `trained_sha256` of the trained weights.
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
        data = read_json(folder / RECORD)
        if data.get("schema") != SCHEMA or data.get("kind") not in ("generation", "ensemble"):
            raise BANError(
                f"{folder / RECORD} is not a generation's or an ensemble's record of schema "
                f"{SCHEMA}: it has schema {data.get('schema')!r} and kind {data.get('kind')!r}."
            )
        unknown = data.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise BANError(f"{folder / RECORD} has unknown fields: {', '.join(sorted(unknown))}.")
        if not isinstance(data.get("family"), str):
            raise BANError(f"{folder / RECORD} names no family.")
        return cls(**data)

    @property
    def name(self) -> str:
        """What it is, in words."""
        return "ensemble" if self.kind == "ensemble" else f"generation {self.generation}"

    @property
    def weights_sha256(self) -> list[str]:
        """The digests of its weight files, by which students and ensembles name it."""
        return [f["sha256"] for f in self.files if f["path"].endswith(".safetensors")]

    def metric(self, name: str, split: str) -> float | None:
        """A metric's value, or None if it was not measured."""
        found = (m["value"] for m in self.metrics if (m["name"], m["split"]) == (name, split))
        return next(found, None)


@dataclass
class Lineage:
    """A family: its generations from the lowest upwards, and their ensemble if there is one.

    `places` says where each stands: generation (None for the ensemble) to `"ns/name@commit"` or a
    local folder.
    """

    family: str
    generations: list[Record]
    ensemble: Record | None = None
    places: dict[int | None, str] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Those of the generations, then the ensemble's."""
        return [*self.generations, *([self.ensemble] if self.ensemble else [])]


def reference(folder: Path, base: Path) -> dict[str, Any]:
    """How a student or an ensemble names another folder of its family."""
    record = Record.read(folder)
    return {
        "path": Path(os.path.relpath(folder, base)).as_posix(),
        "generation": record.generation,
        "lineage_sha256": sha256_of_file(folder / RECORD),
        "weights_sha256": record.weights_sha256,
    }


def load_family(output_dir: str | Path) -> Lineage:
    """The records of the generations that stand finished under a directory, and of the ensemble.

    Raises:
        ValueError: if there are none.
    """
    folders = finished_generations(Path(output_dir))
    if not folders:
        raise BANError(f"{output_dir} holds no finished generation.")
    ensemble = Path(output_dir) / "ensemble"
    if (ensemble / RECORD).is_file():
        folders.append(ensemble)
    records = [Record.read(folder) for folder in folders]
    places = {
        record.generation: str(folder) for record, folder in zip(records, folders, strict=True)
    }
    last = records.pop() if folders[-1] == ensemble else None
    return Lineage(records[-1].family, records, last, places)


def generation_folders(output_dir: Path) -> dict[int, Path]:
    """All folders of generations by their number, finished or not."""
    folders = output_dir.glob("generation-*")
    numbers = {folder.name.removeprefix("generation-"): folder for folder in folders}
    return {int(number): folder for number, folder in numbers.items() if number.isdigit()}


def finished_generations(output_dir: Path) -> list[Path]:
    """The folders of the generations that stand finished, from the lowest upwards.

    The lowest is 0, or the teacher of a sequence that goes on from somebody else's generation.
    """
    lowest = min(generation_folders(output_dir), default=0)
    folders = (output_dir / f"generation-{i}" for i in itertools.count(lowest))
    return list(itertools.takewhile(lambda folder: (folder / RECORD).is_file(), folders))


def note_family(output_dir: Path, family: str, run: dict[str, Any]) -> None:
    """Write a family's own `lineage.json`: what its run is, and the folders that stand finished.

    Its fields: `schema`, `kind` (family), `family`, `run` (what `refuse_another` compares),
    `generations` and `ensemble` (null where there is none), each as a record names its teacher.
    """
    ensemble = output_dir / "ensemble"
    has_ensemble = (ensemble / RECORD).is_file()
    note = {
        "schema": SCHEMA,
        "kind": "family",
        "family": family,
        "run": run,
        "generations": [reference(f, output_dir) for f in finished_generations(output_dir)],
        "ensemble": reference(ensemble, output_dir) if has_ensemble else None,
    }
    write_json(output_dir / RECORD, note)


def refuse_another(output_dir: Path, standing: dict[str, Any], asked: dict[str, Any]) -> None:
    """Hold that the run that is noted under a directory is the one that is asked for.

    Raises:
        ValueError: naming all that differs, with both values.
    """
    if (standing.get("schema"), standing.get("kind")) != (SCHEMA, "family"):
        raise BANError(
            f"output_dir={output_dir} holds a {RECORD} that is not a run's. Nothing was changed: "
            "give another output_dir."
        )
    differences = []
    if asked["family"] not in (None, standing["family"]):
        differences.append(f"family: {standing['family']!r} there, {asked['family']!r} here")
    for part, now in asked["run"].items():
        before = standing["run"].get(part, {})
        # Another release of transformers has other arguments; data and model have the same facts.
        names = before.keys() & now.keys() if part == "arguments" else before.keys() | now.keys()
        differences += [
            f"{name}: {before.get(name)!r} there, {now.get(name)!r} here"
            for name in sorted(names)
            if before.get(name) != now.get(name)
        ]
    if differences:
        raise BANError(
            f"output_dir={output_dir} holds a run of other arguments; it stays as it is. Give "
            "another output_dir, or the arguments that started it: " + "; ".join(differences)
        )


def check_folders(output_dir: Path, is_ours: bool) -> None:
    """Hold that the folders of a family were written by its run, each whole and after its teacher.

    Args:
        output_dir: of the family.
        is_ours: whether a run is noted there; otherwise nothing may stand in its way.

    Raises:
        ValueError: naming the folder.
    """
    folders = sorted(output_dir.glob("generation-[0-9]*"))
    found = [f for f in (*folders, output_dir / "ensemble") if f.exists()]
    strays = [f.name for f in found if not (is_ours and (f / RECORD).is_file())]
    if not is_ours:
        others = (CHECKPOINTS, "control", "results.json", "results.md", "results.png")
        strays += [name for name in others if (output_dir / name).exists()]
    if strays:
        raise BANError(
            f"output_dir={output_dir} holds {', '.join(strays)}, which no run that is noted in its "
            f"{RECORD} has finished. Nothing was changed: move that away, or give another "
            "output_dir."
        )
    lowest = finished_generations(output_dir)[:1]
    for folder in folders:
        teacher = Record.read(folder).teacher
        was_pulled = teacher is not None and "repo_id" in teacher and folder in lowest
        if teacher is not None and not was_pulled and not _is_there(teacher, folder):
            raise BANError(
                f"{folder} had another teacher than the generation-{teacher['generation']} that "
                "stands there now, or that is gone. Nothing was changed: put it back, or move "
                f"{folder.name} and the generations after it away, to train them again."
            )


def _is_there(named: dict[str, Any], base: Path) -> bool:
    """Whether the folder that a record names is still the one it names.

    A teacher from the Hub stands, as it was pulled, beside its student.
    """
    folder = base / named.get("path", f"../generation-{named['generation']}")
    if not (folder / RECORD).is_file():
        return False
    found = reference(folder, base)
    return all(named[name] == found[name] for name in ("lineage_sha256", "weights_sha256"))


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


def is_shown(name: str) -> bool:
    """Whether a file is for people or for git: no loader reads it, and no record need name it."""
    path = PurePosixPath(name)
    is_hidden = "/" not in name and name.startswith(".")
    return is_hidden or name in ("LICENSE", "LICENSE.txt") or path.suffix.lower() in SHOWN


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(data: Any) -> str:
    """Hex digest of plain data, whatever the order of its keys."""
    plain = json.loads(json.dumps(data, default=str))  # keys as strings: 10 sorts before 2
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The mapping of a JSON file.

    Raises:
        ValueError: naming the file, if it holds none.
    """
    try:
        data = json.loads(path.read_text("utf-8"), parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise BANError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BANError(f"{path} holds no mapping, so that it is none of ours.")
    return data


def write_json(path: Path, data: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(as_json(data))
    os.replace(partial, path)


def as_json(data: Any) -> bytes:
    """Plain data as our files hold it: UTF-8, sorted keys, null for a number that is not finite."""
    text = json.dumps(_finite(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode()


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
