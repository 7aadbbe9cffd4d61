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

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import Tensor

from ban_hf.errors import BANError
from ban_hf.lineage.files import existing_parent, format_bytes, free_bytes, read_json, write_json

logger = logging.getLogger(__name__)

SCHEMA = "ban_hf.teacher_cache/1"
INDEX, LOCK = "cache.json", "cache.lock"
ON_DEVICE = 2**30  # bytes of a file that are held where the student is; a larger one stays mapped
PENDING = 2**26  # bytes of outputs that wait on the device before they are written


@dataclass(frozen=True)
class CacheContents:
    """What a cache holds.

    Args:
        key: plain JSON, all that decides the teacher's outputs, by name.
        items: of the training set.
        row: shape of what is stored of an item.
        dtype: `"float32"` or `"float16"`.
        in_order: whether the teacher reads the items in order, so that a part of them is useless.
    """

    key: Mapping[str, Any]
    items: int
    row: tuple[int, ...]
    dtype: str
    in_order: bool = False

    @property
    def file_bytes(self) -> int:
        return self.items * int(np.prod(self.row)) * np.dtype(self.dtype).itemsize


class TeacherCache:
    """A folder of a teacher's outputs, opened for one training.

    Args:
        folder: created if it does not exist.
        contents: what it will hold.
        accelerator: of the training; all its processes see the folder.

    Raises:
        BANError: if the folder holds something else, naming all that differs.
    """

    def __init__(self, folder: str | Path, contents: CacheContents, accelerator: Accelerator):
        self.folder, self.contents, self.accelerator = Path(folder), contents, accelerator
        self.fills = False
        self.is_whole = False  # whether the teacher is not needed in this epoch
        self._lock = FileLock(self.folder / LOCK, timeout=0)
        self._rows: Tensor | None = None  # (items, *row), of the epoch
        self._partial: np.memmap | None = None  # (items, *row)
        self._pending: list[tuple[Tensor, Tensor]] = []
        check_folder(self.folder)
        self._check_key()

    def open(self, epochs: range) -> None:
        """Log the room that these epochs take, and become the run that fills them.

        Raises:
            BANError: if the disk has less, or the folder cannot be made.
        """
        whole = (path.name for path in self.folder.glob("epoch-*.npy") if not _is_part(path))
        there = {int(name.split(".")[0].removeprefix("epoch-")) for name in whole}
        missing = len(epochs) - sum(epoch in epochs for epoch in there)
        needed, free = missing * self.contents.file_bytes, free_bytes(self.folder)
        room = (format_bytes(needed), format_bytes(free))
        logger.info(
            "teacher_cache: %d of %d files are in %s; the others take %s, of %s that are free",
            *(len(epochs) - missing, len(epochs), self.folder, *room),
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
        if self.accelerator.is_main_process:
            self.fills = bool(missing) and self._acquire()
        self.fills = self._from_main(self.fills)

    def close(self) -> None:
        """Let another run fill it."""
        self._rows = self._partial = None
        self._pending.clear()
        if self._lock.is_locked:
            for partial in self.folder.glob("*.partial"):
                partial.unlink()
        self._lock.release()

    def begin(self, epoch: int) -> None:
        """Read the outputs of an epoch, and begin to store those that are missing.

        Raises:
            BANError: for a file that is not the one that was written.
        """
        self._epoch, path = epoch, self._find(epoch)
        self._rows, self.is_whole = None, _is_whole(path)
        if path is not None:
            self._rows = torch.from_numpy(self._map(path))
            if self.contents.file_bytes <= ON_DEVICE:
                self._rows = self._rows.to(self.accelerator.device, copy=True)
        if self.fills and not self.is_whole:
            if self.accelerator.is_main_process:
                self.fills = self._make_partial(path)
            self.fills = self._from_main(self.fills)
            if self.fills:
                self._partial = np.load(self._partial_file, mmap_mode="r+")

    def replay(self, positions: Tensor) -> Tensor | None:
        """What is stored of some items `(B,)`: `(B, *row)` float32; None if one is missing."""
        if self._rows is None:
            return None
        rows = self._rows[positions.to(self._rows.device)]  # (B, *row)
        if not self.is_whole and bool(_first(rows).isnan().any()):
            return None
        return rows.to(self.accelerator.device, torch.float32)

    def keep(self, positions: Tensor, outputs: Tensor) -> Tensor:
        """Store outputs `(B, *row)`, or less of the second axis; return them as replayed."""
        dtype = getattr(torch, self.contents.dtype)
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
            at, kept = positions.cpu().numpy(), rows.cpu().numpy()
            if rows.ndim > 2:  # a text's last window may be shorter
                self._partial[at, : rows.shape[1]] = kept
            else:
                self._partial[at] = kept
        self._pending.clear()

    def _put_in_place(self) -> None:
        partial, before = self._partial_file, self._find(self._epoch)
        complete = not np.isnan(_first(np.load(partial, mmap_mode="r"))).any()
        if not complete and self.contents.in_order:
            partial.unlink()
            return
        ending = ".npy" if complete else ".part.npy"
        path = self.folder / f"epoch-{self._epoch}.{_digest(partial)}{ending}"
        os.replace(partial, path)
        if before is not None and before != path:
            before.unlink()

    @property
    def _partial_file(self) -> Path:
        return self.folder / f"epoch-{self._epoch}.partial"

    def _find(self, epoch: int) -> Path | None:
        """The file of an epoch; the whole one, where a kill has left both."""
        return min(self.folder.glob(f"epoch-{epoch}.*.npy"), key=_is_part, default=None)

    def _make_partial(self, begun: Path | None) -> bool:
        """Create the file to be filled, with all its room; False if the disk has none."""
        shape = (self.contents.items, *self.contents.row)
        header = {"descr": np.dtype(self.contents.dtype).str, "fortran_order": False}
        empty = np.full((min(4096, shape[0]), *shape[1:]), np.nan, self.contents.dtype)
        try:
            if begun is not None:
                shutil.copyfile(begun, self._partial_file)
                return True
            with self._partial_file.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
                # Written, since a page that finds no room later would kill the process.
                for start in range(0, shape[0], len(empty)):
                    file.write(empty[: shape[0] - start].tobytes())
        except OSError as error:
            logger.warning("teacher_cache: %s; from here on the teacher runs itself", error)
            self._partial_file.unlink(missing_ok=True)
            return False
        return True

    def _map(self, path: Path) -> np.memmap:
        """A file's rows `(items, *row)`, not read until they are needed."""
        try:
            rows: np.memmap = np.load(path, mmap_mode="c")
            is_ours = rows.shape == (self.contents.items, *self.contents.row)
            is_ours = is_ours and rows.dtype == self.contents.dtype
            is_ours = is_ours and _digest(path) == path.name.split(".")[1]
        except (OSError, ValueError, EOFError):
            is_ours = False
        if not is_ours:
            raise BANError(
                f"teacher_cache: {path} is cut short or was changed since it was written: remove "
                "it, and it is filled again."
            )
        return rows

    def _key(self) -> dict[str, Any]:
        kept = {"items": self.contents.items, "row": list(self.contents.row)}
        return {**self.contents.key, "kept": kept | {"dtype": self.contents.dtype}}

    def _check_key(self) -> None:
        """Raise if the folder holds other outputs."""
        path = self.folder / INDEX
        if not path.is_file():
            return
        try:
            index = read_json(path)
        except (OSError, ValueError):
            index = None
        if not isinstance(index, dict) or index.get("schema") != SCHEMA:
            raise BANError(f"teacher_cache: {path} is of another form: name another folder.")
        differences = _differences(index.get("key") or {}, self._key())
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
        try:
            self._check_key()
            write_json(self.folder / INDEX, {"schema": SCHEMA, "key": self._key()})
        except BaseException:
            self._lock.release()
            raise
        return True

    def _from_main(self, value: bool) -> bool:
        """The main process's value, on every process."""
        return bool(broadcast_object_list([value])[0])


def check_folder(folder: Path, output_dir: Path | None = None, taken: Iterable[str] = ()) -> None:
    """Raise unless a folder is a cache or can become one; for use before anything is trained.

    Args:
        folder: of the cache.
        output_dir: of the run, which must not write into the cache.
        taken: patterns of the names that the run itself uses there.

    Raises:
        BANError: if it is something else, or where the run writes.
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


def _is_part(path: Path) -> bool:
    return path.name.endswith(".part.npy")


def _is_whole(path: Path | None) -> bool:
    return path is not None and not _is_part(path)


def _digest(path: Path) -> str:
    """Half of a file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _first(rows: Any) -> Any:
    """The first number of each row, of an array or a tensor."""
    return rows[(slice(None), *[0] * (rows.ndim - 1))]


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs in two JSON documents, by dotted names, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            found
            for part in sorted(there.keys() | here.keys())
            for found in _differences(there.get(part), here.get(part), f"{name}.{part}".strip("."))
        ]
    return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]
