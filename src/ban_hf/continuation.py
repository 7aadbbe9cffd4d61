"""A sequence that goes on from somebody's generation on the Hub."""

import logging
from pathlib import Path
from typing import Any

from ban_hf.lineage import RECORD, Record, finished_generations
from ban_hf.places import LocalFolder, locate
from ban_hf.provenance import Entry, ancestry, check_files
from ban_hf.pulling import pull

logger = logging.getLogger(__name__)


def noted_teacher(note: dict[str, Any] | None) -> dict[str, str]:
    """What a run was noted to go on from: `teacher`, by its commit, and the words that `asked`."""
    noted: dict[str, str] = (note or {}).get("run", {}).get("teacher") or {}
    return noted


def find_teacher(
    asked: str, noted: dict[str, str], output_dir: Path, token: str | None
) -> tuple[dict[str, str], int]:
    """What to note of a teacher, and its generation; where it is noted and pulled, as it is there.

    Then the Hub is not asked again: it may be away, or its branch elsewhere by now.

    Raises:
        ValueError: if it is no generation on the Hub.
        LineageError: if its own lineage is not what it says.
    """
    if asked in noted.values():
        if pulled := finished_generations(output_dir):
            return noted, int(Record.read(pulled[0]).generation or 0)
        asked = noted["teacher"]
    place = locate(asked, token=token)
    if isinstance(place, LocalFolder):
        raise ValueError(
            f"teacher={asked!r} is a local folder: it takes a generation on the Hub, "
            "'ns/family-gen2@commit'. To go on with a run of your own, give its output_dir and "
            "more generations."
        )
    record = ancestry(place)[-1].record
    if record.kind != "generation":
        raise ValueError(f"teacher={asked!r} is an ensemble: name one of its generations.")
    found = {"teacher": str(place), "asked": asked}
    return noted if noted.get("teacher") == str(place) else found, int(record.generation or 0)


def hold_no_other_teacher(output_dir: Path, ours: Path | None) -> None:
    """Hold that no teacher of an earlier attempt stands where it would be taken for this run's.

    Args:
        output_dir: of the run, which has trained nothing yet.
        ours: the folder of the teacher that is noted there, if this is the run's.

    Raises:
        ValueError: naming the folder that does.
    """
    for folder in finished_generations(output_dir):
        if folder != ours:
            raise ValueError(
                f"{folder} was pulled for another teacher than this run's: move it away, or give "
                "another output_dir."
            )


def pull_teacher(teacher: str, folder: Path, data: dict[str, Any], token: str | None) -> None:
    """Put the teacher beside its students, in `folder`; if it is there already, hold it is whole.

    Warns where it was trained on images that were normalised otherwise than those of `data`, which
    it is going to be asked about: nothing else would tell.

    Raises:
        LineageError: if it is not what its record says.
    """
    if (folder / RECORD).is_file():
        check_files(Entry.at(LocalFolder(folder)))
    else:
        pull(teacher, folder.parent, token=token)
    theirs, ours = _normalisation(Record.read(folder).data), _normalisation(data)
    if theirs and ours and theirs != ours:
        logger.warning(
            "%s was trained on images of mean and standard deviation %s, and is now given such of "
            "%s: it may teach worse than its card says.",
            teacher,
            theirs,
            ours,
        )


def _normalisation(data: dict[str, Any]) -> list[Any]:
    """Mean and standard deviation of the training images, as far as a record has them."""
    views = (data.get("train") or {}).get("views") or {}
    return [views[name] for name in ("mean", "std") if name in views]
