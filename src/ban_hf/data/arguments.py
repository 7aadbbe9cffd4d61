"""The arguments of a dataset, the same in recipes, commands and table files; and its splits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from ban_hf.errors import BANError, did_you_mean

if TYPE_CHECKING:  # the command line needs the arguments without what loads data
    from ban_hf.data.images import ImageSplits
    from ban_hf.data.text import TextSplits

Splits: TypeAlias = "ImageSplits | TextSplits"

IMAGES, TEXTS = "image-classification", "text-generation"
QUICKSTART = {IMAGES: "digits", TEXTS: "grammar"}
"""By task, the dataset that is taken where none is named; no download."""
OF_IMAGES = "image_column label_column image_size flip validation split_seed train_samples".split()
OF_TEXTS = "text_column vocabulary_size train_words window".split()
ONLY = dict.fromkeys(OF_IMAGES, IMAGES) | dict.fromkeys(OF_TEXTS, TEXTS)
"""The arguments that one task alone has."""
SHORT_NAMES = {
    "name": "dataset_name",
    "config": "dataset_config",
    "revision": "dataset_revision",
    "seed": "split_seed",
}
"""Names in the `dataset:` mapping of a table file, and of `load_images` and `load_text`."""


def _argument(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class DataArguments:
    """A dataset by name, and which part of it is used."""

    dataset_name: str | None = _argument(
        None,
        "Images: cifar10, cifar100, digits (default). Texts: ptb, wikitext2, grammar (default). "
        "Or a Hub id, a local folder, or a file.",
    )
    dataset_config: str | None = _argument(None, "Of a Hub dataset that has several.")
    dataset_revision: str | None = _argument(None, "Of a Hub dataset. Default: main.")
    image_column: str | None = _argument(None, "By default by its type.")
    label_column: str | None = _argument(
        None, "By default the ClassLabel column with the most classes."
    )
    image_size: int | None = _argument(None, "Side to resize images to.")
    flip: bool | None = _argument(
        None, "Mirror half of the training images. Default: yes, but not of digits."
    )
    validation: float = _argument(0.1, "Fraction of the training images held out for validation.")
    split_seed: int = _argument(0, "Of the validation split alone.")
    train_samples: int | None = _argument(
        None, "Train on this many images, stratified. Default: all."
    )
    text_column: str | None = _argument(None, "By default by its type.")
    vocabulary_size: int | None = _argument(None, "Keep the most frequent words. Default: all.")
    train_words: int | None = _argument(
        None, "Train on this many of the first words. Default: all."
    )
    window: int = _argument(35, "Words that back-propagation through time goes back.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """From the `dataset:` mapping of a table file, where `name` is the `dataset_name`.

        Raises:
            BANError: an unknown name (with a near match).
        """
        known = [field.name for field in fields(cls)]
        given = {SHORT_NAMES.get(name, name): value for name, value in values.items()}
        for name in given:
            if name not in known:
                hint = did_you_mean(name, [*known, *SHORT_NAMES])
                raise BANError(f"dataset: unknown key {name!r}.{hint}")
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


def load_splits(arguments: DataArguments, task: str) -> Splits:
    """Load the training, validation and test data of a task.

    Args:
        arguments: of the dataset; see :func:`load_images` and :func:`load_text`.
        task: `"image-classification"` or `"text-generation"`.

    Raises:
        BANError: an argument that has no meaning for the task, and all that the two functions
            refuse.
    """
    from ban_hf.data.images import load_images
    from ban_hf.data.text import load_text

    arguments.check_task(task)
    short = {long: name for name, long in SHORT_NAMES.items()}
    given = {
        short.get(name, name): value
        for name, value in vars(arguments).items()
        if ONLY.get(name, task) == task and name != "window"
    }
    load: Callable[..., Splits] = load_images if task == IMAGES else load_text
    return load(given.pop("name") or QUICKSTART[task], **given)
