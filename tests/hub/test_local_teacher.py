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
def trained(never_killed, tmp_path_factory) -> Path:
    """A generation 0, in a folder of any name, and a family of one student of it."""
    folder = tmp_path_factory.mktemp("trained")
    teacher = shutil.copytree(never_killed / "generation-0", folder / "home" / "my teacher")
    train(folder / "student", 1, teacher=str(teacher))
    return folder


@pytest.fixture
def moved(trained, tmp_path) -> Path:
    """That generation 0, which may be moved."""
    return Path(shutil.copytree(trained / "home", tmp_path / "home")) / "my teacher"


@pytest.fixture
def student(trained, tmp_path) -> Path:
    """That family, to be changed."""
    return Path(shutil.copytree(trained / "student", tmp_path / "student"))


def test_the_student_names_the_copy_beside_it_and_nothing_names_a_path(trained, never_killed):
    student, teacher = trained / "student", listing(trained / "home" / "my teacher")
    assert listing(student / "generation-0") == teacher
    (named,) = Record.read(student / "generation-1").teachers
    assert (named.path, named.generation, named.repo_id) == ("../generation-0", 0, None)
    assert named.lineage_sha256 == teacher[RECORD]
    note = read_json(student / RECORD)["run"]["teacher"]
    assert note["teacher"] == f"generation-0@{teacher[RECORD]}"
    texts = [path.read_text("utf-8") for path in student.rglob("*.json")]
    for path in (str(trained), "my teacher", "home"):
        assert not [text for text in texts if path in text]


def test_its_lineage_is_verified_without_the_original(student):
    for where in (student, student / "generation-1"):
        for lineage in (load_lineage(where), verify_lineage(where)):
            assert [record.generation for record in lineage.generations] == [0, 1]
    (student / "generation-0" / WEIGHTS).write_bytes(b"others")
    with pytest.raises(TamperedFileError, match=WEIGHTS):
        verify_lineage(student)


def test_a_killed_run_goes_on_though_the_original_moved_away(
    never_killed, another, moved, tmp_path
):
    with pytest.raises(Killed):
        train(tmp_path / "b", 2, teacher=str(moved), callbacks=[KillAt(2, 3)])
    moved.rename(tmp_path / "elsewhere")
    lineage = train(tmp_path / "b", 2, teacher=str(moved))
    assert [record.generation for record in lineage.generations] == [0, 1, 2]
    assert lineage.generations[2].training.resumed_from == "checkpoint-2"
    # The students are those that its own family would have had.
    assert final_weights(tmp_path / "b") == final_weights(never_killed)
    shutil.copytree(another / "generation-0", moved)  # by the same words
    with pytest.raises(ValueError, match=r"teacher: 'generation-0@\w+' there, 'generation-0@\w+'"):
        train(tmp_path / "b", 2, teacher=str(moved))


@pytest.mark.parametrize("where", ["home/my teacher", "elsewhere", "student/generation-0"])
def test_it_is_the_same_teacher_wherever_it_stands(student, moved, tmp_path, where):
    shutil.copytree(moved, tmp_path / "elsewhere")
    lineage = train(student, 2, teacher=str(tmp_path / where))
    assert [record.generation for record in lineage.generations] == [0, 1, 2]


def test_another_teacher_or_none_is_another_run(student, another, tmp_path):
    before = listing(student)
    with pytest.raises(ValueError, match="neither an existing folder"):
        train(student, 2, teacher=str(tmp_path / "home" / "mistyped"))  # other words
    with pytest.raises(ValueError, match=r"teacher: 'generation-0@\w+' there, 'generation-0@\w+'"):
        train(student, 1, teacher=str(another / "generation-0"))
    with pytest.raises(ValueError, match=r"teacher: 'generation-0@\w+' there, None here"):
        train(student, 1)
    assert listing(student) == before


def test_a_teacher_of_an_earlier_attempt_is_not_taken_for_this_ones(moved, another, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path / "b", 1, teacher=str(moved), callbacks=[KillAt(1, 0)])
    for teacher in (str(another / "generation-0"), None):
        with pytest.raises(ValueError, match="was copied for another teacher"):
            train(tmp_path / "b", 1, teacher=teacher)
    train(tmp_path / "b", 1, teacher=str(moved))


def test_a_teacher_that_is_not_what_its_record_says_is_not_learnt_from(student, moved, tmp_path):
    (student / "generation-0" / WEIGHTS).write_bytes(b"others")
    with pytest.raises(TamperedFileError, match=WEIGHTS):
        train(student, 2, teacher=str(moved))  # the copy was changed
    (moved / WEIGHTS).write_bytes(b"others")
    with pytest.raises(TamperedFileError, match=WEIGHTS):
        train(tmp_path / "b", 1, teacher=str(moved))
    assert not (tmp_path / "b" / "generation-0").exists()


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
    with pytest.raises(Killed):
        train(tmp_path / "b", 1, teacher=teacher, callbacks=[KillAt(3, 0)])
    lineage = train(tmp_path / "b", 1, teacher=teacher, learning_rate=0.05)  # nothing to lose yet
    assert [member.generation for member in lineage.ensemble.members] == [2, 3]
    assert lineage.generations[3].training.arguments["learning_rate"] == 0.05


# Publishing what came of it


def test_its_generations_are_published_as_ones_own(hub, trained):
    commits = push_family(trained / "student", "ns/mine")
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
