"""What names a job, what comes before it, and what is kept of its network on the test set."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ban_hf.jobs import job as jobs
from ban_hf.jobs.job import MAKER, ROOT, Job, code_sha256, in_order, sources_of
from ban_hf.lineage.results import (
    BLOCK,
    Entry,
    Outcomes,
    block_losses,
    item_losses,
    pack_classes,
    unpack_classes,
)
from ban_hf.tasks.metrics import error_rate


def job(*teachers: Job, seed: int = 1, network: str = "net", **training) -> Job:
    arguments = {
        "task": "image",
        "dataset": {"name": "digits"},
        "network": {"name": network, "args": {}},
        "training": {"objective": "kd", "seed": seed} | training,
        "share_ends": False,
    }
    return Job(arguments, teachers)


def ensemble(*members: Job) -> Job:
    return Job({"task": "image", "dataset": {"name": "digits"}}, members=members)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A copy of our source that names are taken from; `changed` edits a file of it."""
    root = tmp_path / "ban_hf"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(jobs, "ROOT", root)
    code_sha256.cache_clear()
    yield root
    code_sha256.cache_clear()


def name_after(root: Path, *changed: str) -> str:
    """A job's name where these files have another line."""
    for file in changed:
        with (root / file).open("a", encoding="utf-8") as stream:
            stream.write("\n# changed\n")
    code_sha256.cache_clear()
    return job().name


def test_in_order_gives_each_once_and_after_what_it_needs():
    teacher = job()
    first = job(teacher, seed=2)
    second = job(first, seed=3)
    both = ensemble(first, second)
    again = ensemble(job(job(), seed=2), second)  # other objects that mean the same
    assert in_order([both, teacher, again]) == [teacher, first, second, both]
    assert in_order([]) == []


def test_a_name_says_network_objective_and_number_of_members():
    teacher = job(network="cifar_wrn_10_1")
    student = job(teacher, network="cifar_wrn_10_1", objective="cwtm")
    names = [one.name for one in (teacher, student, ensemble(teacher, student))]
    heads = ["cifar_wrn_10_1-labels", "cifar_wrn_10_1-cwtm", "ensemble-of-2"]
    assert [name.rpartition("-")[0] for name in names] == heads
    assert len({name.rpartition("-")[2] for name in names}) == 3


@pytest.mark.parametrize(
    "other",
    [
        job(job(), seed=3),
        job(job(), seed=2, temperature=2),
        job(job(seed=5), seed=2),  # its teacher is another
        job(job(job()), seed=2),  # or has a teacher of its own
        job(job(), job(seed=5), seed=2),  # or is not alone
        job(seed=2),
        Job(job(seed=2).arguments | {"share_ends": True}, (job(),)),
    ],
)
def test_a_name_tells_arguments_and_teachers(other):
    student = job(job(), seed=2)
    digests = [one.name.rpartition("-")[2] for one in (student, other)]
    assert digests[0] != digests[1]
    assert student.name == job(job(), seed=2).name


def test_members_are_told_from_one_another_in_order():
    first, second = job(seed=1), job(seed=2)
    assert ensemble(first, second).name != ensemble(second, first).name
    assert ensemble(first, second).name != ensemble(first, job(seed=3)).name


def test_students_of_one_teacher_and_seed_share_a_cache():
    teacher = job()
    shared = job(teacher, seed=2).cache_name
    assert shared == job(teacher, seed=2, objective="dkpp").cache_name
    assert shared != job(teacher, seed=3).cache_name
    assert shared != job(job(seed=9), seed=2).cache_name
    assert teacher.cache_name is None
    assert ensemble(teacher, teacher).cache_name is None
    assert Job(job().arguments | {"task": "text"}, (teacher,)).cache_name is None


def test_a_copy_of_the_code_names_the_same_jobs(source, monkeypatch):
    here = name_after(source)
    monkeypatch.setattr(jobs, "ROOT", ROOT)
    assert name_after(source) == here


@pytest.mark.parametrize(
    "file", ["trainer.py", "models/cifar_networks.py", "data/views.py", "paper/outcomes.py"]
)
def test_code_that_decides_a_result_changes_the_name(source, file):
    assert name_after(source) != name_after(source, file)


def test_code_that_only_tells_or_orders_changes_nothing(source):
    before = name_after(source)
    told = "plotting.py report.py hub.py cli.py paper/figures.py paper/queue.py paper/tables.py"
    assert name_after(source, *told.split()) == before


def test_a_release_of_what_we_stand_on_changes_the_name(monkeypatch):
    before, known = job().name, jobs.versions()
    for package, is_told in {"torch": True, "timm": True, "datasets": False}.items():
        monkeypatch.setattr(jobs, "versions", lambda name=package: known | {name: "0"})
        code_sha256.cache_clear()
        assert (job().name != before) is is_told
    monkeypatch.undo()
    code_sha256.cache_clear()
    assert job().name == before


def test_the_code_of_a_result_is_all_that_trains_and_measures_and_no_more():
    found = {path.relative_to(ROOT).as_posix() for path in sources_of(MAKER)}
    models = {path.relative_to(ROOT).as_posix() for path in (ROOT / "models").glob("*.py")}
    trains = "trainer.py objectives.py generation.py ensemble.py measurement.py teacher_cache.py"
    assert {*trains.split(), "paper/networks.py", "paper/outcomes.py"} <= found
    assert models <= found
    tells = "report.py plotting.py hub.py cli.py commands.py paper/queue.py paper/figures.py"
    assert not found & {*tells.split(), "paper/tables.py", "paper/reproduction.py", "__init__.py"}


def test_sources_follow_every_way_to_import(tmp_path, monkeypatch):
    """Relative, absolute, of a name in a package, in a function; and the packages on the way."""
    files = {
        "a.py": "from ban_hf.inner import b\nimport os\nimport ban_hf\n",
        "inner/__init__.py": "from .c import something\n",
        "inner/b.py": "def late():\n    import ban_hf.d\n",
        "inner/c.py": "from ..e import thing\nfrom ban_hf.inner.deep import f\n",
        "inner/deep/__init__.py": "",
        "inner/deep/f.py": "from . import g\n",
        "inner/deep/g.py": "import ban_hf.a\n",  # in a circle
        "d.py": "",
        "e.py": "",
        "unused.py": "from ban_hf import a\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in sources_of("ban_hf.a")}
    assert found == files.keys() - {"unused.py"}


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


def test_item_losses_of_images_give_back_the_error_exactly():
    logits = torch.randn(359, 10, generator=torch.Generator().manual_seed(0))  # (N, C)
    labels = torch.arange(359) % 10
    outcomes = Outcomes(predicted=pack_classes(logits.argmax(1).numpy()))
    entry = Entry(row="r", column="c", seed=1, test={}, outcomes=outcomes)
    wrong, ones = item_losses(entry, pack_classes(labels.numpy()))
    assert 100 * wrong.sum() / ones.sum() == error_rate(logits, labels).item()
    assert 0 < wrong.sum() < 359


def test_item_losses_of_a_text_give_back_the_perplexity():
    nll = np.random.default_rng(1).exponential(5, 3 * BLOCK + 11)
    sums, words = item_losses(
        Entry(row="r", column="c", seed=1, test={}, outcomes=block_losses(nll)), None
    )
    assert np.exp(sums.sum() / words.sum()) == pytest.approx(np.exp(nll.mean()), rel=1e-8)
