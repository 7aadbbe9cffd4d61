"""From a dataset's name to decoded training, validation and test images."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ban_hf.data.augmentation import ImageViews, counter_hash
from ban_hf.data.sources import (
    BuiltIn,
    check_column,
    locate,
    only_column,
    read_splits,
)
from ban_hf.errors import BANError

logger = logging.getLogger(__name__)

TEST_FRACTION = 0.2
"""Held out of the training images of a dataset that has no test split, the same for every seed."""
LARGEST_KEPT = 64
"""Images up to this side keep their size by default; larger ones are shrunk to a square of it."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, in units where white is 1."""


BUILT_IN = {
    "cifar10": BuiltIn("uoft-cs/cifar10"),
    "cifar100": BuiltIn("uoft-cs/cifar100"),
    "digits": BuiltIn("digits"),
}
STATISTICS: dict[str, Statistics] = {  # of the training images
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


@dataclass
class ImageSplits:
    """Training images with augmentation, validation and test images without.

    ``validation`` is None where there is none. ``source`` has their origin:
    ``{"id": ..., "config": ..., "revision": ...}``.
    """

    train: ImageViews
    validation: ImageViews | None
    test: ImageViews
    source: dict[str, str | None]


def load_images(
    name: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    image_size: int | None = None,
    flip: bool | None = None,
    validation: float = 0.1,
    train_samples: int | None = None,
    seed: int = 0,
) -> ImageSplits:
    """Load, decode and split an image dataset.

    Args:
        name: ``cifar10``, ``cifar100`` (from ``$BAN_HF_DATA/<name>`` where that folder exists, else
            from the Hub), ``digits`` (scikit-learn's, no download), a Hub id, a local folder, or a
            parquet, arrow, csv or json file.
        config: of a Hub dataset that has several.
        revision: of a Hub dataset.
        image_column: by default the only column of images. A named one may also hold files' paths
            or bytes.
        label_column: by default the ``ClassLabel`` column with the most classes (CIFAR-100: fine,
            not coarse). A named one may also hold integers or strings: its classes are then the
            sorted values of the training split.
        image_size: side in pixels that every image is resized to. Default: the size of the first
            training image, or 64 where that is larger. Aspect ratios are not kept.
        flip: mirror half of the training images. Default: yes, but not for ``digits``.
        validation: fraction of the training images held out, stratified by label; 0 for none. A
            dataset's own validation split is taken instead.
        train_samples: train on this many of the remaining images, stratified by label.
        seed: of these two choices, which are the same on every machine, and of the augmentation.

    Returns:
        The splits. Mean and standard deviation are CIFAR's known ones for the built-in names, else
        those of the images that are trained on.

    Raises:
        BANError: an unknown dataset or column (with a near match), an unreadable image or an
            unknown label (with split and row), a fraction or number out of range.
    """
    if not 0 <= validation < 1:
        raise BANError(f"validation={validation}: must be a fraction, at least 0 and below 1")
    if image_size is not None and image_size < 1:
        raise BANError(f"image_size={image_size}: must be a number of pixels, at least 1")
    path, origin = locate(name, BUILT_IN, config, revision)
    if name == "digits":
        data = _digits()
    else:
        offline = "digits needs none, and BAN_HF_DATA can name a folder of cifar10/ and cifar100/."
        data = read_splits(name, path, origin, BUILT_IN, offline)
    if "train" not in data:
        raise BANError(f"--dataset_name {name}: no train split; there is {', '.join(data)}")
    data = {split: data[split] for split in ("train", "validation", "test") if split in data}
    image_column, label_column = _columns(data["train"].features, image_column, label_column)
    label_names, labels = _labels(data, label_column)
    size = (image_size, image_size) if image_size else None
    images: dict[str, Tensor] = {}
    for split, part in data.items():
        images[split] = _pixels(part, image_column, split, size)  # (N, 3, H, W)
        size = (images[split].shape[3], images[split].shape[2])  # the first, train, settles it
    rows = _split(labels, validation, train_samples, seed)
    mean, std = STATISTICS.get(name) or channel_statistics(images["train"][rows["train"]])

    def dataset(split: str, *, augment: bool = False) -> ImageViews:
        whole = split if split in images else "train"
        return ImageViews(
            images[whole],
            labels[whole],
            label_names,
            mean=mean,
            std=std,
            rows=rows.get(split),
            augment=augment,
            flip=name != "digits" if flip is None else flip,  # a mirrored digit is not a digit
            seed=seed,
        )

    return ImageSplits(
        train=dataset("train", augment=True),
        validation=dataset("validation") if "validation" in images | rows else None,
        test=dataset("test"),
        source=origin,
    )


def _split(
    existing: dict[str, Tensor], validation: float, train_samples: int | None, seed: int
) -> dict[str, Tensor]:
    """Rows of the training split for each part that is cut out of it, by the labels of splits."""
    labels = existing["train"]  # (N,)
    rows = {"train": torch.arange(len(labels))}
    if "test" not in existing:
        count = round(TEST_FRACTION * len(labels))
        logger.warning("no test split: %d of %d training images held out", count, len(labels))
        rows["test"], rows["train"] = stratified(rows["train"], labels, count, seed=0)
    if "validation" not in existing and validation > 0:
        count = round(validation * len(rows["train"]))
        rows["validation"], rows["train"] = stratified(rows["train"], labels, count, seed)
    if train_samples is not None:
        if not 0 < train_samples <= len(rows["train"]):
            raise BANError(
                f"train_samples={train_samples}: must be from 1 to {len(rows['train'])}, the "
                "training images without validation and test"
            )
        rows["train"], _ = stratified(rows["train"], labels, train_samples, seed)
    for split, part in rows.items():
        if not len(part):
            raise BANError(
                f"validation={validation} leaves nothing for {split} of {len(labels)} images"
            )
    return rows


def stratified(rows: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Choose ``count`` of the rows, each class in proportion (largest remainders); and the rest.

    Within a class those with the least hash of (seed, row) are chosen: no generator whose stream
    may differ between versions, and a smaller choice lies, class by class, within a larger one.
    Rows ``(M,)`` are ascending, and so are both parts; labels ``(N,)`` are those of all rows.
    """
    classes, sizes = labels[rows].unique(return_counts=True)  # (C,), (C,)
    quotas = sizes * count  # (C,), in units of 1 / M rows
    takes = quotas // len(rows)  # (C,)
    most_cut = (quotas % len(rows)).argsort(descending=True, stable=True)  # (C,)
    takes[most_cut[: count - int(takes.sum())]] += 1
    # Epoch -1: the views, which count from 0, must not depend on how the rows were split.
    order = counter_hash(seed, -1, rows).argsort()  # (M,)
    chosen = torch.zeros(len(rows), dtype=torch.bool)  # (M,)
    for label, take in zip(classes, takes.tolist(), strict=True):
        chosen[order[labels[rows[order]] == label][:take]] = True
    return rows[chosen], rows[~chosen]


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation of each channel of ``(N, C, H, W)`` uint8, white being 1."""
    levels = torch.arange(256) / 255.0  # (256,)
    means, stds = [], []
    for channel in images.unbind(1):  # exact counts: no large float copy, the same on any machine
        share = channel.flatten().bincount(minlength=256).double() / channel.numel()  # (256,)
        mean = (share * levels).sum()
        means.append(mean.item())
        stds.append(max((share * (levels - mean) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(means), tuple(stds)


@cache
def _digits() -> dict[str, datasets.Dataset]:
    """scikit-learn's 8x8 grey digits, each pixel shown as 4x4, with a fixed split."""
    from sklearn.datasets import load_digits  # takes a second to import

    bunch = load_digits()
    grey = (bunch.images * (255 / 16)).round().astype(np.uint8)  # (N, 8, 8)
    shown = list(grey.repeat(4, 1).repeat(4, 2))  # N times (32, 32)
    classes = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features(image=datasets.Image(), label=classes)
    data = datasets.Dataset.from_dict({"image": shown, "label": bunch.target}, features)
    labels = torch.from_numpy(bunch.target)  # (N,)
    count, rows = round(TEST_FRACTION * len(labels)), torch.arange(len(labels))  # (N,)
    test, train = stratified(rows, labels, count, seed=0)
    return {"train": data.select(train.tolist()), "test": data.select(test.tolist())}


def _columns(
    features: datasets.Features, image_column: str | None, label_column: str | None
) -> tuple[str, str]:
    """The columns of images and labels that are named, or those of the fitting types."""
    if image_column is None:
        found = [column for column, f in features.items() if isinstance(f, datasets.Image)]
        image_column = only_column(found, "images", "image_column", features)
    check_column("image_column", image_column, features, "images", _holds_images)
    if label_column is None:
        found = [column for column, f in features.items() if isinstance(f, datasets.ClassLabel)]
        if not found:
            raise BANError(
                "no ClassLabel column: name the labels' column with label_column; "
                f"the columns are {', '.join(features)}"
            )
        label_column = max(found, key=lambda column: features[column].num_classes)  # or the first
    check_column("label_column", label_column, features, "integers or strings", _holds_labels)
    return image_column, label_column


def _holds_images(feature: Any) -> bool:
    files = ("string", "large_string", "binary", "large_binary")
    is_file = isinstance(feature, datasets.Value) and feature.dtype in files
    return is_file or isinstance(feature, datasets.Image | dict)


def _holds_labels(feature: Any) -> bool:
    kinds = ("int", "uint", "bool", "string", "large_string")
    is_value = isinstance(feature, datasets.Value | datasets.ClassLabel)
    return is_value and feature.dtype.startswith(kinds)


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
    if size is None:
        size = _read(raw[0][column], split, 0).size
        if max(size) > LARGEST_KEPT:
            given, size = size, (LARGEST_KEPT, LARGEST_KEPT)
            logger.warning(
                "images of %dx%d are resized to %d; image_size sets another", *given, LARGEST_KEPT
            )
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
