"""Images: views that depend on (seed, epoch, sample) only; loading, splits, and clear errors."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainingArguments

from ban_hf import BANError
from ban_hf.data import ImageViews, SetEpoch, collate, load_images
from ban_hf.data.augmentation import counter_hash
from ban_hf.data.images import STATISTICS, channel_statistics, stratified

COLORS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}


def make_views(count=24, **kwargs):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 3
    return ImageViews(images, labels, "abc", **COLORS, **{"augment": True} | kwargs)


# Views


def test_counter_hash_is_splitmix64():
    mask = (1 << 64) - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    gamma = 0x9E3779B97F4A7C15
    # The published first outputs of splitmix64 for state 0 pin the mixer itself.
    assert [mix(gamma), mix(2 * gamma & mask)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    ids = [0, 1, 49_999, 1 << 40]
    for seed, epoch in [(0, 0), (7, 199), (-3, -1), ((1 << 63) - 1, 5)]:
        stream = mix((mix((seed + gamma) & mask) + epoch) & mask)
        expected = [mix((stream + (i + 1) * gamma) & mask) for i in ids]
        hashes = counter_hash(seed, epoch, torch.tensor(ids))
        assert [value & mask for value in hashes.tolist()] == expected


def test_every_crop_and_flip_is_equally_frequent():
    # A 9x9 image with 4 pixels of padding: its centre stays in sight, and its place tells the crop.
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4], image[0, 0, 4, 3] = 200, 100
    images, labels, found = image.expand(1000, -1, -1, -1), torch.zeros(1000).long(), []
    dataset = ImageViews(images, labels, "a", mean=[0.0], std=[1.0], augment=True)
    for epoch in range(20):
        dataset.set_epoch(epoch)
        found.append(dataset.__getitems__(range(1000))["pixel_values"])
    pixels = (torch.cat(found) * 255).round().flatten(1)
    assert ((pixels == 200).sum(1) == 1).all()
    centre = (pixels == 200).long().argmax(1)
    counts, expected = centre.bincount(minlength=81), 1000 * 20 / 81
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 124.8  # 80 degrees of freedom: exceeded by chance once in 1,000
    inner = (centre % 9 > 0) & (centre % 9 < 8)
    mirrored = pixels[inner].gather(1, centre[inner, None] + 1)[:, 0] == 100
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("flip", [True, False])
def test_views_equal_a_plain_reference(flip):
    dataset = make_views(flip=flip, seed=11, pad=2)
    dataset.set_epoch(6)
    mean, std = dataset.mean[:, None, None], dataset.std[:, None, None]
    ids = torch.tensor([5, 17, 3, 3, 20])
    result = dataset.__getitems__(ids)["pixel_values"]
    hashes = counter_hash(11, 6, ids).tolist()
    for image, bits, view in zip(dataset.images[ids], hashes, result, strict=True):
        bits &= (1 << 64) - 1
        top, left = ((field * 5) >> 24 for field in (bits >> 40, (bits >> 16) & 0xFFFFFF))
        padded = torch.zeros(3, 12, 12)
        padded[:, 2:10, 2:10] = (image / 255 - mean) / std
        crop = padded[:, top : top + 8, left : left + 8]
        crop = crop.flip(-1) if flip and bits & 1 else crop
        torch.testing.assert_close(view, crop, atol=1e-5, rtol=1e-5)


def test_a_view_depends_on_seed_epoch_and_sample_only():
    dataset, other = make_views(seed=3), make_views(seed=4)
    dataset.set_epoch(2)
    batch = dataset.__getitems__(range(24))["pixel_values"]
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    torch.rand(7)  # the global generator is neither used
    state = torch.get_rng_state()
    assert torch.equal(dataset.__getitems__(order)["pixel_values"], batch[order])
    assert torch.equal(torch.get_rng_state(), state)  # nor moved
    assert torch.equal(dataset[9]["pixel_values"], batch[9])
    subset = dataset.select([20, 9], augment=True)  # keeps its samples' ids
    assert (subset.seed, subset.epoch) == (3, 0)
    subset.set_epoch(2)
    assert torch.equal(subset.__getitems__([0, 1])["pixel_values"], batch[[20, 9]])
    other.set_epoch(2)
    assert not torch.equal(other.__getitems__(range(24))["pixel_values"], batch)
    again = other.with_seed(3)
    assert (again.epoch, again.images is other.images) == (0, True)
    again.set_epoch(2)
    assert torch.equal(again.__getitems__(range(24))["pixel_values"], batch)
    assert again.describe() == other.describe()  # the seed is an argument of the training
    assert again.views_definition != other.views_definition
    again.set_epoch(3)
    assert not torch.equal(again.__getitems__(range(24))["pixel_values"], batch)
    assert (other.seed, other.epoch) == (4, 2)


def test_without_augmentation_every_epoch_is_the_same():
    dataset = make_views(augment=False)
    batch = dataset.__getitems__([4, 2])
    dataset.set_epoch(5)
    assert torch.equal(dataset.__getitems__([4, 2])["pixel_values"], batch["pixel_values"])
    assert batch["labels"].tolist() == [1, 2]
    mean, std = dataset.mean[:, None, None], dataset.std[:, None, None]
    expected = (dataset.images[[4, 2]] / 255 - mean) / std
    torch.testing.assert_close(batch["pixel_values"], expected)


def test_workers_that_outlive_an_epoch_see_the_views_of_the_next():
    dataset = make_views()
    loader = DataLoader(
        dataset, batch_size=5, collate_fn=collate, num_workers=2, persistent_workers=True
    )
    for epoch in range(3):
        dataset.set_epoch(epoch)
        here, batches = dataset.__getitems__(range(24)), list(loader)
        for name in ("pixel_values", "labels"):
            assert torch.equal(torch.cat([batch[name] for batch in batches]), here[name])


def test_fingerprint_and_definition():
    dataset = make_views()
    assert dataset.fingerprint == make_views(seed=9, augment=False).fingerprint
    changed = make_views()
    changed.images[7, 0, 0, 0] ^= 1
    relabelled = make_views()
    relabelled.labels[0] = 2
    renamed = make_views()
    renamed.label_names[0] = "z"
    others = [changed, relabelled, renamed, dataset.select(range(23), augment=True)]
    assert len({d.fingerprint for d in [dataset, *others]}) == 5
    colors = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]}
    how = {"augment": True, "pad": 4, "flip": True, "seed": 0}
    assert dataset.views_definition == {"schema": "ban_hf.views/1", **colors, **how}


@pytest.mark.gpu
def test_views_on_a_gpu_are_those_of_the_cpu():
    dataset, on_gpu = make_views(), make_views().to("cuda")
    expected, batch = (d.__getitems__(range(24)) for d in (dataset, on_gpu))
    assert batch["pixel_values"].is_cuda
    torch.testing.assert_close(batch["pixel_values"].cpu(), expected["pixel_values"])
    assert torch.equal(batch["labels"].cpu(), expected["labels"])
    subset = on_gpu.select([3, 1], augment=True)
    assert torch.equal(subset[1]["pixel_values"], on_gpu[1]["pixel_values"])
    assert on_gpu.fingerprint == dataset.fingerprint


def test_images_of_a_wrong_kind_and_labels_without_a_name_are_refused():
    with pytest.raises(BANError, match="uint8"):
        ImageViews(torch.rand(2, 3, 8, 8), torch.zeros(2).long(), "a", **COLORS)
    for label in (-1, 2):
        labels = torch.tensor([0, 1, label])
        with pytest.raises(BANError, match=rf"labels\[2\]={label}: must be from 0 to 1"):
            ImageViews(torch.zeros(3, 3, 8, 8).byte(), labels, "ab", **COLORS)


# Epochs under accelerate and Trainer


def signature(pixel_values):
    """A number for each view, which a crop, a flip or another sample changes."""
    place = torch.arange(pixel_values[0].numel()) ** 0.5
    return [float((view.flatten() * place).sum()) for view in pixel_values]


class Recorder(nn.Module):
    """Remembers what it was shown."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(3, 3), []

    def forward(self, pixel_values, labels):
        self.seen += signature(pixel_values)
        logits = self.linear(pixel_values.mean((2, 3)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def run_trainer(folder, resume=None, dataset=None, **kwargs):
    model = Recorder()
    args = TrainingArguments(
        folder,
        per_device_train_batch_size=4,
        num_train_epochs=3,
        save_steps=4,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"remove_unused_columns": False} | kwargs,
    )
    data = make_views() if dataset is None else dataset
    trainer = Trainer(model, args, collate, data, callbacks=[SetEpoch(data)])
    trainer.train(resume_from_checkpoint=resume)
    return model.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_the_same_views(tmp_path, workers):
    options = {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
    whole = run_trainer(tmp_path, **options)
    assert len(whole) == 3 * 24
    dataset = make_views()
    for epoch in range(3):
        dataset.set_epoch(epoch)
        expected = signature(dataset.__getitems__(range(24))["pixel_values"])
        assert sorted(whole[epoch * 24 : (epoch + 1) * 24]) == sorted(expected)
    # 6 steps an epoch: checkpoint 8 is in the middle of the second, 12 at its end.
    assert run_trainer(tmp_path, resume=tmp_path / "checkpoint-8", **options) == whole[8 * 4 :]
    assert run_trainer(tmp_path, resume=tmp_path / "checkpoint-12", **options) == whole[12 * 4 :]


def test_misuse_under_trainer_is_explained(tmp_path):
    with pytest.raises(BANError, match="remove_unused_columns=False"):
        run_trainer(tmp_path, remove_unused_columns=True)
    with pytest.raises(BANError, match=r"Subset of ImageViews .* use ImageViews\.select"):
        run_trainer(tmp_path, dataset=Subset(make_views(), range(8)))


def test_two_processes_share_out_the_views_of_one():
    alone = make_views()
    alone.set_epoch(1)
    expected = alone.__getitems__(range(24))["pixel_values"]
    parts = []
    for rank in range(2):
        dataset = make_views()
        loader = DataLoader(dataset, batch_size=4, collate_fn=collate)
        loader = prepare_data_loader(
            loader, num_processes=2, process_index=rank, put_on_device=False
        )
        dataset.set_epoch(1)
        loader.set_epoch(1)
        parts.append([batch["pixel_values"] for batch in loader])
        dataset.set_epoch(1)
        loader.set_epoch(1)
        rest = [batch["pixel_values"] for batch in skip_first_batches(loader, 1)]
        assert torch.equal(torch.cat(rest), torch.cat(parts[-1][1:]))
    joined = [batch for both in zip(*parts, strict=True) for batch in both]
    assert torch.equal(torch.cat(joined), expected)


# Splits and statistics


def test_stratified_is_proportional_and_nested():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 15 + [3] * 5)
    rows = torch.arange(100)
    chosen, rest = stratified(rows, labels, 20, seed=0)
    assert labels[chosen].bincount().tolist() == [10, 6, 3, 1]
    assert torch.equal(torch.cat([chosen, rest]).sort().values, rows)
    assert chosen.tolist() == sorted(chosen.tolist())
    # The same on every machine: pinned.
    assert chosen.tolist()[:5] == [0, 10, 18, 19, 20]
    assert stratified(rows, labels, 20, seed=1)[0].tolist() != chosen.tolist()
    smaller, _ = stratified(rows, labels, 10, seed=0)
    assert set(smaller.tolist()) <= set(chosen.tolist())
    for count in (0, 7, 99, 100):
        assert len(stratified(rows, labels, count, seed=0)[0]) == count


def test_channel_statistics():
    images = make_views().images
    mean, std = channel_statistics(images)
    reference = images.double() / 255
    np.testing.assert_allclose(mean, reference.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, reference.std((0, 2, 3), correction=0), rtol=1e-6)
    _, std = channel_statistics(torch.full((2, 1, 4, 4), 9, dtype=torch.uint8))
    assert std == (1 / 255,)  # one flat color must not divide by zero


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_digits(digits):
    train, validation, test = digits.train, digits.validation, digits.test
    assert [len(part) for part in (train, validation, test)] == [1294, 144, 359]
    assert train.label_names == [str(digit) for digit in range(10)]
    assert train[0]["pixel_values"].shape == (3, 32, 32)
    assert (train.augment, validation.augment, test.augment) == (True, False, False)
    assert not train.flip
    assert not set(train.rows.tolist()) & set(validation.rows.tolist())
    assert train.images is validation.images
    for part in (validation, test):
        share = part.labels[part.rows].bincount() / len(part)
        overall = train.labels.bincount() / len(train.labels)
        assert (share - overall).abs().max() < 0.01
    # Each pixel of the 8x8 original is a 4x4 block of grey.
    blocks = test.images.view(-1, 3, 8, 4, 8, 4)
    assert (blocks == blocks[:, :1, :, :1, :, :1]).all()
    mean, std = channel_statistics(train.images[train.rows])
    torch.testing.assert_close((train.mean, train.std), (torch.tensor(mean), torch.tensor(std)))
    assert torch.equal(test.mean, train.mean)


def test_seed_and_sizes_of_the_splits(digits):
    other = load_images("digits", seed=1, flip=True, train_samples=100)
    assert not torch.equal(other.validation.rows, digits.validation.rows)
    assert other.test.fingerprint == digits.test.fingerprint  # the test set is every seed's
    assert (other.train.seed, other.train.flip, len(other.train)) == (1, True, 100)
    assert other.train.labels[other.train.rows].bincount().min() >= 9
    everything = load_images("digits", validation=0, image_size=8)
    assert everything.validation is None
    assert len(everything.train) == 1438
    assert everything.test.images.shape == (359, 3, 8, 8)
    bad = [("validation", 1.0), ("validation", -0.1), ("image_size", 0)]
    for name, value in [*bad, ("train_samples", 1295), ("train_samples", 0)]:
        with pytest.raises(BANError, match=f"{name}={value}: must be"):
            load_images("digits", **{name: value})


# Datasets from files


def picture(value, size=(6, 5)):
    return Image.new("RGB", size, (value, 0, 255 - value))


def write_parquet(folder, columns, features=None, split="train"):
    folder.mkdir(exist_ok=True)
    file = folder / f"{split}.parquet"
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)
    return file


def make_parquet(folder, count=20, **columns):
    features = datasets.Features(
        image=datasets.Image(),
        coarse=datasets.ClassLabel(names=["x", "y"]),
        fine=datasets.ClassLabel(names=["a", "b", "c", "d"]),
        number=datasets.Value("int32"),
        word=datasets.Value("string"),
        weight=datasets.Value("float32"),
    )
    values = {
        "image": [picture(10 * i) for i in range(count)],
        "coarse": [i % 2 for i in range(count)],
        "fine": [i % 4 for i in range(count)],
        "number": [(10, 9)[i % 2] for i in range(count)],
        "word": [("pear", "fig")[i % 2] for i in range(count)],
        "weight": [0.5] * count,
    }
    return write_parquet(folder, values | columns, features)


def test_parquet_file_and_its_columns(tmp_path, caplog):
    file = make_parquet(tmp_path)
    splits = load_images(str(file))
    assert splits.train.label_names == ["a", "b", "c", "d"]  # the finest labels
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [14, 2, 4]
    assert "no test split: 4 of 20" in caplog.text
    assert splits.train.images.shape == (20, 3, 5, 6)  # height, width of the first image
    assert splits.train.images[3, :, 0, 0].tolist() == [30, 0, 225]
    assert splits.train.flip
    assert splits.source == {"id": file.name, "config": None, "revision": None}
    parts = (splits.train, splits.validation, splits.test)
    assert sorted(row for part in parts for row in part.rows.tolist()) == list(range(20))
    assert load_images(str(file), label_column="coarse").train.label_names == ["x", "y"]
    numbers = load_images(str(file), label_column="number").train  # sorted as numbers
    assert (numbers.label_names, numbers.labels[:3].tolist()) == (["9", "10"], [1, 0, 1])
    words = load_images(str(file), label_column="word", image_size=4).train
    assert (words.label_names, words.labels[:3].tolist()) == (["fig", "pear"], [1, 0, 1])
    assert words.images.shape == (20, 3, 4, 4)
    file = make_parquet(tmp_path, image=[picture(5, size=(70, 50))] * 20)
    assert load_images(str(file)).train.images.shape == (20, 3, 64, 64)
    assert "70x50 are resized to 64; image_size" in caplog.text
    assert load_images(str(file), image_size=72).train.images.shape == (20, 3, 72, 72)


def test_bad_columns_are_named(tmp_path):
    file = str(make_parquet(tmp_path))
    plain = str(write_parquet(tmp_path / "plain", {"text": ["a"], "word": ["b"]}))
    features = datasets.Features({name: datasets.Image() for name in ("one", "two")})
    columns = {"one": [picture(1)], "two": [picture(2)]}
    images = str(write_parquet(tmp_path / "images", columns, features))
    for name, arguments, message in (
        (file, {"label_column": "fin"}, r"label_column='fin': .*mean 'fine'.*number, word"),
        (file, {"image_column": "img"}, r"image_column='img': .*mean 'image'"),
        (file, {"image_column": "weight"}, r"image_column='weight' holds no images"),
        (file, {"label_column": "weight"}, r"label_column='weight' holds no integers or strings"),
        (plain, {}, r"no columns of images.*image_column.*text, word"),
        (images, {}, r"2 columns of images.*image_column"),
        (images, {"image_column": "one"}, r"no ClassLabel column.*label_column"),
    ):
        with pytest.raises(BANError, match=message):
            load_images(name, **arguments)


def test_bad_images_and_labels_name_split_and_row(tmp_path):
    pictures = [picture(i) for i in range(20)]
    broken = {"bytes": b"no image", "path": "thirteen.png"}
    for value, where in ((broken, "thirteen.png"), (None, "no path")):
        file = make_parquet(tmp_path, image=[*pictures[:13], value, *pictures[14:]])
        with pytest.raises(BANError, match=rf"train row 13 \({where}\): unreadable image"):
            load_images(str(file))
    file = make_parquet(tmp_path, fine=[0] * 19 + [-1])
    with pytest.raises(BANError, match="train row 19: fine=-1"):
        load_images(str(file))
    for split, words in (("train", ["fig", "pear"]), ("test", ["fig", "plum"])):
        columns = {"image": pictures[:2], "word": words}
        features = datasets.Features(image=datasets.Image(), word=datasets.Value("string"))
        write_parquet(tmp_path / "folder", columns, features, split)
    with pytest.raises(BANError, match="test row 1: word='plum' is none of the 2 classes"):
        load_images(str(tmp_path / "folder"), label_column="word")


def test_image_folder_with_grey_and_odd_sizes(tmp_path):
    for split, count in (("train", 6), ("validation", 3), ("test", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                mode = "L" if i % 2 else "RGBA" if i == 2 else "RGB"
                image = Image.new("RGBA", (8, 8), (90, 80, 70, 255)).convert(mode)
                image.resize((8 + i, 8)).save(folder / f"{i}.png")
    splits = load_images(str(tmp_path))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [12, 6, 4]
    assert splits.train.label_names == ["cat", "dog"]
    assert splits.train.images.shape == (12, 3, 8, 8)
    assert splits.validation.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert splits.train.images[0, :, 4, 4].tolist() == [90, 80, 70]
    assert splits.train.images[1, :, 4, 4].unique().numel() == 1  # grey: three equal channels


def test_csv_of_paths(tmp_path):
    lines = ["file,label"]
    for i in range(10):
        picture(i).save(tmp_path / f"{i}.png")
        lines.append(f"{tmp_path / f'{i}.png'},{'ab'[i % 2]}")
    file = tmp_path / "images.csv"
    file.write_text("\n".join(lines))
    splits = load_images(str(file), image_column="file", label_column="label")
    assert splits.train.label_names == ["a", "b"]
    assert splits.train.images[9, 0, 0, 0] == 9


def test_names_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("BAN_HF_DATA", raising=False)
    with pytest.raises(BANError, match=r"--dataset_name CIFAR-10.*mean 'cifar10'.*Hub id"):
        load_images("CIFAR-10")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()  # as an output folder may be: not the data
    with pytest.raises(BANError, match=r"uoft-cs/cifar10.*BAN_HF_DATA"):
        load_images("cifar10")
    with pytest.raises(BANError, match=r"--dataset_name .*nowhere.parquet"):
        load_images(str(tmp_path / "nowhere.parquet"))
    write_parquet(tmp_path / "only", {"text": ["a"]}, split="test")
    with pytest.raises(BANError, match="no train split; there is test"):
        load_images(str(tmp_path / "only"))
    monkeypatch.setenv("BAN_HF_DATA", str(tmp_path))
    make_parquet(tmp_path / "cifar10")
    splits = load_images("cifar10")
    assert splits.source["id"] == "uoft-cs/cifar10"
    torch.testing.assert_close(splits.train.mean, torch.tensor(STATISTICS["cifar10"][0]))


# Real data


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar(data_root, tmp_path, name, classes):
    if not (data_root / name).is_dir():
        pytest.skip(f"no {name} in {data_root}: put it there or set BAN_HF_DATA")
    for split, rows, count in (("train", 50_000, 2_000), ("test", 10_000, 500)):
        file = pq.ParquetFile(data_root / name / f"{split}-00000-of-00001.parquet")
        assert file.metadata.num_rows == rows
        part = pa.Table.from_batches([next(file.iter_batches(count))], file.schema_arrow)
        pq.write_table(part, tmp_path / f"{split}.parquet")
    splits = load_images(str(tmp_path))
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [1_800, 200, 500]
    assert len(splits.train.label_names) == classes  # CIFAR-100: fine, not coarse
    assert splits.train.label_names[0] == {10: "airplane", 100: "apple"}[classes]
    assert splits.train.images.shape == (2_000, 3, 32, 32)
    measured = torch.stack([splits.train.mean, splits.train.std])
    np.testing.assert_allclose(measured, STATISTICS[name], atol=0.02)
    pixel_values = splits.train.__getitems__(range(1_800))["pixel_values"]
    assert pixel_values.mean().abs() < 0.05
    assert pixel_values.std().item() == pytest.approx(0.95, abs=0.05)  # 1, less the padding
