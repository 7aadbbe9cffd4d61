"""A sequence that was killed and is run again; and what is not continued, but refused."""

import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from family import STEPS, KillAt, Killed, final_weights, identities, listing, train, views
from transformers import TrainerCallback

from ban_hf import BornAgainEnsemble
from ban_hf.lineage.files import read_json
from ban_hf.lineage.record import RECORD, Record


@pytest.mark.parametrize(("generation", "step"), [(0, 1), (1, 4), (2, STEPS - 1)])
def test_a_killed_run_ends_as_if_it_had_never_been(never_killed, tmp_path, generation, step):
    """Also where it was killed before, in another generation."""
    for kill in (KillAt(0, 3), KillAt(generation, step)) if generation else (KillAt(0, step),):
        with pytest.raises(Killed):
            train(tmp_path, callbacks=[kill])
    before = [identities(tmp_path / f"generation-{k}") for k in range(generation)]
    lineage = train(tmp_path)
    assert final_weights(tmp_path) == final_weights(never_killed)
    assert before == [identities(tmp_path / f"generation-{k}") for k in range(generation)]
    last = f"checkpoint-{step - step % 2}" if step > 1 else None
    assert lineage.generations[generation].training.resumed_from == last


def test_a_checkpoint_that_was_half_written_is_passed_over(never_killed, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, callbacks=[KillAt(1, 5)])
    checkpoints = tmp_path / "checkpoints" / "generation-1"
    (checkpoints / "checkpoint-4" / "optimizer.pt").unlink()
    (checkpoints / "checkpoint-4" / "trainer_state.json").write_text('{"epoch": 1.3')
    lineage = train(tmp_path)
    assert lineage.generations[1].training.resumed_from == "checkpoint-2"
    assert final_weights(tmp_path) == final_weights(never_killed)


def kill_at_call(patch, owner, name, chosen, after):
    """Have the process killed at the first call of a function whose arguments are chosen."""
    function = getattr(owner, name)

    def killed(*args, **kwargs):
        if not chosen(*args):
            return function(*args, **kwargs)
        if after:
            function(*args, **kwargs)
        raise Killed

    patch.setattr(owner, name, killed)


def is_called(name):
    return lambda source, target: Path(target).name == name


@pytest.mark.parametrize(
    ("owner", "function", "chosen", "after"),
    [
        (Record, "write", lambda record, folder: record.generation == 1, False),
        (os, "replace", is_called("generation-1"), False),
        (os, "replace", is_called("generation-1"), True),
        (BornAgainEnsemble, "save_pretrained", lambda model, folder: True, True),
        (Record, "write", lambda record, folder: record.kind == "ensemble", False),
        (os, "replace", is_called("ensemble"), False),
        (os, "replace", is_called("ensemble"), True),
    ],
    ids=[
        "before the record",
        "before the folder is in place",
        "between one generation and the next",
        "after the ensemble's weights",
        "before the ensemble's record",
        "before the ensemble is in place",
        "after the ensemble is in place",
    ],
)
def test_killed_while_a_folder_is_written(
    never_killed, tmp_path, monkeypatch, owner, function, chosen, after
):
    with monkeypatch.context() as patch:
        kill_at_call(patch, owner, function, chosen, after)
        with pytest.raises(Killed):
            train(tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) or after
    for left in (tmp_path / "checkpoints").glob("*/finished"):
        (left / "stale.safetensors").write_text("of the killed run")
    finished = {path: identities(path) for path in tmp_path.glob("generation-*")}
    train(tmp_path)
    assert {path: identities(path) for path in finished} == finished
    assert final_weights(tmp_path) == final_weights(never_killed)
    assert not (tmp_path / "checkpoints").exists()
    family = read_json(tmp_path / RECORD)
    assert [named["path"] for named in family["generations"]] == [
        f"generation-{k}" for k in range(3)
    ]
    assert family["ensemble"]["path"] == "ensemble"


def test_the_best_checkpoint_is_the_same_after_a_kill(tmp_path):
    best = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "nll",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "learning_rate": 3.0,
    }
    train(tmp_path / "whole", 1, **best)
    with pytest.raises(Killed):
        train(tmp_path / "run", 1, callbacks=[KillAt(1, 5)], **best)
    train(tmp_path / "run", 1, **best)
    assert final_weights(tmp_path / "run") == final_weights(tmp_path / "whole")


def test_running_again_does_nothing(run):
    before = listing(run), identities(run / "ensemble")
    train(run)
    assert len(train(run, 1).generations) == 3  # nor where fewer are asked for
    assert (listing(run), identities(run / "ensemble")) == before


def test_more_generations_may_be_asked_for_later(never_killed, run, tmp_path):
    train(tmp_path / "whole", 3)
    finished = [identities(run / f"generation-{k}") for k in range(3)]
    lineage = train(run, 3)
    assert finished == [identities(run / f"generation-{k}") for k in range(3)]
    assert [member.generation for member in lineage.ensemble.members] == [1, 2, 3]
    assert final_weights(run) == final_weights(tmp_path / "whole")


# Refused, with nothing changed


def larger(generation):
    return tiny.vit(seed=generation, hidden_size=32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.25}, "learning_rate: 0.1 there, 0.25 here"),
        ({"seed": 4}, "seed: 3 there, 4 here"),
        ({"objective": "cwtm"}, "objective: 'kd' there, 'cwtm' here"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last: False there, True here"),
        ({"train_dataset": views(seed=9)}, "train: .*'fingerprint': '.* there, .* here"),
        ({"train_dataset": views(augment=False)}, "train: .*'augment': True.* there, .*False"),
        ({"eval_dataset": None, "eval_strategy": "no"}, "validation: .* there, None here"),
        ({"model_init": larger}, r"num_parameters: \d+ there, \d+ here"),
        ({"family": "another"}, "family: 'family.*' there, 'another' here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_arguments_are_refused_by_name_and_value(run, changes, message):
    before = listing(run)
    with pytest.raises(ValueError, match=message):
        train(run, 3, **changes)
    assert listing(run) == before


def test_what_does_not_change_the_learning_may_change(run):
    changes = {"logging_steps": 5, "save_total_limit": 1, "save_steps": 3, "run_name": "again"}
    before = listing(run)
    train(run, disable_tqdm=False, dataloader_num_workers=1, **changes)
    assert listing(run) == before


def test_what_chooses_the_best_checkpoint_may_not_change(tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2}
    train(tmp_path, 0, **best)
    with pytest.raises(ValueError, match=r"eval_steps: 2 there, 3 here; .*save_steps: 2 there"):
        train(tmp_path, 0, **best | {"eval_steps": 3, "save_steps": 3})


@pytest.mark.parametrize("text", ["not JSON", "[1]", '{"name": "of another program"}'])
def test_the_lineage_of_another_program_is_left_alone(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=r"lineage\.json"):
        train(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]
    assert (tmp_path / RECORD).read_text() == text


@pytest.mark.parametrize("name", ["generation-0", "generation-2", "ensemble", "checkpoints"])
def test_folders_of_an_unknown_run_are_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "model.safetensors").write_text("precious")
    with pytest.raises(ValueError, match=f"{name}, which no run"):
        train(tmp_path)
    assert list(listing(tmp_path)) == [f"{name}/model.safetensors"]


@pytest.mark.parametrize("name", ["generation-1", "ensemble"])
def test_a_folder_without_its_record_is_left_alone(run, name):
    (run / name / RECORD).unlink()
    before = listing(run)
    with pytest.raises(ValueError, match=f"{name}, which no run"):
        train(run)
    assert listing(run) == before


def test_a_student_whose_teacher_is_gone_is_not_taken_for_finished(run):
    shutil.rmtree(run / "generation-1")
    before = listing(run)
    with pytest.raises(ValueError, match="generation-2 had another teacher than the generation-1"):
        train(run)
    assert listing(run) == before


def test_an_ensemble_of_other_members_is_made_again(never_killed, run):
    for name in ("generation-1", "generation-2"):
        shutil.rmtree(run / name)
    train(run)  # trained again: the same weights, other records
    assert final_weights(run) == final_weights(never_killed)
    for k, member in enumerate(Record.read(run / "ensemble").members, start=1):
        assert member.lineage_sha256 == listing(run)[f"generation-{k}/{RECORD}"]


class Poison(TrainerCallback):
    """Spoils the weights of a generation before its fourth step."""

    def __init__(self, generation: int) -> None:
        self.folder = f"generation-{generation}"

    def on_step_begin(self, args, state, control, model, **kwargs):
        if args.output_dir.endswith(self.folder) and state.global_step == 3:
            with torch.no_grad():
                model.classifier.weight.fill_(torch.nan)


def test_a_loss_that_is_no_number_stops_generation_0_which_has_no_teacher(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 4.*checkpoint-2"):
        train(tmp_path, callbacks=[Poison(0)])
    assert not (tmp_path / "generation-0").exists()


def test_a_loss_that_is_no_number_stops_generation_1_and_keeps_generation_0(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 4.*checkpoint-2"):
        train(tmp_path, callbacks=[Poison(1)])
    assert not (tmp_path / "generation-1").exists()
    before = identities(tmp_path / "generation-0")
    train(tmp_path)
    assert identities(tmp_path / "generation-0") == before
