"""The cards of a table's networks: what was measured of them, and of those they learnt from."""

import json
import re

from huggingface_hub import ModelCard

from ban_hf.cli.main import main
from ban_hf.hub import publishing as cards


def reproduce(folder, table: str, *more: str) -> dict[tuple[str, str], dict]:
    """Entries of the results by row and column."""
    assert main(["reproduce", table, "--budget", "smoke", "--output_dir", str(folder), *more]) == 0
    path = folder / f"{table}-smoke" / "results.json"
    entries = json.loads(path.read_text("utf-8"))["entries"]
    return {(entry["row"], entry["column"]): entry for entry in entries if entry["seed"] == 1}


def test_a_card_tells_what_was_measured_of_a_network_and_its_teachers(tmp_path):
    columns = ["ban-1", "ban-2", "ens2", "back"]
    rows = ["--rows", "densenet-90-60", "--columns", "teacher", *columns, "--seeds", "2"]
    entries = reproduce(tmp_path, "table2", *rows)
    folder = tmp_path / "table2-smoke" / "cards" / "densenet-90-60"
    # Of the first seed; of no ensemble, and of none that several teachers taught.
    assert {path.name for path in folder.iterdir()} == {"teacher.md", "ban-1.md", "ban-2.md"}
    card = ModelCard.load(folder / "ban-2.md")
    test = entries["densenet-90-60", "ban-2"]["test"]
    (results,) = {result.dataset_split for result in card.data.eval_results}
    assert results == "test"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {name: test[name] for name in ("error", "nll", "ece")}
    errors = [entries["densenet-90-60", name]["test"]["error"] for name in ("teacher", "ban-1")]
    lines = re.findall(r"\| generation \d \| \w+ \| ([\d.]+) \|", card.text)
    assert lines == [f"{error:.2f}" for error in errors]
    teacher = next((tmp_path / "jobs").glob("*-kd-*"))
    assert re.search(r"taught by \*\*generation 1\*\*, in `[\w+-]+-kd-\w{12}/network`", card.text)
    assert str(teacher.parents[1]) not in card.text
    # What is published of it says the same.
    own = next((tmp_path / "jobs").glob(f"{card.data.model_name.removesuffix('-gen2')}/network"))
    assert cards.card(own).data.eval_results == card.data.eval_results


def test_a_card_says_that_a_network_has_the_ends_of_its_teacher(tmp_path):
    reproduce(tmp_path, "table5", "--rows", "wide-1-1")
    folder = tmp_path / "table5-smoke" / "cards" / "wide-1-1"
    said = "but for its teacher's first convolution and last linear layer, which stayed frozen,"
    assert said in (folder / "ban.md").read_text("utf-8")
    assert said not in (folder / "baseline.md").read_text("utf-8")


def test_cards_are_the_same_however_fast_and_whenever_they_were_trained(tmp_path):
    cards = []
    for name in ("one", "another"):
        reproduce(tmp_path / name, "table6", "--rows", "lstm", "--columns", "ban+l")
        for path in (tmp_path / name / "jobs").glob("*/network/lineage.json"):
            assert json.loads(path.read_text("utf-8"))["training"]["seconds"] > 0
        cards.append((tmp_path / name / "table6-smoke/cards/lstm/ban+l.md").read_bytes())
    assert cards[0] == cards[1]
