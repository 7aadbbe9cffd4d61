"""A teacher's outputs on disk, from which every further student learns as from the teacher itself.

The view that an item has in an epoch is a pure function of (seed, epoch, item), and so are the
outputs of a frozen teacher for it. A cache is a folder:

    cache.json           all that decides the outputs: teacher, data, views, precision
    epoch-0.DIGEST.npy   a row for each item of the training set, by the sha256 of the file
    epoch-1.DIGEST.npy   ... (one alone, where items are the same in every epoch)
    cache.lock           held by the run that fills it; others meanwhile only read

All processes fill a file together, under another name; it takes its own at the end of its epoch. So
a kill loses the outputs of one epoch, and spoils nothing. The file of an epoch that was broken off
ends in `.part.npy`, with NaN for items that the teacher has not seen.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import Tensor

from ban_hf.errors import BANError
from ban_hf.lineage.files import (
    existing_parent,
    format_bytes,
    free_bytes,
    read_json,
    sha256_of_file,
    write_json,
)

logger = logging.getLogger(__name__)

SCHEMA = "ban_hf.teacher_cache/1"
INDEX, LOCK = "cache.json", "cache.lock"
ON_DEVICE = 2**30  # bytes of a file that are held where the student is; a larger one stays mapped
PENDING = 2**26  # bytes of outputs that wait on the device before they are written


class TeacherCache:
    """A folder of a teacher's outputs that all processes see, opened for one training at a time."""

    def __init__(self, folder: str | Path, dtype: str, accelerator: Accelerator) -> None:
        self.folder, self.dtype, self.accelerator = Path(folder), dtype, accelerator
        self.is_whole = False  # whether the teacher is not needed in this epoch
        self._fills = False
        self._lock = FileLock(self.folder / LOCK, timeout=0)
        self._rows: Tensor | None = None  # (items, *row), of the epoch
        self._partial: np.memmap | None = None  # (items, *row)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def open(
        self, key: dict[str, Any], shape: tuple[int, ...], epochs: int, *, in_order: bool
    ) -> None:
        """Check the folder, log the room that is needed, and become the run that fills it.

        Args:
            key: plain JSON, all that decides the teacher's outputs, by name.
            shape: `(items, *row)`, of an epoch.
            epochs: number of files.
            in_order: whether the teacher reads the items in order, so that some are of no use.
        """
        self._shape, self._in_order = shape, in_order
        kept = {"items": shape[0], "row": list(shape[1:]), "dtype": self.dtype}
        self._key = {**key, "kept": kept}
        check_folder(self.folder)
        self._check_key()
        self._file_bytes = prod(shape) * np.dtype(self.dtype).itemsize
        missing = sum(not _is_whole(self._find(epoch)) for epoch in range(epochs))
        needed, free = missing * self._file_bytes, free_bytes(self.folder)
        room = (format_bytes(needed), format_bytes(free))
        logger.info(
            "teacher_cache: %d of %d files are in %s; the others take %s, of %s that are free",
            *(epochs - missing, epochs, self.folder, *room),
        )
        if needed > free:
            raise BANError(
                f"teacher_cache={str(self.folder)!r} needs {room[0]}, and {room[1]} are "
                "free there: name a folder on another disk, set teacher_cache_dtype=float16, which "
                "halves it, or leave teacher_cache out."
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BANError(f"teacher_cache={str(self.folder)!r}: {error}") from error
        self.accelerator.wait_for_everyone()  # all have checked before one of them writes
        self._fills = self._on_main(lambda: missing > 0 and self._acquire())

    def close(self) -> None:
        """Let another run fill it."""
        self._rows = self._partial = None
        self._pending.clear()
        if self._lock.is_locked:
            for partial in self.folder.glob("*.partial"):
                partial.unlink()
        self._lock.release()

    def begin(self, epoch: int) -> None:
        """Read the outputs of an epoch, and begin to store those that are missing."""
        self._epoch, path = epoch, self._find(epoch)
        self._partial_file = self.folder / f"epoch-{epoch}.partial"
        self._rows, self.is_whole = None, _is_whole(path)
        if path is not None:
            self._rows = torch.from_numpy(self._map(path))
            if self._file_bytes <= ON_DEVICE:
                self._rows = self._rows.to(self.accelerator.device, copy=True)
        if self._fills and not self.is_whole:
            self._fills = self._on_main(lambda: self._make_partial(path))
            if self._fills:
                self._partial = np.load(self._partial_file, mmap_mode="r+")

    def replay(self, positions: Tensor) -> Tensor | None:
        """What is stored of some items `(B,)`: `(B, *row)` float32; None if one is missing."""
        if self._rows is None:
            return None
        rows = self._rows[positions.to(self._rows.device)]  # (B, *row)
        if not self.is_whole and bool(rows.flatten(1)[:, 0].isnan().any()):
            return None
        return rows.to(self.accelerator.device, torch.float32)

    def keep(self, positions: Tensor, outputs: Tensor) -> Tensor:
        """Store outputs `(B, *row)`, or less of the second axis; return them as replayed."""
        dtype = getattr(torch, self.dtype)
        limit = torch.finfo(dtype).max
        rows = outputs.float().clamp(-limit, limit).to(dtype)  # (B, *row)
        if self._partial is not None:
            self._pending.append((positions, rows))
            if len(self._pending) * rows.nbytes > PENDING:
                self._write()
        return rows.float()

    def end(self) -> None:
        """End the epoch: put its file in place."""
        if self._partial is None:
            return
        self._write()
        self._partial.flush()
        self._partial = None
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self._put_in_place()
        self.accelerator.wait_for_everyone()

    def _write(self) -> None:
        assert self._partial is not None
        for positions, rows in self._pending:
            # A text's last window may be shorter than the others.
            self._partial[positions.cpu().numpy(), : rows.shape[1]] = rows.cpu().numpy()
        self._pending.clear()

    def _put_in_place(self) -> None:
        partial, before = self._partial_file, self._find(self._epoch)
        rows = np.load(partial, mmap_mode="r")
        is_complete = not np.isnan(rows.reshape(len(rows), -1)[:, 0]).any()
        if not is_complete and self._in_order:
            partial.unlink()
            return
        ending = ".npy" if is_complete else ".part.npy"
        path = self.folder / f"epoch-{self._epoch}.{_digest(partial)}{ending}"
        os.replace(partial, path)
        if before is not None and before != path:
            before.unlink()

    def _find(self, epoch: int) -> Path | None:
        """The file of an epoch; the whole one, where a kill has left both."""
        files = self.folder.glob(f"epoch-{epoch}.*.npy")
        return min(files, key=lambda path: not _is_whole(path), default=None)

    def _make_partial(self, begun: Path | None) -> bool:
        """Create the file to be filled, with all its room; False if the disk has none."""
        try:
            if begun is not None:
                shutil.copyfile(begun, self._partial_file)
                return True
            unseen = np.broadcast_to(np.array(np.nan, self.dtype), self._shape)
            with self._partial_file.open("wb") as file:
                # Written, since a page that finds no room later would kill the process.
                np.save(file, unseen)
        except OSError as error:
            logger.warning("teacher_cache: %s; from here on the teacher runs itself", error)
            self._partial_file.unlink(missing_ok=True)
            return False
        return True

    def _map(self, path: Path) -> np.memmap:
        """A file's rows `(items, *row)`, not read until they are needed."""
        try:
            rows: np.memmap = np.load(path, mmap_mode="c")
            is_ours = (rows.shape, rows.dtype) == (self._shape, np.dtype(self.dtype))
            is_ours = is_ours and _digest(path) == path.name.split(".")[1]
        except (OSError, ValueError, EOFError):
            is_ours = False
        if not is_ours:
            raise BANError(
                f"teacher_cache: {path} is cut short or was changed since it was written: remove "
                "it, and it is filled again."
            )
        return rows

    def _check_key(self) -> None:
        """Raise if the folder holds other outputs."""
        path = self.folder / INDEX
        if not path.is_file():
            return
        try:
            index = read_json(path)
        except (OSError, BANError):
            index = {}
        if index.get("schema") != SCHEMA:
            raise BANError(f"teacher_cache: {path} is of another form: name another folder.")
        differences = _differences(index.get("key") or {}, self._key)
        if differences:
            raise BANError(
                f"teacher_cache={str(self.folder)!r} holds other outputs; it stays as it is. Name "
                "another folder, or train with what it was filled with: " + "; ".join(differences)
            )

    def _acquire(self) -> bool:
        """Become the run that fills the folder; False if another one fills it."""
        try:
            self._lock.acquire()
        except Timeout:
            logger.warning("teacher_cache: another run fills %s; this one reads it", self.folder)
            return False
        self._check_key()  # another run may have begun to fill it
        write_json(self.folder / INDEX, {"schema": SCHEMA, "key": self._key})
        return True

    def _on_main(self, do: Callable[[], bool]) -> bool:
        """What the main process comes to, on every process."""
        value = self.accelerator.is_main_process and do()
        return bool(broadcast_object_list([value])[0])


def check_folder(folder: Path, output_dir: Path | None = None, taken: Iterable[str] = ()) -> None:
    """Raise unless a folder is a cache or can become one, and is not where a run itself writes.

    Args:
        folder: of the cache.
        output_dir: of the run.
        taken: patterns of the names that the run uses there.
    """
    named = f"teacher_cache={str(folder)!r}"
    is_other = os.path.lexists(folder) and not folder.is_dir()
    if is_other or not existing_parent(folder).is_dir():
        raise BANError(f"{named} is, or is under, something that is no folder: name another one.")
    strange = [
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name not in (INDEX, f"{INDEX}.tmp", LOCK) and not path.name.startswith("epoch-")
    ]
    if strange and not (folder / INDEX).is_file():
        raise BANError(f"{named} is not empty, and no teacher's cache: name another folder.")
    if output_dir is None or not folder.resolve().is_relative_to(output_dir.resolve()):
        return
    parts = folder.resolve().relative_to(output_dir.resolve()).parts
    if not parts or any(fnmatch(parts[0], pattern) for pattern in taken):
        raise BANError(
            f"{named} is where the run itself writes: name another folder, such as "
            f"{output_dir / 'teacher_cache'}."
        )


def _is_whole(path: Path | None) -> bool:
    return path is not None and not path.name.endswith(".part.npy")


def _digest(path: Path) -> str:
    return sha256_of_file(path)[:32]


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs in two JSON documents, by dotted names, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            found
            for part in sorted(there.keys() | here.keys())
            for found in _differences(there.get(part), here.get(part), f"{name}.{part}".strip("."))
        ]
    return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]
