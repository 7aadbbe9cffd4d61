"""A sequence that goes on from a generation in a folder: copied, noted without its path, held."""

import shutil
from pathlib import Path

import pytest
from family import KillAt, Killed, final_weights, listing, train

from ban_hf import PublishError, load_lineage, pull, push_family, push_generation, verify_lineage
from ban_hf.errors import TamperedFileError
from ban_hf.lineage.files import read_json
from ban_hf.lineage.record import RECORD, Record

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A generation 0 of another seed. Not to be changed."""
    folder = tmp_path_factory.mktemp("other")
    train(folder, 0, seed=5)
    return folder / "generation-0"


@pytest.fixture
def moved(never_killed, tmp_path) -> Path:
    """A generation 0 that may be moved, in a folder of any name."""
    return Path(shutil.copytree(never_killed / "generation-0", tmp_path / "home" / "my teacher"))


@pytest.fixture
def student(moved, tmp_path) -> Path:
    """A family of one student of it."""
    train(tmp_path / "student", 1, teacher=str(moved))
    return tmp_path / "student"


def texts(folder: Path) -> str:
    """All that records, notes and logs say."""
    return "\n".join(path.read_text("utf-8") for path in folder.rglob("*.json"))


def test_the_students_are_those_that_its_own_family_would_have_had(never_killed, moved, tmp_path):
    lineage = train(tmp_path / "b", 2, teacher=str(moved))
    assert final_weights(tmp_path / "b") == final_weights(never_killed)
    assert [record.generation for record in lineage.generations] == [0, 1, 2]
    assert listing(tmp_path / "b" / "generation-0") == listing(moved)


def test_the_student_names_the_copy_beside_it_and_nothing_names_a_path(student, moved, tmp_path):
    (teacher,) = Record.read(student / "generation-1").teachers
    assert (teacher.path, teacher.generation, teacher.repo_id) == ("../generation-0", 0, None)
    assert teacher.lineage_sha256 == listing(moved)[RECORD]
    note = read_json(student / RECORD)["run"]["teacher"]
    assert note["teacher"] == f"generation-0@{listing(moved)[RECORD]}"
    for path in (str(tmp_path), "my teacher", "home"):
        assert path not in texts(student)


def test_its_lineage_is_verified_without_the_original(student, moved):
    shutil.rmtree(moved)
    for where in (student, student / "generation-1"):
        for lineage in (load_lineage(where), verify_lineage(where)):
            assert [record.generation for record in lineage.generations] == [0, 1]
    (student / "generation-0" / WEIGHTS).write_bytes(b"others")
    with pytest.raises(TamperedFileError, match=WEIGHTS):
        verify_lineage(student)


def test_a_killed_run_goes_on_though_the_original_moved_away(never_killed, moved, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "b", 2, teacher=str(moved), callbacks=[KillAt(2, 3)])
    moved.rename(tmp_path / "elsewhere")
    lineage = train(tmp_path / "b", 2, teacher=str(moved))
    assert final_weights(tmp_path / "b") == final_weights(never_killed)
    assert lineage.generations[2].training.resumed_from == "checkpoint-2"


@pytest.mark.parametrize("where", ["home/my teacher", "elsewhere", "student/generation-0"])
def test_it_is_the_same_teacher_wherever_it_stands(student, moved, tmp_path, where):
    shutil.copytree(moved, tmp_path / "elsewhere")
    lineage = train(student, 2, teacher=str(tmp_path / where))
    assert [record.generation for record in lineage.generations] == [0, 1, 2]


def test_other_words_for_what_is_gone_are_not_taken_for_it(student, moved, tmp_path):
    shutil.rmtree(moved)
    with pytest.raises(ValueError, match="neither an existing folder"):
        train(student, 2, teacher=str(tmp_path / "home" / "mistyped"))


def test_another_teacher_or_none_is_another_run(student, moved, other):
    before = listing(student)
    with pytest.raises(ValueError, match=r"teacher: 'generation-0@\w+' there, 'generation-0@\w+'"):
        train(student, 1, teacher=str(other))
    with pytest.raises(ValueError, match=r"teacher: 'generation-0@\w+' there, None here"):
        train(student, 1)
    shutil.rmtree(moved)
    shutil.copytree(other, moved)  # by the same words
    with pytest.raises(ValueError, match=r"teacher: 'generation-0@\w+' there, 'generation-0@\w+'"):
        train(student, 1, teacher=str(moved))
    assert listing(student) == before


def test_a_teacher_of_an_earlier_attempt_is_not_taken_for_this_ones(moved, other, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "b", 1, teacher=str(moved), callbacks=[KillAt(1, 0)])
    for teacher in (str(other), None):
        with pytest.raises(ValueError, match="was copied for another teacher"):
            train(tmp_path / "b", 1, teacher=teacher)
    train(tmp_path / "b", 1, teacher=str(moved))


def test_a_teacher_that_is_not_what_its_record_says_is_not_copied(moved, tmp_path):
    (moved / WEIGHTS).write_bytes(b"others")
    with pytest.raises(TamperedFileError, match=WEIGHTS):
        train(tmp_path / "b", 1, teacher=str(moved))
    assert not (tmp_path / "b" / "generation-0").exists()


def test_a_copy_that_was_changed_is_not_learnt_from(student, moved):
    (student / "generation-0" / WEIGHTS).write_bytes(b"others")
    with pytest.raises(TamperedFileError, match=WEIGHTS):
        train(student, 2, teacher=str(moved))


# A student that teaches: those before it are where its record takes them to be


def test_a_later_generation_is_copied_with_those_before_it(run, never_killed, tmp_path):
    lineage = train(tmp_path / "b", 2, teacher=str(never_killed / "generation-2"))
    assert [record.generation for record in lineage.generations] == [0, 1, 2, 3, 4]
    assert [member.generation for member in lineage.ensemble.members] == [3, 4]
    assert len(verify_lineage(tmp_path / "b").generations) == 5
    train(run, 3)
    name = f"generation-3/{WEIGHTS}"
    assert final_weights(tmp_path / "b")[name] == final_weights(run)[name]


def test_killed_while_it_is_copied(run, tmp_path, monkeypatch):
    teacher = str(run / "generation-2")
    with monkeypatch.context() as patch:

        def killed(source, target, copied=shutil.copyfile):
            if "generation-1" in str(target):
                raise Killed
            return copied(source, target)

        patch.setattr(shutil, "copyfile", killed)
        with pytest.raises(Killed):
            train(tmp_path / "b", 1, teacher=teacher)
    assert [path.name for path in tmp_path.glob("b/generation-*")] == ["generation-0"]
    run.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="neither an existing folder"):
        train(tmp_path / "b", 1, teacher=teacher)  # generation 0 is not the teacher
    (tmp_path / "elsewhere").rename(run)
    lineage = train(tmp_path / "b", 1, teacher=teacher)
    assert [member.generation for member in lineage.ensemble.members] == [2, 3]


def test_what_was_copied_is_nothing_to_lose(never_killed, tmp_path):
    teacher = str(never_killed / "generation-2")
    with pytest.raises(Killed):
        train(tmp_path / "b", 1, teacher=teacher, callbacks=[KillAt(3, 0)])
    lineage = train(tmp_path / "b", 1, teacher=teacher, learning_rate=0.05)
    assert lineage.generations[3].training.arguments["learning_rate"] == 0.05


# Publishing what came of it


def test_its_generations_are_published_as_ones_own(hub, student):
    commits = push_family(student, "ns/mine")
    assert [commit.repo_id for commit in commits] == ["ns/mine-gen0", "ns/mine-gen1", "ns/mine"]
    assert len(verify_lineage("ns/mine").generations) == 2


def test_what_others_published_is_not_published_again(published, tmp_path):
    pull("ns/fam-gen0", tmp_path / "pulled")
    train(tmp_path / "b", 1, teacher=str(tmp_path / "pulled" / "generation-0"))
    before = set(published.repositories)
    with pytest.raises(PublishError, match="was pulled, so it is published"):
        push_family(tmp_path / "b", "ns/mine")
    assert set(published.repositories) == before
    commit = load_lineage("ns/fam-gen0").places[0]
    push_generation(tmp_path / "b" / "generation-1", "ns/mine-gen1", teacher=commit)
    assert verify_lineage("ns/mine-gen1").places[0] == commit


def test_publishing_while_it_trains_is_refused_before_anything_is_trained(hub, moved, tmp_path):
    with pytest.raises(PublishError, match=r"is in a folder: leave it out, .* ban-hf push"):
        train(tmp_path / "b", 1, teacher=str(moved), push_to_hub=True, hub_model_id="ns/mine")
    assert not (tmp_path / "b" / "generation-1").exists()
    assert not hub.repositories
