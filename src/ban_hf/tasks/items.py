"""What counts as an item of the loss: an image, a sentence, or a word of a text.

A classifier's logits are `(N, C)` with labels `(N,)`. A language model's are `(B, T, V)`; its items
are the words, N = B T, and the label of a place is the word after it. An item whose label is
`IGNORED` (-100) does not count.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ban_hf.data.description import POSITIONS
from ban_hf.data.windows import IGNORED
from ban_hf.errors import BANError

NO_INPUTS = ("labels", "shift_labels", POSITIONS)


def without_labels(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch as a model sees it that is asked for logits alone."""
    return {name: value for name, value in inputs.items() if name not in NO_INPUTS}


def item_labels(inputs: dict[str, Any], logits: Tensor) -> Tensor | None:
    """The items' labels `(N,)` in a batch, those of a language model shifted to the next word.

    As everywhere in transformers `labels` are shifted, once, and `shift_labels`, which come first,
    are not.

    Raises:
        ValueError: for labels that are no class numbers, one for each item; for a language model
            without labels.
    """
    is_language = logits.ndim == 3
    labels = inputs.get("shift_labels") if is_language else None
    if labels is None:
        labels = inputs.get("labels")
        if labels is not None and is_language:
            labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]  # (B, T)
    if labels is None:
        if is_language:
            raise BANError(
                "A language model's batches need labels, which tell its words from padding: as "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False) gives them."
            )
        return None
    if labels.shape != logits.shape[:-1] or labels.is_floating_point():
        raise BANError(
            f"labels must be class numbers of shape {'(B, T)' if is_language else '(N,)'}, one for "
            f"each of {tuple(logits.shape[:-1])} items, not {tuple(labels.shape)} of "
            f"{labels.dtype}."
        )
    return labels.reshape(-1).long()  # (N,)


def item_logits(logits: Tensor) -> Tensor:
    """The items' logits, `(N, C)` or `(B, T, V)`, to `(N, C)`."""
    return logits.reshape(-1, logits.shape[-1])


def counted(labels: Tensor | None, logits: Tensor) -> Tensor:
    """1 for each item that counts, 0 for the others: `(N,)` float32."""
    if labels is None:
        return torch.ones_like(logits[:, 0], dtype=torch.float32)  # (N,)
    return (labels != IGNORED).float()  # (N,)
