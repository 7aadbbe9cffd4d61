"""Schema 1: what ban_hf 0.1 wrote is read, verified, continued and published as it was.

`v1/run` is a family that ban_hf wrote at 06e46a5, with a line of text in the place of weights, and
`v1/published` has the records that it published of it.
"""

import json
import shutil
from pathlib import Path

import pytest
from family import final_weights, train

from ban_hf import load_lineage, push_family, verify_lineage
from ban_hf.errors import BANError, TamperedFileError
from ban_hf.lineage.files import read_json, sha256_of_file, write_json
from ban_hf.lineage.record import RECORD, SCHEMA, SCHEMAS, Record

V1 = Path(__file__).parent / "v1"
FOLDERS = ("generation-0", "generation-1", "generation-2", "ensemble")


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(V1 / "run", tmp_path / "run"))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_record_is_read_and_nothing_of_it_is_lost(name):
    record = Record.read(V1 / "run" / name)
    record.validate()
    assert record.schema == SCHEMAS[0]
    assert record.to_dict() == read_json(V1 / "run" / name / RECORD)
    assert len(record.teachers) == (name in FOLDERS[1:3])
    assert len(record.members) == (2 if name == "ensemble" else 0)


def test_a_family_is_verified(run):
    lineage = verify_lineage(run)
    assert lineage == load_lineage(run)
    assert [record.method for record in lineage.generations] == ["labels", "BAN", "BAN"]
    (run / "generation-0" / "model.safetensors").write_text("weights of generation-9\n")
    with pytest.raises(TamperedFileError, match=r"model.safetensors"):
        verify_lineage(run)


def test_what_is_published_of_it_are_the_same_records(hub, run):
    """Else pushing a family again would find another training in its repositories."""
    push_family(run, "ns/fam", license="apache-2.0")
    verify_lineage("ns/fam")
    moved = ("revision", "lineage_sha256")  # commits have other cards, and so other hashes
    for repo_id, repository in hub.repositories.items():
        ours = repository.files()["lineage.json"]
        theirs = (V1 / "published" / f"{repo_id.removeprefix('ns/')}.json").read_bytes()
        if repo_id == "ns/fam-gen0":
            assert ours == theirs
        records = [json.loads(ours), json.loads(theirs)]
        for record in records:
            for named in [*record["members"], *([record["teacher"]] if record["teacher"] else [])]:
                for name in moved:
                    del named[name]
        assert records[0] == records[1]


def as_version_1(run: Path) -> None:
    """Make a family of this version one of version 1, hash chain and note included."""
    for name in FOLDERS:
        data = read_json(run / name / RECORD) | {"schema": SCHEMAS[0]}
        del data["code"]["git_commit"]
        for named in [*data["members"], *([data["teacher"]] if data["teacher"] else [])]:
            named["lineage_sha256"] = sha256_of_file(run / name / named["path"] / RECORD)
        write_json(run / name / RECORD, data)
    note = read_json(run / RECORD) | {"schema": SCHEMAS[0]}
    for named in (*note["generations"], note["ensemble"]):
        named["lineage_sha256"] = sha256_of_file(run / named["path"] / RECORD)
    write_json(run / RECORD, note)


def keys(data, path: str = "") -> set[str]:
    """The paths of all fields of plain data."""
    if isinstance(data, list):
        return set().union(*(keys(part, f"{path}[]") for part in data))
    if not isinstance(data, dict):
        return {path}
    return set().union(*(keys(part, f"{path}.{key}") for key, part in data.items()))


def test_a_run_is_continued_as_if_this_version_had_begun_it(never_killed, tmp_path):
    run, same = (Path(shutil.copytree(never_killed, tmp_path / name)) for name in ("a", "b"))
    as_version_1(run)
    for name in (".", *FOLDERS):
        assert keys(read_json(run / name / RECORD)) == keys(read_json(V1 / "run" / name / RECORD))
    lineage = train(run, 3, family="family0")
    train(same, 3)
    assert final_weights(run) == final_weights(same)
    assert [record.schema for record in lineage.records] == [*SCHEMAS[:1] * 3, SCHEMA, SCHEMA]
    assert read_json(run / RECORD)["schema"] == SCHEMA
    verify_lineage(run)


def test_a_run_of_a_later_schema_is_not_touched(never_killed, tmp_path):
    run = Path(shutil.copytree(never_killed, tmp_path / "run"))
    write_json(run / RECORD, read_json(run / RECORD) | {"schema": "ban_hf.lineage/3"})
    with pytest.raises(BANError, match=r"written by a later ban_hf .* pip install -U ban-hf"):
        train(run, 3)
    assert not (run / "generation-3").exists()


def test_version_1_has_one_teacher(run):
    data = read_json(run / "generation-1" / RECORD)
    write_json(run / "generation-1" / RECORD, data | {"teacher": [data["teacher"]] * 2})
    with pytest.raises(BANError, match="teacher"):
        Record.read(run / "generation-1")
