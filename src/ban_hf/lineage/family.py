"""The folders of a family: which generations are finished, whose run they are, their records.

A family's directory has a folder `generation-k` for each generation, a folder `ensemble`, and a
`lineage.json` of its own, which says what run it is.
"""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ban_hf.errors import BANError
from ban_hf.lineage.files import write_json
from ban_hf.lineage.record import RECORD, SCHEMA, Record, Reference, check_schema, reference

CHECKPOINTS = "checkpoints"  # beside the generations, while one is trained


@dataclass(frozen=True)
class Lineage:
    """The networks of a family, every teacher before its students, and their ensemble.

    Attributes:
        family: its name.
        generations: their records, by generation.
        ensemble: its record, if there is one.
        locations: of each of `records`, `"ns/name@commit"` or a local folder.
    """

    family: str
    generations: list[Record]
    ensemble: Record | None = None
    locations: list[str] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """Those of the generations, then the ensemble's."""
        return [*self.generations, *([self.ensemble] if self.ensemble else [])]

    @property
    def places(self) -> dict[int | None, str]:
        """The locations by generation; None is the ensemble's.

        Where a student has several teachers of one generation, the last of them: `locations` has
        all.
        """
        numbers = (record.generation for record in self.records)
        return dict(zip(numbers, self.locations, strict=False))


def load_family(output_dir: str | Path) -> Lineage:
    """Read the records of the finished generations of a directory, and of its ensemble.

    Raises:
        BANError: if there are none.
    """
    folders = finished_generations(Path(output_dir))
    if not folders:
        raise BANError(f"{output_dir} holds no finished generation.")
    records = [Record.read(folder) for folder in folders]
    ensemble = Path(output_dir) / "ensemble"
    last = Record.read(ensemble) if is_finished(ensemble) else None
    locations = [str(folder) for folder in (*folders, *([ensemble] if last else []))]
    return Lineage(records[-1].family, records, last, locations)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished network: its record is written last."""
    return (folder / RECORD).is_file()


def generation_folders(output_dir: Path) -> dict[int, Path]:
    """All folders of generations by their number, finished or not."""
    folders = output_dir.glob("generation-*")
    numbers = {folder.name.removeprefix("generation-"): folder for folder in folders}
    return {int(number): folder for number, folder in numbers.items() if number.isdigit()}


def finished_generations(output_dir: Path) -> list[Path]:
    """The folders of the finished generations, lowest first, up to the first gap.

    The lowest is 0, or the first teacher of a sequence that continues a published generation.
    """
    lowest = min(generation_folders(output_dir), default=0)
    folders = (output_dir / f"generation-{i}" for i in itertools.count(lowest))
    return list(itertools.takewhile(is_finished, folders))


def note_family(output_dir: Path, family: str, run: dict[str, Any]) -> None:
    """Write a family's own `lineage.json`: what its run is, and its finished folders.

    Its fields: `schema`, `kind` (family), `family`, `run` (what `refuse_another` compares),
    `generations` and `ensemble` (null if there is none), each as a record names its teacher.
    """
    ensemble = output_dir / "ensemble"
    noted = None
    if is_finished(ensemble):
        noted = reference(ensemble, output_dir).to_dict() | {"generation": None}
    folders = finished_generations(output_dir)
    note = {
        "schema": SCHEMA,
        "kind": "family",
        "family": family,
        "run": run,
        "generations": [reference(f, output_dir).to_dict() for f in folders],
        "ensemble": noted,
    }
    write_json(output_dir / RECORD, note)


def refuse_another(output_dir: Path, existing: dict[str, Any], requested: dict[str, Any]) -> None:
    """Refuse a run that is not the one that is noted in a directory, naming all that differs."""
    if existing.get("kind") != "family":
        raise BANError(
            f"output_dir={output_dir} holds a {RECORD} that is not a run's. Nothing was changed: "
            "give another output_dir."
        )
    check_schema(existing)
    differences = []
    if requested["family"] not in (None, existing["family"]):
        differences.append(f"family: {existing['family']!r} there, {requested['family']!r} here")
    for part, now in requested["run"].items():
        before = existing["run"].get(part, {})
        if part == "data":
            now = {name: as_noted(facts, before.get(name)) for name, facts in now.items()}
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


def as_noted(split: Any, noted: Any) -> Any:
    """A split's facts as far as a record knows them: before 0.2 some had only `items`."""
    if isinstance(split, dict) and isinstance(noted, dict) and noted.keys() == {"items"}:
        return {"items": split.get("items")}
    return split


def check_folders(output_dir: Path, is_ours: bool) -> None:
    """Check that the folders of a family are its run's, each whole and after its teachers.

    `is_ours` is whether a run is noted there; otherwise none of these names may exist.
    """
    folders = sorted(output_dir.glob("generation-[0-9]*"))
    found = [folder for folder in (*folders, output_dir / "ensemble") if folder.exists()]
    strays = [folder.name for folder in found if not (is_ours and is_finished(folder))]
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
        for teacher in Record.read(folder).teachers:
            was_pulled = teacher.path is None and folder in lowest
            if not was_pulled and not _is_unchanged(teacher, folder):
                raise BANError(
                    f"{folder} had another teacher than the generation-{teacher.generation} that "
                    "is there now, or its teacher is gone. Nothing was changed: put it back, or "
                    f"move {folder.name} and the generations after it away, to train them again."
                )


def _is_unchanged(named: Reference, base: Path) -> bool:
    """Whether the folder that a record names is still the one that it named.

    A teacher from the Hub is, once pulled, in the folder beside its student's.
    """
    folder = base / (named.path or f"../generation-{named.generation}")
    return is_finished(folder) and reference(folder, base).hashes == named.hashes
