"""The recipe of five heads: its data mean what they say, and each run is measured by its head."""

import json
import math
import runpy
from pathlib import Path

import pytest
import torch
from launch import ROOT, run_recipe

from ban_hf.data.description import describe_data
from ban_hf.tasks.auto import load_model

LEADING = {
    "wnut17": "entity_f1",
    "qa": "exact_match",
    "seq2seq": "perplexity",
    "regression": "rmse",
    "segmentation": "miou",
}


@pytest.fixture
def texts(request, monkeypatch) -> None:
    """The folder of the texts, where there is one; else the test is skipped."""
    monkeypatch.setenv("BAN_HF_DATA", str(request.getfixturevalue("data_root")))


def built(name: str) -> dict:
    """The data of a run, and what reads them."""
    return runpy.run_path(str(ROOT / "recipes" / "ban_heads.py"))[name]()


def run(name: str, folder: Path) -> dict:
    """The results of a few steps on a few rows."""
    few = ("--rows", 8, "--max_steps", 2, "--generations", 1, "--control", "--use_cpu")
    run_recipe("ban_heads", name, *few, "--output_dir", folder)
    return json.loads((folder / "results.json").read_text("utf-8"))


@pytest.mark.parametrize("name", LEADING)
def test_each_run_is_reported_by_the_metric_of_its_head(name, tmp_path, request):
    if name in ("wnut17", "qa", "seq2seq"):
        request.getfixturevalue("texts")
    results = run(name, tmp_path)
    assert results["metric"] == LEADING[name]
    kinds = [column["kind"] for column in results["columns"]]
    assert kinds == ["labels", "student", "ensemble", "control", "control"]
    for entry in results["entries"]:
        assert math.isfinite(entry["test"][LEADING[name]])
    assert [entry["parameters"]["all"] for entry in results["entries"]][2:4] == [
        2 * results["entries"][0]["parameters"]["all"],
        results["entries"][0]["parameters"]["all"],
    ]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_error_of_the_regression_is_that_of_the_saved_network(tmp_path):
    results = run("regression", tmp_path)
    rows = built("regression")["test"][:8]
    with torch.no_grad():
        pixels = torch.stack([row["pixel_values"] for row in rows])
        angles = load_model(tmp_path / "generation-1")(pixels).logits[:, 0].double()
    true = torch.tensor([row["labels"].item() for row in rows], dtype=torch.float64)
    rmse = (angles - true).square().mean().sqrt().item()
    assert results["entries"][1]["test"]["rmse"] == pytest.approx(rmse, rel=1e-5)


def test_the_data_are_the_same_each_time(texts):
    first, again = built("wnut17"), built("wnut17")
    assert describe_data(first["train"]) == describe_data(again["train"])


def test_the_splits_share_nothing(texts):
    for name, key in (("wnut17", "input_ids"), ("seq2seq", "labels")):
        made = built(name)
        parts = [{str(row[key]) for row in made[split]} for split in ("train", "eval", "test")]
        assert min(map(len, parts)) > 200
        shared = parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        # Messages that differ in how they are split into words, "I've" and "I 've", are alike here.
        assert len(shared) < (0.02 * len(parts[2]) if name == "wnut17" else 1)


def test_the_first_piece_of_a_word_has_its_tag(texts):
    made, found = built("wnut17"), {}
    read, names = made["processing_class"], made["model"][1].id2label
    for row in made["train"] + made["test"]:
        pieces = read.convert_ids_to_tokens(row["input_ids"])
        tagged = [(p, t) for p, t in zip(pieces, row["labels"], strict=True) if t != -100]
        assert tagged
        assert not [p for p, _ in tagged if p.startswith("##") or p in ("[CLS]", "[SEP]")]
        for piece, tag in tagged:
            found.setdefault(piece, []).append(names[tag])
    assert found["the"].count("O") > 0.9 * len(found["the"])
    assert found["Justin"].count("B-person") > len(found["Justin"]) / 2
    assert found["Bieber"].count("I-person") > len(found["Bieber"]) / 2


def test_an_answer_is_a_span_of_the_message_after_its_question(texts):
    made = built("qa")
    read = made["processing_class"]
    answers = []
    for row in made["test"]:
        ids, start, end = row["input_ids"], row["start_positions"], row["end_positions"]
        assert ids.index(read.sep_token_id) < start <= end < len(ids) - 1
        answers.append(read.decode(ids[start : end + 1]))
    assert {"Twitter", "Facebook"} & {*answers}


def test_a_phrase_without_its_vowels_is_what_is_given(texts):
    made = built("seq2seq")
    for row in made["test"][:100]:
        given, whole = (bytes(x - 3 for x in row[k][:-1]) for k in ("input_ids", "labels"))
        assert whole.translate(None, b"aeiou") == given
