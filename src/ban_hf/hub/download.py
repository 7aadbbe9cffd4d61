"""Verified copies of generations: `pull`, and the teacher that a sequence continues from."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ban_hf.errors import BANError
from ban_hf.hub.client import clean_token
from ban_hf.hub.location import LOCAL_GENERATION, LocalPath, resolve
from ban_hf.hub.verification import (
    Entry,
    ancestry,
    check_bases,
    check_file,
    check_files,
    load_lineage,
    walk,
)
from ban_hf.lineage.family import Lineage, finished_generations, is_finished
from ban_hf.lineage.record import CARD, PICTURE, RECORD, Record

logger = logging.getLogger(__name__)


def pull(
    where: str | Path,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Lineage:
    """Download a family, or one generation, into the folders that `train_generations` writes.

    Every file is checked against its record. An existing folder stays, if it is the same.

    Args:
        where: `"ns/family"` for all generations and the ensemble, `"ns/family-gen2"` for that one
            alone; with `@revision` if wanted.
        output_dir: to hold `generation-0` and so on, and `ensemble`.
        revision: a branch, a tag or a commit; by default `main`.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The lineage of what was pulled.

    Raises:
        LineageError: if it is not what its records say; a folder is written whole or not at all.
        BANError: if a folder is in the way.
    """
    output_dir = Path(output_dir)
    entries = walk(where, revision, clean_token(token))
    last = entries[-1]
    is_family = last.record.kind == "ensemble"
    _copy_all(entries if is_family else [last], output_dir)
    return load_lineage(output_dir if is_family else output_dir / _folder_name(last))


def _copy_all(entries: Sequence[Entry], output_dir: Path) -> None:
    """Copy networks into the folders of a family, every file checked against its record."""
    names = Counter(map(_folder_name, entries))
    if several := [name for name, count in names.items() if count > 1]:
        raise BANError(
            f"several networks are to be {', '.join(several)}, since a student learned from "
            "several teachers: pull each by its own repository, into folders of their own."
        )
    for entry in entries:
        _copy(entry, output_dir / _folder_name(entry))


def _copy(entry: Entry, folder: Path) -> None:
    """Copy a network, whole or not at all; one that is there already must be the same."""
    if folder.exists():
        existing = Entry.at(LocalPath(folder)) if is_finished(folder) else None
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


def _folder_name(entry: Entry) -> str:
    return entry.record.name.replace(" ", "-")  # generation-2, or ensemble


# The teacher of a sequence


@dataclass(frozen=True)
class InitialTeacher:
    """The generation that a sequence continues from, which it has not trained.

    One on the Hub is copied alone, since its record says where its own teachers are; one in a
    folder with those before it, which its record takes to be in the folders beside it.
    """

    #: What the run's record holds of it: `teacher`, its name, and `asked`, the argument that named
    #: it; of a path its sha256, which does not reveal the path.
    note: dict[str, str]
    generation: int
    entries: tuple[Entry, ...] = ()  # what is copied beside its students

    @property
    def name(self) -> str:
        """`ns/family-gen2@commit`; of one in a folder `generation-2@sha256 of its record`."""
        return self.note["teacher"]

    @property
    def is_local(self) -> bool:
        """Whether it was in a folder: then its students name the copy."""
        return LOCAL_GENERATION.fullmatch(self.name) is not None


def noted_teacher(note: dict[str, Any] | None) -> dict[str, str]:
    """The teacher that a run's record names, as `InitialTeacher.note`."""
    noted: dict[str, str] = (note or {}).get("run", {}).get("teacher") or {}
    return noted


def given_generations(noted: dict[str, str], output_dir: Path) -> list[Path]:
    """The folders that were copied for a run's teacher: not its own generations."""
    folders = finished_generations(output_dir) if noted else []
    if folders and (local := LOCAL_GENERATION.fullmatch(noted["teacher"])):
        return [folder for folder in folders if _number(folder) <= int(local[1])]
    return folders[:1]


def find_teacher(
    asked: str, noted: dict[str, str], output_dir: Path, token: str | None
) -> InitialTeacher:
    """Find the requested teacher; if the run has noted and copied it, the copy is used.

    Then the Hub is not asked again: it may be away, or its branch elsewhere by now. Nor need the
    folder be where it was; one that is there is looked at, since another may be in its place.
    """
    if not Path(asked).is_dir() and {asked, _digest(asked)} & {*noted.values()}:
        given = given_generations(noted, output_dir)
        local = LOCAL_GENERATION.fullmatch(noted["teacher"])
        if given and (local is None or _number(given[-1]) == int(local[1])):
            return InitialTeacher(noted, _number(given[-1]))
        asked = noted["teacher"] if asked in noted.values() else asked
    place = resolve(asked, token=token)
    if isinstance(place, LocalPath) and finished_generations(place.path):
        raise BANError(f"teacher={asked!r} is a family: name one of its generations.")
    chain = ancestry(place)
    last = chain[-1]
    if last.record.kind != "generation":
        raise BANError(f"teacher={asked!r} is an ensemble: name one of its generations.")
    note, entries = {"teacher": str(place), "asked": asked}, chain[-1:]
    if isinstance(place, LocalPath):
        name = f"generation-{last.record.generation}@{last.lineage_sha256}"
        note = {"teacher": name, "asked": _digest(asked)}
        entries = [entry for entry in chain if isinstance(entry.place, LocalPath)]
    if noted.get("teacher") == note["teacher"]:
        note = noted
    return InitialTeacher(note, int(last.record.generation or 0), tuple(entries))


def check_no_other_teacher(output_dir: Path, ours: list[Path]) -> None:
    """Refuse the copied teacher of an earlier attempt, which would be taken for this run's.

    Args:
        output_dir: of the run, which has trained nothing yet.
        ours: the folders of the teacher that is noted there, if this is the run's.
    """
    for folder in finished_generations(output_dir):
        if folder not in ours:
            raise BANError(
                f"{folder} was copied for another teacher than this run's: move it away, or give "
                "another output_dir."
            )


def place_teacher(teacher: InitialTeacher, folder: Path, data: dict[str, Any]) -> None:
    """Put the teacher beside its students, in `folder`; if it is there already, hold it is whole.

    Warns where it was trained on images that were normalised otherwise than those of `data`, which
    it is going to be asked about: nothing else would tell.
    """
    if is_finished(folder):
        check_files(Entry.at(LocalPath(folder)))
    else:
        _copy_all(teacher.entries, folder.parent)
        ancestry(LocalPath(folder))  # what its record names is there, too
    check_bases([Entry.at(LocalPath(folder))])
    theirs, ours = _normalisation(Record.read(folder).data), _normalisation(data)
    if theirs and ours and theirs != ours:
        logger.warning(
            "%s was trained on images of mean and standard deviation %s, and is now given such of "
            "%s. Unless its own image processor and the students' processing_class tell the two "
            "apart, so that pixels are converted for it, it may teach worse than its card says.",
            teacher.name,
            theirs,
            ours,
        )


def _digest(path: str) -> str:
    return hashlib.sha256(os.path.abspath(path).encode()).hexdigest()


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("generation-"))


def _normalisation(data: dict[str, Any]) -> list[Any]:
    """Mean and standard deviation of the training images, as far as a record has them."""
    views = (data.get("train") or {}).get("views") or {}
    return [views[name] for name in ("mean", "std") if name in views]
