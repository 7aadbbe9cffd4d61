"""Any trained models, from folders or from the Hub: measured on a dataset, alone and together.

A model is given what it was trained to read: images as its own image processor makes them, not by
the statistics of whatever was loaded, and a text in its own vocabulary. So a generation has here,
to the last digit, the metrics that its family's `results.json` has for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel

from ban_hf.data import ImageViews, TextSplits, TokenWindows, load_images, load_text
from ban_hf.data.text import WARM_UP, evaluation_columns
from ban_hf.errors import BANError
from ban_hf.hub.location import LocalFolder, Place, locate
from ban_hf.jobs.measurement import ImageTest, TextTest
from ban_hf.lineage.environment import hardware, versions
from ban_hf.models import image_processor, vocabulary_digest
from ban_hf.tasks.auto import task_of
from ban_hf.tasks.base import normalized_weights
from ban_hf.tasks.data import ImageFormat, image_format
from ban_hf.tasks.heads import load_classifier
from ban_hf.training.ensemble import BornAgainEnsemble, check_alike

TOKENIZER = "tokenizer_config.json"
IMAGES_AT_ONCE, COLUMNS = 500, 20  # what the recipes' configurations measure with


@dataclass(frozen=True)
class Member:
    """A model, the name that it was asked for by, and where it was found."""

    name: str
    place: Place
    model: PreTrainedModel


@dataclass(frozen=True)
class NamedDataset:
    """A dataset, as `load_images` or `load_text` takes it."""

    dataset_name: str
    dataset_config: str | None = None
    dataset_revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    text_column: str | None = None


@dataclass(frozen=True)
class DatasetArguments(NamedDataset):
    """A dataset to measure on.

    `batch_size` is the number of images at a time (500 by default), or of columns of a text (20);
    the last digits of a result may depend on it.
    """

    window: int = 35
    batch_size: int | None = None


def load_members(names: Sequence[str | Path]) -> list[Member]:
    """Load models with their heads; a branch or tag of the Hub is resolved to its commit first.

    Args:
        names: local folders, or Hub ids, with `@revision` if wanted.

    Raises:
        ValueError: if one cannot be loaded, or they differ in classes, vocabulary or kind of input.
    """
    places = [locate(name) for name in names]
    members = [
        Member(str(name), place, load_classifier(str(place)))
        for name, place in zip(names, places, strict=True)
    ]
    check_alike([member.model for member in members])
    return members


def measure_members(
    members: Sequence[Member], data: DatasetArguments, weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """Measure members and their ensemble on the test split of a dataset.

    Args:
        members: from `load_members`.
        data: the dataset.
        weights: see `BornAgainEnsemble.from_members`.

    Returns:
        `metric`; `dataset`; `members`, a list of rows with `name`, `place`, `weight` and `test`;
        `ensemble`, with `name` and `test`; `hardware` and `versions`. What is in `test`, see
        `ban_hf.lineage.results`.

    Raises:
        ValueError: if the dataset has other classes or words than the models.
    """
    shares = normalized_weights(weights, len(members)) or [1 / len(members)] * len(members)
    tests, source = (  # an ImageTest for each, or one TextTest for all
        _text_tests(members, data)
        if task_of(members[0].model).name == "text-generation"
        else _image_tests(members, data)
    )
    predictions = [test.predict(m.model) for m, test in zip(members, tests, strict=True)]
    rows = [
        {"name": m.name, "place": str(m.place), "weight": share, "test": test.metrics([own])}
        for m, share, test, own in zip(members, shares, tests, predictions, strict=True)
    ]
    together = tests[0].metrics(predictions, weights)  # of the same labels, however they are read
    return {
        "metric": tests[0].metric,
        "dataset": source,
        "members": rows,
        "ensemble": {"name": f"Ens*{len(members)}", "test": together},
        "hardware": hardware(),
        "versions": versions(),
    }


def check_savable(members: Sequence[Member], output_dir: str | Path) -> None:
    """Hold that the ensemble can be saved as one model, in a folder of its own.

    Raises:
        ValueError: if the folder is not empty, or the members read images differently.
    """
    folder = Path(output_dir)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BANError(f"output_dir={output_dir} is not an empty folder: give another one.")
    for member in members[1:] if _reads_images(members[0]) else ():
        if _format(member) != _format(members[0]):
            raise BANError(
                f"{member.name} reads {_format(member)}, {members[0].name} {_format(members[0])}: "
                "they can be measured together, but not saved as one model, which is given one "
                "image. Leave output_dir out."
            )


def save_ensemble(
    members: Sequence[Member], output_dir: str | Path, weights: Sequence[float] | None = None
) -> BornAgainEnsemble:
    """Save the ensemble as one model, with the image processor or tokenizer of its members.

    Raises:
        ValueError: see `check_savable`.
    """
    check_savable(members, output_dir)
    first, reader = members[0], None
    if _reads_images(first):
        reader = image_processor(*_format(first))
    elif TOKENIZER in first.place.names():
        reader = AutoTokenizer.from_pretrained(**_origin(first.place))
    ensemble = BornAgainEnsemble.from_members([member.model for member in members], weights)
    ensemble.save_pretrained(output_dir)
    if reader is not None:
        reader.save_pretrained(output_dir)
    return ensemble


def _reads_images(member: Member) -> bool:
    return bool(member.model.main_input_name == "pixel_values")


def _format(member: Member) -> ImageFormat:
    return image_format(member.place, member.model.config)


def _image_tests(
    members: Sequence[Member], data: DatasetArguments
) -> tuple[list[Any], dict[str, Any]]:
    """A test for each member, of the same images in its own format; and where they are from."""
    first = members[0]
    if not _reads_images(first):
        raise BANError(
            f"{first.name} is a {type(first.model).__name__}: measured can be image classifiers "
            "and causal language models."
        )
    formats = [_format(member) for member in members]
    splits = {
        size: load_images(
            data.dataset_name,
            config=data.dataset_config,
            revision=data.dataset_revision,
            image_column=data.image_column,
            label_column=data.label_column,
            image_size=size,
            validation=0,
        )
        for size in dict.fromkeys(found.size for found in formats)
    }
    for member in members:
        _check_labels(member, splits[formats[0].size].test.label_names, data.dataset_name)
    tests = {}
    for size, mean, std in dict.fromkeys(formats):
        part = splits[size].test
        views = ImageViews(
            part.images, part.labels, part.label_names, mean=mean, std=std, rows=part.rows
        )
        batch_size = IMAGES_AT_ONCE if data.batch_size is None else data.batch_size
        tests[size, mean, std] = ImageTest(views, batch_size)
    return [tests[found] for found in formats], dict(splits[formats[0].size].source)


def _text_tests(
    members: Sequence[Member], data: DatasetArguments
) -> tuple[list[Any], dict[str, Any]]:
    """The one test of all members, once for each; and where the text is from."""
    size = members[0].model.config.get_text_config().vocab_size
    splits = load_text(
        data.dataset_name,
        config=data.dataset_config,
        revision=data.dataset_revision,
        text_column=data.text_column,
        vocabulary_size=None if data.dataset_name == "grammar" else size,
    )
    for member in members:
        _check_words(member, splits, data)
    most = COLUMNS if data.batch_size is None else data.batch_size
    columns = evaluation_columns(splits, most, data.window)
    windows = TokenWindows(splits.test, columns, window=data.window, warmup=WARM_UP * data.window)
    return [TextTest(windows, splits.test_entropy)] * len(members), dict(splits.source)


def _check_labels(member: Member, names: Sequence[str], dataset_name: str) -> None:
    """Hold that the classes of a model are those of a dataset, in the same order."""
    id2label = member.model.config.id2label
    own = [id2label[i] for i in sorted(id2label)]
    if own == list(names):
        return
    pairs = enumerate(zip(names, own, strict=False))
    different = [
        f"{i}: {there!r} there, {here!r} here" for i, (there, here) in pairs if there != here
    ]
    raise BANError(
        f"{member.name} was trained on other classes than {dataset_name} has: {len(names)} there, "
        f"{len(own)} here; {'; '.join(different[:3])}."
    )


def _check_words(member: Member, splits: TextSplits, data: DatasetArguments) -> None:
    """Hold that a model's vocabulary is that of a text, and that it can read a window of it."""
    config: Any = member.model.config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < data.window:
        raise BANError(f"{member.name} reads at most {longest} words: give window={longest}.")
    digest = config.to_dict().get("vocabulary_sha256")
    if digest is not None:
        same = digest == vocabulary_digest(splits.words)
    elif TOKENIZER in member.place.names():
        tokenizer = AutoTokenizer.from_pretrained(**_origin(member.place))
        same = tokenizer.get_vocab() == {word: i for i, word in enumerate(splits.words)}
    else:
        raise BANError(
            f"{member.name} does not say which words it knows: save its tokenizer beside it."
        )
    if not same:
        raise BANError(
            f"{member.name} has another vocabulary than {data.dataset_name}, whose training split "
            f"has {len(splits.words):,} words: measure it on the text that it was trained on."
        )


def _origin(place: Place) -> dict[str, Any]:
    """A place as the arguments of `from_pretrained`."""
    known: dict[str, Any] = {"trust_remote_code": False}
    if isinstance(place, LocalFolder):
        return known | {"pretrained_model_name_or_path": place.path}
    return known | {
        "pretrained_model_name_or_path": place.repo_id,
        "revision": place.revision,
    }
