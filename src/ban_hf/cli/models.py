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

from ban_hf.data.arguments import IMAGES, TEXTS, DataArguments, load_splits
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

#: The batches of each member, the source of the data, and its entropy, nats, where it is known.
TestData = tuple[list[Iterable[dict[str, Any]]], dict[str, Any], float | None]


@dataclass(frozen=True)
class NamedModel:
    """A model, the name that it was asked for by, and where it was found."""

    name: str
    location: Location
    model: PreTrainedModel

    @property
    def reads_images(self) -> bool:
        """Whether it is an image classifier."""
        return task_of(self.model).name == IMAGES

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


def load_members(names: Sequence[str]) -> list[NamedModel]:
    """Load models that fit together; a branch or tag is resolved to its commit first."""
    locations = [resolve(name) for name in names]
    members = [
        NamedModel(name, location, load_model(str(location), merged=True))
        for name, location in zip(names, locations, strict=True)
    ]
    check_alike([member.model for member in members])
    return members


def load_teacher(name: str) -> tuple[NamedModel, Record]:
    """Load a generation and its record, both verified as far as they are read."""
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
    weights: Sequence[float] | None,
    batch_size: int | None,
) -> dict[str, Any]:
    """Measure members and their ensemble on the test split of a dataset, as plain data.

    `batch_size` is of images, or of columns of a text; the last digits may depend on it.
    """
    task, models = task_of(members[0].model), [member.model for member in members]
    if task.name not in (IMAGES, TEXTS):
        raise BANError(
            f"{members[0].name} is a {type(models[0]).__name__}: image classifiers and causal "
            "language models can be measured."
        )
    read = _images if task.name == IMAGES else _text
    loaders, source, entropy = read(members, data, batch_size)
    in_order = task.name == TEXTS
    shares = normalized_weights(weights, len(members)) or [1 / len(members)] * len(members)
    rows = [
        {
            "name": member.name,
            "place": str(member.location),
            "weight": share,
            "test": evaluate([member.model], [loader], task, in_order=in_order).metrics(entropy),
        }
        for member, share, loader in zip(members, shares, loaders, strict=True)
    ]
    together = evaluate(models, loaders, task, weights=weights, in_order=in_order).metrics(entropy)
    return {
        "metric": task.headline.name,
        "dataset": source,
        "members": rows,
        "ensemble": {"name": f"Ens*{len(members)}", "test": together},
        "hardware": hardware(),
        "versions": versions(),
    }


def check_savable(members: Sequence[NamedModel], output_dir: str) -> None:
    """Raise unless the ensemble can be saved as one model, in a folder of its own."""
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
    members: Sequence[NamedModel], output_dir: str, weights: Sequence[float] | None
) -> None:
    """Save the ensemble as one model, with the image processor or tokenizer of its members."""
    first = members[0]
    ensemble = BornAgainEnsemble.from_members([member.model for member in members], weights)
    ensemble.save_pretrained(output_dir)
    processor = image_processor(*first.format) if first.reads_images else first.tokenizer()
    if processor is not None:
        processor.save_pretrained(output_dir)


def _images(members: Sequence[NamedModel], data: DataArguments, batch_size: int | None) -> TestData:
    """The same images for each member, in its own format."""
    loaders: list[Iterable[dict[str, Any]]] = []
    splits: dict[int, ImageSplits] = {}
    for member in members:
        size, mean, std = member.format
        if size not in splits:
            loaded = load_splits(replace(data, image_size=size, validation=0), IMAGES)
            assert isinstance(loaded, ImageSplits)
            splits[size] = loaded
        test = splits[size].test
        _check_labels(member, test.label_names, str(data.dataset_name))
        views = ImageViews(
            test.images, test.labels, test.label_names, mean=mean, std=std, rows=test.rows
        )
        loaders.append(DataLoader(views, batch_size or IMAGES_AT_ONCE, collate_fn=collate))
    return loaders, dict(splits[members[0].format.size].source), None


def _text(members: Sequence[NamedModel], data: DataArguments, batch_size: int | None) -> TestData:
    """The same words for all members."""
    size = members[0].model.config.get_text_config().vocab_size
    if data.dataset_name != "grammar":
        data = replace(data, vocabulary_size=size)
    splits = load_splits(data, TEXTS)
    assert isinstance(splits, TextSplits)
    for member in members:
        _check_words(member, splits, data)
    most = evaluation_columns(splits, batch_size or COLUMNS, data.window)
    windows = TokenWindows(splits.test, most, window=data.window, warmup=WARM_UP * data.window)
    loader = DataLoader(windows, windows.columns, collate_fn=default_data_collator)
    return [loader] * len(members), dict(splits.source), splits.test_entropy


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
