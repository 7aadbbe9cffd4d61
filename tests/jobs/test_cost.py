"""The estimate before a run: right arithmetic, real steps, nothing left behind."""

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from family import families, listing, network, train, views
from launch import run_recipe
from transformers import TrainerControl, TrainerState

from ban_hf.jobs import cost
from ban_hf.jobs import progress as progress_module
from ban_hf.jobs.cost import Counts, Pace
from ban_hf.jobs.job import Job
from ban_hf.jobs.progress import (
    SMALL_FILES,
    Footprint,
    GenerationProgress,
    count_events,
    format_duration,
)
from ban_hf.lineage.files import format_bytes
from ban_hf.lineage.record import RECORD, Record

# The arithmetic


def count(home: Path, names, ensembles=(), finished=(), cached=False) -> Counts:
    """Of networks as words, `student < teacher`, and ensembles, `name = member member`."""
    jobs: dict[str, Job] = {}
    for name in names:
        student, _, teacher = name.partition(" < ")
        jobs[student] = Job(student, {}, (jobs[teacher],) if teacher else ())
    for text in ensembles:
        name, _, members = text.partition(" = ")
        jobs[name] = Job(name, {}, members=tuple(jobs[member] for member in members.split()))
    for name in finished:
        (home / name).mkdir(parents=True)
        (home / name / RECORD).touch()
    return Counts.of(list(jobs.values()), home, cached=cached)


def test_a_generation_is_its_steps_its_evaluations_and_its_test():
    pace = Pace("with labels", steps=20, step=2.0, evaluation=10.0, test=100.0)
    assert pace.network(steps=50, evaluations=5) == 50 * 2 + 5 * 10 + 100


def test_what_is_finished_is_not_counted(tmp_path):
    chain, ensemble = ["g0", "control", "g1 < g0", "g2 < g1"], ["ensemble = g1 g2"]
    counts = count(tmp_path, chain, ensemble)
    assert counts == Counts(2, 2, 0, 2, 0, 0)
    assert counts.seconds(250, 375, 100) == 2 * 250 + 2 * 375 + 2 * 100
    assert count(tmp_path, chain, ensemble, ["g0", "g1"]) == Counts(1, 1, 0, 2, 0, 2)
    rest = ["g2", "control", "ensemble"]
    assert count(tmp_path, chain, ensemble, rest) == Counts(0, 0, 0, 0, 0, 4)


SIBLINGS = [f"{home}/g{k} < {home}/g{k - 1}" for home in "abc" for k in (1, 2)]
SIBLINGS = ["teacher/g0", *(word.replace(f"< {word[0]}/g0", "< teacher/g0") for word in SIBLINGS)]


def test_students_of_one_teacher_cost_what_labels_cost_once_it_has_run(tmp_path):
    counts = count(tmp_path, SIBLINGS)  # without a cache it runs for every student
    assert (counts.students, counts.replaying, counts.copies) == (6, 0, 3)
    counts = count(tmp_path, SIBLINGS, cached=True)
    assert (counts.labels, counts.students, counts.replaying) == (1, 4, 2)
    assert counts.seconds(250, 375, 100) == 3 * 250 + 4 * 375
    counts = count(tmp_path, SIBLINGS, finished=["teacher/g0", "a/g1", "a/g2"], cached=True)
    assert (counts.labels, counts.students, counts.replaying, counts.copies) == (0, 2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(save_strategy="no"), 0),
        (dict(save_strategy="epoch"), 4),
        (dict(save_strategy="epoch", save_total_limit=1), 2),  # the new one before the old one goes
        (dict(save_strategy="epoch", save_total_limit=9), 4),
        (dict(save_strategy="steps", save_steps=20), 5),
        (dict(save_strategy="steps", save_steps=0.1, save_total_limit=2), 3),
        # The best one is kept beside the last.
        (dict(save_strategy="epoch", save_total_limit=1, load_best_model_at_end=True), 3),
    ],
)
def test_checkpoints_where_they_are_most(tmp_path, changes, expected):
    best = changes.pop("load_best_model_at_end", False)
    args = tiny.arguments(tmp_path, **changes)
    args.load_best_model_at_end = best
    assert Footprint(0, 10).checkpoints(args, steps=100, epochs=4) == 10 * expected


@pytest.mark.parametrize(
    ("strategy", "every", "expected"),
    [("no", 10, 0), ("epoch", 10, 3), ("best", 10, 3), ("steps", 30, 4), ("steps", 0.5, 2)],
)
def test_how_often_a_training_evaluates(strategy, every, expected):
    assert count_events(strategy, every, steps=100, epochs=2.5) == expected


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_footprint_is_what_lies_on_disk(tmp_path, optim):
    changes = {"optim_args": "momentum=0.9"} if optim == "sgd" else {}
    trainer = tiny.trained(
        tiny.cifar(), tmp_path, save_strategy="steps", save_steps=4, optim=optim, **changes
    )
    footprint = Footprint.of(trainer.model, trainer.optimizer, trainer.args)
    files = [f for f in (tmp_path / "checkpoint-4").iterdir() if f.is_file()]
    weights = (tmp_path / "checkpoint-4" / "model.safetensors").stat().st_size
    assert footprint.weights == pytest.approx(weights, rel=0.03)
    assert footprint.checkpoint == pytest.approx(sum(f.stat().st_size for f in files), rel=0.05)
    trainer.args.save_only_model = True
    only = Footprint.of(trainer.model, trainer.optimizer, trainer.args)
    assert only.checkpoint == footprint.weights + SMALL_FILES


def test_tied_weights_are_saved_once(tmp_path):
    model = tiny.lstm(tie_word_embeddings=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    footprint = Footprint.of(model, optimizer, tiny.arguments(tmp_path))
    assert footprint.weights == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (89 * 60, "89 min"), (6120, "1.7 h")],
)
def test_durations_in_words(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (45.2e6, "45.2 MB"), (3e15, "3e+03 TB")],
)
def test_sizes_in_words(number, words):
    assert format_bytes(number) == words


def test_a_disk_is_short_where_all_that_goes_to_it_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
    far = tmp_path / "not" / "there"
    assert len(cost._disk({"networks": 10_000}, {tmp_path: 5000, far: 5000})) == 1
    line, warning = cost._disk({"networks": 10_001}, {tmp_path: 5000, far: 5001})
    assert "disk        10 kB at most: networks 10 kB; 10 kB are free" in line
    assert "10 kB are needed and 10 kB free" in warning


# The line after the first steps


class Clock:
    """A clock that gains so many seconds with each reading."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self, device) -> float:
        self.now += self.seconds
        return self.now


def announced(captured: str) -> list[str]:
    return [line for line in captured.splitlines() if "a step" in line]


def test_a_long_run_says_once_what_is_to_come(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "seconds_now", Clock(20 * 100.0))  # 100 s a step
    train(tmp_path, 1, max_steps=40, save_strategy="no", eval_strategy="no")
    first, second = announced(capsys.readouterr().out)
    # 15 of 40 steps are left, and 40 of the student, which cost 1.3.
    assert first.startswith("generation 0/1 · 100 s a step · 25 min for this generation, 1.9 h for")
    assert second.startswith("generation 1/1 · 100 s a step · 25 min for this generation, 25 min")
    weights = 4 * sum(p.numel() for p in network(0).parameters())
    assert first.endswith(
        f" · about {format_bytes(4 * weights)} of disk"
    )  # two, and two in the ensemble


@pytest.mark.parametrize(("seconds", "is_main"), [(100.0, True), (100.0, False), (0.1, True)])
def test_only_the_main_process_says_it_and_of_a_long_run(
    tmp_path, monkeypatch, capsys, seconds, is_main
):
    monkeypatch.setattr(progress_module, "seconds_now", Clock(20 * seconds))
    args, model = tiny.arguments(tmp_path), tiny.vit()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = TrainerState(max_steps=600, num_train_epochs=1, is_world_process_zero=is_main)
    progress, control = GenerationProgress(0, 2), TrainerControl()
    progress.on_train_begin(args, state, control)
    for state.global_step in range(1, 100):
        progress.on_step_end(args, state, control, model=model, optimizer=optimizer)
    assert len(announced(capsys.readouterr().out)) == (is_main and seconds == 100)


# The timing


def steps_until_stopped(monkeypatch, seconds: float) -> cost.StepClock:
    clock, now = cost.StepClock(), SimpleNamespace(time=0.0)
    monkeypatch.setattr(cost, "seconds_now", lambda device: now.time)
    control = TrainerControl()
    for step in range(1, 1000):
        now.time += seconds
        clock.on_step_end(SimpleNamespace(device=None), TrainerState(global_step=step), control)
        if control.should_training_stop:
            assert step == cost.WARM_UP + clock.steps
            return clock
    raise AssertionError("never stopped")


@pytest.mark.parametrize(("seconds", "steps"), [(0.5, 20), (5.0, 6), (1000.0, 2)])
def test_steps_are_timed_fewer_of_them_where_they_are_slow(monkeypatch, seconds, steps):
    clock = steps_until_stopped(monkeypatch, seconds)
    assert (clock.steps, clock.step) == (steps, pytest.approx(seconds))


def planned(folder: Path, capsys, generations: int = 2, **changes) -> str:
    """What is printed of a plan."""
    options = {"save_strategy": "epoch", "eval_strategy": "epoch"} | changes
    found = families(folder, generations=generations, **options)
    given = found.args.to_dict()
    found.plan()
    assert found.args.to_dict() == given
    return capsys.readouterr().out


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_plan_leaves_nothing(tmp_path, temporary, capsys):
    folder = tmp_path / "family"
    out = planned(folder, capsys, control=True)
    assert out.startswith(
        "Plan of tiny; nothing is trained.\nAn estimate from 20 steps with labels"
    )
    assert "2 with labels (the controls among them), 2 with a teacher\n" in out
    assert "2 epochs, 6 steps of 8 images" in out
    assert "float32; processes: 1" in out
    assert not folder.exists()
    assert not list(temporary.iterdir())


def test_a_plan_counts_what_is_missing_and_changes_no_file(run, capsys):
    before = listing(run)
    output = planned(run, capsys, generations=3)
    assert "networks    1 with a teacher; 3 are finished" in output
    assert listing(run) == before
    (run / "generation-2" / RECORD).unlink()
    training = Record.read(run / "generation-1").training
    output = planned(run, capsys)
    assert "networks    1 with a teacher; 2 are finished" in output
    assert f"{training.epochs:g} epochs, {training.steps} steps" in output


def test_where_all_is_finished_nothing_is_timed(run, capsys, monkeypatch):
    monkeypatch.setattr(cost, "_time_training", None)
    assert "All 3 networks are finished" in planned(run, capsys)


def test_the_cache_is_a_number_for_each_class_of_each_view(tmp_path, capsys):
    cache = dict(teacher_cache=str(tmp_path / "cache"), num_train_epochs=50)
    out = planned(tmp_path / "family", capsys, **cache, teacher_cache_dtype="float16")
    assert f"teacher_cache {format_bytes(50 * 24 * tiny.CLASSES * 2)};" in out
    plain = views(augment=False)
    out = planned(tmp_path / "family", capsys, train_dataset=plain, **cache)
    assert f"teacher_cache {format_bytes(24 * tiny.CLASSES * 4)};" in out
    assert not list(tmp_path.iterdir())


def test_of_a_text_the_cache_is_a_hidden_state_of_each_word(tmp_path, capsys):
    setup = dict(model_init=tiny.lstm, train_dataset=tiny.windows(), eval_dataset=None, trainer={})
    setup |= dict(test_dataset=tiny.windows(200, seed=1, warmup=14))
    given = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, eval_strategy="no")
    cache = str(tmp_path / "b")
    out = planned(tmp_path / "a", capsys, teacher_cache=cache, **setup, **given)
    words = len(tiny.windows()) * 7
    assert f"teacher_cache {format_bytes(words * 8 * 4)};" in out
    assert "of 4 x 7 words" in out


def test_several_objectives_are_students_of_one_teacher(tmp_path, capsys):
    out = planned(tmp_path, capsys, generations=1, objective="kd,kd+label,cwtm")
    networks = "1 with labels, 1 with a teacher, 2 with a teacher whose outputs are kept by then"
    assert networks in out
    assert f"teacher_cache {format_bytes(2 * 24 * tiny.CLASSES * 4)};" in out
    train(tmp_path / "teacher", 0, save_strategy="no", ensemble=False)
    out = planned(tmp_path, capsys, generations=1, objective="kd,kd+label,cwtm")
    assert networks.removeprefix("1 with labels, ") + "; 1 are finished" in out


def test_a_teacher_from_elsewhere_is_not_trained(tmp_path, capsys):
    out = planned(tmp_path, capsys, teacher="ns/family-gen2@commit")
    assert "networks    2 with a teacher\n" in out


# The recipes


@pytest.mark.parametrize(("name", "items"), [("ban_cifar", "8 images"), ("ban_ptb", "4 x 5 words")])
def test_a_recipe_plans_and_trains_nothing(name, items, tmp_path, temporary, capsys):
    folder = tmp_path / "family"
    run_recipe(name, "--smoke", "--use_cpu", "--output_dir", folder, "--plan")
    out = capsys.readouterr().out
    assert "networks    1 with labels, 2 with a teacher\n" in out
    assert f"steps of {items}" in out
    assert "altogether" in out
    assert "are free" in out
    assert not folder.exists()
    assert not list(temporary.iterdir())
