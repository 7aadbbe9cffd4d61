"""What the field measures heads by: by hand, through `evaluate`, and of whole networks."""

import json
import math

import pytest
import torch
from heads import CASES, batch_of, collate, model_of, rows_of
from sklearn.metrics import average_precision_score, f1_score
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification, Wav2Vec2CTCTokenizer

from ban_hf.errors import BANError
from ban_hf.jobs.evaluation import evaluate, text_decoder
from ban_hf.tasks.auto import TASKS, task_of
from ban_hf.tasks.heads import has_entities
from ban_hf.tasks.metrics import (
    ScoreMetric,
    edit_rate,
    entity_scores,
    mean_iou,
    multilabel_scores,
    regression_scores,
    span_scores,
    word_error,
)

TRUE = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC"]]
FOUND = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "B-LOC"]]


def test_entities_are_whole():
    """Two of three are found (one person, one place), and four are named."""
    scores = entity_scores(FOUND, TRUE)
    assert scores == pytest.approx(
        {
            "precision": 50,
            "recall": 100 * 2 / 3,
            "entity_f1": 200 * (1 / 2 * 2 / 3) / (1 / 2 + 2 / 3),
        }
    )
    assert entity_scores([["O"]], [["O"]])["entity_f1"] == 0
    half = entity_scores([["B-PER", "O"]], [["B-PER", "I-PER"]])  # half of a person is none
    assert half["entity_f1"] == 0


def test_spans_overlap_by_tokens():
    found = torch.tensor([[2, 4], [2, 4], [5, 3], [0, 1]])
    true = torch.tensor([[2, 4], [3, 6], [3, 5], [2, 3]])
    overlap = 2 * 2 / (3 + 4)
    assert span_scores(found, true) == pytest.approx(
        {"exact_match": 25, "span_f1": 100 * (1 + overlap) / 4}
    )


def test_labels_as_scikit_learn_counts_them():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(40, 4, generator=generator)
    labels = (torch.rand(40, 4, generator=generator) < probabilities).float()
    labels[:, 3] = 0  # which occurs nowhere, and has no precision
    scores = multilabel_scores(probabilities, labels)
    f1 = f1_score(labels, probabilities > 0.5, average="macro", zero_division=0)
    precision = average_precision_score(labels[:, :3], probabilities[:, :3])
    assert scores == pytest.approx({"macro_f1": 100 * f1, "average_precision": 100 * precision})


def test_numbers():
    found, true = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [2.0]])
    pearson = torch.corrcoef(torch.cat([found, true], 1).T)[0, 1].item()
    assert regression_scores(found, true) == pytest.approx(
        {"rmse": math.sqrt(5 / 3), "pearson": pearson, "spearman": 0.5}
    )
    assert math.isnan(regression_scores(torch.ones(3, 1), true)["pearson"])


def test_mean_iou_leaves_out_classes_that_are_nowhere():
    found, true = torch.tensor([0, 0, 3, 3, 3]), torch.tensor([0, 3, 3, 3, 0])
    assert mean_iou(found, true)["miou"] == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)


def test_edits():
    assert edit_rate([[1, 2, 3]], [[1, 3, 4]]) == pytest.approx(100 * 2 / 3)
    assert word_error(["a b", ""], ["a c", "d"])["wer"] == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(
    ("name", "found", "true", "scores"),
    [
        ("entities", FOUND, TRUE, entity_scores(FOUND, TRUE)),
        ("spans", [[2, 4]], [[3, 6]], {"exact_match": 0, "span_f1": 100 * 4 / 7}),
        ("labels", [[0.9, 0.2]], [[1, 1]], {"macro_f1": 50, "average_precision": 100}),
        (
            "numbers",
            [[1.0], [2.0]],
            [[1.0], [3.0]],
            {"rmse": math.sqrt(0.5), "pearson": 1.0, "spearman": 1.0},
        ),
        ("iou", [0, 1], [0, 1], {"miou": 100}),
        ("words", ["a b"], ["a c"], {"wer": 50}),
    ],
)
def test_each_is_a_metric_of_evaluate(name, found, true, scores):
    metric = ScoreMetric(config_name=name)
    metric.add_batch(predictions=found, references=true)
    assert metric.compute() == pytest.approx(scores)


# Of networks


def measured(case, names=None, **changes):
    model, inputs = model_of(case, 1), batch_of(case)
    for name, value in changes.items():
        setattr(model.config, name, value)
    loader = DataLoader(rows_of(inputs), 3, collate_fn=collate)
    with torch.no_grad():
        outputs = model(**inputs)
    return evaluate([model], [loader], task_of(model)).metrics(), outputs, inputs


def case_of(head: str, kind: str | None = None):
    return next(case for case in CASES if case[0].endswith(head) and case[2] == kind)


def test_token_classifiers_are_measured_by_entities_where_their_classes_have_a_scheme():
    case = case_of("TokenClassification")
    names = dict(enumerate(["O", "B-PER", "I-PER"]))
    metrics, outputs, inputs = measured(case, id2label=names)
    counts = inputs["labels"] != -100
    tags = [
        [[names[int(i)] for i in row[mask]] for row, mask in zip(part, counts, strict=True)]
        for part in (outputs.logits.argmax(-1), inputs["labels"])
    ]
    assert next(iter(metrics)) == "entity_f1"
    assert metrics["n"] == int(counts.sum())
    for name, value in entity_scores(*tags).items():
        assert metrics[name] == pytest.approx(value)
    wrong = (outputs.logits.argmax(-1) != inputs["labels"])[counts].double().mean().item()
    assert metrics["error"] == pytest.approx(100 * wrong)
    assert next(iter(measured(case)[0])) == "error"  # of words that are of some kind, say


def test_answers_are_measured_where_both_ends_count():
    metrics, outputs, inputs = measured(case_of("QuestionAnswering"))
    true = torch.stack([inputs["start_positions"], inputs["end_positions"]], 1)
    found = torch.stack([outputs.start_logits.argmax(1), outputs.end_logits.argmax(1)], 1)
    inside = true[:, 1] < outputs.end_logits.shape[1]
    assert not inside.all()
    scores = span_scores(found[inside], true[inside])
    assert metrics["exact_match"] == pytest.approx(scores["exact_match"])
    assert metrics["span_f1"] == pytest.approx(scores["span_f1"])


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_labels_and_numbers_of_rows(kind):
    metrics, outputs, inputs = measured(case_of("SequenceClassification", kind))
    if kind == "regression":
        scores = regression_scores(outputs.logits, inputs["labels"])
    else:
        scores = multilabel_scores(outputs.logits.sigmoid(), inputs["labels"])
    assert {name: metrics[name] for name in scores} == pytest.approx(scores, rel=1e-5)
    assert metrics["n"] == 8


def test_maps_are_measured_by_pixels():
    metrics, outputs, inputs = measured(case_of("SemanticSegmentation"))
    maps = torch.nn.functional.interpolate(
        outputs.logits, inputs["labels"].shape[1:], mode="bilinear", align_corners=False
    ).argmax(1)
    counts = inputs["labels"] != 255
    assert metrics["miou"] == pytest.approx(
        mean_iou(maps[counts], inputs["labels"][counts])["miou"]
    )


def test_recordings_are_measured_by_the_tokens_of_their_texts():
    case = case_of("CTC")
    metrics, outputs, inputs = measured(case)
    blank = model_of(case, 1).config.pad_token_id
    found = [
        [int(t) for t in row.unique_consecutive() if t != blank]
        for row in outputs.logits.argmax(-1)
    ]
    true = [[int(t) for t in row if t not in (-100, blank)] for row in inputs["labels"]]
    assert metrics["token_error"] == pytest.approx(edit_rate(found, true))
    assert metrics["n"] == 8


def test_texts_are_decoded_with_the_letters_that_are_written_twice(tmp_path):
    letters = {"<pad>": 0, "|": 1, "l": 2, "a": 3}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    tokenizer = Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), unk_token="<pad>", bos_token=None, eos_token=None
    )
    decode = text_decoder(tokenizer)
    assert decode([3, 2, 2, 1, 3]) == "all a"
    assert text_decoder(None) is None
    case = case_of("CTC")
    loader = DataLoader(rows_of(batch_of(case)), 3, collate_fn=collate)
    model = model_of(case, 1)
    found = evaluate(
        [model], [loader], task_of(model), decode=lambda text: " ".join(map(str, text))
    )
    assert found.metrics()["wer"] == pytest.approx(found.metrics()["token_error"])


# Bad input


def test_entities_need_one_scheme():
    assert has_entities(["O", "B-PER", "I-PER"])
    assert not has_entities(["NOUN", "VERB"])
    with pytest.raises(BANError, match=r"id2label has .* such as 'B-PER', and others .* 'PLACE'"):
        has_entities(["O", "B-PER", "PLACE"])


def test_a_test_set_without_labels_is_refused():
    model = BertForTokenClassification(BertConfig(**TINY))
    with pytest.raises(BANError, match="has no labels"):
        evaluate([model], [[{"input_ids": torch.zeros(1, 3, dtype=torch.long)}]], task_of(model))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("QuestionAnswering", {"end_positions": None}, "needs start_positions and end_positions"),
        ("SemanticSegmentation", {"labels": torch.zeros(8, 3)}, "a map of class numbers for each"),
        ("AudioFrameClassification", {"labels": torch.zeros(8, 3)}, "must be one-hot"),
        ("MaskedLM", {"labels": None}, "fill-mask need labels"),
        ("Seq2SeqLM", {"labels": None}, "text2text-generation need labels"),
    ],
)
def test_batches_that_a_head_cannot_read(name, changes, message):
    case = case_of(name)
    model, inputs = model_of(case, 1), batch_of(case)
    given = {key: value for key, value in (inputs | changes).items() if value is not None}
    with torch.no_grad():
        outputs = model(**inputs)
    with pytest.raises(BANError, match=message):
        task_of(model).items(model, given, outputs)


TINY = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def test_every_task_has_a_measure_that_its_networks_get():
    from ban_hf.lineage.catalog import MEASURES

    for task in TASKS.values():
        assert task.leading("softmax", []) in MEASURES
