"""From the rows of a `datasets` dataset to uint8 pixels and numbered labels."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ban_hf.errors import BANError, did_you_mean

logger = logging.getLogger(__name__)

LARGEST_KEPT = 64
"""Images up to this side keep their size by default; larger ones are shrunk to a square of it."""


def decode(
    data: dict[str, datasets.Dataset],
    image_column: str | None,
    label_column: str | None,
    image_size: int | None,
) -> tuple[list[str], dict[str, tuple[Tensor, Tensor]]]:
    """Names of the classes, and for each split its images and their labels.

    Args:
        data: the splits, `train` among them.
        image_column: see :func:`ban_hf.data.load_images`, as for the other two.
        label_column: of the labels.
        image_size: side in pixels.

    Returns:
        Label names; by split ``(N, 3, H, W)`` uint8 and ``(N,)`` int64.
    """
    if image_size is not None and image_size < 1:
        raise BANError(f"image_size={image_size}: must be a number of pixels, at least 1")
    features = data["train"].features
    image_column = _image_column(features, image_column)
    label_column = _label_column(features, label_column)
    names, labels = _labels(data, label_column)
    size = (image_size, image_size) if image_size else None
    decoded = {}
    for split, part in data.items():
        images = _pixels(part, image_column, split, size)  # (N, 3, H, W)
        size = (images.shape[3], images.shape[2])  # the first split, train, settles it
        decoded[split] = images, labels[split]
    return names, decoded


def _image_column(features: datasets.Features, named: str | None) -> str:
    if named is not None:
        feature = _named("image_column", named, features)
        kind = feature.dtype if isinstance(feature, datasets.Value) else ""
        files = kind in ("string", "large_string", "binary", "large_binary")
        if not files and not isinstance(feature, datasets.Image | dict):
            raise BANError(f"image_column={named!r} holds no images but {feature}")
        return named
    found = [column for column, f in features.items() if isinstance(f, datasets.Image)]
    if len(found) != 1:
        raise BANError(
            f"{len(found) or 'no'} columns of images {found}: name one with image_column; "
            f"the columns are {', '.join(features)}"
        )
    return found[0]


def _label_column(features: datasets.Features, named: str | None) -> str:
    if named is not None:
        feature = _named("label_column", named, features)
        kind = feature.dtype if isinstance(feature, datasets.Value | datasets.ClassLabel) else ""
        if not kind.startswith(("int", "uint", "bool", "string", "large_string")):
            raise BANError(f"label_column={named!r} holds no integers or strings but {feature}")
        return named
    found = {c: f.num_classes for c, f in features.items() if isinstance(f, datasets.ClassLabel)}
    if not found:
        raise BANError(
            "no ClassLabel column: name the labels' column with label_column; "
            f"the columns are {', '.join(features)}"
        )
    return max(found, key=lambda column: found[column])  # the first one, on a tie


def _labels(data: dict[str, datasets.Dataset], column: str) -> tuple[list[str], dict[str, Tensor]]:
    """Names of the classes, and the labels of each split as their numbers."""
    feature = data["train"].features[column]
    values = {split: list(part[column]) for split, part in data.items()}
    if isinstance(feature, datasets.ClassLabel):
        names, number = list(feature.names), {n: n for n in range(feature.num_classes)}
    else:
        known = sorted(set(values["train"]) - {None})
        names, number = [str(v) for v in known], {v: n for n, v in enumerate(known)}
    labels = {}
    for split, part in values.items():
        labels[split] = torch.tensor([number.get(value, -1) for value in part])  # (N,)
        unknown = (labels[split] < 0).nonzero()
        if len(unknown):
            row = int(unknown[0])
            raise BANError(
                f"{split} row {row}: {column}={part[row]!r} is none of the {len(names)} classes "
                "of the training split"
            )
    return names, labels


def _pixels(
    data: datasets.Dataset, column: str, split: str, size: tuple[int, int] | None
) -> Tensor:
    """All images of a split as ``(N, 3, H, W)`` uint8; ``size`` is (width, height)."""
    raw = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    size = size or _default_size(_read(raw[0][column], split, 0).size)
    images = np.empty((len(raw), 3, size[1], size[0]), dtype=np.uint8)  # (N, 3, H, W)

    def store(row: int, value: Any) -> None:
        image = _read(value, split, row)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        images[row] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(raw), 1000):  # the files' bytes, a part at a time
            values = raw[start : start + 1000][column]
            list(pool.map(store, range(start, start + len(values)), values))  # raises what it met
    return torch.from_numpy(images)


def _read(value: Any, split: str, row: int) -> Image.Image:
    try:
        image = datasets.Image().decode_example(value or {"path": None, "bytes": None})
        if image.mode.startswith("I"):  # 16 bits of grey, which a conversion would cut off at 255
            image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for a broken file
        where = (value or {}).get("path") or "no path"
        raise BANError(f"{split} row {row} ({where}): unreadable image: {error}") from error


def _default_size(first: tuple[int, int]) -> tuple[int, int]:
    if max(first) <= LARGEST_KEPT:
        return first
    logger.warning(
        "images of %dx%d are resized to %d; image_size sets another", *first, LARGEST_KEPT
    )
    return LARGEST_KEPT, LARGEST_KEPT


def _named(argument: str, name: str, features: datasets.Features) -> Any:
    if name not in features:
        raise BANError(
            f"{argument}={name!r}: no such column.{did_you_mean(name, features)} "
            f"The columns are {', '.join(features)}"
        )
    return features[name]
