"""What identifies a job, what comes before it, and what is kept of its network on the test set."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ban_hf
from ban_hf.jobs import job as jobs
from ban_hf.jobs.job import Job, code_digest, in_order
from ban_hf.lineage.results import BLOCK, block_losses, pack_classes, unpack_classes


def job(*teachers: Job, seed: int = 1, folder: str = "", **training) -> Job:
    arguments = {"training": {"objective": "kd", "seed": seed} | training, "share_ends": False}
    return Job(folder or f"job-{seed}", arguments, teachers)


def ensemble(*members: Job) -> Job:
    return Job("ensemble", {}, members=members)


def test_in_order_gives_each_once_and_after_what_it_needs():
    teacher = job()
    first = job(teacher, seed=2)
    second = job(first, seed=3)
    both = ensemble(first, second)
    again = ensemble(job(job(), seed=2), second)  # other objects that mean the same
    assert in_order([both, teacher, again]) == [teacher, first, second, both]
    assert in_order([]) == []


def test_in_order_refuses_a_cycle_and_two_jobs_in_one_folder():
    teacher = job(folder="teacher")
    student = job(teacher, folder="student")
    object.__setattr__(teacher, "teachers", (student,))
    with pytest.raises(ValueError, match="student needs itself: student -> teacher -> student"):
        in_order([student])
    with pytest.raises(ValueError, match="two different jobs have the folder same"):
        in_order([job(folder="same"), job(folder="same", seed=2)])


@pytest.mark.parametrize(
    "other",
    [
        job(job(), seed=3),
        job(job(), seed=2, temperature=2),
        job(job(seed=5), seed=2),  # its teacher is another
        job(job(job()), seed=2),  # or has a teacher of its own
        job(job(), job(seed=5), seed=2),  # or is not alone
        job(seed=2),
        Job("job-2", job(seed=2).arguments | {"share_ends": True}, (job(),)),
    ],
)
def test_a_digest_is_of_arguments_and_teachers(other):
    student = job(job(), seed=2)
    assert student.digest != other.digest
    assert student.digest == job(job(), seed=2).digest == job(job(), seed=2, folder="f").digest
    assert ensemble(student, other).digest != ensemble(other, student).digest


def test_a_digest_does_not_change_with_the_text_of_the_code(tmp_path):
    """A comment in every file: what was finished before is not done again."""
    source = Path(ban_hf.__file__).parent
    shutil.copytree(source, tmp_path / "ban_hf", ignore=shutil.ignore_patterns("__pycache__"))
    for file in (tmp_path / "ban_hf").rglob("*.py"):
        file.write_text(file.read_text("utf-8") + "\n# changed\n", "utf-8")
    program = (
        "from ban_hf.jobs import job; assert '# changed' in open(job.__file__).read();"
        "print(job.Job('f', {'seed': 1}).digest, job.code_digest())"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [Job("f", {"seed": 1}).digest, code_digest()]


def test_the_code_is_its_result_version_and_the_releases_that_decide(monkeypatch):
    before, known = code_digest(), jobs.versions()
    for package, decides in {"torch": True, "timm": True, "datasets": False}.items():
        monkeypatch.setattr(jobs, "versions", lambda name=package: known | {name: "0"})
        assert (code_digest() != before) is decides
    monkeypatch.undo()
    monkeypatch.setattr(jobs, "RESULT_VERSION", jobs.RESULT_VERSION + 1)
    assert code_digest() != before


def test_packed_classes_come_back():
    classes = np.random.default_rng(0).integers(0, 10_000, 777)
    assert unpack_classes(pack_classes(classes)).tolist() == classes.tolist()
    assert len(pack_classes(np.zeros(10_000, dtype=int))) < 100  # compressed


@pytest.mark.parametrize("words", [1, BLOCK - 1, BLOCK, BLOCK + 1, 7 * BLOCK + 3])
def test_block_losses_sum_to_the_whole(words):
    nll = np.random.default_rng(words).exponential(5, words)
    blocks = block_losses(nll)
    assert sum(blocks.words) == words
    assert blocks.words[:-1] == (BLOCK,) * (math.ceil(words / BLOCK) - 1)
    assert sum(blocks.nll) == pytest.approx(nll.sum(), abs=1e-6 * len(blocks.nll))
    assert blocks.nll[0] == pytest.approx(nll[:BLOCK].sum(), abs=1e-6)
