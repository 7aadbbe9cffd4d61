"""Batched image views whose augmentation is a pure function of (seed, epoch, sample).

Images are kept decoded, as one uint8 tensor. A batch is gathered, cropped, flipped and normalized
in a few vectorized operations on the device of that tensor. There is no random state: a view
depends on a counter only, so that a resumed run, several processes, workers, another batch order
and a replayed teacher all see the same pixels.
"""

import copy
import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset, default_collate
from transformers import TrainerCallback

from ban_hf.data.description import POSITIONS, DescribedDataset
from ban_hf.errors import BANError

# splitmix64 (Steele, Lea & Flood, OOPSLA 2014), its 64-bit constants written as signed integers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX2 = 0x94D049BB133111EB - (1 << 64)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own repeats the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def counter_hash(seed: int, epoch: int, sample_ids: Tensor) -> Tensor:
    """64 random bits for each sample, ``(B,)`` int64: a pure function of (seed, epoch, sample id).

    Element ``id`` of the splitmix64 stream whose state is ``mix(mix(seed + gamma) + epoch)``. Pure
    integer arithmetic with wraparound: bit for bit the same on every device.
    """
    stream = _mix(_mix(torch.tensor(seed) + _GAMMA) + epoch)  # ()
    return _mix(stream + (sample_ids + 1) * _GAMMA)  # (B,)


class ImageViews(DescribedDataset):
    """Decoded images and labels that give whole batches of (augmented) views.

    ``dataset.__getitems__(indices)``, which a ``DataLoader`` calls by itself, returns
    ``{"pixel_values": (B, C, H, W) float32, "labels": (B,) int64}``; pass :func:`collate` as
    ``collate_fn`` or ``data_collator``. ``dataset[i]`` is the same view of one sample.

    Subsets made by :meth:`select` share the tensors. A sample's id is its row in these tensors, so
    a sample keeps its views in every subset. Each of the ``(2 pad + 1)^2`` crops is equally likely,
    to within 2^-20.

    Args:
        images: ``(N, C, H, W)`` uint8.
        labels: ``(N,)`` int64.
        label_names: of the classes, in the order of their numbers.
        mean: per channel, in units where white is 1; of the *training* images.
        std: likewise.
        rows: ``(M,)`` int64, the rows that make up this dataset (all of them by default).
        augment: random crop and flip, or the plain normalized image.
        pad: pixels of padding for the crop.
        flip: mirror half of the images; off where a mirrored image means another thing (digits).
        seed: of the views.

    Raises:
        BANError: images of another shape or type, or a label without a name.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        label_names: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        rows: Tensor | None = None,
        augment: bool = False,
        pad: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(labels) != len(images):
            raise BANError(
                f"images must be (N, C, H, W) uint8 with N labels, got {tuple(images.shape)} "
                f"{images.dtype} and {len(labels)} labels"
            )
        label_names = list(label_names)
        outside = ((labels < 0) | (labels >= len(label_names))).nonzero()  # (K, 1)
        if len(outside):
            row = int(outside[0])
            raise BANError(
                f"labels[{row}]={int(labels[row])}: must be from 0 to {len(label_names) - 1}, the "
                f"number of one of the {len(label_names)} label_names. Leave out images without a "
                "label."
            )
        self.images = images  # (N, C, H, W)
        self.labels = labels  # (N,)
        self.label_names = label_names
        self.mean = torch.as_tensor(mean, dtype=torch.float32)  # (C,)
        self.std = torch.as_tensor(std, dtype=torch.float32)  # (C,)
        self.rows = torch.arange(len(images)) if rows is None else rows  # (M,)
        self.augment, self.pad, self.flip, self.seed = augment, pad, flip, seed
        self._epoch = _shared_epoch()

    @property
    def epoch(self) -> int:
        """Counted from 0; together with the seed and a sample's id it fixes a view."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose views are given; see :class:`SetEpoch`."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        positions = torch.as_tensor(indices, device=self.rows.device)  # (B,)
        rows = self.rows[positions]  # (B,)
        images = self._normalized(self.images[rows])  # (B, C, H, W)
        if self.augment:
            images = self._cropped_and_flipped(images, rows)
        batch = {"pixel_values": images, "labels": self.labels[rows]}
        return batch | ({POSITIONS: positions} if self.gives_positions else {})

    def _normalized(self, images: Tensor) -> Tensor:
        """``(images / 255 - mean) / std``: ``(B, C, H, W)`` uint8 to float32."""
        scale = (1 / (255 * self.std)).view(-1, 1, 1)  # (C, 1, 1)
        shift = (self.mean / self.std).view(-1, 1, 1)  # (C, 1, 1)
        return images.float().mul_(scale).sub_(shift)  # (B, C, H, W)

    def _cropped_and_flipped(self, images: Tensor, sample_ids: Tensor) -> Tensor:
        """Normalized images padded with zeros, cropped to their size, and half of them flipped.

        Padding comes *after* normalization, so a border pixel is the mean color, not black (He et
        al. 2016 and DenseNet do so; the text of Zagoruyko & Komodakis 2016 fills in reflections).
        """
        batch, channels, height, width = images.shape
        bits = counter_hash(self.seed, self.epoch, sample_ids)  # (B,)
        offsets = 2 * self.pad + 1
        # Three disjoint fields of the 64 bits: 40-63 the row, 16-39 the column, 0 the flip.
        top = (_shift(bits, 40) * offsets) >> 24  # (B,)
        left = ((_shift(bits, 16) & 0xFFFFFF) * offsets) >> 24  # (B,)
        rows = top[:, None] + torch.arange(height, device=images.device)  # (B, H)
        cols = torch.arange(width, device=images.device)  # (W,)
        if self.flip:
            mirrored = (bits & 1).bool()[:, None]  # (B, 1)
            cols = torch.where(mirrored, cols.flip(0), cols)  # (B, W)
        cols = left[:, None] + cols  # (B, W)
        pixels = rows[:, :, None] * (width + 2 * self.pad) + cols[:, None, :]  # (B, H, W)
        padded = F.pad(images, (self.pad,) * 4)  # (B, C, H + 2 pad, W + 2 pad)
        index = pixels.view(batch, 1, -1).expand(-1, channels, -1)  # (B, C, H * W)
        return padded.view(batch, channels, -1).gather(2, index).view(images.shape)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: batch[0] for name, batch in self.__getitems__([index]).items()}

    def select(self, indices: Sequence[int] | Tensor, *, augment: bool) -> Self:
        """The given items as a dataset of its own, over the same tensors, at epoch 0."""
        other = self.with_seed(self.seed)
        other.rows = self.rows[torch.as_tensor(indices, device=self.rows.device)]  # (M,)
        other.augment = augment
        vars(other).pop("fingerprint", None)
        return other

    def with_seed(self, seed: int) -> Self:
        """A copy over the same tensors whose views are those of another seed, at epoch 0."""
        other = copy.copy(self)
        other.seed, other._epoch = seed, _shared_epoch()
        return other

    def to(self, device: torch.device | str) -> Self:
        """Move the tensors, in place, and return this dataset.

        On a GPU the batches are made there. A ``DataLoader`` then needs ``num_workers=0`` and
        ``pin_memory=False``: CUDA tensors do not pass through forked workers or pinned memory.
        """
        for name in ("images", "labels", "rows", "mean", "std"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of label names, sample ids, labels and pixels; the same on every machine."""
        shape = [len(self), *self.images.shape[1:]]
        digest = hashlib.sha256(repr((shape, self.label_names)).encode())
        for rows in self.rows.split(4096):  # in parts: a copy of all pixels is not needed
            for part in (rows, self.labels[rows], self.images[rows]):
                digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Size, fingerprint, and how the views are made; their seed is the training's, not ours."""
        views = {name: v for name, v in self.views_definition.items() if name != "seed"}
        return {"items": len(self), "fingerprint": self.fingerprint, "views": views}

    @property
    def views_definition(self) -> dict[str, Any]:
        """All that determines a view in addition to pixels, epoch and ids; plain JSON."""
        definition: dict[str, Any] = {
            "schema": "ban_hf.views/1",
            "mean": [round(value, 7) for value in self.mean.tolist()],
            "std": [round(value, 7) for value in self.std.tolist()],
            "augment": self.augment,
        }
        if self.augment:
            definition |= {"pad": self.pad, "flip": self.flip, "seed": self.seed}
        return definition


def _shared_epoch() -> Tensor:
    """Epoch 0, in shared memory, so that workers that outlive an epoch see the next one."""
    return torch.tensor(0).share_memory_()  # ()


def collate(batch: Any) -> dict[str, Tensor]:
    """``collate_fn`` for :class:`ImageViews`, whose batches come ready; others are stacked.

    Raises:
        BANError: for what ``Trainer`` makes of a ready batch under ``remove_unused_columns``.
    """
    if isinstance(batch, dict):
        return batch
    if isinstance(batch[0], str):
        raise BANError(
            "remove_unused_columns=True takes ImageViews' batches apart: "
            "set remove_unused_columns=False in the training arguments"
        )
    return default_collate(batch)


def has_views(dataset: Any) -> bool:
    """Whether a dataset is :class:`ImageViews`, or a part of one."""
    return isinstance(dataset.dataset if isinstance(dataset, Subset) else dataset, ImageViews)


class SetEpoch(TrainerCallback):
    """Tells a training set, if it is an :class:`ImageViews`, which epoch begins.

    It is needed because accelerate 1.15 forwards ``set_epoch`` to a dataset in a plain run, but
    not with several processes and not in an epoch that was resumed half-way, where it stops at the
    sampler.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, Subset) and has_views(dataset):
            raise BANError(
                "A Subset of ImageViews would show the same views in every epoch: use "
                "ImageViews.select(indices, augment=True)."
            )
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.dataset, ImageViews):
            # After a resume within an epoch, state.epoch is that epoch and a fraction.
            self.dataset.set_epoch(math.floor(state.epoch or 0))
