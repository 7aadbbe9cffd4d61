"""Who taught whom, back to generation 0, across folders and repositories; and whether it is so.

`load_lineage` reads records alone and holds their structure. `verify_lineage` also downloads every
file and holds every hash. Both fail closed: what cannot be reached is not verified. Hashes prove
that nothing was changed since the record was written; who wrote it they do not prove.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ban_hf.errors import (
    BrokenChainError,
    CyclicLineageError,
    RecordError,
    TamperedFileError,
    TeacherChangedError,
    UnlistedFileError,
)
from ban_hf.hub.location import HubCommit, LocalFolder, Place, locate, look
from ban_hf.lineage.record import (
    LOADED,
    LOG,
    RECORD,
    Lineage,
    Record,
    finished_generations,
    generation_folders,
    is_shown,
    read_json,
    sha256_of_file,
)
from ban_hf.lineage.validation import check_form


@dataclass(frozen=True)
class Entry:
    """A record, and where it stands."""

    place: Place
    record: Record

    @classmethod
    def at(cls, place: Place) -> "Entry":
        """The record of a place, checked for its form."""
        file = place.fetch(RECORD)
        try:
            record = Record.read(file.parent)
            check_form(record)
        except ValueError as error:
            raise RecordError(f"{place}: {error}") from error
        return cls(place, record)

    @property
    def lineage_sha256(self) -> str:
        """The digest of the record as it stands there."""
        return sha256_of_file(self.place.fetch(RECORD))

    def agrees_with(self, reference: dict[str, Any]) -> bool:
        """Whether this is what a student or an ensemble named: its record and its weights."""
        ours = self.lineage_sha256, self.record.weights_sha256
        return ours == (reference["lineage_sha256"], reference["weights_sha256"])


def load_lineage(where: str | Path, revision: str | None = None) -> Lineage:
    """A family's records, from generation 0 upwards; no weights are downloaded.

    Args:
        where: a folder of a family, a generation or an ensemble, or `"ns/name"` on the Hub, also
            `"ns/name@revision"`.
        revision: of a Hub repository: a branch, a tag or a commit; by default `main`.

    Returns:
        The lineage of that generation, or of the family, with the commit or folder of each.

    Raises:
        LineageError: naming what does not hold: `RecordError`, `BrokenChainError`,
            `CyclicLineageError`, `UnpinnedTeacherError`, `TeacherChangedError`,
            `UnverifiableError`.
    """
    return _as_lineage(*walk(where, revision))


def verify_lineage(where: str | Path, revision: str | None = None) -> Lineage:
    """Download everything that a lineage names and hold that it is what the records say.

    Checked: the form of every record; full commits only; generations that fall by one down to 0;
    each teacher's record and weights as its student recorded them, there and on its `main` branch;
    size and sha256 of every file; no weights or code beside those that are listed.

    Args:
        where: see `load_lineage`.
        revision: see `load_lineage`.

    Returns:
        The lineage, verified.

    Raises:
        LineageError: at the first thing that does not hold, beside those of `load_lineage`
            `TamperedFileError` or `UnlistedFileError`.
    """
    chain, ensemble = walk(where, revision)
    for entry in [*chain, *([ensemble] if ensemble else [])]:
        check_files(entry)
    for entry in chain if ensemble else chain[:-1]:
        _check_main(entry)
    return _as_lineage(chain, ensemble)


def ancestry(place: Place) -> list[Entry]:
    """A generation and its teachers, generation 0 first.

    Raises:
        LineageError: if they are no chain, or a teacher is not the one that its student recorded.
    """
    entry, seen = Entry.at(place), [place]
    chain = [entry]
    while (teacher := entry.record.teacher) is not None:
        place = entry.place.named(teacher)
        if place in seen:
            raise CyclicLineageError(f"{place} is its own ancestor, by way of {entry.place}.")
        student, entry = entry, Entry.at(place)
        if (entry.record.kind, entry.record.generation) != ("generation", _before(student)):
            raise BrokenChainError(
                f"{student.place} is generation {student.record.generation}, but its teacher "
                f"{place} is generation {entry.record.generation}, not {_before(student)}."
            )
        seen.append(place)
        chain.append(entry)
    for student, entry in itertools.pairwise(chain):
        _check_reference(student, student.record.teacher or {}, entry)
    return chain[::-1]


def _before(student: Entry) -> int:
    return int(student.record.generation or 0) - 1


def _check_reference(whose: Entry, reference: dict[str, Any], named: Entry) -> None:
    if not named.agrees_with(reference):
        raise TeacherChangedError(
            f"{named.place} is not the generation {reference['generation']} that {whose.place} "
            "recorded: its record or its weights have other hashes."
        )


def walk(
    where: str | Path, revision: str | None = None, token: str | None = None
) -> tuple[list[Entry], Entry | None]:
    """The chain of generations that a place stands for, and the ensemble if it stands for one.

    Raises:
        LineageError: see `load_lineage`.
    """
    place = locate(where, revision, token)
    if isinstance(place, LocalFolder) and (folders := finished_generations(place.path)):
        _check_folders(place.path, folders)
        chain, ensemble = ancestry(LocalFolder(folders[-1])), place.path / "ensemble"
        entry = Entry.at(LocalFolder(ensemble)) if ensemble.is_dir() else None
    else:
        entry = Entry.at(place)
        if entry.record.kind == "generation":
            return ancestry(place), None
        last = max(entry.record.members, key=lambda member: int(member["generation"]))
        chain = ancestry(place.named(last))
    if entry is not None:
        _check_members(entry, chain)
    return chain, entry


def _check_folders(output_dir: Path, folders: list[Path]) -> None:
    """Hold that a family's folder has no generation beside those that follow one another."""
    if strays := set(generation_folders(output_dir).values()) - set(folders):
        raise BrokenChainError(
            f"{', '.join(sorted(map(str, strays)))}: no record, or none of the generation before."
        )


def _check_members(ensemble: Entry, chain: list[Entry]) -> None:
    found = {entry.record.generation: entry for entry in chain}
    for member in ensemble.record.members:
        entry = found.get(member["generation"])
        if entry is None:
            raise BrokenChainError(
                f"{ensemble.place} has a member of generation {member['generation']}, of which "
                f"there are {min(found)} to {max(found)}."  # type: ignore[type-var]
            )
        _check_reference(ensemble, member, entry)


def check_files(entry: Entry) -> None:
    """Hold that there is a model, all of it as its record lists it, and nothing else to load.

    Raises:
        RecordError: if what it lists is no model, see `check_model`.
        UnlistedFileError: if there is a file that a loader might read, or code is named, that the
            record does not list.
        TamperedFileError: if a file is not as it is listed.
    """
    listed = {file["path"] for file in entry.record.files}
    names = (name for name in entry.place.names() if name != RECORD and not is_shown(name))
    if unlisted := [name for name in names if name not in listed]:
        raise UnlistedFileError(
            f"{entry.place} holds {', '.join(unlisted)}, which its record does not name."
        )
    for file in entry.record.files:
        check_file(entry.place, file)
    check_model(entry, listed)


def check_model(entry: Entry, names: set[str]) -> None:
    """Hold that files, each as its record lists it, are a model, and nothing that a loader prefers.

    That is a config, the weights that are named as loaders look for them, and such files as
    processors and tokenizers have: no pickles, no adapter of another model, no code but theirs.

    Raises:
        RecordError: naming the file that is missing, or is none of these.
        UnlistedFileError: if code is named that is not among them.
    """
    strange = {name for name in names if name != LOG and not name.endswith(tuple(LOADED))}
    strange |= {name for name in names if name.startswith("adapter_")}
    if strange:
        raise RecordError(f"{entry.place}: {', '.join(sorted(strange))} is no part of a model.")
    weights = {name for name in names if name.endswith(".safetensors")}
    expected = {SAFE_WEIGHTS_NAME}
    if SAFE_WEIGHTS_NAME not in names and SAFE_WEIGHTS_INDEX_NAME in names:
        expected = set((_read(entry, SAFE_WEIGHTS_INDEX_NAME).get("weight_map") or {}).values())
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
    except ValueError as error:
        raise RecordError(f"{name} of {entry.place}: {error}") from error


def _check_code(entry: Entry, name: str, config: dict[str, Any], listed: set[str]) -> None:
    """Hold that the code that a config names, for `trust_remote_code`, is beside it, and listed."""
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


def check_file(place: Place, file: dict[str, Any]) -> Path:
    """Fetch a listed file and hold that it is as listed; its path."""
    path = place.fetch(file["path"])
    if (size := path.stat().st_size) != file["size"]:
        raise TamperedFileError(
            f"{file['path']} of {place} has {size} bytes; its record says {file['size']}."
        )
    if (digest := sha256_of_file(path)) != file["sha256"]:
        raise TamperedFileError(
            f"{file['path']} of {place} has the sha256 {digest}; its record says {file['sha256']}."
        )
    return path


def _check_main(entry: Entry) -> None:
    """Hold that a teacher was not published again since: what `main` gives is what taught."""
    if not isinstance(entry.place, HubCommit):
        return
    taught = entry.place
    now = str(look(taught.repo_id, token=taught.token).sha)
    if now == taught.revision:
        return
    head = Entry.at(HubCommit(taught.repo_id, now, taught.token))
    if head.lineage_sha256 != entry.lineage_sha256:
        raise TeacherChangedError(
            f"{taught.repo_id} was published again since {taught.revision[:7]}, the commit that "
            f"taught: its main branch ({now[:7]}) is another training."
        )
    check_files(head)


def _as_lineage(chain: list[Entry], ensemble: Entry | None) -> Lineage:
    places: dict[int | None, str] = {e.record.generation: str(e.place) for e in chain}
    if ensemble:
        places[None] = str(ensemble.place)
    last = ensemble or chain[-1]
    return Lineage(
        last.record.family,
        [entry.record for entry in chain],
        ensemble.record if ensemble else None,
        places,
    )
