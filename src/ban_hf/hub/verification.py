"""Walk a network's teachers back to generation 0, across folders and repositories, and verify them.

`load_lineage` reads records alone and checks their structure. `verify_lineage` also downloads every
file and checks every hash. `copy_verified` copies what was checked. All fail closed: what cannot be
reached is not verified. Hashes prove that nothing changed since the record was written. They do not
prove who wrote it.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE

from ban_hf.errors import (
    BANError,
    BrokenChainError,
    CyclicLineageError,
    RecordError,
    TamperedFileError,
    TeacherChangedError,
    UnlistedFileError,
)
from ban_hf.hub.location import HubRevision, LocalPath, Location, repo_info, resolve
from ban_hf.lineage.family import Lineage, finished_generations, generation_folders
from ban_hf.lineage.files import LOADED, is_shown, read_json, sha256_of_file
from ban_hf.lineage.record import CARD, LOG, PICTURE, RECORD, FileEntry, Record, Reference


@dataclass(frozen=True)
class Entry:
    """A record and its location."""

    place: Location
    record: Record

    @classmethod
    def at(cls, place: Location) -> "Entry":
        """Read the record of a location and check that it is complete.

        Raises:
            RecordError: naming what is wrong with it.
        """
        file = place.fetch(RECORD)
        try:
            record = Record.read(file.parent)
            record.validate()
        except BANError as error:
            raise RecordError(f"{place}: {error}") from error
        return cls(place, record)

    @property
    def lineage_sha256(self) -> str:
        """The digest of the record's file."""
        return sha256_of_file(self.place.fetch(RECORD))

    @property
    def references(self) -> tuple[Reference, ...]:
        """Its teachers, or its members."""
        return (*self.record.teachers, *self.record.members)

    def reference(self) -> Reference:
        """How a published record names this network.

        Raises:
            BANError: if it is in a folder.
        """
        if not isinstance(self.place, HubRevision):
            raise BANError(f"{self.place} is a folder: a published record names repositories.")
        return Reference(
            generation=self.record.generation or 0,
            lineage_sha256=self.lineage_sha256,
            weights_sha256=self.record.weights_sha256,
            repo_id=self.place.repo_id,
            revision=self.place.revision,
        )

    def agrees_with(self, reference: Reference) -> bool:
        """Whether this is what a student or an ensemble named: its record and its weights."""
        ours = self.lineage_sha256, self.record.weights_sha256
        return ours == (reference.lineage_sha256, reference.weights_sha256)


def load_lineage(where: str | Path, revision: str | None = None) -> Lineage:
    """Read the records of a network and all its teachers; no weights are downloaded.

    Args:
        where: a folder of a family, a generation or an ensemble, or `"ns/name"` on the Hub, also
            `"ns/name@revision"`.
        revision: of a Hub repository: a branch, a tag or a commit; by default `main`.

    Returns:
        The lineage of that generation, or of the family, with the location of each record.

    Raises:
        LineageError: naming what is wrong: `RecordError`, `BrokenChainError`,
            `CyclicLineageError`, `UnpinnedTeacherError`, `TeacherChangedError`,
            `UnverifiableError`.
    """
    return _as_lineage(*walk(where, revision))


def verify_lineage(where: str | Path, revision: str | None = None) -> Lineage:
    """Download everything that a lineage names and check that it is what the records say.

    Checked: the form of every record; full commits only; generations that fall from student to
    teacher down to 0, with one teacher by exactly one; no cycle; each teacher's record and weights
    as its student recorded them, there and on its `main` branch; size and sha256 of every file; no
    weights or code beside those that are listed.

    Args:
        where: see `load_lineage`.
        revision: see `load_lineage`.

    Returns:
        The lineage, verified.

    Raises:
        LineageError: at the first problem; beside those of `load_lineage` `TamperedFileError` or
            `UnlistedFileError`.
    """
    generations, ensemble = walk(where, revision)
    for entry in [*generations, *([ensemble] if ensemble else [])]:
        check_files(entry)
    for entry in generations if ensemble else generations[:-1]:
        _check_main(entry)
    return _as_lineage(generations, ensemble)


def ancestry(*places: Location) -> list[Entry]:
    """Networks and all their teachers, each once, by generation; ensembles last.

    A single network is the last, since its teachers are of earlier generations.

    Raises:
        LineageError: if they are no graph without cycles down to generation 0, or a teacher is not
            the one that its student recorded.
    """
    return _Walk().ancestry(*places)


@dataclass
class _Walk:
    """A walk from students to teachers that visits each location once."""

    entries: dict[Location, Entry] = field(default_factory=dict)

    def ancestry(self, *places: Location) -> list[Entry]:
        """See `ancestry`."""
        for place in places:
            # References are resolved to absolute paths.
            self._visit(place.absolute() if isinstance(place, LocalPath) else place)
        for entry in self.entries.values():
            for reference, named in zip(entry.references, self._named_by(entry), strict=True):
                if named.record.generation != reference.generation:
                    raise BrokenChainError(
                        f"{entry.place} names {named.place} as generation {reference.generation}, "
                        f"but it is {named.record.name}."
                    )
                if not named.agrees_with(reference):
                    raise TeacherChangedError(
                        f"{named.place} is not the generation {reference.generation} that "
                        f"{entry.place} recorded: its record or its weights have other hashes."
                    )
        return sorted(self.entries.values(), key=_rank)

    def _visit(self, place: Location) -> None:
        """Read a record and those that it names, depth first, without recursion."""
        path: list[tuple[Entry, list[Location]]] = []  # from the student down; what is left to do
        if place not in self.entries:
            self._enter(place, path)
        while path:
            student, left = path[-1]
            if not left:
                path.pop()
                _check_generations(student, self._named_by(student))
                continue
            place = left.pop()
            if any(place == entry.place for entry, _ in path):
                raise CyclicLineageError(f"{place} is its own ancestor, through {student.place}.")
            if place not in self.entries:
                self._enter(place, path)
                _check_falls(student, path[-1][0])

    def _enter(self, place: Location, path: list[tuple[Entry, list[Location]]]) -> None:
        entry = self.entries[place] = Entry.at(place)
        path.append((entry, [entry.place.resolve_reference(r) for r in entry.references]))

    def _named_by(self, entry: Entry) -> list[Entry]:
        return [self.entries[entry.place.resolve_reference(r)] for r in entry.references]


def _rank(entry: Entry) -> tuple[bool, int]:
    """By generation; ensembles last."""
    return entry.record.kind == "ensemble", entry.record.generation or 0


def _check_falls(student: Entry, teacher: Entry) -> None:
    """Check that what a record names is a generation, and an earlier one than a student's.

    Checked on the way down: so a walk ends after as many steps as the first generation's number.
    """
    theirs, ours = student.record.generation, teacher.record.generation
    if ours is None or (theirs is not None and ours >= theirs):
        raise BrokenChainError(
            f"{student.place} is {student.record.name}, but {teacher.place}, which it names, is "
            f"{teacher.record.name}: generations must fall from student to teacher."
        )


def _check_generations(student: Entry, named: list[Entry]) -> None:
    """Check that a student's generation is 1 + the highest of its teachers'."""
    if student.record.kind == "ensemble" or not named:
        return
    highest = max(entry.record.generation or 0 for entry in named)
    if student.record.generation != highest + 1:
        whose = ", ".join(f"{e.place} is {e.record.name}" for e in named)
        raise BrokenChainError(
            f"{student.place} is {student.record.name}, but its teacher {whose}: its generation "
            f"must be {highest + 1}."
        )


def walk(
    where: str | Path, revision: str | None = None, token: str | None = None
) -> tuple[list[Entry], Entry | None]:
    """The generations that a location stands for, by generation, and its ensemble if it has one.

    Raises:
        LineageError: see `load_lineage`.
    """
    place, found = resolve(where, revision, token), _Walk()
    if not isinstance(place, LocalPath) or not (folders := finished_generations(place.path)):
        *generations, last = found.ancestry(place)
        if last.record.kind == "ensemble":
            return generations, last
        return [*generations, last], None
    _check_folders(place.path, folders)
    family = found.ancestry(LocalPath(folders[-1]))
    visited = {entry.place for entry in family}
    if others := [str(f) for f in folders if LocalPath(f).absolute() not in visited]:
        raise TeacherChangedError(
            f"{', '.join(others)}: not what {folders[-1]} descends from, by its record."
        )
    ensemble = place.path / "ensemble"
    if not ensemble.is_dir():
        return family, None
    *generations, last = found.ancestry(LocalPath(ensemble))
    if strays := [str(entry.place) for entry in generations if entry not in family]:
        raise BrokenChainError(f"{ensemble} has members outside its family: {', '.join(strays)}.")
    return generations, last


def _check_folders(output_dir: Path, folders: list[Path]) -> None:
    """Check that a family's folder has no generation beside those that follow one another."""
    if strays := set(generation_folders(output_dir).values()) - set(folders):
        raise BrokenChainError(
            f"{', '.join(sorted(map(str, strays)))}: no record, or none of the generation before."
        )


def check_files(entry: Entry) -> None:
    """Check that there is a model, all of it as its record lists it, and nothing else to load.

    Raises:
        RecordError: if the listed files are no model, see `check_model`.
        UnlistedFileError: if there is a file that a loader might read, or code is named, that the
            record does not list.
        TamperedFileError: if a file is not as it is listed.
    """
    listed = {file.path for file in entry.record.files}
    names = (name for name in entry.place.names() if name != RECORD and not is_shown(name))
    if unlisted := [name for name in names if name not in listed]:
        raise UnlistedFileError(
            f"{entry.place} holds {', '.join(unlisted)}, which its record does not name."
        )
    for file in entry.record.files:
        check_file(entry.place, file)
    check_model(entry, listed)


def check_model(entry: Entry, names: set[str]) -> None:
    """Check that the files that a record lists are a model, and no file that loaders prefer to it.

    That is a config, weights by the names that loaders look for, and such files as processors and
    tokenizers have: no pickles, no adapter of another model, no code but theirs.

    Raises:
        RecordError: naming the file that is missing, or is no part of a model.
        UnlistedFileError: if code is named that is not among them.
    """
    strange = {name for name in names if name != LOG and not name.endswith(tuple(LOADED))}
    strange |= {name for name in names if name.startswith("adapter_")}
    if strange:
        raise RecordError(f"{entry.place}: {', '.join(sorted(strange))} is no part of a model.")
    weights = {name for name in names if name.endswith(".safetensors")}
    expected = {SAFETENSORS_SINGLE_FILE}
    if SAFETENSORS_SINGLE_FILE not in names and SAFETENSORS_INDEX_FILE in names:
        expected = set((_read(entry, SAFETENSORS_INDEX_FILE).get("weight_map") or {}).values())
    if "config.json" not in names or not weights or weights != expected:
        raise RecordError(
            f"{entry.place}: its record lists no config.json, or no weights by the names that "
            f"loaders look for ({', '.join(sorted(weights)) or 'none'})."
        )
    for name in sorted(names):
        if name.endswith("config.json"):
            _check_code(entry, name, _read(entry, name), names)


def _read(entry: Entry, name: str) -> dict[str, Any]:
    try:
        return read_json(entry.place.fetch(name))
    except BANError as error:
        raise RecordError(f"{name} of {entry.place}: {error}") from error


def _check_code(entry: Entry, name: str, config: dict[str, Any], listed: set[str]) -> None:
    """Check that the code that a config names, for `trust_remote_code`, is beside it and listed."""
    named = [config.get("auto_map") or {}, config.get("custom_pipelines") or {}]
    for reference in _strings(named):
        module = reference.rpartition(".")[0]
        if module and ("--" in reference or f"{module.replace('.', '/')}.py" not in listed):
            raise UnlistedFileError(
                f"{name} of {entry.place} names code, {reference}, that its record does not list."
            )


def _strings(data: Any) -> list[str]:
    """All strings among the values of nested plain data."""
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return [text for part in data for text in _strings(part)]
    return [data] if isinstance(data, str) else []


def check_file(place: Location, file: FileEntry) -> Path:
    """Fetch a listed file, check that it is as listed, and return its path."""
    path = place.fetch(file.path)
    if (size := path.stat().st_size) != file.size:
        raise TamperedFileError(
            f"{file.path} of {place} has {size} bytes; its record says {file.size}."
        )
    if (digest := sha256_of_file(path)) != file.sha256:
        raise TamperedFileError(
            f"{file.path} of {place} has the sha256 {digest}; its record says {file.sha256}."
        )
    return path


def copy_verified(entries: Sequence[Entry], output_dir: Path) -> None:
    """Copy generations and ensembles, from a Hub or a folder, into the folders of a family.

    Every file is checked against its record.

    Raises:
        LineageError: if a file is not as its record lists it; a folder is written whole or not at
            all.
        BANError: if a folder is in the way, or two generations have one number.
    """
    names = Counter(folder_name(entry.record) for entry in entries)
    if several := [name for name, count in names.items() if count > 1]:
        raise BANError(
            f"several networks are to be {', '.join(several)}, since a student learned from "
            "several teachers: pull each by its own repository, into folders of their own."
        )
    for entry in entries:
        _copy(entry, output_dir / folder_name(entry.record))


def _copy(entry: Entry, folder: Path) -> None:
    """Copy a generation or an ensemble, whole or not at all."""
    if folder.exists():
        existing = Entry.at(LocalPath(folder)) if (folder / RECORD).is_file() else None
        if existing is not None and existing.lineage_sha256 == entry.lineage_sha256:
            check_files(existing)
            return
        raise BANError(f"{folder} is in the way of {entry.place}: move it, or pull elsewhere.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as partial:
        files = {file.path: check_file(entry.place, file) for file in entry.record.files}
        beside = {RECORD, CARD, PICTURE} & set(entry.place.names())
        files |= {name: entry.place.fetch(name) for name in beside}
        for name, source in files.items():
            target = Path(partial, folder.name, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        os.replace(Path(partial, folder.name), folder)


def folder_name(record: Record) -> str:
    """The folder of a generation or an ensemble in its family's directory."""
    return "ensemble" if record.kind == "ensemble" else f"generation-{record.generation}"


def _check_main(entry: Entry) -> None:
    """Check that a teacher was not published again since: `main` is still what taught."""
    if not isinstance(entry.place, HubRevision):
        return
    taught = entry.place
    now = str(repo_info(taught.repo_id, token=taught.token).sha)
    if now == taught.revision:
        return
    head = Entry.at(HubRevision(taught.repo_id, now, taught.token))
    if head.lineage_sha256 != entry.lineage_sha256:
        raise TeacherChangedError(
            f"{taught.repo_id} was published again since {taught.revision[:7]}, the commit that "
            f"taught: its main branch ({now[:7]}) is another training."
        )
    check_files(head)


def _as_lineage(generations: Iterable[Entry], ensemble: Entry | None) -> Lineage:
    entries = [*generations, *([ensemble] if ensemble else [])]
    last = entries[-1].record
    return Lineage(
        last.family,
        [entry.record for entry in entries if entry is not ensemble],
        ensemble.record if ensemble else None,
        [str(entry.place) for entry in entries],
    )
