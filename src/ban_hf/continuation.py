"""A sequence that goes on from somebody's generation on the Hub."""

from pathlib import Path
from typing import Any

from ban_hf.hub import pull
from ban_hf.lineage import RECORD, Record, finished_generations
from ban_hf.places import LocalFolder, locate
from ban_hf.provenance import Entry, ancestry, check_files


def noted_teacher(note: dict[str, Any] | None) -> str | None:
    """The generation on the Hub that a run was noted to go on from, by its commit."""
    teacher: str | None = (note or {}).get("run", {}).get("teacher", {}).get("teacher")
    return teacher


def find_teacher(
    asked: str, noted: str | None, output_dir: Path, token: str | None
) -> tuple[str, int]:
    """The teacher by its commit, and its generation; where it is noted and pulled, as it is there.

    Then the Hub is not asked again: it may be away, or its branch elsewhere by now.

    Raises:
        ValueError: if it is no generation on the Hub.
        LineageError: if its own lineage is not what it says.
    """
    if noted and asked in (noted, noted.partition("@")[0]):
        if pulled := finished_generations(output_dir):
            return noted, int(Record.read(pulled[0]).generation or 0)
        asked = noted
    place = locate(asked, token=token)
    if isinstance(place, LocalFolder):
        raise ValueError(
            f"teacher={asked!r} is a local folder: it takes a generation on the Hub, "
            "'ns/family-gen2@commit'. To go on with a run of your own, give its output_dir and "
            "more generations."
        )
    record = Entry.at(place).record
    if record.kind != "generation":
        raise ValueError(f"teacher={asked!r} is an ensemble: name one of its generations.")
    ancestry(place)
    return str(place), int(record.generation or 0)


def hold_no_other_teacher(output_dir: Path, generation: int) -> None:
    """Hold that no teacher of an earlier attempt stands where it would be taken for a student.

    Raises:
        ValueError: naming it.
    """
    for folder in finished_generations(output_dir):
        if folder.name != f"generation-{generation}":
            raise ValueError(
                f"{folder} was pulled for another teacher than this run's: move it away, or give "
                "another output_dir."
            )


def pull_teacher(teacher: str, folder: Path, token: str | None) -> None:
    """Put the teacher beside its students, in `folder`; if it is there already, hold it is whole.

    Raises:
        LineageError: if it is not what its record says.
    """
    if (folder / RECORD).is_file():
        check_files(Entry.at(LocalFolder(folder)))
    else:
        pull(teacher, folder.parent, token=token)
