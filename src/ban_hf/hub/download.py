"""A family, or one generation, from the Hub into the folders that a run writes."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ban_hf.errors import BANError
from ban_hf.hub.cards import CARD, PICTURE
from ban_hf.hub.client import clean_token
from ban_hf.hub.location import LocalFolder
from ban_hf.hub.verification import Entry, check_file, check_files, load_lineage, walk
from ban_hf.lineage.record import RECORD, Lineage, Record


def pull(
    where: str | Path,
    output_dir: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Lineage:
    """Download a family, or one generation, into the folders that `train_generations` writes.

    Every file is held against its record. A folder that is there already stays, if it is the same.

    Args:
        where: `"ns/family"` for all generations and the ensemble, `"ns/family-gen2"` for that one
            alone; with `@revision` if wanted.
        output_dir: to hold `generation-0` and so on, and `ensemble`.
        revision: a branch, a tag or a commit; by default `main`.
        token: by default the one of `hf auth login` or HF_TOKEN.

    Returns:
        The lineage of what was pulled.

    Raises:
        LineageError: if it is not what its records say; a folder stands whole or not at all.
        ValueError: if a folder is in the way.
    """
    output_dir = Path(output_dir)
    chain, ensemble = walk(where, revision, clean_token(token))
    entries = [*chain, ensemble] if ensemble else chain[-1:]
    bring(entries, output_dir)
    last = entries[-1].record
    return load_lineage(output_dir if ensemble else output_dir / _folder_name(last))


def bring(entries: Sequence[Entry], output_dir: Path) -> None:
    """Copy generations and ensembles, from wherever they stand, into the folders of a family.

    Raises:
        LineageError: if a file is not as its record lists it; a folder stands whole or not at all.
        ValueError: if a folder is in the way.
    """
    for entry in entries:
        _bring(entry, output_dir / _folder_name(entry.record))


def _bring(entry: Entry, folder: Path) -> None:
    """Copy a generation or an ensemble, whole or not at all."""
    if folder.exists():
        standing = Entry.at(LocalFolder(folder)) if (folder / RECORD).is_file() else None
        if standing is not None and standing.lineage_sha256 == entry.lineage_sha256:
            check_files(standing)
            return
        raise BANError(f"{folder} is in the way of {entry.place}: move it, or pull elsewhere.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as partial:
        files = {file["path"]: check_file(entry.place, file) for file in entry.record.files}
        beside = {RECORD, CARD, PICTURE} & set(entry.place.names())
        files |= {name: entry.place.fetch(name) for name in beside}
        for name, source in files.items():
            target = Path(partial, folder.name, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        os.replace(Path(partial, folder.name), folder)


def _folder_name(record: Record) -> str:
    return "ensemble" if record.kind == "ensemble" else f"generation-{record.generation}"
