"""A dataset's arguments, and what a record says of any dataset."""

import random
from dataclasses import fields

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from transformers import HfArgumentParser

from ban_hf.data import DataArguments, describe_data, load_images, load_splits, load_text
from ban_hf.errors import BANError

IMAGES, TEXTS = "image-classification", "text-generation"


# Arguments


def test_arguments_are_flags():
    (arguments,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        "--dataset_name cifar10 --train_samples 100 --validation 0.2 --flip no".split()
    )
    assert arguments == DataArguments("cifar10", train_samples=100, validation=0.2, flip=False)
    assert all(field.metadata["help"] for field in fields(DataArguments))


def test_images_and_texts_are_loaded_by_the_task():
    options = dict(train_samples=50, image_size=8, validation=0.2, flip=True)
    images = load_splits(DataArguments(split_seed=3, **options), IMAGES)  # the digits, by default
    expected = load_images("digits", seed=3, **options)
    assert images.train.describe() == expected.train.describe()
    assert len(images.validation) == len(expected.validation)
    texts = load_splits(DataArguments(train_words=60), TEXTS)  # the grammar, by default
    assert torch.equal(texts.train, load_text("grammar", train_words=60).train)


def test_a_table_file_has_short_names():
    values = {"name": "cifar10", "validation": 0.02, "revision": "v1", "seed": 4}
    arguments = DataArguments.from_mapping(values)
    assert arguments == DataArguments(
        "cifar10", validation=0.02, dataset_revision="v1", split_seed=4
    )
    with pytest.raises(BANError, match=r"dataset: unknown key 'train_sample'.*'train_samples'"):
        DataArguments.from_mapping({"train_sample": 3})


@pytest.mark.parametrize(
    ("arguments", "task", "message"),
    [
        ({"text_column": "text"}, IMAGES, "text_column='text' is an argument of text-generation"),
        ({"window": 5}, IMAGES, "window=5 is an argument of text-generation"),
        ({"train_samples": 5}, TEXTS, "train_samples=5 is an argument of image-classification"),
        ({}, "image-clasification", r"no dataset is loaded for it\. Did you mean 'image-classifi"),
    ],
)
def test_arguments_of_another_task_are_refused(arguments, task, message):
    with pytest.raises(BANError, match=message):
        load_splits(DataArguments(**arguments), task)


# Descriptions


class Listed(Dataset):
    """Items as they are given, made when they are read."""

    def __init__(self, items, noise=None):
        self.items, self.noise = items, noise

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item if self.noise is None else {"x": item, "noise": self.noise()}


def tensors(n=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, 3, generator=rng), torch.arange(n))


PAIRS = {
    "tensors": (tensors(), tensors(seed=1)),
    "order": (tensors(), Subset(tensors(), [1, 0, 2, 3, 4, 5])),
    "dtype": (Listed([{"x": torch.zeros(2)}]), Listed([{"x": torch.zeros(2).double()}])),
    "shape": (Listed([np.zeros((2, 3))]), Listed([np.zeros((3, 2))])),
    "names": (Listed([{"x": 1}]), Listed([{"y": 1}])),
    "text": (Listed([["ab", "c"]]), Listed([["a", "bc"]])),
    "number": (Listed([{"x": 1}]), Listed([{"x": True}])),
    "images": (Listed([Image.new("L", (2, 2), 1)]), Listed([Image.new("L", (2, 2), 2)])),
    "objects": (Listed([{"x": {1, 2}}]), Listed([{"x": {1, 3}}])),
    "bfloat16": (Listed([torch.ones(2).bfloat16()]), Listed([torch.zeros(2).bfloat16()])),
    "datasets": tuple(datasets.Dataset.from_dict({"a": part}) for part in ([1, 2], [1, 3])),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_other_data_of_the_same_length_have_another_fingerprint(pair):
    one, other = map(describe_data, pair)
    assert one["items"] == other["items"] == len(pair[0])
    assert one["fingerprint"] != other["fingerprint"]
    assert describe_data(pair[0]) == one


def test_a_fingerprint_is_the_same_on_every_machine():
    known = "6fd0b958fdfae919446bbc031e6ab4904bb19e485156e78fc31c29e36ca716b1"
    assert describe_data(tensors()) == {"items": 6, "fingerprint": known}


class Unhashable:
    """A function that `datasets` cannot hash, as one with a tokenizer may be."""

    def __reduce__(self):
        raise TypeError("not to be pickled")

    def __call__(self, row):
        return {"length": len(row["text"])}


UNHASHABLE = Unhashable()


def from_csv(folder):
    folder.mkdir()
    (folder / "data.csv").write_text("text,label\nab,0\nc,1\n")
    cache = str(folder / "cache")
    return datasets.Dataset.from_csv(str(folder / "data.csv"), cache_dir=cache)


def from_images(folder):
    folder.mkdir()
    pictures = [{"image": Image.new("RGB", (4, 4), (i, 0, 0)), "label": i} for i in range(3)]
    return datasets.Dataset.from_list(pictures).cast_column("image", datasets.Image())


KINDS = {
    "a file": from_csv,
    "mapped": lambda folder: from_csv(folder).map(UNHASHABLE),
    "transformed": lambda folder: from_csv(folder).with_transform(
        lambda batch: {"n": [UNHASHABLE({"text": text}) for text in batch["text"]]}
    ),
    "formatted": lambda folder: from_csv(folder).with_format("torch"),
    "selected": lambda folder: from_csv(folder).shuffle(seed=1).select([1, 0]),
    "images": from_images,
    "a generator": lambda folder: datasets.Dataset.from_generator(
        lambda: iter([{"x": 1}, {"x": 2}]), cache_dir=str(folder)
    ),
    "concatenated": lambda folder: datasets.concatenate_datasets([from_csv(folder)] * 2),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_datasets_dataset_has_the_fingerprint_of_its_contents(kind, tmp_path):
    """Not that of its path, or of a function that `datasets` cannot hash."""
    one, other = (kind(tmp_path / name) for name in ("one", "other"))
    described = describe_data(one)
    assert described == describe_data(other)
    assert described.keys() == {"items", "fingerprint"}
    fewer = other.select(range(len(other) - 1))
    assert describe_data(fewer)["fingerprint"] != described["fingerprint"]
    if one.format["type"] is None:
        moved = one.select([1, 0, *range(2, len(one))])
        assert describe_data(moved)["fingerprint"] != described["fingerprint"]


@pytest.mark.parametrize(
    "noise",
    [lambda: torch.randn(2), random.random, np.random.rand],
    ids=["torch", "random", "numpy"],
)
def test_random_augmentation_does_not_matter_and_random_states_stay(noise):
    data, expected = Listed([1, 2, 3], noise), []
    for describe in (False, True):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        if describe:
            assert describe_data(data) == describe_data(data)
            assert "fingerprint" in describe_data(data)
        expected.append([float(torch.randn(1)), random.random(), np.random.rand()])
    assert expected[0] == expected[1]


def test_what_has_no_fingerprint_says_so():
    class Stream(IterableDataset):
        def __iter__(self):
            yield {"x": 1}

    streams = Stream(), datasets.Dataset.from_dict({"a": [1]}).to_iterable_dataset()
    for stream in streams:
        assert describe_data(stream) == {"items": None, "contents": "a stream, not checked"}
    own = random.Random(0)  # not a global generator
    described = describe_data(Listed([1, 2], own.random))
    assert described.keys() == {"items", "contents"}
    assert "differ from one reading to the next" in described["contents"]


def test_a_large_dataset_is_read_in_part(monkeypatch):
    monkeypatch.setattr("ban_hf.data.description.MOST_READ", 4)
    read = []
    described = describe_data(Listed(list(range(12)), lambda: read.append(1)))
    assert described["fingerprint_items"] == 4
    assert len(read) == 4 + 2
    assert "fingerprint_items" not in describe_data(Listed([1, 2, 3, 4]))
