"""Whole model cards against golden files. Run this file as a script to rewrite those."""

import math
import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from msgspec.structs import replace

from ban_hf.errors import BANError
from ban_hf.lineage.results import (
    ROW,
    Entry,
    Results,
    control_column,
    ensemble_column,
    family_results,
    generation_column,
)
from ban_hf.objectives import OBJECTIVES
from ban_hf.reports.model_card import render_card

GOLDEN = Path(__file__).parents[1] / "golden"
NUMBERS = "0123456789abcdef"


def commit(number: int) -> str:
    """A commit of 40 hex digits for a generation."""
    return (NUMBERS[number:] + NUMBERS * 2)[:40]


def metric(name: str, value: float, n: int, split: str = "test") -> dict:
    higher = name in ("teacher_agreement", "accuracy")
    return {"name": name, "value": value, "split": split, "n": n, "higher_is_better": higher}


def reference(repo: str, number: int) -> dict:
    return {
        "repo_id": f"{repo}-gen{number}",
        "revision": commit(number),
        "generation": number,
        "lineage_sha256": "1" * 64,
        "weights_sha256": ["2" * 64],
    }


def generation(number: int, repo: str = "someone/cifar10-wrn", **changes) -> dict:
    """A published record of an image classifier."""
    objective = {"name": "kd", "teacher_weight": 1.0, "label_weight": 0.0, "temperature": 1.0}
    agreement = [metric("teacher_agreement", 80.0 + number, 10000)] if number else []
    return {
        "schema": "ban_hf.lineage/1",
        "kind": "generation",
        "family": repo.split("/")[1],
        "generation": number,
        "teacher": reference(repo, number - 1) if number else None,
        "members": [],
        "objective": objective if number else None,
        "architecture": {
            "model_type": "ban_cifar",
            "class": "CifarNetForImageClassification",
            "config_sha256": "3" * 64,
            "num_parameters": 174820,
        },
        "seed": {"seed": 1000 + number, "family_seed": 42, "init_sha256": "5" * 64},
        "data": {
            "source": {"id": "uoft-cs/cifar10", "config": "plain_text", "revision": commit(5)},
            "train": {"items": 45000, "fingerprint": "4" * 64},
            "test": {"items": 10000, "fingerprint": "6" * 64},
        },
        "training": {
            "arguments": {
                "learning_rate": 0.1,
                "num_train_epochs": 200,
                "max_steps": -1,
                "gradient_accumulation_steps": 1,
                "optim": "sgd",
                "optim_args": None,
                "lr_milestones": [0.3, 0.6, 0.8],
                "lr_scheduler_type": "linear",
                "weight_decay": 0.0005,
                "warmup_steps": 0,
                "output_dir": "somewhere/private",
            },
            "steps": 78200,
            "hardware": "one GPU",
            "seconds": 4321.4,
        },
        "metrics": [
            metric("loss", 0.98765, 10000),
            metric("error", 25.0 - number, 10000),
            metric("nll", 0.98765, 10000),
            metric("error", 24.0 - number, 5000, "validation"),
            *agreement,
        ],
        "files": [
            {"path": path, "size": 9, "sha256": "7" * 64}
            for path in (
                "cifar_networks.py",
                "config.json",
                "model.safetensors",
                "modeling_cifar.py",
                "preprocessor_config.json",
            )
        ],
        "code": {"torch": "2.15.0", "transformers": "5.23.0"},
        "created": "2026-01-02T03:04:05Z",
    } | changes


def language(number: int) -> dict:
    """A published record of a language model, BAN+L, without a license."""
    record = generation(number, "someone/ptb")
    if record["objective"]:
        record["objective"]["label_weight"] = 1.0
    record["architecture"] |= {"class": "LSTMForCausalLM", "model_type": "ban_lstm"}
    windows = {"items": 929536, "window": 35, "fingerprint": "8" * 64}
    record["data"] = {
        "source": {"id": "ptb-text-only/ptb_text_only", "vocabulary": 10000, "revision": None},
        "train": windows,
        "test": windows | {"items": 82429},
    }
    perplexity = 116.4 - 4 * number
    record["metrics"] = [
        metric("loss", math.log(perplexity), 82429),
        metric("perplexity", perplexity, 82429),
        *([metric("teacher_agreement", 82.32, 82429)] if number else []),
    ]
    names = ("config.json", "model.safetensors", "modeling_lstm.py", "tokenizer_config.json")
    record["files"] = [{"path": path, "size": 9, "sha256": "7" * 64} for path in names]
    return record


def ensemble(**changes) -> dict:
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    return {
        **generation(0),
        "kind": "ensemble",
        "generation": None,
        "members": [reference("someone/cifar10-wrn", k) for k in (1, 2)],
        "architecture": {
            "model_type": "born_again_ensemble",
            "class": "BornAgainEnsemble",
            "config_sha256": "9" * 64,
            "num_parameters": 2 * 174820,
        },
        "metrics": [metric("error", 21.5, 10000), metric("nll", 0.8, 10000)],
        "seed": {},
        "training": {},
        "files": [{"path": path, "size": 9, "sha256": "7" * 64} for path in names],
    } | changes


def family(*records: dict, own: bool = True) -> list[dict]:
    """Records with the places they are published in; the last one's commit is not there yet."""
    repos = [f"someone/{r['family']}-gen{r['generation']}" for r in records]
    revisions = [commit(r["generation"]) for r in records[:-1]] + [None if own else commit(9)]
    return [
        record | {"place": {"repo_id": repo, "revision": revision}}
        for record, repo, revision in zip(records, repos, revisions, strict=True)
    ]


def results() -> Results:
    """What a run measured, with ensembles and controls."""
    columns = [generation_column(k, f"BAN-{k}" if k else "labels") for k in range(3)]
    columns.append(ensemble_column([1, 2], "Ens*2 of generations 1-2"))
    columns.append(control_column(2, "labels again, network 2"))
    columns.append(control_column(2, "Ens*2 of label-trained networks", size=2))
    tests = [{"error": 25.0 - k, "nll": 0.98765, "n": 10000} for k in range(3)]
    tests += [
        {"error": 21.5, "nll": 0.8},
        {"error": 25.2, "nll": 1.0},
        {"error": 21.9, "nll": 0.85},
    ]
    return family_results(
        title="wrn on cifar10",
        metric="error",
        dataset={"name": "cifar10"},
        columns=columns,
        entries=[
            Entry(row=ROW, column=column.name, seed=42, test=test)
            for column, test in zip(columns, tests, strict=True)
        ],
        seeds=[42],
    )


def continued() -> dict:
    """Generation 3, whose teacher is of another family."""
    return generation(3) | {"teacher": reference("another/digits", 2), "family": "mine"}


def local() -> dict:
    """Generation 1 of a run that is not published, of a dataset of this machine."""
    record = generation(1) | {"teacher": {"path": "../generation-0", "generation": 0}}
    source = {"id": "/home/someone/data/cifar10", "revision": None}
    return record | {"data": record["data"] | {"source": source}}


OURS = {"remote_code": True, "own_class": True}
PULLED = generation(2, "another/digits") | {
    "place": {"repo_id": "another/digits-gen2", "revision": commit(2)}
}
CARDS = {
    "generation-0": (
        generation(0),
        {"family": family(generation(0)), "repo_id": "someone/cifar10-wrn-gen0"}
        | {"license": "apache-2.0"}
        | OURS,
    ),
    "generation-2": (
        generation(2),
        {"family": family(*map(generation, range(3))), "repo_id": "someone/cifar10-wrn-gen2"}
        | {"license": "apache-2.0", "picture": "results.png"}
        | OURS,
    ),
    "language": (
        language(1),
        {"family": family(language(0), language(1)), "repo_id": "someone/ptb-gen1"}
        | {"pipeline_tag": "text-generation", "picture": "results.png"}
        | OURS,
    ),
    "ensemble": (
        ensemble(),
        {"family": family(*map(generation, range(3)), own=False), "results": results()}
        | {"repo_id": "someone/cifar10-wrn", "license": "apache-2.0", "picture": "results.png"}
        | {"own_class": True},
    ),
    "local": (local(), {"family": [generation(0), local()]} | OURS),
    "continued": (
        continued(),
        {"family": [PULLED, *family(continued())], "repo_id": "someone/mine-gen3"}
        | {"license": "mit", "picture": "results.png"}
        | OURS,
    ),
}


def card_of(name: str, **changes) -> ModelCard:
    record, options = CARDS[name]
    return render_card(record, **(options | changes))


def table_of(card: ModelCard) -> list[list[str]]:
    """The cells of the first table."""
    lines = re.search(r"(?:^\|.*\n)+", card.text, re.MULTILINE)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


#: Cards that are compared word for word; the others share their templates.
WHOLE = ("generation-2", "language", "ensemble")


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_card(name):
    assert str(card_of(name)) == (GOLDEN / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize("name", CARDS)
def test_the_metadata_survives_a_round_trip_through_the_hub_s_classes(name, tmp_path):
    card = card_of(name)
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert isinstance(data, ModelCardData)
    assert data.to_dict() == card.data.to_dict()
    assert all(isinstance(result, EvalResult) for result in data.eval_results)
    assert data.library_name == "transformers"


@pytest.mark.parametrize("name", CARDS)
def test_no_part_runs_into_another(name):
    text = card_of(name).text
    prose = re.sub(r"```.*?```", "```", text, flags=re.DOTALL)
    assert not re.search(r"\n{3}|[ \t]\n|\S {2,}\S", prose)
    assert not re.search(r"[^\n]\n(#|```)|^[^|\n]+\n\||^(?!- )\S.*\n- ", prose, re.MULTILINE)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(code, "card", "exec")


def test_a_student_names_its_direct_teacher_only_and_its_metrics():
    data = card_of("generation-2").data
    assert data.base_model == "someone/cifar10-wrn-gen1"
    assert data.base_model_relation == "finetune"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.license == "apache-2.0"
    assert data.tags[-1] == "generation-2"
    assert [(r.metric_type, r.dataset_split, r.metric_value) for r in data.eval_results] == [
        ("error", "test", 23.0),
        ("nll", "test", 0.98765),
        ("teacher_agreement", "test", 82.0),
        ("error", "validation", 22.0),
    ]


def test_generation_0_has_no_base_model():
    assert not card_of("generation-0").data.to_dict().keys() & {"base_model", "base_model_relation"}


def test_an_ensemble_merges_its_members():
    data = card_of("ensemble").data
    assert data.base_model == ["someone/cifar10-wrn-gen1", "someone/cifar10-wrn-gen2"]
    assert data.base_model_relation == "merge"


def test_a_local_run_claims_nothing_on_the_hub_and_gives_no_path_away():
    card = card_of("local")
    assert not card.data.to_dict().keys() & {"base_model", "base_model_relation", "datasets"}
    assert not re.search("/home/someone|somewhere/private|huggingface.co", str(card))
    assert "`generation-0`" in card.text
    assert 'from_pretrained("path/to/cifar10-wrn-gen1")' in card.text


def test_a_license_that_was_not_given_is_said_and_not_invented():
    card = card_of("generation-2", license=None)
    assert "license" not in card.data.to_dict()
    assert "No license was given" in card.text
    assert "No license" not in card_of("generation-2").text


def test_the_table_marks_this_one_and_links_the_others_at_their_commits():
    heading, _, *rows = table_of(card_of("generation-2"))
    assert heading[:4] == ["network", "learned from", "test error % ↓", "NLL ↓"]
    url = "https://huggingface.co/someone/cifar10-wrn-gen"
    assert rows[0][:3] == [f"[generation 0]({url}0/tree/{commit(0)})", "labels", "25.00"]
    assert rows[1][0] == f"[generation 1]({url}1/tree/{commit(1)})"
    assert rows[2] == [
        f"**{cell}**" for cell in ("generation 2 (this one)", "BAN", "23.00", "0.988", "82.00")
    ]


def test_an_ensemble_stands_beside_the_controls_of_its_run():
    rows = table_of(card_of("ensemble"))[2:]
    assert [row[0].partition("]")[0] for row in rows] == [
        "[generation 0",
        "[generation 1",
        "[generation 2",
        "**ensemble of generations 1 and 2 (this one)**",
        "control: labels again, network 2",
        r"control: Ens\*2 of label-trained networks",
    ]
    assert rows[3][2] == "**21.50**"
    assert [row[1] for row in rows] == ["labels", "BAN", "BAN", "–", "labels", "labels"]
    assert "see the controls in the table" in card_of("ensemble").text


def test_an_ensemble_of_other_members_than_the_run_s_has_a_row_of_its_own():
    other = ensemble(members=[reference("someone/cifar10-wrn", k) for k in (0, 2)])
    others = family(*map(generation, range(3)), own=False)
    rows = table_of(render_card(other, family=others, results=results(), own_class=True))
    marked = [row[0] for row in rows if "this one" in row[0]]
    assert marked == ["**ensemble of generations 0 and 2 (this one)**"]
    assert any(row[0] == "ensemble of generations 1 and 2" for row in rows)


def test_without_the_family_s_records_the_teacher_is_named_and_nothing_made_up():
    text = render_card(generation(2), repo_id="someone/cifar10-wrn-gen2", **OURS).text
    assert "[someone/cifar10-wrn-gen1@1234567]" in text
    assert "costs the same" not in text
    assert "generation-0" not in text
    assert "back to generation 0: `ban-hf lineage` follows it" in text


def test_another_network_than_the_teacher_s_is_not_said_to_cost_the_same():
    small = generation(0)
    small["architecture"] = small["architecture"] | {"num_parameters": 99, "config_sha256": "0"}
    text = render_card(generation(1), family=family(small, generation(1)), **OURS).text
    assert "costs the same" not in text
    assert "Its teacher has 99 parameters." in text


def test_a_family_that_goes_on_from_another_says_so():
    text = card_of("continued").text
    assert "of another family, `digits`, which this one goes on from" in text
    assert (
        f"[another/digits-gen2@2345678](https://huggingface.co/another/digits-gen2/tree/{commit(2)})"
        in text
    )
    assert table_of(card_of("continued"))[2][0].startswith("[generation 2](")


def test_other_test_data_in_the_same_table_is_said():
    other = PULLED | {"data": PULLED["data"] | {"test": {"items": 10000, "fingerprint": "0" * 64}}}
    text = card_of("continued", family=[other, *family(continued())]).text
    assert "Not all of them were measured on the same test data" in text
    assert "Not all of them" not in card_of("continued").text


def test_stock_classes_load_without_us_and_without_remote_code():
    record = generation(2)
    record["architecture"] |= {"class": "BertForSequenceClassification", "model_type": "bert"}
    record["files"] = [{"path": "tokenizer_config.json", "size": 9, "sha256": "7" * 64}]
    text = render_card(record, pipeline_tag="text-classification").text
    assert "With `transformers` alone" in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text
    assert 'print(classify("Some text."))' in text
    assert not re.search("import ban_hf|trust_remote_code|image", text)
    record["architecture"]["model_type"] = "timm_wrapper"
    assert "With `transformers` and `timm` alone" in render_card(record).text


def test_an_ensemble_of_language_models_shows_the_next_word():
    record = ensemble(files=[{"path": "tokenizer_config.json", "size": 9, "sha256": "7" * 64}])
    text = render_card(record, pipeline_tag="text-generation", own_class=True).text
    assert "logits[0, -1].argmax()" in text
    assert "pipeline(" not in text
    assert "trust_remote_code" not in text


def test_longer_steps_are_told_only_where_sgd_took_them():
    record = language(1)
    assert "Longer steps" in render_card(record, pipeline_tag="text-generation").text
    record["training"]["arguments"]["optim"] = "adamw_torch"  # whose steps know no scale
    assert "Longer steps" not in render_card(record, pipeline_tag="text-generation").text
    assert "Longer steps" not in card_of("generation-2").text


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_words_of_the_objective_are_those_of_its_docstring(name):
    objective = {"name": name, "teacher_weight": 0.5, "label_weight": 2, "temperature": 4}
    text = render_card(generation(1) | {"objective": objective}).text
    assert f"loss = 0.5 * {name} + 2 * label cross-entropy" in text
    assert f"{name} = " in text
    assert "T = 4 is the temperature" in text
    assert "its teacher, by" not in text  # each has its plain words


def test_every_metric_of_ours_has_words_and_another_one_its_name():
    record = generation(1)
    record["metrics"] += [metric("ece", 3.0, 10000), metric("accuracy", 0.9, 10000)]
    heading, _, row = table_of(render_card(record))
    assert heading[2:] == [
        "test error % ↓",
        "NLL ↓",
        "ECE % ↓",
        "test accuracy ↑",
        "agreement with its teacher %",
    ]
    assert row[5] == "**0.9000**"


def test_a_loss_alone_is_shown():
    record = generation(1) | {"metrics": [metric("loss", 0.5, 9), metric("teacher_kl", 0.1, 9)]}
    assert table_of(render_card(record))[0][2:] == ["test loss ↓"]


def test_what_is_not_finite_is_not_claimed():
    record = generation(1) | {"metrics": [metric("loss", math.inf, 9), metric("error", 5.0, 9)]}
    assert render_card(record).data.metrics == ["error"]


def test_no_metrics_is_said_and_leaves_no_model_index():
    card = render_card(generation(0) | {"metrics": []})
    assert "No test results were recorded." in card.text
    assert not re.search("lower is better|Tested once", card.text)
    assert not card.data.to_dict().keys() & {"model-index", "metrics"}


def test_data_of_unknown_name_is_said_and_no_result_is_claimed_for_it():
    card = render_card(generation(0) | {"data": {"train": {"items": 9}}})
    assert "**Data:** not recorded, 9 items" in card.text
    assert not card.data.to_dict().keys() & {"model-index", "datasets"}


def test_a_missing_fact_is_an_error_and_not_a_gap():
    record = generation(0)
    del record["seed"]["seed"]
    with pytest.raises(BANError, match="lacks what a card tells"):
        render_card(record)


def test_bad_arguments_are_named():
    with pytest.raises(BANError, match="kind='merge'"):
        render_card(generation(0) | {"kind": "merge"})
    with pytest.raises(BANError, match="pipeline_tag='images'"):
        render_card(generation(0), pipeline_tag="images")
    with pytest.raises(BANError, match="generation 1, which comes last"):
        render_card(generation(1), family=[generation(0)])
    pooled = replace(results(), seeds=(1, 2))
    with pytest.raises(BANError, match="results are of several runs"):
        card_of("ensemble", results=pooled)


def test_a_student_of_several_teachers_names_them_all():
    teachers = [reference("someone/wrn", 0), reference("someone/densenet", 0)]
    student = generation(1) | {"teacher": teachers, "family": "pair"}
    records = [generation(0, f"someone/{name}") for name in ("wrn", "densenet")]
    for record, teacher in zip(records, teachers, strict=True):
        record["place"] = {key: teacher[key] for key in ("repo_id", "revision")}
    card = render_card(student, family=[*records, student], repo_id="someone/pair-gen1", **OURS)
    assert card.data.base_model == ["someone/wrn-gen0", "someone/densenet-gen0"]
    text = " ".join(card.text.split())
    assert "learned from **its teachers' mean predictions** (BAN)" in text
    links = [
        f"[someone/{n}-gen0@0123456](https://huggingface.co/someone/{n}-gen0"
        for n in ("wrn", "densenet")
    ]
    tree = f"/tree/{commit(0)})"
    both = f"generation 0, {links[0]}{tree} and generation 0, {links[1]}{tree}"
    assert f"Its teachers are {both}." in text
    assert text.count("taught by **generation 0**") == 2
    rows = table_of(card)[2:]
    assert [row[0].partition("](")[0] for row in rows] == [
        "[generation 0",
        "[generation 0",
        "**generation 1 (this one)**",
    ]
    assert "someone/densenet-gen0" in rows[1][0]


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for card_name in WHOLE:
        card_of(card_name).save(GOLDEN / f"{card_name}.md")
