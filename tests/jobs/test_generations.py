"""The sequence: counted right, taught by the right one, and the same after any interruption."""

import pytest
import tiny
import torch
from family import network, same_weights, train
from torch.utils.data import IterableDataset
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, set_seed

from ban_hf import train_generations
from ban_hf.jobs import training
from ban_hf.jobs.job import generation_seed
from ban_hf.lineage.record import RECORD, Record


def test_two_students_make_three_networks_and_an_ensemble(never_killed):
    assert sorted(path.name for path in never_killed.iterdir()) == [
        "ensemble",
        "evaluations",
        "generation-0",
        "generation-1",
        "generation-2",
        "lineage.json",
    ]
    assert [m.generation for m in Record.read(never_killed / "ensemble").members] == [1, 2]


def test_every_folder_loads_through_the_auto_classes(never_killed):
    for name in ("generation-0", "generation-1", "generation-2", "ensemble"):
        model = AutoModelForImageClassification.from_pretrained(never_killed / name)
        assert model(pixel_values=torch.randn(2, 3, 8, 8)).logits.shape == (2, tiny.CLASSES)


def test_the_returned_lineage_is_what_lies_on_disk(run):
    lineage = train(run)
    assert lineage.generations == [Record.read(run / f"generation-{k}") for k in range(3)]
    assert lineage.ensemble == Record.read(run / "ensemble")


def test_every_generation_starts_from_fresh_weights(never_killed):
    seeds = [Record.read(never_killed / f"generation-{k}").seed for k in range(3)]
    assert len({seed.seed for seed in seeds}) == 3
    assert len({seed.init_sha256 for seed in seeds}) == 3
    assert {seed.family_seed for seed in seeds} == {3}


def test_seeds_differ_between_generations_and_between_families():
    assert len({generation_seed(s, k) for s in range(20) for k in range(20)}) == 400


def always_the_same(generation):
    return tiny.vit(seed=0)


def one_object():
    model = network(0)
    return lambda generation: model


@pytest.mark.parametrize("model_init", [always_the_same, one_object()], ids=["seed", "object"])
def test_a_model_init_without_fresh_weights_is_refused(tmp_path, model_init):
    with pytest.raises(ValueError, match=r"model_init\(1\).*fresh"):
        train(tmp_path, model_init=model_init)
    assert (tmp_path / "generation-0" / RECORD).is_file()
    assert not (tmp_path / "generation-1").exists()


def test_a_model_that_could_not_be_loaded_again_is_refused_before_it_is_trained(tmp_path):
    class Unknown(type(network(0))):
        pass

    with pytest.raises(ValueError, match="Unknown cannot be distilled"):
        train(tmp_path, model_init=lambda generation: Unknown(network(0).config))
    assert not list(tmp_path.iterdir())


def test_the_teacher_is_the_generation_before_as_it_was_saved(tmp_path, monkeypatch):
    teachers, seeds = [], []

    class Spy(training.BANTrainer):
        def train(self, *args, **kwargs):
            teachers.append(self.teacher)
            seeds.append((self.args.seed, self.train_dataset.seed))
            return super().train(*args, **kwargs)

    monkeypatch.setattr(training, "BANTrainer", Spy)
    train(tmp_path)
    assert teachers[0] is None
    for k in (1, 2):
        assert same_weights(teachers[k], tmp_path / f"generation-{k - 1}")
        assert not any(p.requires_grad for p in teachers[k].parameters())
    # Both see views of the student's own seed.
    assert seeds == [(generation_seed(3, k), generation_seed(3, k)) for k in range(3)]


def test_generation_0_is_what_the_plain_trainer_gives_with_its_seed(tmp_path):
    images = tiny.Images()
    train(tmp_path / "family", 0, train_dataset=images, eval_strategy="no", objective="dkpp")
    seed = generation_seed(3, 0)
    set_seed(seed)
    model = network(0)
    plain = tiny.arguments(tmp_path / "plain").to_dict()
    names = ("learning_rate", "optim", "max_grad_norm", "report_to", "use_cpu", "save_strategy")
    args = TrainingArguments(
        str(tmp_path / "plain"),
        seed=seed,
        num_train_epochs=2,
        per_device_train_batch_size=8,
        **{name: plain[name] for name in names},
    )
    Trainer(model, args, train_dataset=images).train()
    assert same_weights(model, tmp_path / "family" / "generation-0")


def test_one_student_is_averaged_with_its_teacher_and_none_with_nothing(tmp_path):
    assert train(tmp_path, 0).ensemble is None
    assert train(tmp_path, 1, ensemble=False).ensemble is None
    assert not (tmp_path / "ensemble").exists()
    ensemble = train(tmp_path, 1).ensemble
    assert ensemble is not None
    assert [member.generation for member in ensemble.members] == [0, 1]


class Stream(IterableDataset):
    """Images one after the other, without a length."""

    def __iter__(self):
        data = tiny.Images(20)
        for i in range(20):
            yield data[i]


def on_a_stream(folder, **changes):
    options = dict(max_steps=6, per_device_train_batch_size=8) | changes
    return train_generations(
        network,
        tiny.arguments(folder, **options),
        generations=1,
        train_dataset=Stream(),
        eval_dataset=tiny.Images(9),
        test_dataset=Stream(),
    )


def test_a_sequence_on_a_stream_counts_steps_and_no_epochs(tmp_path, capsys):
    on_a_stream(tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="epoch")
    for generation in (0, 1):
        record = Record.read(tmp_path / f"generation-{generation}")
        assert (record.training.steps, record.training.epochs) == (6, None)
        assert record.data["train"] == {"items": None, "contents": "a stream, not checked"}
        assert {metric.n for metric in record.metrics} == {20}
    assert "generation 1/1 · step 3/6 · validation loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(max_steps=-1), "max_steps has to be specified"),
        (dict(teacher_cache="cache"), r"teacher_cache='cache'.* a stream, whose items have no"),
    ],
)
def test_a_stream_without_steps_or_with_a_cache_is_refused_at_once(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        on_a_stream(tmp_path, **changes)
    assert not (tmp_path / "generation-0").exists()
