"""The arguments of a dataset, the same in recipes, commands and table files."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from ban_hf.errors import BANError, did_you_mean

IMAGES, TEXTS = "image-classification", "text-generation"
QUICKSTART = {IMAGES: "digits", TEXTS: "grammar"}
"""By task, the dataset that is taken where none is named; no download."""
ONLY = {
    "image_column": IMAGES,
    "label_column": IMAGES,
    "image_size": IMAGES,
    "flip": IMAGES,
    "validation": IMAGES,
    "split_seed": IMAGES,
    "train_samples": IMAGES,
    "text_column": TEXTS,
    "vocabulary_size": TEXTS,
    "train_words": TEXTS,
    "window": TEXTS,
}
"""The arguments that one task alone has."""
SHORT_NAMES = {
    "name": "dataset_name",
    "config": "dataset_config",
    "revision": "dataset_revision",
    "seed": "split_seed",
}
"""Names in the `dataset:` mapping of a table file."""


@dataclass(frozen=True)
class DataArguments:
    """A dataset by name, and which part of it is used."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Images: cifar10, cifar100, digits (default). Texts: ptb, wikitext2, grammar "
            "(default). Or a Hub id, a local folder, or a file."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Of a Hub dataset that has several."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Of a Hub dataset. Default: main."}
    )
    image_column: str | None = field(default=None, metadata={"help": "By default by its type."})
    label_column: str | None = field(
        default=None, metadata={"help": "By default the ClassLabel column with the most classes."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Side to resize images to."})
    flip: bool | None = field(
        default=None,
        metadata={"help": "Mirror half of the training images. Default: yes, but not of digits."},
    )
    validation: float = field(
        default=0.1, metadata={"help": "Fraction of the training images held out for validation."}
    )
    split_seed: int = field(default=0, metadata={"help": "Of the validation split alone."})
    train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images, stratified. Default: all."}
    )
    text_column: str | None = field(default=None, metadata={"help": "By default by its type."})
    vocabulary_size: int | None = field(
        default=None, metadata={"help": "Keep the most frequent words. Default: all."}
    )
    train_words: int | None = field(
        default=None, metadata={"help": "Train on this many of the first words. Default: all."}
    )
    window: int = field(
        default=35, metadata={"help": "Words that back-propagation through time goes back."}
    )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "dataset") -> Self:
        """From the `dataset:` mapping of a table file, where `name` is the `dataset_name`.

        Args:
            values: by the names of the fields, or by `SHORT_NAMES`.
            where: what an error calls the mapping.

        Raises:
            BANError: an unknown name (with a near match).
        """
        known = [field.name for field in fields(cls)]
        given = {SHORT_NAMES.get(name, name): value for name, value in values.items()}
        for name in given:
            if name not in known:
                hint = did_you_mean(name, [*known, *SHORT_NAMES])
                raise BANError(f"{where}: unknown key {name!r}.{hint}")
        return cls(**given)

    def check_task(self, task: str) -> None:
        """Raise unless all arguments that are given are of this task.

        Raises:
            BANError: an unknown task, or an argument of another one.
        """
        if task not in QUICKSTART:
            raise BANError(
                f"task={task!r}: no dataset is loaded for it.{did_you_mean(task, QUICKSTART)} "
                f"There are {', '.join(QUICKSTART)}."
            )
        for part in fields(self):
            given = getattr(self, part.name) != part.default
            if given and ONLY.get(part.name, task) != task:
                raise BANError(
                    f"{part.name}={getattr(self, part.name)!r} is an argument of "
                    f"{ONLY[part.name]} and has no meaning for {task}: leave it out."
                )
