"""Walk a network's teachers back to generation 0, across folders and repositories, and verify them.

`load_lineage` reads records alone and checks their structure. `verify_lineage` also downloads every
file and checks every hash. All fail closed: what cannot be reached is not verified. Hashes prove
that nothing changed since the record was written. They do not prove who wrote it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from ban_hf.errors import (
    BANError,
    BrokenChainError,
    CyclicLineageError,
    RecordError,
    TamperedFileError,
    TeacherChangedError,
    UnlistedFileError,
    UnsoundError,
    UnverifiableError,
)
from ban_hf.hub.location import HubRevision, LocalPath, Location, repo_info, resolve
from ban_hf.lineage.catalog import UNSHIFTED
from ban_hf.lineage.family import Lineage, finished_generations, generation_folders
from ban_hf.lineage.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LOADED,
    is_shown,
    model_files,
    read_json,
    sha256_of_file,
    weight_files,
)
from ban_hf.lineage.record import (
    LOG,
    RECORD,
    Adapter,
    FileEntry,
    Record,
    Reference,
)

#: How the names of classes end, beside those in `UNSHIFTED`, whose labels are not shifted.
NOT_SHIFTED = ("ForTokenClassification", "ForAudioFrameClassification", "ForMaskedLM")


@dataclass(frozen=True)
class Entry:
    """A record and its location."""

    place: Location
    record: Record

    @classmethod
    def at(cls, place: Location) -> "Entry":
        """Read the record of a location and check that it is complete."""
        file = place.fetch(RECORD)
        try:
            record = Record.read(file.parent)
            record.validate()
        except BANError as error:
            raise RecordError(f"{place}: {error}") from error
        return cls(place, record)

    @cached_property
    def lineage_sha256(self) -> str:
        """The digest of the record's file."""
        return sha256_of_file(self.place.fetch(RECORD))

    @property
    def references(self) -> tuple[Reference, ...]:
        """Its teachers, or its members."""
        return (*self.record.teachers, *self.record.members)

    @cached_property
    def named(self) -> list[Location]:
        """Where they are."""
        return [self.place.resolve_reference(reference) for reference in self.references]

    def reference(self) -> Reference:
        """How a published record names this network, which is on the Hub."""
        assert isinstance(self.place, HubRevision)
        return Reference(
            generation=self.record.generation or 0,
            lineage_sha256=self.lineage_sha256,
            weights_sha256=self.record.weights_sha256,
            repo_id=self.place.repo_id,
            revision=self.place.revision,
        )


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
    return _as_lineage(walk(where, revision))


def verify_lineage(where: str | Path, revision: str | None = None) -> Lineage:
    """Download everything that a lineage names and check that it is what the records say.

    Checked: the form of every record; full commits only; generations that fall from student to
    teacher down to 0, with one teacher by exactly one; no cycle; each teacher's record and weights
    as its student recorded them, there and on its `main` branch; size and sha256 of every file,
    also of the base of an adapter; no weights or code beside those that are listed; no network that
    a release is known to have trained wrongly.

    Args:
        where: see `load_lineage`.
        revision: see `load_lineage`.

    Returns:
        The lineage, verified.

    Raises:
        LineageError: at the first problem; beside those of `load_lineage` `TamperedFileError`,
            `UnlistedFileError` or `UnsoundError`.
    """
    entries = walk(where, revision)
    for entry in entries:
        check_files(entry)
        check_sound(entry)
    check_bases(entries)
    for entry in entries[:-1]:
        _check_main(entry)
    return _as_lineage(entries)


def check_sound(entry: Entry) -> None:
    """Raise for a network that an early release trained on labels that it read wrongly.

    Release 0.1 shifted the labels of every text, also of heads that do not.
    """
    release = re.match(r"0\.[01](\D|$)", entry.record.code.get("ban-hf") or "")
    name = entry.record.architecture.class_name or ""
    if release and (name in UNSHIFTED or name.endswith(NOT_SHIFTED)):
        raise UnsoundError(
            f"{entry.place} is a {name} of ban_hf {entry.record.code['ban-hf']}, which shifted its "
            "labels by one place, wrongly: its weights and its metrics are not what its record "
            "says. Train it again; CHANGELOG.md tells more."
        )


def _as_lineage(entries: list[Entry]) -> Lineage:
    *others, last = [entry.record for entry in entries]
    is_family = last.kind == "ensemble"
    return Lineage(
        last.family,
        others if is_family else [*others, last],
        last if is_family else None,
        [str(entry.place) for entry in entries],
    )


# Records


def walk(where: str | Path, revision: str | None = None, token: str | None = None) -> list[Entry]:
    """The networks that a location stands for: by generation, and last an ensemble if it has one.

    A generation stands for itself and those before it, a family for all its generations.
    """
    place = resolve(where, revision, token)
    folders = finished_generations(place.path) if isinstance(place, LocalPath) else []
    if not isinstance(place, LocalPath) or not folders:
        return ancestry(place)
    if strays := set(generation_folders(place.path).values()) - set(folders):
        raise BrokenChainError(
            f"{', '.join(sorted(map(str, strays)))}: no record, or none of the generation before."
        )
    known: dict[Location, Entry] = {}
    family = ancestry(LocalPath(folders[-1]), known=known)
    if others := [str(f) for f in folders if LocalPath(f).absolute() not in known]:
        raise TeacherChangedError(
            f"{', '.join(others)}: not what {folders[-1]} descends from, by its record."
        )
    ensemble = place.path / "ensemble"
    if not ensemble.is_dir():
        return family
    *generations, last = ancestry(LocalPath(ensemble), known=known)
    if outside := [str(entry.place) for entry in generations if entry not in family]:
        raise BrokenChainError(f"{ensemble} has members outside its family: {', '.join(outside)}.")
    return [*generations, last]


def ancestry(*places: Location, known: dict[Location, Entry] | None = None) -> list[Entry]:
    """Networks and all their teachers, each once, by generation; ensembles last.

    A single network is the last, since its teachers are of earlier generations. `known` are those
    that were visited before, which are among the result; the others are added to it.

    Raises:
        LineageError: if they are no graph without cycles down to generation 0, or a teacher is not
            the one that its student recorded.
    """
    entries = {} if known is None else known
    for place in places:  # references are resolved to absolute paths
        _visit(place.absolute() if isinstance(place, LocalPath) else place, entries)
    try:
        TopologicalSorter({place: entry.named for place, entry in entries.items()}).prepare()
    except CycleError as error:
        ancestor, student, *_ = error.args[1]
        raise CyclicLineageError(f"{ancestor} is its own ancestor, through {student}.") from error
    for entry in entries.values():
        _check_generation(entry, [entries[place] for place in entry.named])
    for entry in entries.values():
        for reference, place in zip(entry.references, entry.named, strict=True):
            _check_reference(entry, reference, entries[place])
    return sorted(
        entries.values(), key=lambda e: (e.record.kind == "ensemble", e.record.generation or 0)
    )


def _visit(place: Location, entries: dict[Location, Entry]) -> None:
    """Read a record and all those that it names, depth first, without recursion."""
    todo: list[tuple[Location, Entry | None]] = [(place, None)]  # each with its student
    while todo:
        place, student = todo.pop()
        if place in entries:
            continue
        entry = entries[place] = Entry.at(place)
        if student is not None:
            _check_falls(student, entry)
        todo += [(named, entry) for named in entry.named]


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


def _check_generation(student: Entry, named: list[Entry]) -> None:
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


def _check_reference(entry: Entry, reference: Reference, named: Entry) -> None:
    """Check that a teacher or member is what its student or ensemble recorded."""
    if named.record.generation != reference.generation:
        raise BrokenChainError(
            f"{entry.place} names {named.place} as generation {reference.generation}, but it is "
            f"{named.record.name}."
        )
    if (named.lineage_sha256, named.record.weights_sha256) != reference.hashes:
        raise TeacherChangedError(
            f"{named.place} is not the generation {reference.generation} that {entry.place} "
            "recorded: its record or its weights have other hashes."
        )


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


# Files


def check_files(entry: Entry) -> None:
    """Check that there is a model, all of it as its record lists it, and nothing else to load."""
    listed = {file.path for file in entry.record.files}
    names = (name for name in entry.place.names() if name != RECORD and not is_shown(name))
    if unlisted := [name for name in names if name not in listed]:
        raise UnlistedFileError(
            f"{entry.place} holds {', '.join(unlisted)}, which its record does not name."
        )
    for file in entry.record.files:
        check_file(entry.place, file)
    check_model(entry, listed)


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


def check_model(entry: Entry, names: set[str]) -> None:
    """Check that the files that a record lists are a model, and no file that loaders prefer to it.

    That is a config, weights by the names that loaders look for, and such files as processors and
    tokenizers have: no pickles, no adapter of another model, no code but theirs. Of an adapter it
    is the adapter alone.
    """
    strange = {name for name in names if name != LOG and not name.endswith(tuple(LOADED))}
    strange |= {name for name in names if name.startswith("adapter_")}
    config, expected = "config.json", set()
    if entry.record.architecture.adapter is not None:
        strange = strange - {ADAPTER_CONFIG, ADAPTER_WEIGHTS} | names & {config}
        config, expected = ADAPTER_CONFIG, {ADAPTER_WEIGHTS}
    if strange:
        raise RecordError(f"{entry.place}: {', '.join(sorted(strange))} is no part of a model.")
    expected = expected or weight_files(names, partial(_read, entry.place))
    weights = {name for name in names if name.endswith(".safetensors")}
    if config not in names or not weights or weights != expected:
        raise RecordError(
            f"{entry.place}: its record lists no {config}, or no weights by the names that "
            f"loaders look for ({', '.join(sorted(weights)) or 'none'})."
        )
    for name in sorted(names):
        if name.endswith("config.json"):
            _check_code(entry, name, names)


def _check_code(entry: Entry, name: str, listed: set[str]) -> None:
    """Check that the code that a config names, for `trust_remote_code`, is beside it and listed."""
    config = _read(entry.place, name)
    for reference in _strings([config.get("auto_map"), config.get("custom_pipelines")]):
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


def _read(place: Location, name: str) -> dict[str, Any]:
    path = place.fetch(name)
    try:
        return read_json(path)
    except BANError as error:
        raise RecordError(f"{name} of {place}: {error}") from error


def check_bases(entries: Iterable[Entry]) -> None:
    """Check that the bases of adapters are those that they were trained beside, each base once."""
    bases = {}
    for entry in entries:
        if adapter := entry.record.architecture.adapter:
            bases[_base(entry, adapter), adapter.base_files] = entry
    for (place, files), entry in bases.items():
        for file in files:
            check_file(place, file)
        listed = {file.path for file in files}
        if other := model_files(set(place.names()), partial(_read, place)) ^ listed:
            raise UnlistedFileError(
                f"{place}, the base of {entry.place}, is not loaded from the files that its record "
                f"names: {', '.join(sorted(other))}."
            )


def _base(entry: Entry, adapter: Adapter) -> Location:
    """Where the base of an adapter is: where loaders of the adapter look for it."""
    config = _read(entry.place, ADAPTER_CONFIG)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if adapter.base_revision is not None:
        if (name, revision) != (adapter.base, adapter.base_revision):
            raise RecordError(
                f"{entry.place}: {ADAPTER_CONFIG} names the base {name}@{revision}, but its record "
                f"{adapter.base}@{adapter.base_revision}."
            )
        token = entry.place.token if isinstance(entry.place, HubRevision) else None
        return HubRevision(adapter.base, adapter.base_revision, token)
    if isinstance(entry.place, HubRevision):
        raise RecordError(f"{entry.place} names a folder for its base, not a repository.")
    if not Path(str(name)).is_dir():
        raise UnverifiableError(
            f"{entry.place} is an adapter of {name}, which is not there: put its base back."
        )
    return LocalPath(Path(str(name)))
