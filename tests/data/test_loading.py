"""A dataset's arguments, and what a record says of any dataset."""

import random
import subprocess
import sys
from dataclasses import fields

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset
from transformers import HfArgumentParser

from ban_hf.data import (
    POSITIONS,
    DataArguments,
    ImageViews,
    TokenWindows,
    count_items,
    describe_data,
    load_images,
    load_splits,
    load_text,
)
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
    arguments = DataArguments("digits", train_samples=50, image_size=8, split_seed=3)
    images = load_splits(arguments, IMAGES)
    expected = load_images("digits", train_samples=50, image_size=8, seed=3)
    assert images.train.describe() == expected.train.describe()
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
    assert one["items"] == other["items"] == count_items(pair[0])
    assert one["fingerprint"] != other["fingerprint"]
    assert describe_data(pair[0]) == one


def test_a_fingerprint_is_the_same_in_another_process():
    program = (
        "import datasets, torch\nfrom torch.utils.data import TensorDataset\n"
        "from ban_hf.data import describe_data\n"
        "rng = torch.Generator().manual_seed(0)\n"
        "data = TensorDataset(torch.randn(6, 3, generator=rng), torch.arange(6))\n"
        "rows = datasets.Dataset.from_dict({'a': [1, 2]})\n"
        "print(describe_data(data)['fingerprint'], describe_data(rows)['fingerprint'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    known = (tensors(), PAIRS["datasets"][0])
    assert done.stdout.split()[-2:] == [describe_data(data)["fingerprint"] for data in known]


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
        assert count_items(stream) is None
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


# Copies


def pictures():
    images = torch.arange(4 * 3 * 64).view(4, 3, 8, 8).byte()
    options = dict(mean=[0.5] * 3, std=[0.2] * 3, augment=True, seed=1)
    return ImageViews(images, torch.tensor([0, 1, 0, 1]), "ab", **options)


def test_a_copy_with_another_seed_leaves_the_dataset_alone():
    data = pictures()
    data.set_epoch(2)
    other = data.with_seed(5)
    assert (other.seed, other.epoch, data.seed, data.epoch) == (5, 0, 1, 2)
    assert other.images is data.images
    other.set_epoch(7)
    assert data.epoch == 2
    assert other.describe() == data.describe()  # the seed is an argument of the training
    assert other.views_definition != data.views_definition


@pytest.mark.parametrize("data", [pictures(), TokenWindows(torch.arange(24), 4, window=5)])
def test_a_copy_tells_positions(data):
    other = data.with_positions()
    assert other[3][POSITIONS] == 3
    assert POSITIONS not in data[3]
    assert {k: v.tolist() for k, v in other[3].items() if k != POSITIONS} == {
        k: v.tolist() for k, v in data[3].items()
    }
    if isinstance(data, ImageViews):
        other.set_epoch(9)
        assert data.epoch == 0


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_without_a_name_is_refused(label):
    labels = torch.tensor([0, 1, label])
    with pytest.raises(BANError, match=rf"labels\[2\]={label}: must be from 0 to 1"):
        ImageViews(torch.zeros(3, 3, 8, 8).byte(), labels, "ab", mean=[0.5] * 3, std=[0.2] * 3)
