"""A teacher's labels are read as its student reads them, and what differs is refused."""

import pytest
import torch
from heads import batch_of, collate, model_of, rows_of, trainer
from tiny import arguments, distance
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
)

from ban_hf import BANTrainer, BornAgainEnsemble, train_generations
from ban_hf.errors import BANError
from ban_hf.jobs.evaluation import evaluate
from ban_hf.tasks.auto import task_of

CTC = ("AutoModelForCTC", "Wav2Vec2ForCTC", None)
QA = ("AutoModelForQuestionAnswering", "BertForQuestionAnswering", None)
MAPS = ("AutoModelForSemanticSegmentation", "SegformerForSemanticSegmentation", None)
LABELS = ("AutoModelForSequenceClassification", "BertForSequenceClassification", None)
GPT2 = ("AutoModelForCausalLM", "GPT2LMHeadModel", None)
BART = ("AutoModelForCausalLM", "BartForCausalLM", None)
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


def taught(case, folder, data, change, teacher=None, **options) -> BANTrainer:
    """A trainer on labels alone, whose teacher's config is changed."""
    theirs = model_of(teacher or case, 2)
    for name, value in change.items():
        setattr(theirs.config, name, value)
    on_labels = dict(learning_rate=0.0, teacher_weight=0.0, label_weight=1.0)
    return trainer(case, folder, data, theirs, **on_labels | options)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        (CTC, {"ctc_loss_reduction": "mean"}),
        (CTC, {"ctc_zero_infinity": True}),
        (MAPS, {"semantic_loss_ignore_index": 1}),
    ],
    ids=["by length", "infinity", "ignored value"],
)
def test_the_label_loss_of_a_step_is_the_students(case, change, tmp_path):
    found = taught(case, tmp_path, rows_of(batch_of(case)), change)
    for module in found.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
    found.train()
    expected = found.evaluate()["eval_loss"]
    assert found.state.log_history[0]["label_loss"] == pytest.approx(expected, rel=1e-4)


def test_maps_of_bytes_are_read_as_numbers():
    model, inputs = model_of(MAPS, 1), batch_of(MAPS)
    with torch.no_grad():
        outputs = model(**inputs)
    as_bytes = inputs | {"labels": inputs["labels"].to(torch.uint8)}
    found = [task_of(model).labels(model, batch, outputs) for batch in (inputs, as_bytes)]
    assert torch.equal(found[0].values, found[1].values)
    assert 0 < found[1].weights.mean() < 1


def test_answers_without_ends_in_the_text_count_by_their_starts(tmp_path):
    inputs = batch_of(QA)
    inputs["end_positions"] = torch.full((8,), 10_000)
    with torch.no_grad():
        logits = model_of(QA, 1)(**inputs).start_logits
    expected = torch.nn.functional.cross_entropy(logits, inputs["start_positions"]).item()
    found = taught(QA, tmp_path, rows_of(inputs), {})
    assert found.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    found.train()
    (loss,) = [line["label_loss"] for line in found.state.log_history if "label_loss" in line]
    assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("measure", ["step", "evaluation", "ensemble"])
def test_texts_packed_into_a_row_are_read_apart(measure, tmp_path):
    case = ("AutoModelForCausalLM", "LlamaForCausalLM", None)
    words = batch_of(case)["input_ids"]
    student, teacher = model_of(case, 1), model_of(case, 2)
    lengths = [9, 16, 5, 12]
    texts = [{"input_ids": row[:n].tolist()} for row, n in zip(words, lengths, strict=False)]
    divergence, loss, count = 0.0, 0.0, 0
    for text in texts:
        ids = torch.tensor([text["input_ids"]])
        with torch.no_grad():
            z, t = (model(ids).logits[0, :-1].log_softmax(-1) for model in (student, teacher))
        divergence += (t.exp() * (t - z)).sum().item()
        loss -= z.gather(1, ids[0, 1:, None]).sum().item()
        count += len(z)
    pack = DataCollatorWithFlattening()
    if measure == "ensemble":
        both = BornAgainEnsemble.from_members([student, student])
        found = evaluate([both], [[pack(texts)]], task_of(both)).metrics()
        assert found["nll"] == pytest.approx(loss / count, rel=1e-4)
        return
    options = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4, max_steps=1)
    args = arguments(tmp_path, **options, learning_rate=0.0, remove_unused_columns=False)
    data = dict(train_dataset=texts, eval_dataset=texts, data_collator=pack)
    found = BANTrainer(student, args, teacher=teacher, **data)
    if measure == "step":
        found.train()
        (kl,) = [x["teacher_loss"] for x in found.state.log_history if "teacher_loss" in x]
    else:
        metrics = found.evaluate()
        kl = metrics["eval_teacher_kl"]
        assert metrics["eval_loss"] == pytest.approx(loss / count, rel=1e-4)
    assert kl == pytest.approx(divergence / count, rel=1e-4)


def test_a_measurement_of_answers_is_the_mean_of_starts_and_ends():
    inputs, model = batch_of(QA), model_of(QA, 1)
    inputs["end_positions"][2:] = 10_000
    with torch.no_grad():
        own = model(**inputs).loss.item()
    found = evaluate([model], [[inputs]], task_of(model)).metrics()
    assert found["nll"] == pytest.approx(own, rel=1e-5)


# Refused


@pytest.mark.parametrize("case", [BART, MAPS, CTC, QA], ids=lambda case: case[1])
def test_labels_that_trainer_would_smooth_wrongly_or_not_at_all(case, tmp_path):
    smooth = dict(teacher=None, label_smoothing_factor=0.1)
    found = trainer(case, tmp_path, rows_of(batch_of(case)), **smooth)
    with pytest.raises(BANError, match=f"would smooth other labels of a {case[1]}"):
        found.train()


@pytest.mark.parametrize(
    ("case", "change", "teacher", "message"),
    [
        (CTC, {"pad_token_id": 5}, None, "teacher has pad_token_id=5 and model has 0"),
        (GPT2, {}, BART, "one predicts the word at each place, and the other the one after it"),
        (BART, {}, GPT2, "one predicts the word at each place, and the other the one after it"),
    ],
    ids=["blank", "not shifted", "shifted"],
)
def test_a_teacher_that_predicts_other_things(case, change, teacher, message, tmp_path):
    with pytest.raises(BANError, match=message):
        taught(case, tmp_path, rows_of(batch_of(case)), change, teacher)


def test_a_teacher_of_another_task(tmp_path):
    student = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2))
    teacher = BertForMaskedLM(BertConfig(vocab_size=30, **SIZES))
    with pytest.raises(BANError, match="BertForMaskedLM, for fill-mask, and model is for text"):
        BANTrainer(student, arguments(tmp_path), teacher=teacher)


@pytest.mark.parametrize(
    ("case", "objective", "message"),
    [
        ((*LABELS[:2], "regression"), "dkpp", "'dkpp' has no meaning for items that are numbers"),
        ((*LABELS[:2], "regression"), "cwtm", "'cwtm' has no meaning for items that are numbers"),
        ((*LABELS[:2], "multi_label_classification"), "dkd", "several labels, each of them true"),
        (CTC, "cwtm", "needs a label for each item, and the labels of task 'ctc' are of rows"),
    ],
)
def test_an_objective_without_meaning_is_refused_before_anything_is_trained(
    case, objective, message, tmp_path
):
    with pytest.raises(BANError, match=message):
        trainer(case, tmp_path, rows_of(batch_of(case)), objective=objective)
    args = arguments(tmp_path / "run", objective=objective)
    data = rows_of(batch_of(case))
    with pytest.raises(BANError, match=message):
        train_generations(
            lambda generation: model_of(case, generation), args, generations=1, train_dataset=data
        )
    assert not list(tmp_path.glob("run/generation-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"labels": None}, "the test set has no labels"),
        (lambda row: {"labels": torch.tensor(6)}, "labels has the value 6, but"),
    ],
)
def test_a_test_set_that_cannot_be_measured_is_refused_before_anything_is_trained(
    change, message, tmp_path
):
    data = rows_of(batch_of(LABELS))
    test = [{k: v for k, v in (row | change(row)).items() if v is not None} for row in data]
    with pytest.raises(BANError, match=message):
        train_generations(
            lambda generation: model_of(LABELS, generation + 1),
            arguments(tmp_path, remove_unused_columns=False),
            generations=1,
            train_dataset=data,
            test_dataset=test,
            data_collator=collate,
        )
    assert not list(tmp_path.glob("generation-*"))


def test_labels_that_are_floats_decide_what_the_students_of_a_sequence_predict(tmp_path):
    case = (*LABELS[:2], "multi_label_classification")
    data = rows_of(batch_of(case))

    def fresh(generation: int):
        model = model_of(case, generation + 1)
        model.config.problem_type = None
        return model

    lineage = train_generations(
        fresh,
        arguments(tmp_path, max_steps=2, remove_unused_columns=False),
        generations=2,
        train_dataset=data,
        test_dataset=data,
        data_collator=collate,
    )
    assert lineage.generations[2].objective.activation == "sigmoid"
    assert all(record.metric("macro_f1", "test") is not None for record in lineage.records)
    assert distance(model_of(case, 1), model_of(case, 2)) > 0
