"""Jobs run: in this process and in others, killed and started again, and with some that fail."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from family import identities
from filelock import FileLock
from worker_jobs import run_in

from ban_hf import verify_lineage
from ban_hf.cli.main import main
from ban_hf.jobs.executor import InProcess, JobsFailed, Workers, run_jobs
from ban_hf.jobs.job import Job, in_order
from ban_hf.jobs.reproduction import Reproduction
from ban_hf.lineage.files import read_json
from ban_hf.lineage.record import RECORD

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

# Executors


def graph() -> list[Job]:
    """A teacher, its two students and their ensemble; a network for itself."""
    teacher = Job("teacher", {})
    students = [Job(f"student-{k}", {"seed": k}, (teacher,), generation=1) for k in (1, 2)]
    return in_order([Job("ensemble", {}, members=tuple(students)), Job("alone", {"seed": 3})])


def run(home: Path, executor: InProcess | Workers, jobs: list[Job] | None = None, **options):
    with contextlib.closing(executor) if isinstance(executor, Workers) else home:
        jobs = graph() if jobs is None else jobs
        run_jobs(jobs, executor, lambda job: (home / "done" / job.folder).is_file(), **options)


def done(home: Path) -> dict[str, int]:
    """How often each job was done."""
    return {file.name: len(file.read_text().splitlines()) for file in (home / "done").iterdir()}


@pytest.mark.slow
def test_two_workers_do_all_but_what_needs_a_failed_job_and_go_on(tmp_path):
    (tmp_path / "fail-student-2").touch()
    with pytest.raises(JobsFailed, match=r"2 of 5 jobs failed.*student-2 is broken") as e:
        run(tmp_path, Workers(run_in(tmp_path), 2, tmp_path / "logs"))
    assert "ensemble: a job that it needs failed" in str(e.value)
    assert done(tmp_path) == dict.fromkeys(["teacher", "student-1", "alone"], 1)
    log = (tmp_path / "logs" / "student-2.txt").read_text()
    assert log.startswith("student-2 begins\n")
    assert "Traceback (most recent call last)" in log
    assert "ValueError: student-2 is broken" in log
    assert not (tmp_path / "logs" / "ensemble.txt").exists()

    (tmp_path / "fail-student-2").unlink()
    (tmp_path / "die-student-2").touch()
    with pytest.raises(JobsFailed, match=r"died.* one of student-2, .*goes on from there"):
        run(tmp_path, Workers(run_in(tmp_path), 2, tmp_path / "logs"))

    (tmp_path / "die-student-2").unlink()
    reported = []
    run(tmp_path, Workers(run_in(tmp_path), 2, tmp_path / "logs"), on_finished=reported.append)
    assert done(tmp_path) == {job.folder: 1 for job in graph()}
    assert [job.folder for job in reported] == [job.folder for job in graph()]


@pytest.mark.slow
def test_jobs_after_one_that_died_are_told_and_no_more_is_handed_over(tmp_path):
    (tmp_path / "die-alone").touch()
    jobs = [Job("alone", {}), *(Job(f"other-{k}", {"seed": k}) for k in range(5))]
    with pytest.raises(JobsFailed, match="a process died while it ran one of alone"):
        run(tmp_path, Workers(run_in(tmp_path), 1, tmp_path / "logs"), jobs)


def test_in_this_process_an_error_ends_all_or_with_logs_what_needs_the_job(tmp_path, capsys):
    (tmp_path / "fail-student-1").touch()
    with pytest.raises(ValueError, match="student-1 is broken"):
        run(tmp_path, InProcess(run_in(tmp_path)))
    assert done(tmp_path) == {"teacher": 1}
    with pytest.raises(JobsFailed, match="2 of 4 jobs failed"):
        run(tmp_path, InProcess(run_in(tmp_path), tmp_path / "logs"))
    assert done(tmp_path) == dict.fromkeys(["teacher", "student-2", "alone"], 1)
    assert "ValueError: student-1 is broken" in (tmp_path / "logs" / "student-1.txt").read_text()
    output = capsys.readouterr().out  # of the run without logs alone
    assert output.split("\n") == ["teacher begins", "student-1 begins", ""]


@pytest.mark.parametrize("workers", [False, True])
def test_a_job_whose_teacher_is_missing_is_refused(workers, tmp_path):
    """A worker would wait for it forever."""
    teacher, *students = graph()[:3]
    make = run_in(tmp_path)
    with pytest.raises(ValueError, match="job student-1 needs teacher, which is neither done nor"):
        run(tmp_path, Workers(make, 1, tmp_path) if workers else InProcess(make), students)
    assert done(tmp_path) == {}
    run(tmp_path, InProcess(make), [teacher])
    run(tmp_path, InProcess(make), students)  # it is done, though it is not among them
    assert done(tmp_path).keys() == {"teacher", "student-1", "student-2"}


# A table


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
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen]:
    """The command in a process group of its own, which does not outlive the test."""
    with (folder / "output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *COMMAND, *options],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
    """What was measured, and the digests of the weights that it was measured of."""
    files = output_dir.glob("jobs/evaluations/*.json")
    return {path.stem: path.read_bytes() for path in files}


def checkpoints(folder: Path) -> set[Path]:
    return set(folder.glob("out/jobs/checkpoints/*/checkpoint-*"))


def networks(folder: Path) -> dict[str, dict]:
    """The files of each finished network but its record, which names its teacher's."""
    records = (folder / "out" / "jobs").glob("*/lineage.json")
    files = {path.parent.name: identities(path.parent) for path in records}
    return {n: {k: v for k, v in found.items() if k != RECORD} for n, found in files.items()}


def jobs_of(folder: Path) -> dict[str, Job]:
    """By column."""
    table = str(folder / "own.yaml")
    cells = Reproduction(table, "tiny", columns=["all"], output_dir=folder / "out").cells
    return {column: job for (_, column, _), job in cells.items()}


@pytest.fixture(scope="module")
def never_killed_table(tmp_path_factory) -> Path:
    """All jobs of the table, one after another in this process. Not to be changed."""
    folder = write(tmp_path_factory.mktemp("table"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(COMMAND) == 0
    return folder


@pytest.fixture
def whole(never_killed_table, tmp_path, monkeypatch) -> Path:
    """A copy of it, to be changed, which is the working directory."""
    folder = Path(shutil.copytree(never_killed_table, tmp_path / "whole"))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.slow
def test_killed_twice_on_two_workers_it_ends_as_if_it_had_never_been(never_killed_table, tmp_path):
    """At random moments: first the command alone, whose workers end too, then all of it."""
    rng, folder, in_training = random.Random(1), write(tmp_path), 0
    for kill in (os.kill, os.killpg):
        before = checkpoints(folder)
        with started(folder, "--workers", "2") as process:
            wait_for(lambda known=before: checkpoints(folder) - known)
            time.sleep(rng.uniform(0, 0.5))
            assert process.poll() is None, "it was done too soon to be killed"
            kill(process.pid, signal.SIGKILL)
            process.wait()
            wait_for(lambda group=process.pid: not alive(group), 20)
        assert len(written(folder / "out")) < JOBS
        in_training += bool(checkpoints(folder) - before)
    with started(folder, "--workers", "2") as process:
        assert process.wait(300) == 0, (folder / "output.txt").read_text()
    assert written(folder / "out") == written(never_killed_table / "out")
    found, expected = (
        read_json(f / "out" / "own-tiny" / "results.json") for f in (folder, never_killed_table)
    )
    assert found | {"command": ""} == expected | {"command": ""}
    assert in_training, "no kill fell in a training"
    assert not (folder / "out" / "teacher_caches").exists()
    assert not checkpoints(folder)


def test_what_is_done_is_not_done_again_but_with_force(whole, capsys):
    before, evaluations = networks(whole), written(whole / "out")
    assert (len(before), len(evaluations)) == (JOBS - 1, JOBS)
    report = (whole / "out" / "own-tiny" / "report.md").read_bytes()
    assert main(COMMAND) == 0
    assert f"{JOBS} are done" in capsys.readouterr().err
    assert networks(whole) == before
    assert (whole / "out" / "own-tiny" / "report.md").read_bytes() == report

    assert main([*COMMAND[:4], "--columns", "cwtm", *COMMAND[6:], "--force"]) == 0
    forced, after = jobs_of(whole)["cwtm"].folder, networks(whole)
    assert {name for name in before if after[name] != before[name]} == {forced}
    assert written(whole / "out") == evaluations


def test_tables_of_other_columns_of_a_row_are_reported_as_one(whole, capsys):
    """As where each machine makes some: what is reported of a row is the same in both."""
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


def test_a_plan_names_what_is_missing_and_does_nothing(whole, capsys):
    jobs = jobs_of(whole)
    shutil.rmtree(whole / "out" / "jobs" / jobs["both"].folder)
    before = identities(whole)
    assert main([*COMMAND, "--plan"]) == 0
    output = capsys.readouterr().out
    for column, job in jobs.items():  # the ensemble has a member that is missing
        assert (job.folder in output) == (column in ("both", "ens"))
    assert identities(whole) == before


def test_a_job_that_is_lost_is_done_again_and_no_other(whole, never_killed_table):
    """Where only its measurement is lost, it is only measured."""
    jobs, before = jobs_of(whole), networks(whole)
    shutil.rmtree(whole / "out" / "jobs" / jobs["cwtm"].folder)
    for column in ("ban", "both", "ens"):
        (whole / "out" / "jobs" / "evaluations" / f"{jobs[column].folder}.json").unlink()
    assert main(COMMAND) == 0
    after = networks(whole)
    assert {name for name in before if after[name] != before[name]} == {jobs["cwtm"].folder}
    assert written(whole / "out") == written(never_killed_table / "out")
    # Its student, which stays, names the new record, so that the chain of hashes is whole again.
    verify_lineage(whole / "out" / "jobs" / jobs["both"].folder)


def test_results_are_reported_without_weights_and_not_if_they_are_damaged(whole, capsys):
    cards = whole / "out" / "own-tiny" / "cards" / "small"
    assert {path.stem for path in cards.iterdir()} == {"teacher", "ban", "cwtm", "both"}
    cwtm = jobs_of(whole)["cwtm"].folder
    (whole / "out" / "jobs" / cwtm / "model.safetensors").unlink()
    before = read_json(whole / "out" / "own-tiny" / "results.json")
    assert main(COMMAND) == 0
    assert read_json(whole / "out" / "own-tiny" / "results.json") == before
    capsys.readouterr()
    (whole / "out" / "jobs" / "evaluations" / f"{cwtm}.json").write_text("{", "utf-8")
    assert main(COMMAND) == 1
    assert f"evaluations/{cwtm}.json is not JSON" in capsys.readouterr().err


def test_a_job_that_fails_leaves_the_others_done(tmp_path, monkeypatch, capsys):
    """Its row has a network that cannot be built; corrected, the same command does the rest."""
    columns = {name: SPEC["columns"][name] for name in ("teacher", "ban")}
    wrong = {"paper": {"name": "cifar_wrn_10_1", "args": {"droput": 0.1}}}
    rows = {"broken": {"network": "wrong"}, "small": {"network": "small"}}
    networks_of = SPEC["networks"] | {"wrong": wrong}
    short = {"num_train_epochs": 1, "per_device_train_batch_size": 48}
    budgets = {"tiny": SPEC["budgets"]["tiny"] | {"training": short}}
    given = {"columns": columns, "rows": rows, "budgets": budgets}
    folder = write(tmp_path, networks=networks_of, **given)
    monkeypatch.chdir(folder)
    requested = Reproduction("own.yaml", "tiny", output_dir="out")
    failing, behind = (requested.cells["broken", column, 1] for column in columns)
    assert main(COMMAND) == 1
    error = capsys.readouterr().err
    assert "JobsFailed: 2 of 4 jobs failed, or need one that did" in error
    assert failing.folder in error
    assert "droput" in error
    log = (folder / "out" / "logs" / f"{failing.folder}.txt").read_text("utf-8")
    assert "Traceback (most recent call last)" in log
    assert "droput" in log
    assert not (folder / "out" / "jobs" / behind.folder).exists()
    done = [requested.cells["small", column, 1].folder for column in columns]
    before = networks(folder)
    assert before.keys() == set(done)
    entries = read_json(folder / "out" / "own-tiny" / "results.json")["entries"]
    assert {entry["row"] for entry in entries} == {"small"}
    assert f"A report of what is done: {Path('out', 'own-tiny')}" in error
    report = (folder / "out" / "own-tiny" / "report.md").read_text("utf-8")
    assert "- broken: teacher (in no seed); ban (in no seed)" in report

    right = {"paper": {"name": "cifar_wrn_10_1", "args": {"stem_stride": 2}}}
    write(tmp_path, networks=networks_of | {"wrong": right}, **given)
    assert main(COMMAND) == 0
    assert {name: networks(folder)[name] for name in done} == before
    entries = read_json(folder / "out" / "own-tiny" / "results.json")["entries"]
    assert [(entry["row"], entry["column"]) for entry in entries] == [
        (row, column) for row in rows for column in columns
    ]


def test_a_second_run_in_a_folder_is_refused(tmp_path, monkeypatch, capsys):
    folder = write(tmp_path)
    (folder / "out").mkdir()
    monkeypatch.chdir(folder)
    with FileLock(folder / "out" / ".lock"):
        assert main(COMMAND) == 1
    assert "output_dir=out is being written by another run" in capsys.readouterr().err
    assert not (folder / "out" / "jobs").exists()


@pytest.mark.slow
def test_an_interrupt_of_the_command_alone_does_not_wait_for_its_jobs(tmp_path):
    """As of a supervisor: a terminal would interrupt the workers, too."""
    tiny = SPEC["budgets"]["tiny"]
    hours = tiny | {"training": tiny["training"] | {"num_train_epochs": 100_000}}
    folder = write(tmp_path, budgets={"tiny": hours})
    with started(folder, "--workers", "2") as process:
        wait_for(lambda: checkpoints(folder))
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
        wait_for(lambda: not alive(process.pid), 20)
    output = (folder / "output.txt").read_text("utf-8")
    assert "ban-hf: stopped" in output
    assert "Traceback" not in output
