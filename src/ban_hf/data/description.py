"""What a record says of a dataset: how many items it has, and a fingerprint of what they hold."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from datasets.fingerprint import Hasher
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

IGNORED = -100
"""A label that does not count, as everywhere in torch and transformers."""
POSITIONS = "positions"
"""Key of a batch for the positions of its items in their dataset, `(B,)`."""
MOST_READ = 10_000
"""Items of a dataset of another kind that are read for its fingerprint, evenly spaced."""
SCALARS = frozenset((bool, int, float, str, bytes, type(None)))
"""Types whose values are told apart by how they are written."""


class DescribedDataset(Dataset[dict[str, Tensor]], ABC):
    """A dataset of ours, which describes itself for a record."""

    gives_positions = False
    """Whether a batch tells the positions of its items in the dataset, under `POSITIONS`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """See :func:`describe_data`."""


def describe_data(dataset: Dataset) -> dict[str, Any]:
    """What identifies a dataset in a record, as plain JSON.

    `items` is their number: images, sentences, or words that are predicted; None for a stream.
    `fingerprint` is equal for equal contents:

    - of our datasets, sha256 of the contents, with `views` or `window`, how they are read;
    - of any other map-style dataset, sha256 of its items, of `fingerprint_items` of them where it
      has more than 10,000. They are read with the global random generators seeded, so that random
      augmentation does not matter, and the generators' states are put back. So it is of a
      `datasets.Dataset`, too, whose own fingerprint says how it was made: another folder, or a
      function that cannot be hashed, such as one with a tokenizer, gives another one each time.

    `contents` says why there is no fingerprint: a stream is not read, and items that differ from
    one reading to the next have none.
    """
    if isinstance(dataset, DescribedDataset):
        return dataset.describe()
    if isinstance(dataset, IterableDataset | datasets.IterableDataset):
        return {"items": None, "contents": "a stream, not checked"}
    count = len(dataset)  # type: ignore[arg-type]
    return {"items": count} | _fingerprint_items(dataset, count)


def _fingerprint_items(dataset: Dataset, count: int) -> dict[str, Any]:
    read = min(count, MOST_READ)
    digest = hashlib.sha256(repr(count).encode())
    with _seeded():
        for i in range(read):
            _update(digest, dataset[i * count // read])
    first = [hashlib.sha256(), hashlib.sha256()]
    for one in first if count else ():
        with _seeded():
            _update(one, dataset[0])
    if first[0].digest() != first[1].digest():
        return {"contents": "items differ from one reading to the next, not checked"}
    fingerprint = {"fingerprint": digest.hexdigest()}
    return fingerprint if read == count else fingerprint | {"fingerprint_items": read}


@contextmanager
def kept_random_states() -> Iterator[None]:
    """The global random generators of the CPU go on afterwards as if nothing was drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _seeded() -> Iterator[None]:
    """The same global random numbers each time."""
    with kept_random_states():
        torch.default_generator.manual_seed(0)  # the CPU's alone, whose state is put back
        random.seed(0)
        np.random.seed(0)
        yield


def _update(digest: Any, value: Any) -> None:
    """Add an item, or a part of one, to a digest: its type and structure, then its contents."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else value.float()
        value = np.asarray(value)
    if isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=repr):
            digest.update(repr(key).encode())
            _update(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"sequence {len(value)}".encode())
        if SCALARS.issuperset(map(type, value)):  # the words of a text, by the thousand
            digest.update(repr(list(value)).encode())
            return
        for part in value:
            _update(digest, part)
    elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        digest.update(f"array {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Image.Image):
        digest.update(f"image {value.mode} {value.size}".encode())
        digest.update(value.tobytes())
    elif value is None or isinstance(value, str | bytes | int | float):
        digest.update(f"{type(value).__name__} {value!r}".encode())
    else:
        digest.update(f"{type(value).__name__} {Hasher.hash(value)}".encode())
