"""The teacher cache: a student that replays it has the weights of one whose teacher runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import cached_students
import numpy as np
import pytest
import tiny
import torch
from cached_students import EPOCHS, KillAt, images, student
from family import Killed
from filelock import FileLock
from transformers import TrainerCallback

from ban_hf import BANTrainer, collate


def train(folder, **changes):
    trainer = student(folder, **changes)
    trainer.train()
    return trainer


def reader(folder, **changes):
    return tiny.reader(tiny.lstm(1), folder, tiny.lstm(2), **changes)


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
    def test_replaying_gives_the_weights_of_asking_and_asks_nothing(self, tmp_path, monkeypatch):
        online = train(tmp_path / "online")
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
        data = images()
        trainer = train(tmp_path, data=data, teacher_cache=str(tmp_path / "cache"))
        data.set_epoch(1)
        with torch.inference_mode():
            logits = trainer.teacher(data.__getitems__(range(24))["pixel_values"]).logits
        assert kept(tmp_path / "cache") == [f"epoch-{epoch}" for epoch in range(EPOCHS)]
        (file,) = (tmp_path / "cache").glob("epoch-1.*.npy")
        rows = torch.from_numpy(np.load(file))
        torch.testing.assert_close(rows, logits, rtol=0, atol=1e-6)

    def test_plain_images_need_one_file(self, tmp_path):
        cache = tmp_path / "cache"
        train(tmp_path, data=images(augment=False), teacher_cache=str(cache))
        assert kept(cache) == ["epoch-0"]

    def test_it_may_be_filled_ahead(self, tmp_path, monkeypatch):
        cache = str(tmp_path / "cache")
        student(tmp_path / "ahead", teacher_cache=cache, student_seed=7).fill_teacher_cache()
        online = train(tmp_path / "online")
        second = student(tmp_path / "second", teacher_cache=cache)
        forbid(second, monkeypatch).train()
        assert tiny.distance(second.model, online.model) == 0

    def test_to_fill_it_takes_nothing_from_what_the_student_draws(self, tmp_path):
        def dropping(name, **changes):
            trainer = student(tmp_path / name, **changes)
            trainer.model.vit.embeddings.dropout.p = 0.3
            return trainer

        online = dropping("online")
        online.train()
        filling = dropping("filling", teacher_cache=str(tmp_path / "cache"))
        filling.fill_teacher_cache()
        filling.train()
        assert tiny.distance(filling.model, online.model) == 0

    def test_a_longer_training_asks_what_is_missing_alone(self, tmp_path):
        cache = tmp_path / "cache"
        train(tmp_path / "short", teacher_cache=str(cache), num_train_epochs=1)
        (first,) = cache.glob("*.npy")
        before = first.stat().st_mtime_ns
        longer = train(tmp_path / "long", teacher_cache=str(cache))
        assert first.stat().st_mtime_ns == before
        assert tiny.distance(longer.model, train(tmp_path / "online").model) == 0
        assert len(kept(cache)) == EPOCHS

    def test_an_epoch_that_was_broken_off_is_completed(self, tmp_path, monkeypatch):
        cache = str(tmp_path / "cache")
        train(tmp_path / "short", teacher_cache=cache, max_steps=1)
        assert not kept(tmp_path / "cache")
        assert list((tmp_path / "cache").glob("epoch-0.*.part.npy"))
        online = train(tmp_path / "online")
        for name in ("second", "third"):
            trainer = student(tmp_path / name, teacher_cache=cache)
            if name == "third":
                forbid(trainer, monkeypatch)
            trainer.train()
            assert tiny.distance(trainer.model, online.model) == 0
        assert not list((tmp_path / "cache").glob("*.part.npy"))

    def test_float16_rounds_for_the_student_that_fills_it_too(self, tmp_path, monkeypatch):
        cache = dict(teacher_cache=str(tmp_path / "cache"), teacher_cache_dtype="float16")
        first = train(tmp_path / "first", **cache)
        second = student(tmp_path / "second", **cache)
        forbid(second, monkeypatch).train()
        assert tiny.distance(second.model, first.model) == 0
        assert 0 < tiny.distance(train(tmp_path / "online").model, first.model) < 1e-2

    @pytest.mark.parametrize("size", [3, 8, 100])
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
    def test_replaying_gives_the_weights_of_asking_and_asks_nothing(self, tmp_path, monkeypatch):
        online = reader(tmp_path / "online")
        online.train()
        cache = str(tmp_path / "cache")
        first = reader(tmp_path / "first", teacher_cache=cache)
        first.train()
        second = reader(tmp_path / "second", teacher_cache=cache)
        forbid(second, monkeypatch).train()
        assert tiny.distance(first.model, online.model) == 0
        assert tiny.distance(second.model, online.model) == 0
        assert tiny.history(second) == tiny.history(online)

    @pytest.mark.parametrize("make", [tiny.lstm, tiny.gpt2])
    @pytest.mark.parametrize("words", range(1, 8))
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
            trainer.train()
            assert tiny.distance(trainer.model, trainers[0].model) == 0

    def test_a_teacher_is_asked_in_the_first_epoch_alone(self, tmp_path):
        trainer = reader(tmp_path, teacher_cache=str(tmp_path / "cache"), num_train_epochs=3)
        asked, forward = [], trainer.frozen_teacher.plain.forward

        def note(*args, **kwargs):
            asked.append(trainer.state.epoch or 0)
            return forward(*args, **kwargs)

        trainer.frozen_teacher.plain.forward = note
        trainer.train()
        assert asked
        assert max(asked) < 1

    def test_hidden_states_are_kept_not_logits(self, tmp_path):
        trainer = reader(tmp_path, teacher_cache=str(tmp_path / "cache"))
        trainer.train()
        (file,) = (tmp_path / "cache").glob("*.npy")
        rows = np.load(file, mmap_mode="r")
        assert rows.shape == (len(trainer.train_dataset), 7, 8)

    def test_a_transformer_on_windows_is_replayed_too(self, tmp_path, monkeypatch):
        def trainer(name, **changes):
            return tiny.reader(tiny.gpt2(1), tmp_path / name, tiny.gpt2(2), **changes)

        online = trainer("online")
        online.train()
        cache = str(tmp_path / "cache")
        trainer("first", teacher_cache=cache).train()
        second = trainer("second", teacher_cache=cache)
        forbid(second, monkeypatch).train()
        assert tiny.distance(second.model, online.model) == 0

    def test_half_an_epoch_of_a_text_is_not_kept(self, tmp_path):
        cache = tmp_path / "cache"
        reader(tmp_path / "first", teacher_cache=str(cache), max_steps=3).train()
        assert not list(cache.glob("epoch-*"))
        second = reader(tmp_path / "second", teacher_cache=str(cache))
        second.train()
        online = reader(tmp_path / "online")
        online.train()
        assert tiny.distance(second.model, online.model) == 0
        assert kept(cache) == ["epoch-0"]

    def test_a_checkpoint_that_was_replayed_needs_the_cache(self, tmp_path):
        cache = str(tmp_path / "cache")
        reader(tmp_path / "first", teacher_cache=cache).train()
        options = dict(save_strategy="steps", save_steps=3)
        with pytest.raises(Killed):
            reader(tmp_path / "s", teacher_cache=cache, callbacks=[KillAt(5)], **options).train()
        shutil.rmtree(cache)
        with pytest.raises(ValueError, match="Give the same teacher_cache"):
            reader(tmp_path / "s", **options).train(str(tmp_path / "s" / "checkpoint-3"))


class TestKilled:
    """Killed while the cache was being written, and resumed from a checkpoint."""

    @pytest.mark.parametrize("make", [student, reader], ids=["images", "text"])
    @pytest.mark.parametrize("killed_at", [1, 5])
    def test_both_students_come_to_the_weights_of_asking(self, make, killed_at, tmp_path):
        options = dict(save_strategy="steps", save_steps=2)
        online = make(tmp_path / "online", **options)
        online.train()
        cache = dict(teacher_cache=str(tmp_path / "cache"))
        with pytest.raises(Killed):
            make(tmp_path / "first", callbacks=[KillAt(killed_at)], **options, **cache).train()
        saved = sorted((tmp_path / "first").glob("checkpoint-*"))
        first = make(tmp_path / "first", **options, **cache)
        first.train(str(saved[-1]) if saved else None)
        second = make(tmp_path / "second", **options, **cache)
        second.train()
        assert tiny.distance(first.model, online.model) == 0
        assert tiny.distance(second.model, online.model) == 0

    def test_a_process_that_dies_loses_an_epoch_of_it_at_most(self, tmp_path):
        script = [sys.executable, cached_students.__file__, str(tmp_path)]
        died = subprocess.run(script, capture_output=True, timeout=120, check=False)
        assert died.returncode == -9, died.stderr
        assert kept(tmp_path / "cache") == ["epoch-0"]
        assert (tmp_path / "cache" / "epoch-1.partial").is_file()
        options = dict(save_strategy="steps", save_steps=2, teacher_cache=str(tmp_path / "cache"))
        online = train(tmp_path / "online")
        first = student(tmp_path / "run", **options)
        first.train(str(tmp_path / "run" / "checkpoint-4"))
        second = train(tmp_path / "second", **options)
        assert tiny.distance(first.model, online.model) == 0
        assert tiny.distance(second.model, online.model) == 0

        assert not list((tmp_path / "cache").glob("*.partial"))

    @pytest.mark.parametrize("where", ["replace", "unlink"])
    def test_a_kill_while_a_file_is_completed_spoils_nothing(self, where, tmp_path, monkeypatch):
        cache = dict(teacher_cache=str(tmp_path / "cache"))
        train(tmp_path / "short", max_steps=1, **cache)

        def die(*args, **kwargs):
            raise Killed

        monkeypatch.setattr("os.replace" if where == "replace" else "pathlib.Path.unlink", die)
        with pytest.raises(Killed):
            train(tmp_path / "first", **cache)
        monkeypatch.undo()
        second = train(tmp_path / "second", **cache)
        assert tiny.distance(second.model, train(tmp_path / "online").model) == 0
        assert len(kept(tmp_path / "cache")) == EPOCHS

    def test_a_kill_before_the_cache_says_what_it_is_of_spoils_nothing(self, tmp_path):
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache" / "cache.json.tmp").write_text("{")
        train(tmp_path / "run", teacher_cache=str(tmp_path / "cache"))
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
        ("named", "changes"),
        {
            "teacher.weights_sha256": dict(teacher_seed=3),
            "data.fingerprint": dict(data=images().select(list(range(23, -1, -1)), augment=True)),
            "data.views.flip": dict(data=None),
            "data.views.seed": dict(data=None),
            "kept.dtype": dict(teacher_cache_dtype="float16"),
        }.items(),
        ids=["weights", "order", "augmentation", "seed", "dtype"],
    )
    def test_other_outputs_are_refused_and_named(self, named, changes, cache, tmp_path):
        changes = dict(changes)
        if named == "data.views.flip":
            changes["data"] = images()
            changes["data"].flip = False
        if named == "data.views.seed":
            changes["data"] = images()
            changes["data"].seed = 9
        before = {file.name: file.read_bytes() for file in cache.iterdir()}
        with pytest.raises(ValueError, match="holds other outputs") as refusal:
            train(tmp_path / "run", teacher_cache=str(cache), **changes)
        assert f"{named}: " in str(refusal.value)
        assert {file.name: file.read_bytes() for file in cache.iterdir()} == before

    def test_another_precision_is_refused(self, cache, tmp_path):
        with pytest.raises(ValueError, match=r"precision\.autocast: 'no' there, 'bf16' here"):
            train(tmp_path / "run", teacher_cache=str(cache), bf16=True)

    def test_another_layout_is_refused(self, tmp_path):
        def trainer(name, fast):
            options = tiny.arguments(tmp_path / name, max_steps=2, fast=fast)
            options.remove_unused_columns = False
            options.teacher_cache = str(tmp_path / "cache")
            data = images()
            return BANTrainer(
                tiny.cifar(1), options, teacher=tiny.cifar(2), train_dataset=data,
                data_collator=collate,
            )  # fmt: skip

        trainer("first", fast=False).train()
        with pytest.raises(ValueError, match=r"precision\.channels_last: False there, True here"):
            trainer("second", fast=True).train()

    def test_a_text_in_other_columns_is_refused(self, tmp_path):
        cache = str(tmp_path / "cache")
        reader(tmp_path / "first", teacher_cache=cache).train()
        with pytest.raises(ValueError, match=r"data\.columns: 4 there, 2 here"):
            reader(
                tmp_path / "second",
                data=tiny.windows(columns=2),
                per_device_train_batch_size=2,
                teacher_cache=cache,
            ).train()

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

    def test_images_that_were_changed_in_place_are_refused(self, tmp_path):
        data, cache = images(), str(tmp_path / "cache")
        train(tmp_path / "first", data=data, teacher_cache=cache)
        data.images.bitwise_xor_(255)
        with pytest.raises(ValueError, match=r"data\.fingerprint"):
            train(tmp_path / "second", data=data, teacher_cache=cache)

    def test_a_seed_that_changes_in_between_is_refused(self, tmp_path):
        data = images()

        class Reseed(TrainerCallback):
            def on_epoch_end(self, args, state, control, **kwargs):
                data.seed = 5

        with pytest.raises(ValueError, match="train_dataset was changed"):
            train(tmp_path, data=data, callbacks=[Reseed()], teacher_cache=str(tmp_path / "cache"))

    def test_a_class_that_may_show_something_else_is_refused(self, tmp_path):
        class Negative(type(images())):
            """Other views of the same images."""

        data = images()
        data.__class__ = Negative
        with pytest.raises(ValueError, match=r"must be ImageViews .* not Negative"):
            train(tmp_path, data=data, teacher_cache=str(tmp_path / "cache"))

    def test_a_collator_that_may_mix_images_is_refused(self, tmp_path):
        trainer = student(tmp_path, teacher_cache=str(tmp_path / "cache"))
        trainer.data_collator = lambda batch: batch
        with pytest.raises(ValueError, match=r"cannot tell what data_collator=.* use collate"):
            trainer.train()

    def test_a_text_with_another_warm_up_is_refused(self, tmp_path):
        cache = str(tmp_path / "cache")
        reader(tmp_path / "first", data=tiny.windows(warmup=14), teacher_cache=cache).train()
        with pytest.raises(ValueError, match=r"data\.warmup: 14 there, 15 here"):
            reader(tmp_path / "s", data=tiny.windows(warmup=15), teacher_cache=cache).train()

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

    def test_data_that_do_not_say_what_they_are_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"must be ImageViews .* not Images"):
            train(tmp_path, data=tiny.Images(24), teacher_cache=str(tmp_path / "cache"))

    @pytest.mark.parametrize(
        ("name", "value"),
        [("teacher_cache_dtype", "int8"), ("teacher_batch_size", 0), ("teacher_cache", " ")],
    )
    def test_a_bad_argument_is_named(self, name, value, tmp_path):
        with pytest.raises(ValueError, match=name):
            tiny.arguments(tmp_path, **{name: value})


def test_a_cache_that_another_run_fills_is_read_alone(tmp_path):
    cache = tmp_path / "cache"
    train(tmp_path / "first", teacher_cache=str(cache), num_train_epochs=1)
    with FileLock(cache / "cache.lock"):
        second = train(tmp_path / "second", teacher_cache=str(cache))
    assert kept(cache) == ["epoch-0"]
    assert tiny.distance(second.model, train(tmp_path / "online").model) == 0


def test_a_disk_that_fills_up_in_between_stops_no_training(tmp_path, monkeypatch, caplog):
    def no_room(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", no_room)
    trainer = train(tmp_path / "run", teacher_cache=str(tmp_path / "cache"))
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    assert tiny.distance(trainer.model, train(tmp_path / "online").model) == 0
