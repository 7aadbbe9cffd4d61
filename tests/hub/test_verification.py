"""Lineages: walked back without weights, verified to the last byte, and every tampering named."""

import json
import shutil
from functools import partial
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
    UnsoundError,
    UnverifiableError,
)
from ban_hf.lineage.record import Record

TEACHER, STUDENT, FAMILY = "ns/fam-gen1", "ns/fam-gen2", "ns/fam"
WEIGHTS = "model.safetensors"


def record_of(hub, repo_id: str = STUDENT) -> dict:
    return json.loads(hub.repositories[repo_id].files()["lineage.json"])


def change(hub, repo_id: str = STUDENT, **fields) -> None:
    """Publish a record with other fields."""
    record = json.dumps(record_of(hub, repo_id) | fields)
    hub.commit(repo_id, {"lineage.json": record.encode()}, "Another record")


def change_teacher(hub, **fields) -> None:
    change(hub, teacher=record_of(hub)["teacher"] | fields)


def rewrite(folder: Path, name: str = "lineage.json", **fields) -> None:
    """Change a record, or a config which the record then lists as it is."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    if name != "lineage.json":
        Record.read(folder).write(folder)


def retouch(hub, old: bytes, new: bytes) -> None:
    """Serve another record of generation 1 than was committed."""
    record = hub.repositories[TEACHER].files()["lineage.json"]
    hub.tamper(TEACHER, "lineage.json", record.replace(old, new))


#: What is done to the Hub; the error, and its words.
TAMPERINGS = {
    "generation": (partial(change, generation=7), BrokenChainError, "is generation 7, but its"),
    "branch": (partial(change_teacher, revision="main"), UnpinnedTeacherError, "'main', which can"),
    "short commit": (partial(change_teacher, revision="0123abc"), UnpinnedTeacherError, "40 hex"),
    "hashes": (
        partial(change_teacher, weights_sha256=["0" * 64]),
        TeacherChangedError,
        "other has",
    ),
    "folder": (partial(change_teacher, path="../generation-1"), RecordError, "names a folder"),
    "published again": (
        lambda hub: hub.commit(TEACHER, hub.repositories["ns/fam-gen0"].files(), "Another"),
        TeacherChangedError,
        f"{TEACHER} was published again",
    ),
    "weights": (
        lambda hub: hub.commit(TEACHER, {WEIGHTS: b"others"}, "Other weights"),
        TamperedFileError,
        f"{WEIGHTS} of {TEACHER}@",
    ),
    "store": (partial(retouch, old=b'"n": 10', new=b'"n": 11'), TeacherChangedError, TEACHER),
    "gone": (lambda hub: hub.repositories.pop("ns/fam-gen0"), UnverifiableError, "ns/fam-gen0"),
    "away": (lambda hub: hub.fail(1, "error", times=10_000), UnverifiableError, STUDENT),
}


class TestLoad:
    def test_walks_back_to_generation_0_and_downloads_no_weights(self, published):
        lineage = load_lineage(STUDENT)
        assert [record.generation for record in lineage.generations] == [0, 1, 2]
        assert lineage.ensemble is None
        assert lineage.places[1] == f"ns/fam-gen1@{published.repositories['ns/fam-gen1'].head}"
        family = load_lineage(FAMILY)
        assert family.family == "family0"
        assert [m.generation for m in family.ensemble.members] == [1, 2]
        assert family.places[None].startswith("ns/fam@")
        assert not [r.path for r in published.requests if "safetensors" in r.path]

    def test_a_local_family_or_generation_needs_no_network(self, never_killed):
        for walk in (load_lineage, verify_lineage):
            family, student = walk(never_killed), walk(never_killed / "generation-1")
            assert [record.generation for record in family.generations] == [0, 1, 2]
            assert family.ensemble.kind == "ensemble"
            assert [record.generation for record in student.generations] == [0, 1]

    def test_one_revision_can_be_asked_for(self, published, never_killed):
        before = published.repositories[STUDENT].head
        change(published, family="renamed")
        assert load_lineage(STUDENT).family == "renamed"
        assert load_lineage(STUDENT, before).family == load_lineage(f"{STUDENT}@v1").family
        assert load_lineage(STUDENT, before).family != "renamed"
        with pytest.raises(ValueError, match="name two revisions"):
            load_lineage(f"{STUDENT}@v1", "main")
        with pytest.raises(ValueError, match="local folder"):
            load_lineage(never_killed, "main")


class TestVerify:
    def test_what_was_published_is_verified_and_what_is_for_people_is_no_tampering(self, published):
        assert verify_lineage(FAMILY) == load_lineage(FAMILY)
        more = {"LICENSE": b"free", "assets/plot.png": b"PNG", ".gitignore": b"x"}
        for repo_id in ("ns/fam-gen0", FAMILY):
            published.commit(repo_id, more | {"README.md": b"# Better words"}, "For people")
        published.fail(2, "drop", times=2)  # a fault that passes is waited for
        assert verify_lineage(FAMILY).generations[0].teachers == ()

    @pytest.mark.parametrize("repo_id", [FAMILY, "ns/fam-gen2", "ns/fam-gen0"])
    def test_a_flipped_byte_in_a_weight_file(self, published, repo_id):
        weights = bytearray(published.repositories[repo_id].files()[WEIGHTS])
        weights[-1] ^= 1
        published.tamper(repo_id, WEIGHTS, bytes(weights))
        with pytest.raises(TamperedFileError, match=f"{WEIGHTS} of {repo_id}@"):
            verify_lineage(FAMILY)

    def test_other_files_that_a_loader_might_take(self, published):
        names = (
            "LICENSE.py MODEL.SAFETENSORS adapter_config.json extra/model.safetensors lib.so "
            "model.safetensors.index.json more.py processor_config.json pytorch_model.bin "
            "tokenizer.json".split()
        )
        published.commit(STUDENT, dict.fromkeys(names, b"weights"), "More weights")
        with pytest.raises(UnlistedFileError, match=f"holds {', '.join(names)}, which"):
            verify_lineage(STUDENT)

    @pytest.mark.parametrize("lacking", ["config.json", WEIGHTS])
    def test_a_record_without_a_model(self, published, lacking):
        published.commit(STUDENT, {}, "Remove it", delete=(lacking,))
        files = [file for file in record_of(published)["files"] if file["path"] != lacking]
        change(published, files=files)
        with pytest.raises(RecordError, match=r"lists no config.json, or no weights"):
            verify_lineage(STUDENT)

    @pytest.mark.parametrize("name", TAMPERINGS)
    def test_a_tampering_is_named(self, published, name):
        tamper, error, words = TAMPERINGS[name]
        tamper(published)
        with pytest.raises(error, match=words):
            verify_lineage(STUDENT)

    def test_an_ensemble_with_a_member_of_no_generation(self, published):
        first, second = record_of(published, FAMILY)["members"]
        change(published, FAMILY, members=[first | {"generation": 9}, second])
        with pytest.raises(LineageError):
            verify_lineage(FAMILY)


class TestFolders:
    """The same, of folders."""

    def test_a_config_that_names_code_elsewhere_or_is_no_mapping(self, run):
        folder = run / "generation-2"
        for code in ("evil/repo--modeling.Model", "modeling.Model"):
            rewrite(folder, "config.json", auto_map={"AutoModelForImageClassification": code})
            with pytest.raises(UnlistedFileError, match=f"names code, {code}"):
                verify_lineage(folder)
        (folder / "config.json").write_text("[]")
        Record.read(folder).write(folder)
        with pytest.raises(RecordError, match=r"config.json of"):
            verify_lineage(folder)

    def test_weights_by_a_name_that_no_loader_looks_for(self, run):
        folder = run / "generation-2"
        (folder / WEIGHTS).rename(folder / "decoy.safetensors")
        Record.read(folder).write(folder)
        with pytest.raises(RecordError, match=r"no weights by the names .*\(decoy.safetensors\)"):
            verify_lineage(folder)

    def test_weights_in_shards_are_whole(self, run):
        folder = run / "generation-2"
        model = AutoModelForImageClassification.from_pretrained(folder)
        (folder / WEIGHTS).unlink()
        model.save_pretrained(folder, max_shard_size="5KB")
        Record.read(folder).write(folder)
        assert len(Record.read(folder).weights_sha256) > 1
        verify_lineage(folder)

    def test_a_cycle(self, run):
        named = json.loads((run / "generation-1" / "lineage.json").read_text())["teacher"]
        back = {"path": "../generation-2", "generation": 2}
        rewrite(run / "generation-1", teacher=named | back)
        with pytest.raises(CyclicLineageError, match="own ancestor"):
            verify_lineage(run)

    def test_a_file_that_is_listed_and_not_there(self, run):
        (run / "generation-1" / WEIGHTS).unlink()
        with pytest.raises(UnverifiableError, match=f"has no {WEIGHTS}"):
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

    def test_a_generation_after_a_gap_or_without_its_teacher(self, run, tmp_path):
        (run / "generation-2").rename(run / "generation-5")
        with pytest.raises(BrokenChainError, match="generation-5"):
            verify_lineage(run)
        (run / "generation-5").rename(run / "generation-2")
        (run / "generation-0").rename(tmp_path / "elsewhere")
        with pytest.raises(UnverifiableError, match=r"has no lineage.json"):
            load_lineage(run)

    @pytest.mark.parametrize(
        ("name", "release", "is_sound"),
        [
            ("BertForTokenClassification", "0.1.0", False),
            ("XLNetLMHeadModel", "0.1.3", False),
            ("BertForMaskedLM", "0.2.0", True),
            ("BertForMaskedLM", "0.10.0", True),
            ("GPT2LMHeadModel", "0.1.0", True),
        ],
    )
    def test_a_network_that_an_early_release_trained_on_shifted_labels(
        self, run, name, release, is_sound
    ):
        folder = run / "generation-0"
        record = json.loads((folder / "lineage.json").read_text())
        changes = {
            "architecture": record["architecture"] | {"class": name},
            "code": record["code"] | {"ban-hf": release},
        }
        rewrite(folder, **changes)
        if is_sound:
            verify_lineage(folder)
            return
        with pytest.raises(UnsoundError, match=f"is a {name} of ban_hf {release}, which shifted"):
            verify_lineage(folder)

    def test_a_generation_that_lies_on_another_disk(self, run, tmp_path):
        shutil.move(run / "generation-2", tmp_path / "elsewhere")
        (run / "generation-2").symlink_to(tmp_path / "elsewhere")
        verify_lineage(run)


class TestForm:
    """Records come from anybody."""

    @pytest.fixture(scope="class")
    def folder(self, never_killed, tmp_path_factory) -> Path:
        """A generation whose record is written anew in each test."""
        family = tmp_path_factory.mktemp("form") / "family"
        return Path(shutil.copytree(never_killed, family)) / "generation-2"

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
            {"files": {"path": WEIGHTS}},
            {"files": [{"path": "../outside", "size": 1, "sha256": "0"}]},
            {"files": [{"path": "/etc/passwd", "size": 1, "sha256": "0"}]},
            {"files": [{"path": "a\\b", "size": 1, "sha256": "0"}]},
            {"files": [WEIGHTS]},
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
    def test_what_is_no_record_is_said(self, folder, never_killed, fields):
        shutil.copy(never_killed / folder.name / "lineage.json", folder)
        rewrite(folder, **fields)
        with pytest.raises(RecordError, match=f"{folder}: "):
            load_lineage(folder)

    @pytest.mark.parametrize("text", [b"{", b"[" * 200_000, b"\xff"])
    def test_what_is_no_json(self, published, text):
        published.commit(STUDENT, {"lineage.json": text}, "Broken")
        with pytest.raises(RecordError, match=f"{STUDENT}@.*is not JSON"):
            load_lineage(STUDENT)

    def test_a_repository_without_a_record(self, hub):
        hub.commit("another/model", {"config.json": b"{}"}, "A model")
        with pytest.raises(UnverifiableError, match=r"lineage.json of another/model"):
            load_lineage("another/model")
