"""Download a family, or one generation, into the folders that a run writes."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ban_hf.errors import BANError
from ban_hf.hub.client import clean_token
from ban_hf.hub.location import LocalPath
from ban_hf.hub.verification import Entry, check_file, check_files, load_lineage, walk
from ban_hf.lineage.family import Lineage
from ban_hf.lineage.record import CARD, PICTURE, RECORD, Record


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
    generations, ensemble = walk(where, revision, clean_token(token))
    entries = [*generations, ensemble] if ensemble else generations[-1:]
    download(entries, output_dir)
    last = entries[-1].record
    return load_lineage(output_dir if ensemble else output_dir / _folder_name(last))


def download(entries: Sequence[Entry], output_dir: Path) -> None:
    """Copy generations and ensembles, from a Hub or a folder, into the folders of a family.

    Raises:
        LineageError: if a file is not as its record lists it; a folder is written whole or not at
            all.
        BANError: if a folder is in the way, or two generations have one number.
    """
    names = Counter(_folder_name(entry.record) for entry in entries)
    if several := [name for name, count in names.items() if count > 1]:
        raise BANError(
            f"several networks are to be {', '.join(several)}, since a student learned from "
            "several teachers: pull each by its own repository, into folders of their own."
        )
    for entry in entries:
        _download(entry, output_dir / _folder_name(entry.record))


def _download(entry: Entry, folder: Path) -> None:
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


def _folder_name(record: Record) -> str:
    return "ensemble" if record.kind == "ensemble" else f"generation-{record.generation}"
