"""Students of several teachers: recorded, walked as a graph, verified, published, with a card."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ban_hf import PublishError, load_lineage, push_generation, verify_lineage
from ban_hf.errors import (
    BANError,
    BrokenChainError,
    CyclicLineageError,
    TamperedFileError,
    TeacherChangedError,
)
from ban_hf.hub.publishing import card
from ban_hf.lineage.files import read_json, write_json
from ban_hf.lineage.record import RECORD, Record, reference

OTHERS = "model.safetensors"


@pytest.fixture
def graph(never_killed, another, tmp_path) -> Path:
    """Generations 0 `a` and `b`, their student `ab` (1), and `abb`, which `ab` and `b` taught."""
    graph = tmp_path / "graph"
    shutil.copytree(never_killed / "generation-0", graph / "a")
    shutil.copytree(another / "generation-0", graph / "b")
    shutil.copytree(never_killed / "generation-1", graph / "ab")
    shutil.copytree(never_killed / "generation-2", graph / "abb")
    teach(graph / "ab", "a", "b")
    teach(graph / "abb", "ab", "b")
    return graph


def teach(student: Path, *teachers: str) -> None:
    """Change a student's record: these folders beside it are its teachers."""
    record = Record.read(student)
    record.teachers = tuple(reference(student.parent / name, student) for name in teachers)
    record.write(student)


def names(lineage) -> list[str]:
    return [Path(location).name for location in lineage.locations]


def test_the_file_has_a_list_of_several_teachers_and_an_object_of_one(graph):
    teachers = read_json(graph / "ab" / RECORD)["teacher"]
    assert [named["path"] for named in teachers] == ["../a", "../b"]
    assert Record.read(graph / "ab").to_dict() == read_json(graph / "ab" / RECORD)
    teach(graph / "ab", "b")
    assert read_json(graph / "ab" / RECORD)["teacher"]["path"] == "../b"
    data = read_json(graph / "ab" / RECORD)
    for teacher in ([], [data["teacher"]]):
        write_json(graph / "ab" / RECORD, data | {"teacher": teacher})
        with pytest.raises(BANError, match="a list of teachers must have several"):
            Record.read(graph / "ab")


def test_each_network_of_a_graph_is_visited_once_and_before_its_students(graph):
    for lineage in (load_lineage(graph / "abb"), verify_lineage(graph / "abb")):
        assert sorted(names(lineage)[:2]) == ["a", "b"]
        assert names(lineage)[2:] == ["ab", "abb"]
        assert [record.generation for record in lineage.generations] == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("folder", "of_record", "of_second_teacher", "error", "words"),
    [
        ("abb", {"generation": 3}, {}, BrokenChainError, r"is generation 3, but .* must be 2"),
        ("abb", {"generation": 1}, {}, BrokenChainError, "generations must fall"),
        ("abb", {}, {"generation": 1}, BrokenChainError, "as generation 1, but it is generation 0"),
        ("ab", {}, {"path": "../abb", "generation": 2}, CyclicLineageError, "its own ancestor"),
    ],
    ids="too-high too-low wrong-reference cycle".split(),
)
def test_generations_fall_by_one_from_the_highest_teacher(
    graph, folder, of_record, of_second_teacher, error, words
):
    data = read_json(graph / folder / RECORD) | of_record
    data["teacher"][1] |= of_second_teacher
    write_json(graph / folder / RECORD, data)
    with pytest.raises(error, match=words):
        load_lineage(graph / "abb")


def test_every_teacher_is_verified(graph):
    weights = (graph / "b" / OTHERS).read_bytes()
    (graph / "b" / OTHERS).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(TamperedFileError, match=r"model.safetensors of .*/b has"):
        verify_lineage(graph / "abb")
    shutil.rmtree(graph / "b")
    shutil.copytree(graph / "a", graph / "b")
    with pytest.raises(TeacherChangedError, match=r"/b is not the generation 0"):
        load_lineage(graph / "abb")


def test_it_is_published_after_its_teachers_with_a_card_that_names_them(hub, graph):
    a = push_generation(graph / "a", "ns/a-gen0")
    b = push_generation(graph / "b", "ns/b-gen0")
    with pytest.raises(PublishError, match="has several teachers: say where each is published"):
        push_generation(graph / "ab", "ns/ab")
    with pytest.raises(BANError, match="records 2 teachers"):
        push_generation(graph / "ab", "ns/ab", teacher=str(a))
    with pytest.raises(PublishError, match="is another network"):
        push_generation(graph / "ab", "ns/ab", teacher=[str(b), str(a)])
    assert list(hub.repositories) == ["ns/a-gen0", "ns/b-gen0"]
    ab = push_generation(graph / "ab", "ns/ab", teacher=["ns/a-gen0", "ns/b-gen0@v1"])
    push_generation(graph / "abb", "ns/abb", teacher=[str(ab), str(b)])
    lineage = verify_lineage("ns/abb")
    assert sorted(lineage.locations[:2]) == [str(a), str(b)]
    assert lineage.locations[2] == str(ab)
    for repo_id, teachers in {"ns/ab": (a, b), "ns/abb": (ab, b)}.items():
        text = hub.repositories[repo_id].files()["README.md"].decode()
        assert ModelCard(text).data.base_model == [teacher.repo_id for teacher in teachers]
        assert all(f"{t.repo_id}/tree/{t.revision}" in text for t in teachers)
    assert card("ns/ab").data.base_model == ["ns/a-gen0", "ns/b-gen0"]
