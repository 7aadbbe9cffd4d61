"""What a hostile user tried, and what must come of it: a clear refusal, and nothing lost."""

import json

import family
import numpy as np
import pytest
import tiny
import torch
from filelock import FileLock
from launch import on_two_processes, run_recipe
from PIL import Image
from table_results import family_rows

from ban_hf import (
    OBJECTIVES,
    BANError,
    BANTrainer,
    HubError,
    load_images,
    train_generations,
)
from ban_hf.cli.main import main
from ban_hf.lineage.record import Record


def test_two_processes_train_a_family(tmp_path):
    options = ["--smoke", "--use_cpu", "--generations", "1", "--output_dir", str(tmp_path)]
    on_two_processes("recipes/ban_cifar.py", *options)
    record = Record.read(tmp_path / "generation-1")
    assert record.training.world_size == 2
    assert {"model.safetensors", "config.json"} <= {file.path for file in record.files}
    assert (tmp_path / "ensemble" / "model.safetensors").is_file()


def test_a_run_that_failed_before_its_first_save_may_start_anew(tmp_path):
    with pytest.raises(family.Killed):
        family.train(tmp_path, callbacks=[family.KillAt(0, 1)])
    lineage = family.train(tmp_path, generations=1, learning_rate=0.05)
    assert lineage.generations[0].training.arguments["learning_rate"] == 0.05


def test_a_model_init_that_goes_in_a_circle_is_refused(tmp_path):
    models = [family.network(0), family.network(1)]
    with pytest.raises(ValueError, match=r"model_init\(2\) gave the weights that an earlier"):
        family.train(tmp_path, generations=2, model_init=lambda k: models[k % 2])


def test_no_generation_is_finished_without_a_step(tmp_path):
    with pytest.raises(ValueError, match=r"Not one step was trained.*num_train_epochs"):
        family.train(tmp_path, num_train_epochs=0)
    assert not (tmp_path / "generation-0").exists()


def test_evaluation_in_half_precision_does_not_halve_what_is_saved(tmp_path):
    family.train(tmp_path, generations=0, bf16_full_eval=True)
    saved = tmp_path / "generation-0" / "config.json"
    assert json.loads(saved.read_text("utf-8"))["dtype"] == "float32"


def test_two_runs_do_not_write_into_one_directory(tmp_path):
    family.train(tmp_path, generations=0)
    before = family.listing(tmp_path)
    refused = pytest.raises(ValueError, match=r"output_dir=.* is being written by another run")
    with FileLock(tmp_path / ".lock"), refused:
        family.train(tmp_path, generations=1)
    (tmp_path / ".lock").unlink(missing_ok=True)
    assert family.listing(tmp_path) == before


def test_publishing_without_a_token_is_refused_before_anything_is_trained(hub, tmp_path):
    hub.tokens.clear()
    with pytest.raises(HubError, match="hf auth login"):
        family.train(tmp_path / "run", push_to_hub=True)
    assert not (tmp_path / "run" / "generation-0").exists()


@pytest.mark.parametrize(
    ("metric", "better"), [("error", False), ("eval_nll", False), ("eval_teacher_agreement", True)]
)
def test_the_best_checkpoint_is_that_of_the_lowest_error(tmp_path, metric, better):
    options = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    args = tiny.arguments(tmp_path, metric_for_best_model=metric, **options)
    assert args.greater_is_better is better


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"lr_milestones": [0.5], "lr_scheduler_type": "cosine"}, "leave out .*lr_scheduler_type"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"label_weight": float("nan")}, "label_weight=nan"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_arguments_that_make_no_sense_are_named(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        tiny.arguments(tmp_path, **bad)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_class_is_nothing_to_learn(name):
    with pytest.raises(ValueError, match="at least two classes"):
        OBJECTIVES[name](torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3).long())


@pytest.mark.parametrize("given", ["{bad", "[1]"])
def test_model_args_that_are_no_json_object_are_named(tmp_path, given, capsys):
    with pytest.raises(SystemExit):
        run_recipe("ban_cifar", "--smoke", "--output_dir", tmp_path, "--model_args", given)
    assert "model_args=" in capsys.readouterr().err


def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path):
    for split, label in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
        folder = tmp_path / split / label
        folder.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16)).save(folder / f"{i}.png")
    images = load_images(str(tmp_path), validation=0).train.images
    assert (images == 100).all()


def test_a_validation_split_that_takes_everything_is_refused():
    with pytest.raises(ValueError, match=r"validation=0\.9999"):
        load_images("digits", validation=0.9999)


def test_controls_are_other_seeds_of_the_same_job(tmp_path):
    def run(seed, folder, *options):
        smoke = ["--smoke", "--use_cpu", "--generations", 1, "--seed", seed]
        run_recipe("ban_cifar", *smoke, "--output_dir", tmp_path / folder, *options)

    run(1, "1")
    run(1, "1", "--control")  # a single student has one, too
    assert len(family_rows(tmp_path / "1" / "results.json")["controls"]) == 2
    run(2, "2", "--control_from", tmp_path / "1")
    controls = family_rows(tmp_path / "2" / "results.json")["controls"]
    assert [(row["kind"], row["size"]) for row in controls] == [("network", 1), ("ensemble", 2)]
    for folder, reason in (("2", "same seed"), ("none", "holds no finished generation 0")):
        with pytest.raises(SystemExit, match=f"control_from.*{reason}"):
            run(2, "2", "--control_from", tmp_path / folder)
    changes = {"model_name": "cifar_wrn_16_1", "learning_rate": 3}
    reasons = ("is another network", "was trained with another learning_rate")
    for (name, value), reason in zip(changes.items(), reasons, strict=True):
        with pytest.raises(SystemExit, match=f"control_from.*{reason}"):
            run(2, "3", f"--{name}", value, "--control_from", tmp_path / "1")
    assert not (tmp_path / "3").exists()


def test_a_bad_file_of_results_costs_no_good_report(tmp_path):
    good = {"generations": ["x"]}
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(good))
    (tmp_path / "results.json").write_text("GOOD")
    assert main(["report", str(bad), "--output_dir", str(tmp_path)]) != 0
    assert (tmp_path / "results.json").read_text() == "GOOD"


def test_labels_of_the_wrong_kind_are_named(tmp_path):
    data = tiny.Images()
    data.labels = torch.nn.functional.one_hot(data.labels, tiny.CLASSES)  # floats: several labels
    args = tiny.arguments(tmp_path)
    trainer = BANTrainer(tiny.vit(1), args, teacher=tiny.vit(2), train_dataset=data)
    with pytest.raises(
        ValueError, match=r"must be class numbers of shape \(16,\), .* not \(16, 5\)"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(generations=-1), "generations=-1"),
        (
            dict(eval_dataset={"a": tiny.Images(), "b": tiny.Images()}),
            r"of several datasets \(a, b\)",
        ),
        (dict(train_dataset=tiny.Images(0)), "The train data is empty"),
        (dict(model_init=tiny.vit(1)), "model_init is a ViTForImageClassification"),
    ],
)
def test_what_no_sequence_can_be_made_of_is_named(given, message, tmp_path):
    given = dict(model_init=tiny.vit, train_dataset=tiny.Images(), generations=1) | given
    with pytest.raises(BANError, match=message):
        train_generations(args=tiny.arguments(tmp_path / "run"), **given)
    assert not (tmp_path / "run").exists()


def test_facts_of_the_data_that_are_no_json_are_kept_as_text(tmp_path):
    train_generations(
        tiny.vit,
        tiny.arguments(tmp_path / "run", max_steps=1),
        generations=0,
        train_dataset=tiny.Images(),
        data={"root": tmp_path},
    )
    assert Record.read(tmp_path / "run" / "generation-0").data["root"] == str(tmp_path)


def test_a_test_set_is_measured_whole_and_not_mistaken_for_the_validation_set(tmp_path):
    train_generations(
        tiny.vit,
        tiny.arguments(
            tmp_path / "run",
            max_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=8,
            dataloader_drop_last=True,
            dataloader_num_workers=1,
            dataloader_persistent_workers=True,
        ),
        generations=1,
        train_dataset=tiny.Images(16),
        eval_dataset=tiny.Images(8, seed=1),
        test_dataset=tiny.Images(11, seed=2),
    )
    for folder in ("generation-0", "generation-1", "ensemble"):
        assert {metric.n for metric in Record.read(tmp_path / "run" / folder).metrics} == {11}
