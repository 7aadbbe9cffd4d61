"""Models that a command names, in folders or on the Hub: loaded, and measured on a dataset.

A model reads what it was trained to read: images as its own image processor prepares them, and a
text in its own vocabulary. So a generation has here, to the last digit, the metrics that its
family's `results.json` has.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedModel, default_data_collator

from ban_hf.data.arguments import DataArguments, load_splits
from ban_hf.data.augmentation import ImageViews, collate
from ban_hf.data.images import ImageSplits
from ban_hf.data.text import WARM_UP, TextSplits, evaluation_columns
from ban_hf.data.windows import TokenWindows
from ban_hf.errors import BANError
from ban_hf.hub.location import Location, resolve
from ban_hf.hub.verification import ancestry
from ban_hf.jobs.evaluation import evaluate
from ban_hf.lineage.environment import hardware, versions
from ban_hf.lineage.family import finished_generations
from ban_hf.lineage.files import read_json
from ban_hf.lineage.record import Record
from ban_hf.models.factory import image_processor, vocabulary_digest
from ban_hf.tasks.auto import load_model, task_of
from ban_hf.tasks.base import TOKENIZER_FILE, normalized_weights
from ban_hf.tasks.data import PROCESSOR_FILE, ImageFormat, image_format
from ban_hf.training.ensemble import BornAgainEnsemble, check_alike

IMAGES_AT_ONCE, COLUMNS = 500, 20  # what the recipes' configurations measure with


@dataclass(frozen=True)
class NamedModel:
    """A model, the name that it was asked for by, and where it was found."""

    name: str
    location: Location
    model: PreTrainedModel

    @property
    def reads_images(self) -> bool:
        """Whether it is an image classifier."""
        return task_of(self.model).name == "image-classification"

    @property
    def format(self) -> ImageFormat:
        """Which images it reads."""
        has_one = PROCESSOR_FILE in self.location.names()
        processor = read_json(self.location.fetch(PROCESSOR_FILE)) if has_one else None
        return image_format(processor, self.model.config, str(self.location))

    def tokenizer(self) -> Any:
        """Its tokenizer; None if there is none beside its weights."""
        if TOKENIZER_FILE not in self.location.names():
            return None
        return AutoTokenizer.from_pretrained(
            **self.location.load_arguments, trust_remote_code=False
        )


def load_members(names: Sequence[str | Path]) -> list[NamedModel]:
    """Load models; a branch or tag of the Hub is resolved to its commit first.

    Args:
        names: local folders, or Hub ids, with `@revision` if wanted.

    Raises:
        BANError: if one cannot be loaded, or they differ in classes, vocabulary or kind of input.
    """
    locations = [resolve(str(name)) for name in names]
    members = [
        NamedModel(str(name), location, load_model(str(location)))
        for name, location in zip(names, locations, strict=True)
    ]
    check_alike([member.model for member in members])
    return members


def load_teacher(name: str) -> tuple[NamedModel, Record]:
    """Load a generation and its record, both verified as far as they are read.

    Raises:
        BANError: if it is a family or an ensemble.
    """
    if finished_generations(Path(name)):
        raise BANError(f"{name!r} is a family: name one of its generations.")
    location = resolve(name)
    record = ancestry(location)[-1].record
    if record.kind != "generation":
        raise BANError(f"{name!r} is an ensemble: name one of its generations.")
    return NamedModel(name, location, load_model(str(location))), record


def measure_members(
    members: Sequence[NamedModel],
    data: DataArguments,
    weights: Sequence[float] | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Measure members and their ensemble on the test split of a dataset.

    Args:
        members: from `load_members`.
        data: the dataset.
        weights: see `BornAgainEnsemble.from_members`.
        batch_size: images at a time (500 by default), or columns of a text (20); the last digits of
            a result may depend on it.

    Returns:
        `metric`; `dataset`; `members`, a list of rows with `name`, `place`, `weight` and `test`;
        `ensemble`, with `name` and `test`; `hardware` and `versions`.

    Raises:
        BANError: if the dataset has other classes or words than the models.
    """
    task = task_of(members[0].model)
    shares = normalized_weights(weights, len(members)) or [1 / len(members)] * len(members)
    if members[0].reads_images:
        loaders, source = _image_loaders(members, data, batch_size or IMAGES_AT_ONCE)
        entropy, in_order = None, False
    elif task.name == "text-generation":
        loader, source, entropy = _text_loader(members, data, batch_size or COLUMNS)
        loaders, in_order = [loader] * len(members), True
    else:
        raise BANError(
            f"{members[0].name} is a {type(members[0].model).__name__}: image classifiers and "
            "causal language models can be measured."
        )
    rows = [
        {
            "name": member.name,
            "place": str(member.location),
            "weight": share,
            "test": evaluate([member.model], [loader], task, in_order=in_order).metrics(entropy),
        }
        for member, share, loader in zip(members, shares, loaders, strict=True)
    ]
    models = [member.model for member in members]
    together = evaluate(models, loaders, task, weights=weights, in_order=in_order).metrics(entropy)
    return {
        "metric": task.headline.name,
        "dataset": source,
        "members": rows,
        "ensemble": {"name": f"Ens*{len(members)}", "test": together},
        "hardware": hardware(),
        "versions": versions(),
    }


def check_savable(members: Sequence[NamedModel], output_dir: str | Path) -> None:
    """Raise unless the ensemble can be saved as one model, in a folder of its own.

    Raises:
        BANError: if the folder is not empty, or the members read images differently.
    """
    folder = Path(output_dir)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise BANError(f"output_dir={output_dir} is not an empty folder: give another one.")
    first = members[0]
    for member in members[1:] if first.reads_images else ():
        if member.format != first.format:
            raise BANError(
                f"{member.name} reads {member.format}, {first.name} {first.format}: they can be "
                "measured together, but not saved as one model, which is given one image. Leave "
                "output_dir out."
            )


def save_ensemble(
    members: Sequence[NamedModel], output_dir: str | Path, weights: Sequence[float] | None = None
) -> BornAgainEnsemble:
    """Save the ensemble as one model, with the image processor or tokenizer of its members.

    Raises:
        BANError: see `check_savable`.
    """
    check_savable(members, output_dir)
    first = members[0]
    processor = image_processor(*first.format) if first.reads_images else first.tokenizer()
    ensemble = BornAgainEnsemble.from_members([member.model for member in members], weights)
    ensemble.save_pretrained(output_dir)
    if processor is not None:
        processor.save_pretrained(output_dir)
    return ensemble


def _image_loaders(
    members: Sequence[NamedModel], data: DataArguments, batch_size: int
) -> tuple[list[Iterable[dict[str, Any]]], dict[str, Any]]:
    """The batches of each member, of the same images in its own format; and their source."""
    formats = [member.format for member in members]
    splits: dict[int, ImageSplits] = {}
    for size in dict.fromkeys(found.size for found in formats):
        loaded = load_splits(replace(data, image_size=size, validation=0), "image-classification")
        assert isinstance(loaded, ImageSplits)
        splits[size] = loaded
    for member in members:
        _check_labels(member, splits[formats[0].size].test.label_names, str(data.dataset_name))
    loaders: dict[ImageFormat, Iterable[dict[str, Any]]] = {}
    for found in dict.fromkeys(formats):
        part = splits[found.size].test
        views = ImageViews(
            part.images,
            part.labels,
            part.label_names,
            mean=found.mean,
            std=found.std,
            rows=part.rows,
        )
        loaders[found] = DataLoader(views, batch_size, collate_fn=collate)
    return [loaders[found] for found in formats], dict(splits[formats[0].size].source)


def _text_loader(
    members: Sequence[NamedModel], data: DataArguments, columns: int
) -> tuple[Iterable[dict[str, Any]], dict[str, Any], float | None]:
    """The batches of all members, the source of the text, and its entropy where it is known."""
    size = members[0].model.config.get_text_config().vocab_size
    if data.dataset_name != "grammar":
        data = replace(data, vocabulary_size=size)
    splits = load_splits(data, "text-generation")
    assert isinstance(splits, TextSplits)
    for member in members:
        _check_words(member, splits, data)
    most = evaluation_columns(splits, columns, data.window)
    windows = TokenWindows(splits.test, most, window=data.window, warmup=WARM_UP * data.window)
    loader = DataLoader(windows, windows.columns, collate_fn=default_data_collator)
    return loader, dict(splits.source), splits.test_entropy


def _check_labels(member: NamedModel, names: Sequence[str], dataset_name: str) -> None:
    """Raise unless the classes of a model are those of a dataset, in the same order."""
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


def _check_words(member: NamedModel, splits: TextSplits, data: DataArguments) -> None:
    """Raise unless a model's vocabulary is that of a text, and it can read a window of it."""
    config = member.model.config
    longest = getattr(config, "max_position_embeddings", None)  # by any name, unlike to_dict()
    if longest is not None and longest < data.window:
        raise BANError(f"{member.name} reads at most {longest} words: give window={longest}.")
    if (known := config.to_dict().get("vocabulary_sha256")) is not None:
        same = known == vocabulary_digest(splits.words)
    elif (tokenizer := member.tokenizer()) is not None:
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
