"""The records: complete, chained by hashes, true to the files, and free of this machine."""

import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import tiny
import torch
from family import listing, train
from transformers import AutoModelForImageClassification

from ban_hf import BornAgainEnsemble, Lineage, load_family
from ban_hf.data import describe_data
from ban_hf.lineage.environment import weights_digest
from ban_hf.lineage.family import check_folders, finished_generations
from ban_hf.lineage.files import sha256_of_json, write_json
from ban_hf.lineage.record import (
    RECORD,
    SCHEMA,
    Objective,
    Record,
    Reference,
    architecture,
    reference,
)

FOLDERS = ("generation-0", "generation-1", "generation-2", "ensemble")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A family that lies under a name that is not plain ASCII. Not to be changed."""
    folder = tmp_path_factory.mktemp("lineage") / "été"
    train(folder, 2, objective="cwtm", temperature=1.0, label_weight=0.5)
    return folder


@pytest.fixture(scope="module")
def family(folder) -> Lineage:
    return load_family(folder)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_record_says_what_was_trained_and_how(family):
    for k, record in enumerate(family.generations):
        assert (record.schema, record.kind) == (SCHEMA, "generation")
        assert (record.family, record.generation) == ("été", k)
        assert record.architecture.model_type == "vit"
        assert record.architecture.class_name == "ViTForImageClassification"
        assert record.architecture.num_parameters == tiny.vit().num_parameters()
        assert (record.training.steps, record.training.epochs) == (6, 2)
        assert (record.training.world_size, record.training.resumed_from) == (1, None)
        assert record.training.seconds > 0
        assert record.training.hardware
        arguments = record.training.arguments
        assert (arguments["learning_rate"], arguments["label_weight"]) == (0.1, 0.5)
        assert record.training.arguments_sha256 == sha256_of_json(arguments)
        assert record.code.keys() >= {"python", "torch", "transformers", "ban-hf"}
        assert datetime.fromisoformat(record.created).utcoffset() == timedelta(0)
    first, *students = family.generations
    assert (first.objective, first.teachers, first.method) == (None, (), "labels")
    for student in students:
        assert student.objective == Objective("cwtm", 1.0, 1.0, 0.5)
        assert (student.method, student.members) == ("CWTM+L", ())
    assert (family.ensemble.kind, family.ensemble.generation) == ("ensemble", None)


def test_the_data_are_named_by_their_content(family):
    data = family.generations[0].data
    assert data.keys() == {"train", "validation", "test"}
    assert [data[split]["items"] for split in ("train", "validation", "test")] == [24, 10, 10]
    assert len({data[split]["fingerprint"] for split in data}) == 3
    assert data["train"]["views"]["augment"] is True
    assert describe_data(tiny.Images(7))["items"] == 7


def test_the_test_metrics_say_which_way_is_better(family):
    for record in family.records:
        metrics = {metric.name: metric for metric in record.metrics}
        of_a_student = {"teacher_agreement", "teacher_kl"} if record.teachers else set()
        assert metrics.keys() == {"error", "nll", "ece"} | of_a_student
        assert all((m.split, m.n) == ("test", 10) for m in metrics.values())
        better = {name for name, metric in metrics.items() if metric.higher_is_better}
        assert better == of_a_student - {"teacher_kl"}
        assert record.metric("error", "test") == metrics["error"].value
    assert family.generations[0].metric("error", "validation") is None


def test_teachers_members_and_folders_are_named_by_hash(folder, family):
    note = json.loads((folder / RECORD).read_text("utf-8"))
    assert note.keys() == {"schema", "kind", "family", "run", "generations", "ensemble"}
    assert (note["schema"], note["kind"], note["family"]) == (SCHEMA, "family", "été")
    assert [named["generation"] for named in note["generations"]] == [0, 1, 2]
    assert note["ensemble"]["generation"] is None
    named = [(folder, each) for each in (*note["generations"], note["ensemble"])]
    for k in (1, 2):
        (teacher,) = family.generations[k].teachers
        assert (teacher.generation, teacher.path) == (k - 1, f"../generation-{k - 1}")
        named.append((folder / f"generation-{k}", teacher.to_dict()))
    assert [m.path for m in family.ensemble.members] == ["../generation-1", "../generation-2"]
    named += [(folder / "ensemble", member.to_dict()) for member in family.ensemble.members]
    for base, each in named:
        assert each["lineage_sha256"] == sha256(base / each["path"] / RECORD)
        assert each["weights_sha256"] == [sha256(base / each["path"] / "model.safetensors")]


def test_the_files_are_those_on_disk_and_none_is_pickled(folder):
    for name in FOLDERS:
        files = Record.read(folder / name).files
        on_disk = {p: sha for p, sha in listing(folder / name).items() if p != RECORD}
        assert {file.path: file.sha256 for file in files} == on_disk
        assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= on_disk.keys()
        assert all((folder / name / f.path).stat().st_size == f.size for f in files)
        assert [file.path for file in files] == sorted(on_disk)
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_the_readme_and_the_record_are_no_files_of_a_record(tmp_path):
    for name in ("README.md", RECORD, "config.json"):
        (tmp_path / name).write_text("{}")
    Record("generation", "family", 0).write(tmp_path)
    assert [file.path for file in Record.read(tmp_path).files] == ["config.json"]


def strings(data):
    """Every key and string of plain data."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from strings(value)
    elif isinstance(data, str):
        yield data


def test_no_path_of_this_machine_is_written_down(folder):
    files = list(folder.rglob("*.json"))
    assert len(files) == 1 + 4 * 4 + 3  # the family's; records, configs, processors, tests; logs
    for path in files:
        for text in strings(json.loads(path.read_text("utf-8"))):
            assert not Path(text).is_absolute(), (path.name, text)
            assert "lineage0" not in text, (path.name, text)


def test_records_are_utf8_with_sorted_keys_and_the_fields_of_the_design(folder):
    names = (
        "schema kind family generation teacher members objective architecture seed data training "
        "metrics files code created"
    )
    for path in folder.rglob(RECORD):
        text = path.read_text("utf-8")
        assert "été" in text
        data = json.loads(text)
        assert text == json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        assert path.parent == folder or data.keys() == set(names.split())


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}


def test_the_digest_of_plain_data_outlives_a_file():
    data = {"id2label": {i: str(i) for i in range(12)}, "b": [1, 2.5, None]}
    reordered = dict(reversed(json.loads(json.dumps(data)).items()))
    assert sha256_of_json(data) == sha256_of_json(reordered)
    assert sha256_of_json(data) != sha256_of_json(data | {"b": [2.5, 1, None]})


def an_ensemble():
    members = [tiny.cifar(), tiny.timm_model("resnet10t"), tiny.cifar(1)]
    return BornAgainEnsemble.from_members(members)


@pytest.mark.parametrize(
    "make",
    [tiny.vit, tiny.cifar, lambda: tiny.timm_model("resnet10t"), an_ensemble],
    ids=["vit", "cifar", "timm", "ensemble"],
)
def test_the_digest_of_a_config_outlives_a_forward_and_a_file(tmp_path, make):
    model = make().eval()
    before = architecture(model)
    size = 8 if model.config.model_type == "vit" else 32
    model(pixel_values=torch.randn(2, 3, size, size), labels=torch.tensor([0, 1]))
    assert architecture(model) == before
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert architecture(again) == before
    again.config.is_changed = True
    assert architecture(again) != before


def test_the_digest_of_weights_tells_any_change_of_them():
    model = tiny.cifar()
    digest = weights_digest(model)
    assert weights_digest(tiny.cifar()) == digest
    assert weights_digest(tiny.cifar(1)) != digest
    next(model.buffers()).add_(1)
    assert weights_digest(model) != digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"schema": "ban_hf.lineage/3", "kind": "generation"}',
            r"later ban_hf \(schema ban_hf.lineage/3\): update with pip install -U ban-hf",
        ),
        ('{"kind": "generation", "family": "a"}', "schema None"),
        (f'{{"schema": "{SCHEMA}", "kind": "family", "family": "a"}}', "kind 'family'"),
        (f'{{"schema": "{SCHEMA}", "kind": "ensemble", "family": "a", "x": 1}}', "field `x`"),
        (f'{{"schema": "{SCHEMA}", "kind": "ensemble"}}', "field `family`"),
        ("[]", "no mapping"),
        ("{", "not JSON"),
    ],
)
def test_another_schema_is_refused(tmp_path, text, message):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Record.read(tmp_path)
    assert str(tmp_path / RECORD) in str(error.value)


def test_the_lowest_generation_of_a_directory_may_be_a_pulled_one(tmp_path):
    with pytest.raises(ValueError, match="no finished generation"):
        load_family(tmp_path)
    elsewhere = Reference(8, "1" * 64, (), repo_id="ns/family-gen8", revision="0" * 40)
    for number in (9, 10):
        (tmp_path / f"generation-{number}").mkdir()
    Record("generation", "family", 9, (elsewhere,)).write(tmp_path / "generation-9")
    taught = reference(tmp_path / "generation-9", tmp_path / "generation-10")
    Record("generation", "family", 10, (taught,)).write(tmp_path / "generation-10")
    check_folders(tmp_path, is_ours=True)
    names = [folder.name for folder in finished_generations(tmp_path)]
    assert names == ["generation-9", "generation-10"]
