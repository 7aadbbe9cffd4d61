"""How large a table's networks are at the paper's own size, counted without building them."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ban_hf.models import create_classifier, create_language_model

#: Classes, or words, of the data sets of the paper.
CLASSES = {"cifar10": 10, "cifar100": 100, "ptb": 10_000}
#: Stands for the words of a text in a network that spells them: as long as it has their letters.
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-'./&$#N*\\"


def count_parameters(task: str, dataset: str, network: Mapping[str, Any], *, shared: bool) -> int:
    """The parameters that a network trains.

    Args:
        task: `image` or `text`.
        dataset: its name, which tells classes or words.
        network: `name` and `args`.
        shared: whether its first convolution and last linear layer are its teacher's, and so not
            counted.

    Raises:
        KeyError: for a data set that is not the paper's.
    """
    return _built_once(task, dataset, network["name"], json.dumps(network["args"]), shared)


@functools.cache
def _built_once(task: str, dataset: str, name: str, arguments: str, shared: bool) -> int:
    """Counted once for the many cells that have the same network; `arguments` as JSON."""
    size, args = CLASSES[dataset], json.loads(arguments)
    with torch.device("meta"):
        if task == "image":
            model: Any = create_classifier(name, num_labels=size, **args)
        else:
            words = [*LETTERS, *(f"a{i}" for i in range(size - len(LETTERS)))]
            model = create_language_model(name, words=words, **args)
    frozen = model.network.ends if shared else ()
    return _count(model) - sum(map(_count, frozen))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
