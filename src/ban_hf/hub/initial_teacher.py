"""A sequence that continues from an existing generation, on the Hub or in a folder."""

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ban_hf.errors import BANError
from ban_hf.hub.location import LOCAL_GENERATION, LocalPath, resolve
from ban_hf.hub.verification import Entry, ancestry, check_files, copy_verified
from ban_hf.lineage.family import finished_generations
from ban_hf.lineage.record import RECORD, Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialTeacher:
    """The generation that a sequence continues from, which it has not trained.

    Attributes:
        note: what the run's record holds of it: `teacher`, its name, and `asked`, the argument that
            named it; of a path its sha256, which does not reveal the path.
        generation: its number.
        entries: what is copied beside its students: a teacher on the Hub alone, since its record
            says where its own teachers are; one in a folder with those before it, which its record
            takes to be in the folders beside it.
    """

    note: dict[str, str]
    generation: int
    entries: tuple[Entry, ...] = ()

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

    Raises:
        ValueError: if it is no generation.
        LineageError: if its own lineage is not what it says.
    """
    if not Path(asked).is_dir() and {asked, _digest(asked)} & {*noted.values()}:
        if (generation := _copied(noted, output_dir)) is not None:
            return InitialTeacher(noted, generation)
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


def _copied(noted: dict[str, str], output_dir: Path) -> int | None:
    """The number of the noted teacher, if it has been copied."""
    given = given_generations(noted, output_dir)
    if not given:
        return None
    local, last = LOCAL_GENERATION.fullmatch(noted["teacher"]), _number(given[-1])
    return last if local is None or last == int(local[1]) else None


def check_no_other_teacher(output_dir: Path, ours: list[Path]) -> None:
    """Raise if the copied teacher of an earlier attempt would be taken for this run's.

    Args:
        output_dir: of the run, which has trained nothing yet.
        ours: the folders of the teacher that is noted there, if this is the run's.

    Raises:
        ValueError: naming the folder that does.
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

    Raises:
        LineageError: if it is not what its record says.
    """
    if (folder / RECORD).is_file():
        check_files(Entry.at(LocalPath(folder)))
    else:
        copy_verified(teacher.entries, folder.parent)
        ancestry(LocalPath(folder))  # what its record names is there, too
    theirs, ours = _normalisation(Record.read(folder).data), _normalisation(data)
    if theirs and ours and theirs != ours:
        logger.warning(
            "%s was trained on images of mean and standard deviation %s, and is now given such of "
            "%s: it may teach worse than its card says.",
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
