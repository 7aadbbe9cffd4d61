"""The command line: what it prints, what it measures, and what it says where something is wrong."""

import io
import json
import shlex
import shutil
from pathlib import Path

import datasets
import family
import pytest
import tiny
import torch
from launch import trained_family
from msgspec.structs import replace
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, ViTImageProcessor

from ban_hf import (
    BornAgainEnsemble,
    Lineage,
    Record,
    create_classifier,
    image_processor,
    load_images,
    load_text,
)
from ban_hf.cli.main import main
from ban_hf.cli.parser import COMMANDS, PARSER
from ban_hf.cli.terminal import draw_tree
from ban_hf.data import word_tokenizer
from ban_hf.lineage.catalog import counted
from ban_hf.lineage.files import read_json, write_json
from ban_hf.lineage.record import RECORD, MetricValue, Objective, Reference
from ban_hf.tasks.auto import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def ban_hf(capsys):
    """Run a command; what it printed, with `--json` as data."""

    def run(*words, status=0):
        capsys.readouterr()
        assert main([str(word) for word in words]) == status
        said = capsys.readouterr()
        if "--json" in words:
            assert not said.err
            return json.loads(said.out)
        assert bool(said.err) == bool(status) != bool(said.out)
        return said.err or said.out

    return run


@pytest.fixture
def misused(capsys):
    """Run a command line that says nothing known; what was said last."""

    def run(*words) -> str:
        with pytest.raises(SystemExit) as exit:
            main([str(word) for word in words])
        assert exit.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    return run


# Lineage and verify


def test_a_tree_shows_who_taught_whom():
    def generation(k: int, error: float | None, **objective) -> Record:
        default = {"name": "kd", "temperature": 1.0, "teacher_weight": 1.0, "label_weight": 0.0}
        return Record(
            "generation",
            "mine" if k > 1 else "theirs",
            k,
            objective=Objective(**default | objective) if k else None,
            metrics=(MetricValue("error", error, "test", 10),) if error is not None else (),
        )

    generations = [
        generation(0, 5.849),
        generation(1, 10.3, label_weight=1.0),
        generation(2, None, name="cwtm"),
        generation(3, 6.0, temperature=4.0),
    ]
    members = tuple(Reference(k, "1" * 64, (), f"../generation-{k}") for k in (1, 2, 3))
    ensemble = Record("ensemble", "mine", members=members)
    locations = [*(f"ns/mine-gen{k}@{COMMIT}" for k in range(3)), "here", "there"]
    lineage = Lineage("mine", generations, ensemble, locations)
    expected = """
mine
generation 0 of theirs           labels    error 5.85 %   ns/mine-gen0@0123456
└─ generation 1 of theirs        BAN+L     error 10.30 %  ns/mine-gen1@0123456
   └─ generation 2               CWTM      error -        ns/mine-gen2@0123456
      └─ generation 3            BAN, T=4  error 6.00 %   here
ensemble of 1 to 3               mean      error -        there
"""
    drawn = draw_tree(lineage)
    squeezed = [
        [" ".join(line.split()) for line in text.splitlines()] for text in (drawn, expected)
    ]
    assert squeezed[0] == squeezed[1][1:]
    columns = [line.index("error") for line in drawn.splitlines()[1:]]
    assert len(set(columns)) == 1


def test_numbers_in_words():
    found = [counted(range(1, n)) for n in (2, 3, 4)] + [counted([1, 3, 4])]
    assert found == ["1", "1 and 2", "1 to 3", "1, 3 and 4"]


def test_lineage_of_a_folder(ban_hf, run, monkeypatch):
    monkeypatch.chdir(run.parent)
    drawn = ban_hf("lineage", "run").splitlines()
    assert [line.split()[-1] for line in drawn[1:]] == [
        *(f"run/generation-{k}" for k in range(3)),
        "run/ensemble",
    ]
    assert drawn[3].startswith("   └─ generation 2")
    assert ban_hf("lineage", "run/generation-1").splitlines()[-1].startswith("└─ generation 1")
    found = ban_hf("lineage", "run", "--json")
    assert found["generations"][0]["place"].endswith("generation-0")
    names = [*(f"generation-{k}" for k in range(3)), "ensemble"]
    for record, name in zip([*found["generations"], found["ensemble"]], names, strict=True):
        assert record.pop("place")
        assert record == read_json(run / name / RECORD)
    assert found["family"] == read_json(run / RECORD)["family"]


def test_a_terminal_that_has_ascii_alone_is_given_that(run, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["lineage", str(run)]) == 0
    out.seek(0)
    assert "\n`- generation 1 " in out.read()


def test_what_a_record_says_cannot_steer_the_terminal(ban_hf, run):
    path = run / "generation-0"
    write_json(path / RECORD, read_json(path / RECORD) | {"family": "\x1b[2Jgone\x9b\r"})
    said = ban_hf("lineage", path, status=1)
    assert "RecordError" in said
    assert "\x1b" not in said


def test_verify_says_what_was_proved(ban_hf, run):
    said = ban_hf("verify", run)
    lines = said.splitlines()
    for k in range(3):
        files = read_json(run / f"generation-{k}" / RECORD)["files"]
        size = sum((run / f"generation-{k}" / file["path"]).stat().st_size for file in files)
        assert lines[k].split("  ")[:2] == [f"generation {k}", f"{len(files)} files"]
        assert f"{size:,} bytes" in lines[k]
    assert lines[3].startswith("ensemble ")
    assert "Not proved: who made them" in said
    found = ban_hf("verify", run, "--json")
    assert found["verified"] is True
    names = [*(f"generation {k}" for k in range(3)), "ensemble"]
    assert [row["name"] for row in found["places"]] == names
    assert found["places"][3]["place"].endswith("ensemble")


def test_verify_names_what_does_not_hold(ban_hf, run):
    weights = run / "generation-1" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    said = ban_hf("verify", run, status=1)
    assert said.startswith("ban-hf: TamperedFileError: model.safetensors of ")
    assert said.count("\n") == 1
    error = ban_hf("verify", run, "--json", status=1)["error"]
    assert error["kind"] == "TamperedFileError"
    assert said == f"ban-hf: TamperedFileError: {error['message']}\n"


# Card, push, pull


def test_card_is_printed_or_written(ban_hf, run, tmp_path):
    printed = ban_hf("card", run / "generation-1", "--license", "mit")
    assert "license: mit" in printed
    assert "generation-1" in printed
    written = ("card", run / "generation-1", "--license", "mit", "--output_dir", tmp_path / "card")
    assert str(tmp_path / "card" / "README.md") in ban_hf(*written)
    assert (tmp_path / "card" / "README.md").read_text("utf-8") == printed.removesuffix("\n")
    assert (tmp_path / "card" / "results.png").read_bytes().startswith(b"\x89PNG")
    found = ban_hf("card", run / "generation-1", "--license", "mit", "--json")
    assert found == {"card": printed.removesuffix("\n")}


def test_what_is_pushed_must_be_a_family_or_a_generation(ban_hf, run):
    assert "is no folder of a family" in ban_hf("push", run / "no", "ns/x", status=1)
    assert "holds an ensemble" in ban_hf("push", run / "ensemble", "ns/x", status=1)
    named = ("--teacher", f"ns/x@{COMMIT}")
    assert "a family has its own teachers" in ban_hf("push", run, "ns/x", *named, status=1)


# Ensembles


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A dataset whose test split is the tiny family's."""
    folder = tmp_path_factory.mktemp("images")
    for split, views in {"train": family.views(14), "test": family.views(10, seed=2)}.items():
        pixels = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in views.images]
        labels = datasets.ClassLabel(names=views.label_names)
        features = datasets.Features({"image": datasets.Image(), "label": labels})
        columns = {"image": pixels, "label": views.labels.tolist()}
        datasets.Dataset.from_dict(columns, features).to_parquet(folder / f"{split}.parquet")
    load_images(str(folder))  # with a progress bar, the first time
    return folder


def test_members_have_the_metrics_of_their_family_to_the_last_digit(ban_hf, never_killed, images):
    test, views = load_images(str(images), validation=0).test, family.views(10, seed=2)
    assert torch.equal(test.images, views.images)
    assert test.mean.tolist() != views.mean.tolist()
    folders = [never_killed / f"generation-{k}" for k in (1, 2)]
    on = ("--dataset_name", images, "--batch_size", 8, "--json")
    found = ban_hf("ensemble", *folders, *on)
    rows = [row["test"] for row in found["members"]]
    for name, test in zip((*folders, "ensemble"), (*rows, found["ensemble"]["test"]), strict=True):
        kept = {m.name: m.value for m in Record.read(never_killed / name).metrics}
        assert (kept | {"n": 10}).items() >= test.items()
    assert [row["weight"] for row in found["members"]] == [0.5, 0.5]
    assert [row["place"] for row in found["members"]] == [str(folder) for folder in folders]
    one = ban_hf("ensemble", *folders, *on, "--weights", 4, 0)
    assert one["ensemble"]["test"]["error"] == rows[0]["error"]
    assert one["ensemble"]["test"]["nll"] == pytest.approx(rows[0]["nll"])


def test_a_language_family_is_measured_to_the_last_digit(ban_hf, tmp_path):
    args = tiny.arguments(tmp_path / "run", per_device_eval_batch_size=20, max_steps=1)
    splits, small = load_text("grammar", train_words=1000), {"hidden_size": 4}
    expected = trained_family(splits, args, "lstm_200", generations=2, model_args=small)
    folders = [tmp_path / "run" / f"generation-{k}" for k in (1, 2)]
    options = ("--dataset_name", "grammar", "--output_dir", tmp_path / "both")
    found = ban_hf("ensemble", *folders, *options, "--json")
    expected_rows = [row["test"] for row in expected["generations"][1:]]
    assert [row["test"] for row in found["members"]] == expected_rows
    assert found["ensemble"]["test"] == expected["ensembles"][0]["test"]
    words = AutoTokenizer.from_pretrained(tmp_path / "both").get_vocab()
    assert words == AutoTokenizer.from_pretrained(folders[0]).get_vocab()
    assert isinstance(load_model(tmp_path / "both"), BornAgainEnsemble)


def test_the_table_has_a_line_for_each_member_and_the_ensemble(ban_hf, never_killed, images):
    names = [str(never_killed / name) for name in ("generation-0", "ensemble")]
    options = ("--dataset_name", images, "--weights", 1, 3)
    lines = ban_hf("ensemble", *names, *options).splitlines()
    assert lines[0] == f"{Path(images).name}: 10 test items"
    assert lines[1].split() == ["weight", "test", "error", "%", "NLL", "ECE", "%"]
    assert [line.split()[:2] for line in lines[2:4]] == [[names[0], "0.250"], [names[1], "0.750"]]
    assert lines[4].startswith("Ens*2")
    assert len({len(line) for line in lines[2:]}) == 1
    assert len(ban_hf("ensemble", names[0], "--dataset_name", images).splitlines()) == 3


def saved(model: PreTrainedModel, folder: Path, processor=None) -> Path:
    model.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def test_each_member_reads_images_its_own_way(ban_hf, tmp_path, images):
    ways = [((0.5,) * 3, (0.25,) * 3), ((0.1, 0.2, 0.3), (1.0, 0.5, 2.0))]
    models = [tiny.confident(tiny.vit(seed)).eval() for seed in (0, 1)]
    folders = [
        saved(model, tmp_path / str(i), image_processor(8, *way))
        for i, (model, way) in enumerate(zip(models, ways, strict=True))
    ]
    found = ban_hf("ensemble", *folders, "--dataset_name", images, "--json")
    views = family.views(10, seed=2)
    pixels, labels = views.images / 255, views.labels
    probabilities = []
    for model, (mean, std), row in zip(models, ways, found["members"], strict=True):
        shape = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        with torch.no_grad():
            probabilities.append(model((pixels - shape[0]) / shape[1]).logits.softmax(1))
        nll = -probabilities[-1][torch.arange(10), labels].log().mean().item()
        assert row["test"]["nll"] == pytest.approx(nll, rel=1e-5)
    nll = -(sum(probabilities) / 2)[torch.arange(10), labels].log().mean().item()
    assert found["ensemble"]["test"]["nll"] == pytest.approx(nll, rel=1e-5)
    options = ("--dataset_name", images, "--output_dir", tmp_path / "both")
    assert "not saved as one model" in ban_hf("ensemble", *folders, *options, status=1)
    assert not (tmp_path / "both").exists()


def test_the_ensemble_is_saved_with_its_weights_and_its_processor(
    ban_hf, never_killed, images, tmp_path
):
    folders = [never_killed / f"generation-{k}" for k in (0, 1)]
    options = ("--dataset_name", images, "--output_dir", tmp_path / "both")
    found = ban_hf("ensemble", *folders, *options, "--weights", 1, 3, "--json")
    assert found["output_dir"] == str(tmp_path / "both")
    assert load_model(tmp_path / "both").config.weights == [0.25, 0.75]
    processors = [AutoImageProcessor.from_pretrained(f) for f in (tmp_path / "both", folders[0])]
    assert processors[0].to_dict() == processors[1].to_dict()
    again = ban_hf("ensemble", tmp_path / "both", "--dataset_name", images, "--json")
    assert again["members"][0]["test"] == pytest.approx(found["ensemble"]["test"], rel=1e-6)
    said = ban_hf("ensemble", *folders, *options, status=1)
    assert f"output_dir={tmp_path / 'both'} is not an empty folder" in said


@pytest.mark.parametrize("name", ["test_resnet", "cifar_wrn_10_1"])
def test_a_model_reads_what_its_config_says(ban_hf, tmp_path, name):
    torch.manual_seed(0)
    names = [str(digit) for digit in range(10)]
    way = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    model = create_classifier(name, label_names=names, image_size=16, **way)
    folders = [
        saved(model, tmp_path / "a"),
        saved(model, tmp_path / "b", image_processor(16, *way.values())),
    ]
    found = ban_hf("ensemble", *folders, "--dataset_name", "digits", "--json")["members"]
    assert found[0]["test"] == found[1]["test"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}, " crops"),
        ({"size": {"height": 8, "width": 9}}, "does not resize to a square"),
        ({"do_resize": False}, "keeps the size"),
        ({"rescale_factor": 1 / 127.5}, "does not scale pixels"),
        ({"image_mean": [0.5], "image_std": [0.25]}, "is not for three channels"),
        (None, "has no preprocessor_config.json"),
    ],
)
def test_what_is_not_read_as_we_read_images_is_refused(ban_hf, tmp_path, images, change, message):
    processor = None if change is None else ViTImageProcessor(size={"height": 8, "width": 8})
    folder = saved(tiny.vit(), tmp_path, processor)
    if change is not None:
        path = folder / "preprocessor_config.json"
        write_json(path, read_json(path) | change)
    assert message in ban_hf("ensemble", folder, "--dataset_name", images, status=1)


def test_members_that_do_not_fit_are_named(ban_hf, never_killed, images, tmp_path):
    folder, on = never_killed / "generation-1", ("--dataset_name", images)
    said = ban_hf("ensemble", folder, "--dataset_name", "digits", status=1)
    assert "other classes than digits has: 10 there, 5 here; 0: '0' there, 'LABEL_0' here" in said
    said = ban_hf("ensemble", folder, folder, *on, "--weights", 1, status=1)
    assert "one for each of the 2 members, not 1" in said
    bert = saved(tiny.bert(), tmp_path / "bert")
    said = ban_hf("ensemble", bert, *on, status=1)
    assert "image classifiers and causal language models can be measured" in said
    assert "takes input_ids" in ban_hf("ensemble", folder, bert, *on, status=1)
    said = ban_hf("ensemble", never_killed, *on, status=1)
    assert "must be a folder written by save_pretrained" in said


def test_a_language_model_must_know_the_words_of_the_text(ban_hf, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"a b c {'abc'[i % 3]}\n" for i in range(800)))
    words, on = load_text(str(text)).words, ("--dataset_name", text, "--window", 16)
    model = tiny.gpt2(vocab_size=len(words))
    folder = saved(model, tmp_path / "model")
    assert "does not say which words it knows" in ban_hf("ensemble", folder, *on, status=1)
    saved(model, folder, word_tokenizer(words[::-1]))
    assert "has another vocabulary than" in ban_hf("ensemble", folder, *on, status=1)
    saved(model, folder, word_tokenizer(words))
    assert "give window=32" in ban_hf("ensemble", folder, *on[:2], status=1)
    found = ban_hf("ensemble", folder, *on, "--batch_size", 2, "--json")
    assert found["metric"] == "perplexity"
    assert found["ensemble"]["test"]["n"] == len(load_text(str(text)).test) - 1


# Help and errors


def test_without_a_command_it_explains_itself(ban_hf):
    said = ban_hf()
    for name in COMMANDS.choices:
        assert f"    {name}" in (line[:13].rstrip() for line in said.splitlines())


@pytest.mark.parametrize("name", COMMANDS.choices)
def test_help_teaches_by_examples_that_parse(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main([name, "--help"])
    assert exit.value.code == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 82
    assert "--json" in said
    examples = said.partition("\nExamples:\n")[2].replace("\\\n", " ").splitlines()
    assert len(examples) > 1
    for example in examples:
        words = shlex.split(example.partition(" | ")[0].partition(" && ")[0])
        assert words[:2] == ["ban-hf", name]
        assert PARSER.parse_args(words[1:]).command == name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lineag", "x"], "unknown command 'lineag'. Did you mean 'lineage'?"),
        (
            ["zzz"],
            "unknown command 'zzz'. There are: lineage, verify, pull, push, ensemble, cache, "
            "reproduce, report, card.",
        ),
        (["verify", "x", "--reversion", "y"], "'--reversion'. Did you mean '--revision'?"),
        (["ensemble", "x", "--dataset", "y"], "'--dataset'. Did you mean '--dataset_name'?"),
        (["ensemble", "x"], "required: --dataset_name"),
        (["ensemble", "x", "--dataset_name", "y", "--weights", "w"], "invalid float value: 'w'"),
        (["push", "x", "y", "--token", "hf_x"], "unknown argument '--token'"),
        (["lineage"], "required: WHERE"),
        (["--jsn"], "unknown argument '--jsn'"),
    ],
)
def test_what_is_not_known_is_said_with_what_was_near(misused, words, message):
    assert message in misused(*words)


def test_what_cannot_be_reached_is_an_error_of_one_line(ban_hf):
    for command in ("lineage", "verify", "card", "pull"):
        said = ban_hf(command, "ns/no-such-thing", status=1)
        assert said.startswith("ban-hf: UnverifiableError: ")
        assert said.count("\n") == 1
    assert ban_hf("lineage", "ns/x", "--json", status=1)["error"]["kind"] == "UnverifiableError"


# How it ends


@pytest.mark.parametrize(("ending", "status"), [(BrokenPipeError, 141), (KeyboardInterrupt, 130)])
def test_a_reader_that_has_gone_and_a_stop_are_no_tracebacks(
    never_killed, monkeypatch, capfd, ending, status
):
    def end(text):
        raise ending

    monkeypatch.setattr("ban_hf.cli.main.say", end)
    assert main(["lineage", str(never_killed)]) == status
    assert "Traceback" not in capfd.readouterr().err


def test_a_metric_that_is_not_finite_is_null_in_json(ban_hf, run):
    record = Record.read(run / "generation-2")
    record.metrics = (replace(record.metrics[0], value=float("nan")), *record.metrics[1:])
    record.write(run / "generation-2")
    shutil.rmtree(run / "ensemble")
    found = ban_hf("lineage", run, "--json")
    assert found["generations"][2]["metrics"][0]["value"] is None
    assert "error" in ban_hf("lineage", run)
    ban_hf("card", run)
