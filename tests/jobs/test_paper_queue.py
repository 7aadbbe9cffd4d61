"""The queue of jobs, killed and started again, on two workers, with jobs that fail."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from family import identities
from filelock import FileLock

from ban_hf.cli.main import main
from ban_hf.jobs.executor import JobsFailed, do_all
from ban_hf.jobs.reproduction import Reproduction
from ban_hf.lineage.files import read_json

RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
COMMAND = "reproduce own.yaml --budget tiny --columns all --output_dir out".split()
#: Two students share a cache, one has two teachers; each trains four epochs of six steps.
SPEC = {
    "base": str(RECIPES / "images.yaml"),
    "title": "A small network",
    "source": "nobody",
    "budgets": {
        "tiny": {
            "dataset": {"name": "digits", "image_size": 8, "train_samples": 48},
            "training": {"num_train_epochs": 4, "per_device_train_batch_size": 8},
        }
    },
    "networks": {"small": {"paper": {"name": "cifar_wrn_10_1", "args": {"dropout": 0.1}}}},
    "columns": {
        "teacher": {},
        "ban": {"teacher": "teacher"},
        "cwtm": {"teacher": "teacher", "objective": "cwtm"},
        "both": {"teacher": ["ban", "cwtm"]},
        "ens": {"ensemble": ["ban", "both"]},
    },
    "rows": {"small": {"network": "small"}},
}
JOBS = len(SPEC["columns"])


def write(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(SPEC | changes, sort_keys=False)
    (folder / "own.yaml").write_text(text, "utf-8")
    return folder


#: A shell lets what it runs in the background ignore interrupts, and so all that this begins.
PROGRAM = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from ban_hf.cli.main import main; sys.exit(main())"
)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen]:
    """The command at work in a process group of its own, which does not outlive the test."""
    with (folder / "said.txt").open("a") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *COMMAND],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(folder: Path) -> None:
    """The command to its end."""
    with started(folder) as process:
        assert process.wait(300) == 0, (folder / "said.txt").read_text()


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def alive(group: int) -> list[str]:
    """The processes of a group, without those that have ended and are not yet buried."""
    listed = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [line[2] for line in lines if line[0] == str(group) and not line[1].startswith("Z")]


def written(output_dir: Path) -> dict[str, bytes]:
    files = output_dir.glob("jobs/*/results.json")
    return {path.parent.name: path.read_bytes() for path in files}


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob("out/jobs/*/checkpoints/checkpoint-*"))


def jobs_of(folder: Path):
    table = str(folder / "own.yaml")
    return Reproduction(table, "tiny", columns=["all"], output_dir=folder / "out").jobs


@pytest.fixture(scope="module")
def never_killed_queue(tmp_path_factory) -> Path:
    """All jobs of the table, in one go. Not to be changed."""
    folder = write(tmp_path_factory.mktemp("queue"))
    run(folder)
    return folder


@pytest.fixture
def whole(never_killed_queue, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(never_killed_queue, tmp_path / "whole"))


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_it_had_never_been(never_killed_queue, tmp_path):
    """At random moments: first the queue alone, whose worker ends too, then all of it."""
    rng, folder, in_training = random.Random(1), write(tmp_path), 0
    for kill in (os.kill, os.killpg):
        before = checkpoints(folder)
        with started(folder) as process:
            wait_for(lambda known=before: checkpoints(folder) - known)
            time.sleep(rng.uniform(0, 0.5))
            assert process.poll() is None, "it was done too soon to be killed"
            kill(process.pid, signal.SIGKILL)
            process.wait()
            wait_for(lambda group=process.pid: not alive(group), 20)
        assert len(written(folder / "out")) < JOBS
        in_training += bool(checkpoints(folder) - before)
    run(folder)
    assert written(folder / "out") == written(never_killed_queue / "out")
    table, expected = (
        f / "out" / "own-tiny" / "results.json" for f in (folder, never_killed_queue)
    )
    assert table.read_bytes() == expected.read_bytes()
    assert in_training, "no kill fell in a training"
    assert not (folder / "out" / "teacher_caches").exists()


def test_what_is_done_is_not_done_again(whole, monkeypatch, capsys):
    before = {path: identities(path) for path in (whole / "out" / "jobs").iterdir()}
    assert len(before) == JOBS
    report = (whole / "out" / "own-tiny" / "report.md").read_bytes()
    monkeypatch.chdir(whole)
    assert main(COMMAND) == 0
    assert f"{JOBS} are done" in capsys.readouterr().err
    assert {path: identities(path) for path in before} == before
    assert (whole / "out" / "own-tiny" / "report.md").read_bytes() == report


def test_tables_of_other_columns_of_a_row_are_reported_as_one(whole, monkeypatch, capsys):
    """As where each machine makes some: what is told of a row is the same in both."""
    monkeypatch.chdir(whole)
    parts = []
    for column in ("teacher", "cwtm"):
        assert main([*COMMAND[:4], "--columns", column, *COMMAND[6:]]) == 0
        parts.append(f"{column}.json")
        shutil.copy("out/own-tiny/results.json", parts[-1])
    capsys.readouterr()
    assert main(["report", *parts, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    for found in (results["columns"], [{"name": e["column"]} for e in results["entries"]]):
        assert {one["name"] for one in found} == {"teacher", "cwtm"}
    assert results["rows"] == read_json(whole / "teacher.json")["rows"]


def test_a_plan_names_what_is_missing_and_does_nothing(whole, monkeypatch, capsys):
    names = [job.name for job in jobs_of(whole)]
    shutil.rmtree(whole / "out" / "jobs" / names[-1])
    monkeypatch.chdir(whole)
    before = identities(whole)
    assert main([*COMMAND, "--plan"]) == 0
    said = capsys.readouterr().out
    assert names[-1] in said
    assert names[0] not in said
    assert identities(whole) == before


@pytest.mark.slow
def test_two_workers_do_what_one_does(never_killed_queue, tmp_path):
    folder = write(tmp_path)
    do_all(jobs_of(folder), folder / "out", workers=2)
    assert written(folder / "out") == written(never_killed_queue / "out")


@pytest.mark.slow
def test_a_job_that_is_lost_is_done_again_and_no_other(whole, never_killed_queue):
    """Also where its network stands, which is then only measured."""
    jobs = jobs_of(whole)
    names = [job.name for job in jobs]
    shutil.rmtree(whole / "out" / "jobs" / names[2])
    (whole / "out" / "jobs" / names[1] / "results.json").unlink()
    network = whole / "out" / "jobs" / names[1] / "network"
    before = [identities(network), identities(whole / "out" / "jobs" / names[0])]
    do_all(jobs, whole / "out")
    assert [identities(network), identities(whole / "out" / "jobs" / names[0])] == before
    assert written(whole / "out") == written(never_killed_queue / "out")


def test_results_are_reported_without_weights_and_not_if_they_are_damaged(
    whole, monkeypatch, capsys
):
    monkeypatch.chdir(whole)
    cards = whole / "out" / "own-tiny" / "cards" / "small"
    assert {path.stem for path in cards.iterdir()} == {"teacher", "ban", "cwtm"}
    jobs = {job.arguments["training"]["objective"]: job for job in jobs_of(whole)[:3]}
    shutil.rmtree(whole / "out" / "jobs" / jobs["cwtm"].name / "network")
    before = read_json(whole / "out" / "own-tiny" / "results.json")
    assert main(COMMAND) == 0
    assert read_json(whole / "out" / "own-tiny" / "results.json") == before
    assert {path.stem for path in cards.iterdir()} == {"teacher", "ban"}
    capsys.readouterr()
    path = whole / "out" / "jobs" / jobs["cwtm"].name / "results.json"
    path.write_text(json.dumps({"job": jobs["cwtm"].name}), "utf-8")
    assert main(COMMAND) == 1
    error = capsys.readouterr().err
    assert f"{jobs['cwtm'].name}/results.json is damaged: " in error
    assert "Delete it, and give the command again." in error


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_others_done(tmp_path, monkeypatch, capsys):
    """Its row has a network that cannot be built; mended, the same command does the rest."""
    columns = {name: SPEC["columns"][name] for name in ("teacher", "ban")}
    wrong = {"paper": {"name": "cifar_wrn_10_1", "args": {"droput": 0.1}}}
    rows = {"broken": {"network": "wrong"}, "small": {"network": "small"}}
    networks = SPEC["networks"] | {"wrong": wrong}
    folder = write(tmp_path, columns=columns, rows=rows, networks=networks)
    monkeypatch.chdir(folder)
    asked = Reproduction("own.yaml", "tiny", output_dir="out")
    failing, behind = (asked.cells["broken", column, 1] for column in columns)
    assert main(COMMAND) == 1
    error = capsys.readouterr().err
    assert "JobsFailed: 1 of 4 jobs failed" in error
    assert failing.name in error
    assert "droput" in error
    log = (folder / "out" / "jobs" / failing.name / "log.txt").read_text("utf-8")
    assert "Traceback (most recent call last)" in log
    assert "droput" in log
    assert not (folder / "out" / "jobs" / behind.name).exists()
    done = [asked.cells["small", column, 1] for column in columns]
    assert written(folder / "out").keys() == {job.name for job in done}
    entries = read_json(folder / "out" / "own-tiny" / "results.json")["entries"]
    assert {entry["row"] for entry in entries} == {"small"}
    assert f"A report of what is done: {Path('out', 'own-tiny')}" in error
    report = (folder / "out" / "own-tiny" / "report.md").read_text("utf-8")
    assert "- broken: teacher (in no seed); ban (in no seed)" in report
    before = [identities(folder / "out" / "jobs" / job.name) for job in done]

    right = {"paper": {"name": "cifar_wrn_10_1", "args": {"stem_stride": 2}}}
    write(tmp_path, columns=columns, rows=rows, networks=networks | {"wrong": right})
    assert main(COMMAND) == 0
    assert [identities(folder / "out" / "jobs" / job.name) for job in done] == before
    entries = read_json(folder / "out" / "own-tiny" / "results.json")["entries"]
    assert [(entry["row"], entry["column"]) for entry in entries] == [
        (row, column) for row in rows for column in columns
    ]


def test_a_second_queue_in_a_folder_is_refused(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path)
    (folder / "out").mkdir()
    monkeypatch.chdir(folder)
    with FileLock(folder / "out" / ".lock"):
        assert main(COMMAND) == 1
    error = capsys.readouterr().err
    assert "output_dir=out is being written by another queue" in error
    assert not (folder / "out" / "jobs").exists()


def kill_the_worker(output_dir: Path) -> None:
    wait_for(lambda: any(output_dir.glob("jobs/*/checkpoints/checkpoint-*")))
    for process in multiprocessing.active_children():
        process.kill()


@pytest.mark.slow
def test_an_interrupt_of_the_queue_alone_does_not_wait_for_its_job(tmp_path):
    """As of a supervisor: a terminal would interrupt the worker, too."""
    tiny = SPEC["budgets"]["tiny"]
    hours = tiny | {"training": tiny["training"] | {"num_train_epochs": 100_000}}
    folder = write(tmp_path, budgets={"tiny": hours})
    with started(folder) as process:
        wait_for(lambda: checkpoints(folder))
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        wait_for(lambda: not alive(process.pid), 20)
    said = (folder / "said.txt").read_text("utf-8")
    assert "ban-hf: stopped" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_the_queue_can_go_on(never_killed_queue, tmp_path):
    folder = write(tmp_path)
    jobs = jobs_of(folder)
    killer = threading.Thread(target=kill_the_worker, args=[folder / "out"])
    killer.start()
    with pytest.raises(JobsFailed, match=rf"died.*doing one of {jobs[0].name}.*goes on from there"):
        do_all(jobs, folder / "out")
    killer.join()
    do_all(jobs, folder / "out")
    assert written(folder / "out") == written(never_killed_queue / "out")
