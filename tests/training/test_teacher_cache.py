"""The teacher cache: a student that replays it has the weights of one whose teacher runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from cached_students import EPOCHS, KillAt, images, student
from family import Killed
from filelock import FileLock
from transformers import TrainerCallback

from ban_hf import BANTrainer, collate
from ban_hf.training.teacher_cache import TeacherCache


def train(folder, **changes):
    trainer = student(folder, **changes)
    trainer.train()
    return trainer


def reader(folder, **changes):
    return tiny.reader(tiny.lstm(1), folder, tiny.lstm(2), **changes)


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """A student whose teacher is asked, of images."""
    return train(tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="module")
def online_text(tmp_path_factory):
    """The same, of a text."""
    trainer = reader(tmp_path_factory.mktemp("online"))
    trainer.train()
    return trainer


def forbid(trainer, monkeypatch):
    """Let the teacher's forward fail: it must not run."""

    def forward(*args, **kwargs):
        raise AssertionError("the teacher ran")

    monkeypatch.setattr(trainer.frozen_teacher.plain, "forward", forward)
    return trainer


def kept(cache: Path) -> list[str]:
    """The epochs that are whole."""
    names = (file.name.split(".") for file in cache.glob("epoch-*.npy"))
    return sorted(name[0] for name in names if len(name) == 3)


class TestImages:
    def test_replaying_gives_the_weights_of_asking_and_asks_nothing(
        self, online, tmp_path, monkeypatch
    ):
        first = train(tmp_path / "first", teacher_cache=str(tmp_path / "cache"))
        second = student(tmp_path / "second", teacher_cache=str(tmp_path / "cache"))
        forbid(second, monkeypatch).train()
        assert tiny.distance(first.model, online.model) == 0
        assert tiny.distance(second.model, online.model) == 0
        assert tiny.history(second) == tiny.history(online)

    @pytest.mark.parametrize("objective", ["kd+label", "cwtm", "dkpp"])
    def test_other_objectives_and_students_learn_from_it(self, objective, tmp_path, monkeypatch):
        cache = str(tmp_path / "cache")
        train(tmp_path / "first", teacher_cache=cache)
        changes = dict(objective=objective.removesuffix("+label"), student_seed=5, seed=8)
        changes |= dict(data_seed=11, label_weight=float(objective.endswith("+label")))
        online = train(tmp_path / "online", **changes)
        second = student(tmp_path / "second", teacher_cache=cache, **changes)
        forbid(second, monkeypatch).train()
        assert tiny.distance(second.model, online.model) == 0

    def test_it_holds_what_the_teacher_says_of_each_view(self, tmp_path):
        train(tmp_path, data=images(augment=False), teacher_cache=str(tmp_path / "plain"))
        assert kept(tmp_path / "plain") == ["epoch-0"]
        data = images()
        trainer = train(tmp_path, data=data, teacher_cache=str(tmp_path / "cache"))
        data.set_epoch(1)
        with torch.inference_mode():
            logits = trainer.teacher(data.__getitems__(range(24))["pixel_values"]).logits
        assert kept(tmp_path / "cache") == [f"epoch-{epoch}" for epoch in range(EPOCHS)]
        (file,) = (tmp_path / "cache").glob("epoch-1.*.npy")
        rows = torch.from_numpy(np.load(file))
        torch.testing.assert_close(rows, logits, rtol=0, atol=1e-6)

    def test_it_may_be_filled_ahead_which_takes_nothing_from_what_the_student_draws(
        self, tmp_path, monkeypatch
    ):
        def dropping(name, **changes):
            trainer = student(tmp_path / name, **changes)
            trainer.model.vit.embeddings.dropout.p = 0.3
            return trainer

        online = dropping("online")
        online.train()
        filling = dropping("filling", teacher_cache=str(tmp_path / "cache"))
        filling.fill_teacher_cache()
        forbid(filling, monkeypatch).train()
        assert tiny.distance(filling.model, online.model) == 0

    def test_a_longer_training_asks_what_is_missing_alone(self, online, tmp_path):
        cache = tmp_path / "cache"
        train(tmp_path / "short", teacher_cache=str(cache), num_train_epochs=1)
        (first,) = cache.glob("*.npy")
        before = first.stat().st_mtime_ns
        with FileLock(cache / "cache.lock"):  # another run fills it: this one reads it alone
            second = train(tmp_path / "second", teacher_cache=str(cache))
        assert kept(cache) == ["epoch-0"]
        longer = train(tmp_path / "long", teacher_cache=str(cache))
        assert first.stat().st_mtime_ns == before
        assert len(kept(cache)) == EPOCHS
        for trainer in (second, longer):
            assert tiny.distance(trainer.model, online.model) == 0

    def test_an_epoch_that_was_broken_off_is_completed(self, online, tmp_path, monkeypatch):
        cache = str(tmp_path / "cache")
        train(tmp_path / "short", teacher_cache=cache, max_steps=1)
        assert not kept(tmp_path / "cache")
        assert list((tmp_path / "cache").glob("epoch-0.*.part.npy"))
        for name in ("second", "third"):
            trainer = student(tmp_path / name, teacher_cache=cache)
            if name == "third":
                forbid(trainer, monkeypatch)
            trainer.train()
            assert tiny.distance(trainer.model, online.model) == 0
        assert not list((tmp_path / "cache").glob("*.part.npy"))

    def test_float16_rounds_for_the_student_that_fills_it_too(self, online, tmp_path, monkeypatch):
        cache = dict(teacher_cache=str(tmp_path / "cache"), teacher_cache_dtype="float16")
        first = train(tmp_path / "first", **cache)
        second = student(tmp_path / "second", **cache)
        forbid(second, monkeypatch).train()
        assert tiny.distance(second.model, first.model) == 0
        assert 0 < tiny.distance(online.model, first.model) < 1e-2

    @pytest.mark.parametrize("size", [3, 100])
    def test_the_teacher_may_be_asked_in_batches_of_its_own(self, size, tmp_path):
        options = dict(gradient_accumulation_steps=3)
        trainer = student(tmp_path / "own", teacher_batch_size=size, **options)
        sizes, forward = [], trainer.teacher.forward

        def note(**inputs):
            sizes.append(len(inputs["pixel_values"]))
            return forward(**inputs)

        trainer.teacher.forward = note
        trainer.train()
        assert max(sizes) == min(size, 24)
        assert sum(sizes) == 24 * EPOCHS
        assert tiny.distance(trainer.model, train(tmp_path / "plain", **options).model) < 1e-6


class TestTexts:
    def test_replaying_gives_the_weights_of_asking_and_asks_nothing(
        self, online_text, tmp_path, monkeypatch
    ):
        cache, asked = str(tmp_path / "cache"), []
        first = reader(tmp_path / "first", teacher_cache=cache)
        forward = first.frozen_teacher.plain.forward

        def note(*args, **kwargs):
            asked.append(first.state.epoch or 0)
            return forward(*args, **kwargs)

        first.frozen_teacher.plain.forward = note
        first.train()
        assert 0 < max(asked) < 1  # in the first epoch alone
        (file,) = (tmp_path / "cache").glob("*.npy")
        shape = np.load(file, mmap_mode="r").shape
        assert shape == (len(first.train_dataset), 7, 8)  # hidden states, not logits
        second = reader(tmp_path / "second", teacher_cache=cache)
        forbid(second, monkeypatch).train()
        assert tiny.distance(first.model, online_text.model) == 0
        assert tiny.distance(second.model, online_text.model) == 0
        assert tiny.history(second) == tiny.history(online_text)

    @pytest.mark.parametrize("make", [tiny.lstm, tiny.gpt2])
    @pytest.mark.parametrize("words", [1, 4, 7])
    def test_a_last_window_of_any_length_is_replayed_exactly(self, make, words, tmp_path):
        text, cache = tiny.windows(4 * (7 * 2 + words) + 4), str(tmp_path / "cache")
        options = dict(num_train_epochs=1, data=text)
        trainers = [
            tiny.reader(make(1), tmp_path / name, make(2), **options, **changes)
            for name, changes in (
                ("online", {}),
                ("filling", {"teacher_cache": cache}),
                ("replaying", {"teacher_cache": cache}),
            )
        ]
        for trainer in trainers:
            if trainer is trainers[-1]:
                trainer.frozen_teacher.plain.forward = None  # it is not asked
            trainer.train()
            assert tiny.distance(trainer.model, trainers[0].model) == 0

    def test_half_an_epoch_of_a_text_is_not_kept(self, online_text, tmp_path):
        cache = tmp_path / "cache"
        reader(tmp_path / "first", teacher_cache=str(cache), max_steps=3).train()
        assert not list(cache.glob("epoch-*"))
        second = reader(tmp_path / "second", teacher_cache=str(cache))
        second.train()
        assert tiny.distance(second.model, online_text.model) == 0
        assert kept(cache) == ["epoch-0"]

    def test_a_checkpoint_that_was_replayed_needs_the_cache(self, tmp_path):
        cache = str(tmp_path / "cache")
        reader(tmp_path / "first", teacher_cache=cache, num_train_epochs=1).train()
        options = dict(save_strategy="steps", save_steps=3)
        with pytest.raises(Killed):
            reader(tmp_path / "s", teacher_cache=cache, callbacks=[KillAt(5)], **options).train()
        shutil.rmtree(cache)
        with pytest.raises(ValueError, match="Give the same teacher_cache"):
            reader(tmp_path / "s", **options).train(str(tmp_path / "s" / "checkpoint-3"))


class TestKilled:
    """Killed while the cache was being written, and resumed from a checkpoint."""

    @pytest.mark.parametrize(
        ("make", "asked", "killed_at"),
        [(student, "online", 1), (student, "online", 5), (reader, "online_text", 5)],
    )
    def test_both_students_come_to_the_weights_of_asking(
        self, make, asked, killed_at, tmp_path, monkeypatch, request
    ):
        options = dict(save_strategy="steps", save_steps=2)
        cache = dict(teacher_cache=str(tmp_path / "cache"))
        # Of a process that dies there is nothing left but its files.
        monkeypatch.setattr(TeacherCache, "close", lambda cache: cache._lock.release())
        with pytest.raises(Killed):
            make(tmp_path / "first", callbacks=[KillAt(killed_at)], **options, **cache).train()
        monkeypatch.undo()
        assert list((tmp_path / "cache").glob("*.partial"))
        saved = sorted((tmp_path / "first").glob("checkpoint-*"))
        first = make(tmp_path / "first", **options, **cache)
        first.train(str(saved[-1]) if saved else None)
        second = make(tmp_path / "second", **options, **cache)
        second.train()
        online = request.getfixturevalue(asked)
        assert tiny.distance(first.model, online.model) == 0
        assert tiny.distance(second.model, online.model) == 0
        assert not list((tmp_path / "cache").glob("*.partial"))

    @pytest.mark.parametrize("where", ["replace", "unlink"])
    def test_a_kill_while_a_file_is_completed_spoils_nothing(
        self, where, online, tmp_path, monkeypatch
    ):
        cache = dict(teacher_cache=str(tmp_path / "cache"))
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "cache.json.tmp").write_text("{")  # of a kill before all this
        train(tmp_path / "short", max_steps=1, **cache)

        def die(*args, **kwargs):
            raise Killed

        monkeypatch.setattr("os.replace" if where == "replace" else "pathlib.Path.unlink", die)
        with pytest.raises(Killed):
            train(tmp_path / "first", **cache)
        monkeypatch.undo()
        second = train(tmp_path / "second", **cache)
        assert tiny.distance(second.model, online.model) == 0
        assert len(kept(tmp_path / "cache")) == EPOCHS


class TestRefusals:
    @pytest.fixture(scope="class")
    @staticmethod
    def filled(tmp_path_factory):
        folder = tmp_path_factory.mktemp("filled")
        train(folder / "run", teacher_cache=str(folder / "cache"))
        return folder / "cache"

    @pytest.fixture
    def cache(self, filled, tmp_path):
        return shutil.copytree(filled, tmp_path / "cache")

    @pytest.mark.parametrize(
        ("named", "changes", "of_data"),
        [
            ("teacher.weights_sha256: ", dict(teacher_seed=3), {}),
            ("data.fingerprint: ", {}, dict(labels=torch.arange(24) % 3)),
            ("data.fingerprint: ", {}, dict(images=images().images ^ 255)),
            ("data.views.flip: ", {}, dict(flip=False)),
            ("data.views.seed: ", {}, dict(seed=9)),
            ("kept.dtype: ", dict(teacher_cache_dtype="float16"), {}),
            ("precision.autocast: 'no' there, 'bf16' here", dict(bf16=True), {}),
        ],
        ids=["weights", "labels", "pixels", "augmentation", "seed", "dtype", "precision"],
    )
    def test_other_outputs_are_refused_and_named(self, named, changes, of_data, cache, tmp_path):
        data = images()
        assert data.fingerprint  # which is kept
        for name, value in of_data.items():
            setattr(data, name, value)
        before = {file.name: file.read_bytes() for file in cache.iterdir()}
        with pytest.raises(ValueError, match="holds other outputs") as refusal:
            train(tmp_path / "run", data=data, teacher_cache=str(cache), **changes)
        assert named in str(refusal.value)
        assert {file.name: file.read_bytes() for file in cache.iterdir()} == before

    def test_a_text_that_is_read_otherwise_is_refused(self, tmp_path):
        cache = dict(teacher_cache=str(tmp_path / "cache"))
        text = dict(data=tiny.windows(120, warmup=14), num_train_epochs=1)
        reader(tmp_path / "a", **text, **cache).train()
        with pytest.raises(ValueError, match=r"data\.warmup: 14 there, 15 here"):
            reader(tmp_path / "b", data=tiny.windows(120, warmup=15), **cache).train()
        other = dict(data=tiny.windows(120, columns=2, warmup=14), per_device_train_batch_size=2)
        with pytest.raises(ValueError, match=r"data\.columns: 4 there, 2 here"):
            reader(tmp_path / "c", **other, **cache).train()

    @pytest.mark.parametrize("name", ["Negative", "Images"])
    def test_data_that_may_show_something_else_are_refused(self, name, tmp_path):
        data = tiny.Images(24)
        if name == "Negative":
            data = images()
            data.__class__ = type(name, (type(data),), {})
        with pytest.raises(ValueError, match=f"must be ImageViews .* not {name}"):
            train(tmp_path, data=data, teacher_cache=str(tmp_path / "cache"))

    def test_another_layout_is_refused(self, tmp_path):
        def trainer(name, fast):
            cache = dict(teacher_cache=str(tmp_path / "cache"), remove_unused_columns=False)
            options = tiny.arguments(tmp_path / name, max_steps=1, fast=fast, **cache)
            data = dict(train_dataset=images(), data_collator=collate)
            return BANTrainer(tiny.cifar(1), options, teacher=tiny.cifar(2), **data)

        trainer("first", fast=False).train()
        with pytest.raises(ValueError, match=r"precision\.channels_last: False there, True here"):
            trainer("second", fast=True).train()

    @pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
    def test_a_damaged_file_is_refused(self, damage, cache, tmp_path):
        (file,) = cache.glob("epoch-1.*.npy")
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes({"truncated": data[:-100], "changed": data, "empty": b""}[damage])
        with pytest.raises(ValueError, match=r"epoch-1\..*\.npy is cut short or was changed"):
            train(tmp_path / "run", teacher_cache=str(cache))
        file.unlink()
        train(tmp_path / "run", teacher_cache=str(cache))
        assert len(kept(cache)) == EPOCHS

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}'])
    def test_an_index_of_another_form_is_refused(self, text, cache, tmp_path):
        (cache / "cache.json").write_text(text)
        with pytest.raises(ValueError, match="is of another form"):
            train(tmp_path / "run", teacher_cache=str(cache))

    @pytest.mark.parametrize("kind", ["file", "under a file", "dangling link"])
    def test_what_is_no_folder_is_refused(self, kind, tmp_path):
        place = tmp_path / "place"
        place.symlink_to(tmp_path / "nowhere") if "link" in kind else place.write_text("mine")
        cache = place / "cache" if kind == "under a file" else place
        with pytest.raises(ValueError, match="that is no folder"):
            train(tmp_path / "run", teacher_cache=str(cache))

    def test_a_seed_that_changes_in_between_is_refused(self, tmp_path):
        data = images()

        class Reseed(TrainerCallback):
            def on_epoch_end(self, args, state, control, **kwargs):
                data.seed = 5

        with pytest.raises(ValueError, match="train_dataset was changed"):
            train(tmp_path, data=data, callbacks=[Reseed()], teacher_cache=str(tmp_path / "cache"))

    def test_a_collator_that_may_mix_images_is_refused(self, tmp_path):
        trainer = student(tmp_path, teacher_cache=str(tmp_path / "cache"))
        trainer.data_collator = lambda batch: batch
        with pytest.raises(ValueError, match=r"cannot tell what data_collator=.* use collate"):
            trainer.train()

    def test_a_folder_of_something_else_is_refused(self, tmp_path):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "thesis.tex").write_text("years of work")
        with pytest.raises(ValueError, match="no teacher's cache"):
            train(tmp_path / "run", teacher_cache=str(tmp_path / "cache"))
        assert (tmp_path / "cache" / "thesis.tex").read_text() == "years of work"

    def test_a_full_disk_is_refused_before_anything_is_written(self, tmp_path, monkeypatch):
        usage = shutil._ntuple_diskusage(100, 90, 10)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
        with pytest.raises(ValueError, match=r"needs 1\.44 kB, and 10 B are free"):
            train(tmp_path / "run", teacher_cache=str(tmp_path / "cache"))
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("name", "value"),
        [("teacher_cache_dtype", "int8"), ("teacher_batch_size", 0), ("teacher_cache", " ")],
    )
    def test_a_bad_argument_is_named(self, name, value, tmp_path):
        with pytest.raises(ValueError, match=name):
            tiny.arguments(tmp_path, **{name: value})


def test_a_disk_that_fills_up_in_between_stops_no_training(online, tmp_path, monkeypatch, caplog):
    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", no_room)
    trainer = train(tmp_path / "run", teacher_cache=str(tmp_path / "cache"))
    assert "No space left on device" in caplog.text
    assert tiny.distance(trainer.model, online.model) == 0
