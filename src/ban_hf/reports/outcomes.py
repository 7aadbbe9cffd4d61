"""What a network did on each item of the test set, small enough to stand in a `results.json`.

Of images the predicted class of each; of a text the summed loss of each block of words in a row,
which is also what a bootstrap draws, since words that follow one another are not independent.
"""

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 500  # words; some 165 blocks of the test text of Penn Treebank

Array = npt.NDArray[Any]


def pack_classes(classes: Array) -> str:
    """Class numbers `(N,)` as text: 16 bits each, compressed, base64."""
    return base64.b64encode(zlib.compress(classes.astype("<u2").tobytes(), 9)).decode()


def unpack_classes(text: str) -> Array:
    """What `pack_classes` packed, `(N,)`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u2")


def block_losses(nll: Array) -> dict[str, list[float]]:
    """Losses of the words of a text `(N,)`, nats, summed block by block: `nll` and `words`."""
    starts = np.arange(0, len(nll), BLOCK)
    words = np.diff([*starts, len(nll)])
    return {"nll": np.add.reduceat(nll, starts).round(6).tolist(), "words": words.tolist()}


def item_losses(entry: dict[str, Any], labels: str | None) -> tuple[Array, Array]:
    """An entry's summed losses and counts of what a bootstrap draws: images, or blocks of words.

    Args:
        entry: of a table's results; its `outcomes` are read.
        labels: packed true classes of the images; None of a text.

    Returns:
        `(N,)` and `(N,)`: of images 0 or 1 (wrong) and ones; of blocks nats and words.
    """
    outcomes = entry["outcomes"]
    if labels is None:
        return np.array(outcomes["nll"]), np.array(outcomes["words"], dtype=float)
    wrong = unpack_classes(outcomes["predicted"]) != unpack_classes(labels)
    return wrong.astype(float), np.ones(len(wrong))
