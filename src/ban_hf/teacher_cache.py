"""A teacher's outputs on disk, from which every further student learns as if it had been asked.

The view that an item has in an epoch is a pure function of (seed, epoch, item), and so is what a
frozen teacher says of it. A cache is a folder:

    cache.json     what decides the outputs (teacher, data, views, precision); each file's sha256
    epoch-0.npy    a row for each item of the training set, NaN where the teacher was not asked
    epoch-1.npy    ... (one file alone, where items are the same in every epoch)
    cache.lock     held by the run that fills it; others meanwhile only read

A file is filled under another name, by all processes together, and takes its own, and its line in
cache.json, when its epoch is over: a kill loses what was learnt in one epoch, and spoils nothing.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from torch import Tensor

from ban_hf.cost import free_bytes, size
from ban_hf.lineage import read_json, write_json

logger = logging.getLogger(__name__)

SCHEMA = "ban_hf.teacher_cache/1"
INDEX = "cache.json"
ON_DEVICE = 2**30  # bytes of a file that are held where the student is; a larger one stays mapped
PENDING = 2**26  # bytes of outputs that wait on the device before they are written


@dataclass(frozen=True)
class CacheContents:
    """What a cache holds.

    Args:
        key: plain JSON, all that decides what the teacher says, by name.
        items: of the training set.
        row: shape of what is kept of an item.
        dtype: `"float32"` or `"float16"`.
        in_order: whether the teacher reads the items in order, so that a part of them is no use.
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
        folder: made where there is none.
        contents: what it is to hold.
        accelerator: of the training, whose processes all see the folder.

    Raises:
        ValueError: if the folder holds something else, naming all that differs.
    """

    def __init__(self, folder: str | Path, contents: CacheContents, accelerator: Accelerator):
        self.folder, self.contents, self.accelerator = Path(folder), contents, accelerator
        self.fills = False
        self._lock = FileLock(self.folder / "cache.lock", timeout=0)
        self._rows: Tensor | None = None  # (items, *row), of the epoch
        self.is_whole = False  # whether the teacher need not be asked in this epoch
        self._partial: np.memmap | None = None  # (items, *row)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._read_index()

    def open(self, files: Iterable[int]) -> None:
        """Say how much room the files of these epochs take, and become the run that fills them.

        Raises:
            ValueError: if the disk has less.
        """
        known = self._read_index()["files"]
        epochs = [_file_name(epoch) for epoch in files]
        missing = [name for name in epochs if not known.get(name, {}).get("complete")]
        needed, free = len(missing) * self.contents.file_bytes, free_bytes(self.folder)
        logger.info(
            "teacher_cache: %d of %d files are in %s; the others take %s, of %s that are free",
            *(len(epochs) - len(missing), len(epochs), self.folder, size(needed), size(free)),
        )
        if needed > free:
            raise ValueError(
                f"teacher_cache={str(self.folder)!r} needs {size(needed)}, and {size(free)} are "
                "free there: name a folder on another disk, set teacher_cache_dtype=float16, which "
                "halves it, or leave teacher_cache out."
            )
        self.accelerator.wait_for_everyone()  # all have looked before one of them writes
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.fills = bool(missing) and self._is_ours()
            if self.fills:
                write_json(self.folder / INDEX, self._read_index())
        self.fills = self._from_main(self.fills)

    def close(self) -> None:
        """Let another run fill it."""
        self._rows = self._partial = None
        self._pending.clear()
        self._lock.release()

    def begin(self, epoch: int) -> None:
        """Take up the outputs of an epoch, and begin to note those that are not there.

        Raises:
            ValueError: for a file that is not the one that was written.
        """
        self._epoch, entry = epoch, self._read_index()["files"].get(_file_name(epoch))
        self._rows, self.is_whole = None, bool(entry and entry["complete"])
        if entry:
            self._rows = torch.from_numpy(self._map(epoch, entry["sha256"]))
            if self.contents.file_bytes <= ON_DEVICE:
                self._rows = self._rows.to(self.accelerator.device, copy=True)
        if self.fills and not self.is_whole:
            if self.accelerator.is_main_process:
                self.fills = self._make_partial(entry is not None)
            self.fills = self._from_main(self.fills)
            if self.fills:
                self._partial = np.load(self._partial_file, mmap_mode="r+")

    def replay(self, positions: Tensor) -> Tensor | None:
        """What is kept of some items `(B,)`: `(B, *row)` float32; None where one is missing."""
        if self._rows is None:
            return None
        rows = self._rows[positions.to(self._rows.device)]  # (B, *row)
        if not self.is_whole and bool(_first(rows).isnan().any()):
            return None
        return rows.to(self.accelerator.device, torch.float32)

    def keep(self, positions: Tensor, outputs: Tensor) -> Tensor:
        """Note outputs `(B, *row)`, or less of the second axis; as they will be replayed."""
        dtype = getattr(torch, self.contents.dtype)
        limit = torch.finfo(dtype).max
        rows = outputs.float().clamp(-limit, limit).to(dtype)  # (B, *row)
        if self._partial is not None:
            self._pending.append((positions, rows))
            if len(self._pending) * rows.nbytes > PENDING:
                self._write()
        return rows.float()

    def end(self) -> None:
        """The epoch is over: put its file in place."""
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
        partial, name = self._partial_file, _file_name(self._epoch)
        first = _first(np.load(partial, mmap_mode="r"))  # (items,)
        complete = not np.isnan(first).any()
        if not complete and self.contents.in_order:
            partial.unlink()
            return
        index = self._read_index()
        index["files"][name] = {"sha256": _sha256(partial), "complete": bool(complete)}
        os.replace(partial, self.folder / name)
        write_json(self.folder / INDEX, index)

    @property
    def _partial_file(self) -> Path:
        return self.folder / f"{_file_name(self._epoch)}.partial"

    def _make_partial(self, goes_on: bool) -> bool:
        """Make the file that is to be filled, with all its room; False where there is none."""
        shape = (self.contents.items, *self.contents.row)
        try:
            if goes_on:
                shutil.copyfile(self.folder / _file_name(self._epoch), self._partial_file)
                return True
            with self._partial_file.open("wb") as file:
                header = {"descr": np.dtype(self.contents.dtype).str, "fortran_order": False}
                np.lib.format.write_array_header_1_0(file, header | {"shape": shape})
                # A page without room on the disk, found as it is written, would kill the process.
                os.posix_fallocate(file.fileno(), file.tell(), self.contents.file_bytes)
        except OSError as error:
            logger.warning("teacher_cache: %s; from here on the teacher is asked", error)
            self._partial_file.unlink(missing_ok=True)
            return False
        np.load(self._partial_file, mmap_mode="r+")[:] = np.nan
        return True

    def _map(self, epoch: int, sha256: str) -> np.memmap:
        """A file's rows `(items, *row)`, not read until they are needed."""
        path = self.folder / _file_name(epoch)
        try:
            rows: np.memmap = np.load(path, mmap_mode="c")
            is_whole = rows.shape == (self.contents.items, *self.contents.row)
            is_whole = is_whole and rows.dtype == self.contents.dtype and _sha256(path) == sha256
        except (OSError, ValueError):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"teacher_cache: {path} is cut short or was changed since it was written: remove "
                f"it and its line in {INDEX}, or the folder, and it is filled again."
            )
        return rows

    def _read_index(self) -> dict[str, Any]:
        """The index, or a new one; it holds that a standing one is of the same outputs."""
        path = self.folder / INDEX
        holds = {"items": self.contents.items, "row": list(self.contents.row)}
        key = {**self.contents.key, "kept": holds | {"dtype": self.contents.dtype}}
        if not path.is_file():
            if self.folder.is_dir() and set(os.listdir(self.folder)) - {"cache.lock"}:
                raise ValueError(
                    f"teacher_cache={str(self.folder)!r} is not empty, and no teacher's cache: "
                    "name another folder."
                )
            return {"schema": SCHEMA, "key": key, "files": {}}
        index: dict[str, Any] = read_json(path)
        if not isinstance(index, dict) or index.get("schema") != SCHEMA:
            raise ValueError(f"teacher_cache: {path} is of another form: name another folder.")
        differences = _differences(index["key"], key)
        if differences:
            raise ValueError(
                f"teacher_cache={str(self.folder)!r} holds other outputs; it stays as it is. Name "
                "another folder, or train with what it was filled with: " + "; ".join(differences)
            )
        return index

    def _is_ours(self) -> bool:
        try:
            self._lock.acquire()
        except Timeout:
            logger.warning("teacher_cache: another run fills %s; this one reads it", self.folder)
            return False
        return True

    def _from_main(self, value: bool) -> bool:
        """What the main process found, on every process."""
        return bool(broadcast_object_list([value])[0])


def _file_name(epoch: int) -> str:
    return f"epoch-{epoch}.npy"


def _first(rows: Any) -> Any:
    """The first number of each row, of an array or a tensor."""
    return rows[(slice(None), *[0] * (rows.ndim - 1))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs in two JSON documents, by dotted names, with both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        return [
            found
            for part in sorted(there.keys() | here.keys())
            for found in _differences(there.get(part), here.get(part), f"{name}.{part}".strip("."))
        ]
    return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]
