"""Lineages: walked back without weights, verified to the last byte, and every tampering named."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForImageClassification

from ban_hf import load_lineage, verify_lineage
from ban_hf.errors import (
    BrokenChainError,
    CyclicLineageError,
    LineageError,
    RecordError,
    TamperedFileError,
    TeacherChangedError,
    UnlistedFileError,
    UnpinnedTeacherError,
    UnverifiableError,
)
from ban_hf.lineage.record import Record

STUDENT = "ns/fam-gen2"


def changed(hub, repo_id: str, **fields) -> str:
    """Publish a record with other fields; its commit."""
    record = json.loads(hub.repositories[repo_id].files()["lineage.json"])
    record |= fields
    hub.commit(repo_id, {"lineage.json": json.dumps(record).encode()}, "Another record")
    return hub.repositories[repo_id].head


def teacher_of(hub, repo_id: str) -> dict:
    return json.loads(hub.repositories[repo_id].files()["lineage.json"])["teacher"]


def rewrite(folder: Path, **fields) -> None:
    """Change a local record."""
    file = folder / "lineage.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


class TestLoad:
    def test_walks_back_to_generation_0_and_downloads_no_weights(self, published):
        lineage = load_lineage(STUDENT)
        assert [record.generation for record in lineage.generations] == [0, 1, 2]
        assert lineage.ensemble is None
        assert lineage.places[1] == (f"ns/fam-gen1@{published.repositories['ns/fam-gen1'].head}")
        assert not [r.path for r in published.requests if "safetensors" in r.path]

    def test_a_family_has_its_ensemble_and_its_commit(self, published):
        lineage = load_lineage("ns/fam")
        assert lineage.family == "family0"
        assert [m.generation for m in lineage.ensemble.members] == [1, 2]
        assert lineage.places[None].startswith("ns/fam@")

    def test_a_local_family_or_generation_needs_no_network(self, never_killed):
        family = load_lineage(never_killed)
        assert [record.generation for record in family.generations] == [0, 1, 2]
        assert family.ensemble.kind == "ensemble"
        student = load_lineage(never_killed / "generation-1")
        assert [record.generation for record in student.generations] == [0, 1]

    def test_an_older_revision_can_be_asked_for(self, published):
        before = published.repositories[STUDENT].head
        changed(published, STUDENT, family="renamed")
        assert load_lineage(STUDENT).family == "renamed"
        assert load_lineage(STUDENT, before).family == load_lineage(f"{STUDENT}@v1").family
        assert load_lineage(STUDENT, before).family != "renamed"

    def test_two_revisions_are_one_too_many(self, published):
        with pytest.raises(ValueError, match="name two revisions"):
            load_lineage(f"{STUDENT}@v1", "main")

    def test_a_folder_has_no_revision(self, never_killed):
        with pytest.raises(ValueError, match="local folder"):
            load_lineage(never_killed, "main")


class TestVerify:
    def test_what_was_published_is_verified(self, published):
        assert verify_lineage("ns/fam") == load_lineage("ns/fam")
        assert verify_lineage(STUDENT).generations[0].teachers == ()

    def test_a_local_family_is_verified(self, never_killed):
        assert len(verify_lineage(never_killed).generations) == 3

    def test_a_new_card_is_no_tampering(self, published):
        for repo_id in ("ns/fam-gen0", "ns/fam"):
            published.commit(repo_id, {"README.md": b"# Better words"}, "Better words")
        verify_lineage("ns/fam")

    @pytest.mark.parametrize("repo_id", ["ns/fam", "ns/fam-gen2", "ns/fam-gen0"])
    def test_a_flipped_byte_in_a_weight_file(self, published, repo_id):
        weights = bytearray(published.repositories[repo_id].files()["model.safetensors"])
        weights[-1] ^= 1
        published.tamper(repo_id, "model.safetensors", bytes(weights))
        with pytest.raises(TamperedFileError, match=f"model.safetensors of {repo_id}@"):
            verify_lineage("ns/fam")

    @pytest.mark.parametrize(
        "name",
        "pytorch_model.bin extra/model.safetensors more.py processor_config.json lib.so "
        "adapter_config.json model.safetensors.index.json tokenizer.json MODEL.SAFETENSORS "
        "LICENSE.py".split(),
    )
    def test_another_file_that_a_loader_might_take(self, published, name):
        published.commit(STUDENT, {name: b"weights"}, "More weights")
        with pytest.raises(UnlistedFileError, match=name):
            verify_lineage(STUDENT)

    def test_pictures_and_a_licence_are_no_tampering(self, published):
        more = {"LICENSE": b"free", "assets/plot.png": b"PNG", ".gitignore": b"x"}
        published.commit(STUDENT, more, "For people")
        verify_lineage(STUDENT)

    @pytest.mark.parametrize("lacking", ["config.json", "model.safetensors"])
    def test_a_record_without_a_model(self, published, lacking):
        files = json.loads(published.repositories[STUDENT].files()["lineage.json"])["files"]
        published.commit(STUDENT, {}, "Remove it", delete=(lacking,))
        changed(published, STUDENT, files=[f for f in files if f["path"] != lacking])
        with pytest.raises(RecordError, match=r"lists no config.json, or no weights"):
            verify_lineage(STUDENT)

    @pytest.mark.parametrize("code", ["evil/repo--modeling.Model", "modeling.Model"])
    def test_a_config_that_names_code_elsewhere(self, run, code):
        config = run / "generation-2" / "config.json"
        named = {"auto_map": {"AutoModelForImageClassification": code}}
        config.write_text(json.dumps(json.loads(config.read_text()) | named))
        Record.read(run / "generation-2").write(run / "generation-2")
        with pytest.raises(UnlistedFileError, match="names code"):
            verify_lineage(run / "generation-2")

    def test_a_config_that_is_no_mapping(self, run):
        (run / "generation-2" / "config.json").write_text("[]")
        Record.read(run / "generation-2").write(run / "generation-2")
        with pytest.raises(RecordError, match=r"config.json of"):
            verify_lineage(run / "generation-2")

    def test_weights_by_a_name_that_no_loader_looks_for(self, run):
        folder = run / "generation-2"
        (folder / "model.safetensors").rename(folder / "decoy.safetensors")
        Record.read(folder).write(folder)
        with pytest.raises(RecordError, match=r"no weights by the names .*\(decoy.safetensors\)"):
            verify_lineage(folder)

    def test_weights_in_shards(self, run):
        folder = run / "generation-2"
        model = AutoModelForImageClassification.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="5KB")
        Record.read(folder).write(folder)
        assert len(Record.read(folder).weights_sha256) > 1
        verify_lineage(folder)

    def test_a_generation_number_changed(self, published):
        changed(published, STUDENT, generation=7)
        with pytest.raises(BrokenChainError, match="is generation 7, but its teacher"):
            verify_lineage(STUDENT)

    def test_a_teachers_revision_replaced_by_a_branch_name(self, published):
        changed(published, STUDENT, teacher=teacher_of(published, STUDENT) | {"revision": "main"})
        with pytest.raises(UnpinnedTeacherError, match="'main', which can move"):
            verify_lineage(STUDENT)

    def test_a_shortened_commit_is_no_commit(self, published):
        teacher = teacher_of(published, STUDENT)
        short = teacher | {"revision": teacher["revision"][:12]}
        changed(published, STUDENT, teacher=short)
        with pytest.raises(UnpinnedTeacherError, match="40 hex digits"):
            verify_lineage(STUDENT)

    def test_a_cycle(self, run):
        back = {"path": "../generation-2", "generation": 2}
        rewrite(run / "generation-1", teacher=teacher(run / "generation-1") | back)
        with pytest.raises(CyclicLineageError, match="own ancestor"):
            verify_lineage(run)

    def test_a_teacher_that_was_published_again(self, published):
        published.commit(
            "ns/fam-gen1", published.repositories["ns/fam-gen0"].files(), "Another training"
        )
        with pytest.raises(TeacherChangedError, match="ns/fam-gen1 was published again"):
            verify_lineage(STUDENT)

    def test_a_teacher_whose_weights_alone_were_replaced(self, published):
        weights = published.repositories["ns/fam-gen0"].files()["model.safetensors"]
        published.commit("ns/fam-gen1", {"model.safetensors": weights}, "Other weights")
        with pytest.raises(TamperedFileError, match=r"model.safetensors of ns/fam-gen1@"):
            verify_lineage(STUDENT)

    def test_a_student_that_names_another_teacher(self, published):
        teacher = teacher_of(published, STUDENT)
        changed(published, STUDENT, teacher=teacher | {"weights_sha256": ["0" * 64]})
        with pytest.raises(TeacherChangedError, match="other hashes"):
            verify_lineage(STUDENT)

    def test_a_teachers_record_changed_in_the_store(self, published):
        record = published.repositories["ns/fam-gen1"].files()["lineage.json"]
        published.tamper("ns/fam-gen1", "lineage.json", record.replace(b'"n": 10', b'"n": 11'))
        with pytest.raises(TeacherChangedError):
            verify_lineage(STUDENT)

    def test_an_ensemble_with_a_member_of_no_generation(self, published):
        record = json.loads(published.repositories["ns/fam"].files()["lineage.json"])
        members = [record["members"][0] | {"generation": 9}, record["members"][1]]
        changed(published, "ns/fam", members=members)
        with pytest.raises(LineageError):
            verify_lineage("ns/fam")

    def test_a_teacher_that_is_gone_is_not_verified(self, published):
        del published.repositories["ns/fam-gen0"]
        with pytest.raises(UnverifiableError, match="ns/fam-gen0"):
            verify_lineage("ns/fam")

    def test_a_hub_that_is_away_verifies_nothing(self, published):
        published.fail(1, "error", times=10_000)
        with pytest.raises(UnverifiableError):
            verify_lineage("ns/fam")

    def test_a_fault_that_passes_is_waited_for(self, published):
        published.fail(2, "drop", times=2)
        verify_lineage("ns/fam")

    def test_a_file_that_is_listed_and_not_there(self, run):
        (run / "generation-1" / "model.safetensors").unlink()
        with pytest.raises(UnverifiableError, match=r"has no model.safetensors"):
            verify_lineage(run)

    def test_a_link_to_files_elsewhere(self, run, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (run / "generation-1" / "sub").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UnlistedFileError, match="sub"):
            verify_lineage(run)

    @pytest.mark.parametrize("folder", ["ensemble", "generation-2"])
    def test_a_folder_that_has_lost_its_record(self, run, folder):
        (run / folder / "lineage.json").unlink()
        with pytest.raises(LineageError):
            verify_lineage(run)

    def test_a_generation_after_a_gap(self, run):
        (run / "generation-2").rename(run / "generation-5")
        with pytest.raises(BrokenChainError, match="generation-5"):
            verify_lineage(run)

    def test_a_generation_that_lies_on_another_disk(self, run, tmp_path):
        shutil.move(run / "generation-2", tmp_path / "elsewhere")
        (run / "generation-2").symlink_to(tmp_path / "elsewhere")
        verify_lineage(run)


class TestForm:
    """Records come from anybody."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"generation": "2"},
            {"generation": -1},
            {"generation": True},
            {"generation": None},
            {"generation": 0},
            {"teacher": None},
            {"teacher": "ns/fam-gen1"},
            {"teacher": {"repo_id": "ns/fam-gen1"}},
            {"files": {"path": "model.safetensors"}},
            {"files": [{"path": "../outside", "size": 1, "sha256": "0"}]},
            {"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0"}]},
            {"files": [{"path": "a\\b", "size": 1, "sha256": "0"}]},
            {"files": ["model.safetensors"]},
            {"schema": "ban_hf.lineage/9"},
            {"kind": "family"},
            {"family": None},
            {"more": 1},
            {"metrics": {"error": 3}},
            {"metrics": [{"name": "error", "split": "test", "value": "low"}]},
            {"objective": {"name": "kd"}},
            {"objective": "kd"},
            {"training": None},
            {"members": 3},
            {"metrics": [{"name": "error", "split": "test", "value": 10**400}]},
            {"metrics": [{"name": "a|b", "split": "test", "value": 1}]},
            {"objective": {"name": "kd", "teacher_weight": 1, "label_weight": 0}},
            {"architecture": {"class": "C", "model_type": "m"}},
            {"seed": {}},
            {"objective": {"name": "kd** | [win](http://evil)", "teacher_weight": 1}},
            {"family": "one\ntwo"},
            {"family": "`<img src=x>`"},
            {"data": {"source": 5}},
            {"data": {"train": {"views": [0.5]}}},
            {"seed": {"family_seed": []}},
            {"architecture": {"class": 5}},
            {"training": {"arguments": 5}},
        ],
        ids=str,
    )
    def test_what_is_no_record_is_said(self, published, fields):
        changed(published, STUDENT, **fields)
        with pytest.raises(RecordError, match=STUDENT):
            load_lineage(STUDENT)

    def test_a_record_of_the_hub_names_no_folder_here(self, published, run):
        local = {"path": str(run / "generation-1"), "generation": 1}
        hashes = {"lineage_sha256": "0" * 64, "weights_sha256": []}
        changed(published, STUDENT, teacher=local | hashes)
        with pytest.raises(RecordError, match="names a folder"):
            load_lineage(STUDENT)

    @pytest.mark.parametrize("text", [b"{", b"[" * 200_000, b"\xff"])
    def test_what_is_no_json(self, published, text):
        published.commit(STUDENT, {"lineage.json": text}, "Broken")
        with pytest.raises(RecordError, match="is not JSON"):
            load_lineage(STUDENT)

    def test_a_repository_without_a_record(self, published):
        published.commit("another/model", {"config.json": b"{}"}, "A model")
        with pytest.raises(UnverifiableError, match=r"lineage.json of another/model"):
            load_lineage("another/model")


def teacher(folder: Path) -> dict:
    return json.loads((folder / "lineage.json").read_text())["teacher"]


def test_a_folder_that_is_moved_away_breaks_the_chain(run):
    shutil.move(run / "generation-0", run / "elsewhere")
    with pytest.raises(UnverifiableError, match=r"has no lineage.json"):
        load_lineage(run)
