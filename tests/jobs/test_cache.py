"""`ban-hf cache`: what it fills ahead is what a sequence would have stored."""

import json

import pytest
import tiny
import torch
from family import final_weights
from transformers import ViTForImageClassification, default_data_collator

from ban_hf import TokenWindows, collate, load_images, load_text, train_generations
from ban_hf.cli.main import main
from ban_hf.training.teacher import FrozenTeacher

DATA = dict(image_size=8, train_samples=24, validation=0.5)


def digits(folder, teacher=None, **changes):
    """A generation, and a student of it, on 24 digits of 8 x 8 pixels in three batches."""
    options = dict(num_train_epochs=2, max_steps=-1, per_device_train_batch_size=8)
    config = tiny.vit(num_labels=10).config
    return train_generations(
        lambda generation: ViTForImageClassification(config),
        tiny.arguments(folder, remove_unused_columns=False, **options | changes),
        generations=1,
        train_dataset=load_images("digits", **DATA).train,
        teacher=teacher,
        data_collator=collate,
        ensemble=False,
    )


def sentences(folder, teacher=None, **changes):
    """The same of language models, on 60 words of the grammar."""
    text = load_text("grammar", train_words=60)
    options = dict(per_device_train_batch_size=4, num_train_epochs=2, max_steps=-1)
    return train_generations(
        lambda generation: tiny.lstm(int(torch.initial_seed() % 1000), vocab_size=len(text.words)),
        tiny.arguments(folder, remove_unused_columns=False, **options | changes),
        generations=1,
        train_dataset=TokenWindows(text.train, 4, window=5),
        teacher=teacher,
        data_collator=default_data_collator,
        ensemble=False,
    )


DIGITS = "--dataset_name digits --image_size 8 --train_samples 24 --validation 0.5".split()
CASES = [(digits, DIGITS), (sentences, "--dataset_name grammar --train_words 60".split())]


@pytest.mark.parametrize(("train", "data"), CASES, ids=["images", "text"])
def test_a_student_reads_all_that_it_would_ask(train, data, tmp_path, monkeypatch, capsys):
    train(tmp_path / "whole")
    teacher, cache = tmp_path / "whole" / "generation-0", tmp_path / "cache"
    command = ["cache", str(teacher), str(cache), *data]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == sum(file.stat().st_size for file in cache.glob("*.npy")) > 0
    before = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.npy")}
    assert main(command) == 0
    assert {file.name: file.stat().st_mtime_ns for file in cache.glob("*.npy")} == before

    def ask(*args, **kwargs):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(FrozenTeacher, "forward", ask)
    train(tmp_path / "again", teacher=str(teacher), teacher_cache=str(cache))
    one, other = (final_weights(tmp_path / name) for name in ("whole", "again"))
    assert one["generation-1/model.safetensors"] == other["generation-1/model.safetensors"]


def test_other_data_than_the_teachers_are_refused(tmp_path, capsys):
    digits(tmp_path / "run")
    command = ["cache", str(tmp_path / "run" / "generation-0"), str(tmp_path / "cache")]
    assert main([*command, *DIGITS, "--train_samples", "25"]) == 1
    assert "25 items here, 24 of its record. Give the --validation" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_cache_of_another_seed_is_refused_by_the_student(tmp_path, capsys):
    digits(tmp_path / "run")
    teacher, cache = str(tmp_path / "run" / "generation-0"), str(tmp_path / "cache")
    flags = [*DIGITS, "--seed", "4", "--dtype", "float16", "--epochs", "3"]
    assert main(["cache", teacher, cache, *flags]) == 0
    assert len(list((tmp_path / "cache").glob("epoch-*.npy"))) == 3
    options = dict(teacher=teacher, teacher_cache=cache, teacher_cache_dtype="float16")
    with pytest.raises(ValueError, match=r"data\.views\.seed"):
        digits(tmp_path / "other", num_train_epochs=3, **options)
    digits(tmp_path / "same", seed=4, num_train_epochs=3, **options)


@pytest.mark.parametrize("epochs", ["0", "-1", "inf", "nan"])
def test_epochs_that_are_none_are_refused(epochs, tmp_path, capsys):
    command = ["cache", str(tmp_path), str(tmp_path / "cache"), "--dataset_name", "digits"]
    assert main([*command, "--epochs", epochs]) == 1
    assert "must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".", "generation-1", "control/1"])
def test_a_cache_where_the_run_writes_is_refused_before_it_trains(name, tmp_path):
    with pytest.raises(ValueError, match="is where the run itself writes"):
        digits(tmp_path / "run", teacher_cache=str(tmp_path / "run" / name))
    assert not (tmp_path / "run").exists()
