"""Whole model cards against golden files; `python tests/test_model_card.py` rewrites those."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from jinja2 import UndefinedError

from ban_hf.model_card import render_card

GOLDEN = Path(__file__).parent / "golden"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def generation(number: int) -> dict:
    teacher = {
        "repo_id": f"someone/cifar10-wrn-gen{number - 1}",
        "revision": REVISION,
        "generation": number - 1,
        "lineage_sha256": "1" * 64,
        "weights_sha256": "2" * 64,
    }
    return {
        "schema": "ban_hf.lineage/1",
        "kind": "generation",
        "family": "cifar10-wrn",
        "generation": number,
        "teacher": teacher if number else None,
        "members": [],
        "objective": {
            "name": "kd",
            "teacher_weight": 1.0,
            "label_weight": 0.0,
            "temperature": 1.0,
        },
        "architecture": {
            "model_type": "ban_cifar",
            "class": "CifarForImageClassification",
            "config_sha256": "3" * 64,
            "num_parameters": 174820,
        },
        "seed": {"seed": 42 + number, "family_seed": 42, "init_sha256": "5" * 64},
        "data": {
            "source": {"id": "uoft-cs/cifar10", "config": "plain_text", "revision": REVISION},
            "splits": {"train": {"items": 45000, "fingerprint": "4" * 64}},
        },
        "training": {
            "arguments": {
                "learning_rate": 0.1,
                "num_train_epochs": 200,
                "lr_milestones": [0.3, 0.6, 0.8],
                "lr_scheduler_type": "linear",
                "optim_args": None,
                "output_dir": "somewhere/private",
            },
            "steps": 78200,
            "hardware": "one GPU",
            "seconds": 4321.4,
        },
        "metrics": [
            {
                "name": "error",
                "value": 25.0,
                "split": "test",
                "n": 10000,
                "higher_is_better": False,
            },
            {"name": "nll", "value": 0.98765, "split": "test", "n": 10000},
            {"name": "error", "value": 24.0, "split": "validation", "n": 5000},
            {"name": "loss", "value": 0.98765, "split": "test", "n": 10000},
        ],
        "code": {"torch": "2.15.0", "transformers": "5.23.0"},
        "created": "2026-01-02T03:04:05Z",
    }


def ensemble() -> dict:
    members = [
        {"repo_id": f"someone/cifar10-wrn-gen{k}", "revision": REVISION, "generation": k}
        for k in (1, 2)
    ]
    return generation(2) | {
        "kind": "ensemble",
        "generation": None,
        "teacher": None,
        "members": members,
        "objective": None,
    }


CARDS = {
    "generation-0": (generation(0), "someone/cifar10-wrn-gen0"),
    "generation-1": (generation(1), "someone/cifar10-wrn-gen1"),
    "ensemble": (ensemble(), "someone/cifar10-wrn"),
}


@pytest.mark.parametrize("name", CARDS)
def test_the_whole_card(name):
    lineage, repo_id = CARDS[name]
    assert str(render_card(lineage, repo_id=repo_id)) == (GOLDEN / f"{name}.md").read_text("utf-8")


def test_the_metadata_survives_a_round_trip_and_names_the_direct_teacher_only(tmp_path):
    render_card(generation(2), repo_id="someone/cifar10-wrn-gen2").save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "someone/cifar10-wrn-gen1"
    assert data.base_model_relation == "finetune"
    assert data.library_name == "transformers"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.tags[-1] == "generation-2"
    assert [(r.metric_type, r.dataset_split, r.metric_value) for r in data.eval_results] == [
        ("error", "test", 25.0),
        ("nll", "test", 0.98765),
        ("error", "validation", 24.0),
    ]


def test_generation_0_has_no_base_model():
    data = render_card(generation(0)).data.to_dict()
    assert not data.keys() & {"base_model", "base_model_relation"}


def test_an_ensemble_merges_its_members():
    data = render_card(ensemble()).data
    assert data.base_model == ["someone/cifar10-wrn-gen1", "someone/cifar10-wrn-gen2"]
    assert data.base_model_relation == "merge"


def test_a_local_run_claims_nothing_on_the_hub_and_gives_no_path_away():
    lineage = generation(1)
    lineage["teacher"] = {"path": "../generation-0", "generation": 0}
    lineage["data"] = {"source": {"id": "/home/someone/data/cifar10", "revision": None}}
    card = render_card(lineage)
    assert not card.data.to_dict().keys() & {"base_model", "base_model_relation", "datasets"}
    assert "/home/someone" not in str(card)
    assert "somewhere/private" not in str(card)
    assert "`generation-0`" in card.text
    assert 'from_pretrained("path/to/cifar10-wrn-gen1")' in card.text


def test_the_words_of_the_objective_are_those_of_its_docstring():
    lineage = generation(1)
    lineage["objective"] = {
        "name": "cwtm",
        "teacher_weight": 1,
        "label_weight": 0,
        "temperature": 1,
    }
    text = render_card(lineage).text
    assert "cwtm = N w_s H(y_s, q_s)" in text
    assert "Furlanello et al. 2018, eq. 9-10." in text


def test_no_metrics_is_said_and_leaves_no_model_index():
    card = render_card(generation(0) | {"metrics": []})
    assert "None were recorded." in card.text
    assert not card.data.to_dict().keys() & {"model-index", "metrics"}


def test_data_of_unknown_name_is_said_and_no_result_is_claimed_for_it():
    card = render_card(generation(0) | {"data": {"splits": {"train": {"items": 9}}}})
    assert "Data: not recorded, 9 items" in card.text
    assert not card.data.to_dict().keys() & {"model-index", "datasets"}


def test_a_missing_fact_is_an_error_and_not_a_gap():
    lineage = generation(0)
    del lineage["seed"]
    with pytest.raises(UndefinedError, match="seed"):
        render_card(lineage)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="kind='merge'"):
        render_card(generation(0) | {"kind": "merge"})
    with pytest.raises(ValueError, match="pipeline_tag='images'"):
        render_card(generation(0), pipeline_tag="images")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for card_name, (card_lineage, card_repo) in CARDS.items():
        render_card(card_lineage, repo_id=card_repo).save(GOLDEN / f"{card_name}.md")
