"""The cards of a table's networks: what was measured of them, and of those they learned from."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from ban_hf.cli.main import main
from ban_hf.hub.publishing import card as card_of

ROW = "densenet-90-60"


def reproduce(folder: Path, *more: str) -> Path:
    """The folder of the table, of the given columns and seeds."""
    words = ["reproduce", "table2", "--budget", "smoke", "--output_dir", str(folder)]
    assert main([*words, "--rows", ROW, "--columns", *more]) == 0
    return folder / "table2-smoke"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Of two seeds."""
    return reproduce(
        tmp_path_factory.mktemp("table"), "teacher", "ban-1", "ban-2", "ens2", "--seeds", "2"
    )


def test_a_card_tells_what_was_measured_of_a_network_and_its_teachers(table):
    entries = json.loads((table / "results.json").read_text("utf-8"))["entries"]
    measured = {entry["column"]: entry for entry in entries if entry["seed"] == 1}
    folder = table / "cards" / ROW
    # Of the first seed, and of no ensemble.
    assert {path.stem for path in folder.iterdir()} == {"teacher", "ban-1", "ban-2"}
    card = ModelCard.load(folder / "ban-2.md")
    entry = measured["ban-2"]
    (split,) = {result.dataset_split for result in card.data.eval_results}
    assert split == "test"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {name: entry["test"][name] for name in ("error", "nll", "ece")}
    expected["teacher_agreement"] = entry["teacher_agreement"]
    assert found == expected | {"teacher_kl": found["teacher_kl"]}
    errors = [measured[name]["test"]["error"] for name in ("teacher", "ban-1")]
    lines = re.findall(r"\| generation \d \| \w+ \| ([\d.]+) \|", card.text)
    assert lines == [f"{error:.2f}" for error in errors]
    assert re.search(r"taught by \*\*generation 1\*\*, in `[\w+-]+-kd-\w{12}`", card.text)
    assert str(table.parent) not in card.text
    # What is published of it says the same.
    own = next((table.parent / "jobs").glob(card.data.model_name.removesuffix("-gen2")))
    assert card_of(own).data.eval_results == card.data.eval_results


def test_cards_are_the_same_however_fast_and_whenever_they_were_trained(table, tmp_path):
    again = reproduce(tmp_path, "teacher", "ban-1")
    for path in (tmp_path / "jobs").glob("*/lineage.json"):
        assert json.loads(path.read_text("utf-8"))["training"]["seconds"] > 0
    cards = [folder / "cards" / ROW / "ban-1.md" for folder in (table, again)]
    assert cards[0].read_bytes() == cards[1].read_bytes()
