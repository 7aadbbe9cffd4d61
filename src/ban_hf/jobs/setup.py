"""From a network and datasets, or the names of both, to what a training needs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedModel

from ban_hf.data.description import describe_data
from ban_hf.data.images import ImageSplits
from ban_hf.data.text import TextSplits
from ban_hf.errors import BANError, did_you_mean
from ban_hf.jobs.job import Setup
from ban_hf.lineage.files import plain_json
from ban_hf.objectives import OBJECTIVES
from ban_hf.tasks.data import prepare as data_of
from ban_hf.training.arguments import BANTrainingArguments

Splits = ImageSplits | TextSplits
WITH_LABELS = "+label"  # NAME+label is the objective NAME with label_weight=1: BAN+L is kd+label


def make_setup(
    model_init: Callable[[int], PreTrainedModel],
    *,
    train_dataset: Dataset,
    eval_dataset: Dataset | None = None,
    test_dataset: Dataset | None = None,
    data: Mapping[str, Any] | None = None,
    **trainer_kwargs: Any,
) -> Setup:
    """What the trainings of `Families` have in common; for the arguments see `train_generations`.

    Raises:
        BANError: for an empty split, and for several datasets in place of one.
    """
    splits = {"train": train_dataset, "validation": eval_dataset, "test": test_dataset}
    described = {name: _describe(name, d) for name, d in splits.items() if d is not None}
    return Setup(
        model_init,
        train_dataset,
        eval_dataset,
        test_dataset,
        trainer_kwargs,
        data=plain_json(dict(data or {}) | described),
    )


def _describe(split: str, dataset: Dataset) -> dict[str, Any]:
    """What identifies one split."""
    if isinstance(dataset, Mapping):
        raise BANError(
            f"The {split} data is a {type(dataset).__name__} of several datasets "
            f"({', '.join(map(str, dataset))}): a generation has one figure. Give one of them; "
            "BANTrainer.evaluate takes several."
        )
    described = describe_data(dataset)
    if described["items"] == 0:
        raise BANError(f"The {split} data is empty.")
    return described


def prepare(
    splits: Splits,
    args: BANTrainingArguments,
    model_name: str,
    model_args: Mapping[str, Any] | None = None,
    window: int = 35,
) -> tuple[BANTrainingArguments, Setup]:
    """The setup of trainings of a network on a dataset, and their arguments.

    These are a copy, for data that come in whole batches. `window` is the number of words that
    back-propagation through time goes back.
    """
    args, parts = data_of(splits, args, model_name, dict(model_args or {}), window)
    trainer, source = parts.pop("trainer"), {"source": splits.source}
    entropy = splits.test_entropy if isinstance(splits, TextSplits) else None
    return args, replace(make_setup(**parts, data=source, **trainer), entropy=entropy)


def describe_dataset(splits: Splits, window: int = 35) -> dict[str, Any]:
    """What a report says of a dataset."""
    known = dict(splits.source) | {"name": Path(str(splits.source["id"])).name}
    if isinstance(splits, ImageSplits):
        return known | {"train_samples": len(splits.train)}
    entropies = {"entropy": splits.entropy, "test_entropy": splits.test_entropy}
    known |= {"train_words": len(splits.train), "window": window}
    return known | {name: value for name, value in entropies.items() if value is not None}


def read_objectives(given: str, label_weight: float | None) -> dict[str, tuple[str, float | None]]:
    """Objectives as a recipe or a table names them: `kd`, `kd+label`, `kd,kd+label,cwtm,dkpp`.

    `label_weight` is of those without `+label`. Where it is None and one has `+label`, it is 0:
    `kd,kd+label` is BAN and BAN+L, of a language model, too.

    Returns:
        By the given name, the objective and its `label_weight`, None where the task decides it.

    Raises:
        BANError: for an unknown name, with the near match, for a `label_weight` that contradicts
            `+label`, and for two names that mean the same.
    """
    names = [name.strip() for name in given.split(",")]
    marked = [name for name in names if name.endswith(WITH_LABELS)]
    for name in names:
        if name.removesuffix(WITH_LABELS) not in OBJECTIVES:
            known = [*OBJECTIVES, *(known + WITH_LABELS for known in OBJECTIVES)]
            raise BANError(
                f"objective={name!r} is unknown.{did_you_mean(name, known)} "
                f"There is {', '.join(OBJECTIVES)}."
            )
    possible = (None, 1) if len(marked) == len(names) else (None, 0, 1)
    if marked and label_weight not in possible:
        raise BANError(
            f"label_weight={label_weight:g} contradicts objective={marked[0]!r}, which is "
            "label_weight=1: leave one of them out."
        )
    if marked and label_weight is None:
        label_weight = 0.0
    found: dict[str, tuple[str, float | None]] = {}
    for name in names:
        meaning = name.removesuffix(WITH_LABELS), 1.0 if name in marked else label_weight
        if name in found:
            raise BANError(f"objective={given!r} names {name!r} twice: leave one out.")
        for same in (other for other in found if found[other] == meaning):
            raise BANError(
                f"objective={given!r}: {same!r} and {name!r} are the same with label_weight=1: "
                "leave one of them out, or give label_weight=0."
            )
        found[name] = meaning
    return found
