"""A text as contiguous windows, for training and measuring language models in reading order.

The words of a text are arranged in columns of equal length, which are read in parallel:

    a text of 14 words in 2 columns      windows of 3
        column 0:  w0  w1  w2  w3  w4  w5  w6       [w0 w1 w2] [w3 w4 w5]
        column 1:  w7  w8  w9 w10 w11 w12 w13       [w7 w8 w9] [w10 w11 w12]

A batch is one window of every column, and the next batch continues where it ended, so that a
recurrent model's state carries over. The targets are the same words, one position later.
"""

import hashlib
import math
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ban_hf.data.description import IGNORED, POSITIONS, DescribedDataset
from ban_hf.errors import BANError


class TokenWindows(DescribedDataset):
    """Windows of a text, `columns` at a time: item `w * columns + b` is window w of column b.

    An item has `input_ids`, `labels` (the same words, for models that shift by themselves) and
    `shift_labels` (the next words, already shifted, so that no window loses its last target), each
    `(T,)`; the last window of a column may be shorter. Read in order with batches of `columns`
    items; with P processes, of `columns / P` items each, so that each has columns of its own.

    Without `warmup` the words that do not fill a row of all columns are left out, as usual in
    training. With it every word but the text's first is a target exactly once: each column but the
    first begins with the `warmup` words that come before it, whose targets are `IGNORED`, so that a
    measurement does not depend on the number of columns.

    Args:
        tokens: `(n,)` word ids, in reading order.
        columns: read side by side.
        window: T, words per window: what back-propagation through time is truncated to.
        warmup: words before each column that are read but not counted.

    Raises:
        BANError: if the text is shorter than one window in every column.
    """

    def __init__(self, tokens: Tensor, columns: int, *, window: int = 35, warmup: int = 0) -> None:
        if tokens.ndim != 1 or tokens.is_floating_point():
            raise BANError(f"tokens must be (n,) word ids, not {tuple(tokens.shape)}.")
        if columns < 1 or window < 1 or warmup < 0:
            raise BANError(
                f"columns={columns} (the batch size) and window={window} must be at least 1, and "
                f"warmup={warmup} must not be negative."
            )
        self.tokens, self.columns, self.window, self.warmup = tokens.long(), columns, window, warmup
        self.input_ids, self.targets = self._columns()  # (columns, L), (columns, L)
        self.length = self.input_ids.shape[1]
        if self.length < window or len(self.input_ids) < columns:  # too few to begin each column
            raise BANError(
                f"The text has {len(tokens):,} words: too few for {columns} columns of a window "
                f"of {window}. Give a longer text, fewer columns (the batch size) or a shorter "
                "window."
            )

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Words and next words of columns of L words, which begin `step` words apart."""
        n = len(self.tokens) - 1  # words that have a next one
        if self.warmup:
            step = max(0, math.ceil((n - self.warmup) / self.columns))
            length = step + self.warmup
        else:
            step = len(self.tokens) // self.columns
            length = max(0, step - 1)
        short = max(0, (self.columns - 1) * step + length - n)  # filled up after the text's end
        inputs = F.pad(self.tokens[:-1], (0, short)).unfold(0, length, max(1, step))
        targets = F.pad(self.tokens[1:], (0, short), value=IGNORED).unfold(0, length, max(1, step))
        targets = targets[: self.columns].clone()  # (columns, L)
        targets[1:, : self.warmup] = IGNORED  # the first column has no words before it
        return inputs[: self.columns].contiguous(), targets

    @property
    def num_targets(self) -> int:
        """Words that are predicted and counted in one pass."""
        return int((self.targets != IGNORED).sum())

    def describe(self) -> dict[str, Any]:
        """Targets, fingerprint and window.

        The columns are left out: of a training they are the batch size, which is an argument, and
        an evaluation does not depend on them.
        """
        return {"items": self.num_targets, "fingerprint": self.fingerprint, "window": self.window}

    def __len__(self) -> int:
        return math.ceil(self.length / self.window) * self.columns

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        window, column = divmod(index, self.columns)
        part = slice(window * self.window, (window + 1) * self.window)
        input_ids = self.input_ids[column, part]  # (T,)
        item = {
            "input_ids": input_ids,
            "labels": input_ids,
            "shift_labels": self.targets[column, part],
        }
        return item | ({POSITIONS: torch.tensor(index)} if self.gives_positions else {})

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the words, in order."""
        return hashlib.sha256(self.tokens.cpu().numpy().tobytes()).hexdigest()
