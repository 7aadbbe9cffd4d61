"""The trainer: the loss of an optimizer step is exact, and nothing else differs from `Trainer`."""

import copy
import dataclasses
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from family import Killed, views
from tiny import (
    Images,
    arguments,
    cifar,
    confident,
    distance,
    gpt2,
    history,
    text,
    timm_model,
    trained,
    vit,
    weights,
)
from transformers import Trainer, TrainerCallback

from ban_hf import (
    OBJECTIVES,
    BANTrainer,
    BANTrainingArguments,
    Record,
    collate,
    train_generations,
)
from ban_hf.lineage.files import read_json

LOSSES = {
    "BAN": dict(objective="kd", temperature=2.0),
    "BAN+L": dict(objective="kd", teacher_weight=0.7, label_weight=0.5),
    "CWTM": dict(objective="cwtm"),
    "DKPP": dict(objective="dkpp"),
    "DKD": dict(objective="dkd", learning_rate=0.02),
}
SEQUENCE = dict(optim_args="momentum=0.9,nesterov=True", lr_milestones=[0.3, 0.6])

SENTENCES = [{"input_ids": row, "labels": row} for row in text(64).view(8, 8)]

# The loss of an optimizer step


@cache
def in_large_batches(loss: str, items: int, tmp: str) -> BANTrainer:
    return trained(vit(1), tmp, confident(vit(2)), Images(items), max_steps=4, **LOSSES[loss])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("items", "batch", "accumulation"),
    [(32, 4, 4), (43, 4, 4)],
    ids=["full", "short last step, partial last batch"],
)
def test_accumulated_batches_equal_one_large_batch(loss, items, batch, accumulation, tmp_path):
    large = in_large_batches(loss, items, str(tmp_path))
    accumulated = trained(
        vit(1),
        tmp_path,
        confident(vit(2)),
        Images(items),
        max_steps=4,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **LOSSES[loss],
    )
    assert distance(accumulated.model, vit(1)) > 1e-2
    assert distance(accumulated.model, large.model) < 1e-6
    assert len(history(large)) == 4
    for line, expected in zip(history(accumulated), history(large), strict=True):
        assert line == pytest.approx(expected, rel=2e-4, abs=2e-6)


def test_accumulation_is_exact_for_a_timm_model_whose_forward_takes_no_loss_arguments(tmp_path):
    assert not timm_model("test_vit").accepts_loss_kwargs
    students = [
        trained(
            timm_model("test_vit", 1),
            tmp_path,
            timm_model("test_vit", 2),
            Images(12, 32),
            max_steps=2,
            learning_rate=0.01,
            label_weight=1.0,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        ).model
        for accumulation in (1, 4)
    ]
    assert distance(*students) < 1e-6
    assert distance(students[0], timm_model("test_vit", 1)) > 1e-4


@pytest.mark.parametrize(
    ("objective", "temperature"), [("kd", 1.0), ("kd", 3.0), ("cwtm", 3.0), ("dkd", 3.0)]
)
def test_one_step_of_sgd_is_the_formula(objective, temperature, tmp_path):
    data, teacher, expected = Images(8), confident(vit(2)), vit(1)
    loss = dict(objective=objective, temperature=temperature, teacher_weight=0.7, label_weight=0.4)
    student = trained(vit(1), tmp_path, teacher, data, max_steps=1, learning_rate=0.3, **loss).model
    with torch.no_grad():
        teacher_logits = vit_logits(teacher, data)
    student_logits = vit_logits(expected, data)
    terms = OBJECTIVES[objective](
        student_logits, teacher_logits, data.labels, temperature=temperature
    )
    (0.7 * terms.mean() + 0.4 * F.cross_entropy(student_logits, data.labels)).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.3 * parameter.grad
    assert distance(expected, vit(1)) > 1e-2
    assert distance(student, expected) < 1e-6


def vit_logits(model, data: Images) -> torch.Tensor:
    return model(pixel_values=data.pixel_values).logits


def test_the_permutations_of_dkpp_are_new_in_every_step_and_for_every_seed(tmp_path, monkeypatch):
    noise = []

    def spy(student_logits, teacher_logits, labels, *, temperature, generator, activation):
        state = generator.get_state()
        noise.append(tuple(torch.rand(2, generator=generator).tolist()))
        generator.set_state(state)
        return dkpp(student_logits, teacher_logits, temperature=temperature, generator=generator)

    dkpp = OBJECTIVES["dkpp"]
    monkeypatch.setitem(OBJECTIVES, "dkpp", spy)
    for seed in (0, 1, 0):
        trained(vit(1), tmp_path, vit(2), objective="dkpp", seed=seed)
    assert len(noise) == 12
    assert len(set(noise[:8])) == 8
    assert noise[8:] == noise[:4]


def test_label_smoothing_smooths_the_label_term(tmp_path):
    data = Images(16)
    options = dict(data=data, evaluation=data, max_steps=1, learning_rate=0.0, label_weight=1.0)
    smooth = trained(vit(1), tmp_path, vit(2), label_smoothing_factor=0.2, **options)
    expected = F.cross_entropy(vit_logits(vit(1), data), data.labels, label_smoothing=0.2).item()
    assert history(smooth)[0]["label_loss"] == pytest.approx(expected, abs=1e-6)
    assert smooth.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)


# Evaluation


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("teacher", [None, 2])
def test_an_evaluation_is_the_mean_over_the_items_that_count(teacher, batch, tmp_path):
    data = Images(8)
    data.labels[torch.tensor([0, 1, 5])] = -100
    args = arguments(tmp_path, per_device_eval_batch_size=batch)
    taught = teacher and confident(vit(teacher))
    trainer = BANTrainer(confident(vit(1)), args, teacher=taught, eval_dataset=data)
    with torch.no_grad():
        logits = confident(vit(1))(data.pixel_values).logits
    expected = F.cross_entropy(logits, data.labels, ignore_index=-100).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_an_evaluation_without_labels_still_compares_with_the_teacher(tmp_path):
    data, labelled = Images(10, labels=False), Images(10)
    found = []
    for evaluation in (data, labelled):
        trainer = BANTrainer(
            confident(vit(1)),
            arguments(tmp_path, per_device_eval_batch_size=4),
            teacher=confident(vit(2)),
            eval_dataset=evaluation,
        )
        found.append(trainer.evaluate())
    unlabelled, with_labels = found
    for name in ("eval_teacher_kl", "eval_teacher_agreement"):
        assert unlabelled[name] == pytest.approx(with_labels[name])
    assert unlabelled["eval_teacher_kl"] > 0
    assert "eval_loss" not in unlabelled
    assert trainer.predict(data).predictions.shape == (10, 5)
    reads = BANTrainer(gpt2(1), arguments(tmp_path), teacher=gpt2(2))
    words = [{"input_ids": row["input_ids"]} for row in SENTENCES]  # of which nothing tells padding
    assert reads.predict(words).predictions.shape[:2] == (8, 8)


# Without a teacher


@pytest.mark.parametrize("build", [vit, cifar, gpt2], ids=["dropout", "BatchNorm", "words"])
def test_without_a_teacher_it_is_the_trainer_of_transformers_bit_for_bit(build, tmp_path):
    runs = []
    for kind in (Trainer, BANTrainer):
        student = vit(1, hidden_dropout_prob=0.2) if build is vit else build(1)
        args = arguments(
            tmp_path,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=3,
            optim_args="momentum=0.9",
            max_grad_norm=1.0,
            # Trainer divides by all words, also by the first of a text, which nothing predicts.
            eval_strategy="no" if build is gpt2 else "steps",
            eval_steps=2,
        )
        size = 32 if build is cifar else 8
        data, evaluation = Images(22, size), Images(9, size, seed=1)
        if build is gpt2:
            data = evaluation = SENTENCES
        runs.append(kind(student, args, train_dataset=data, eval_dataset=evaluation))
        runs[-1].train()
    assert distance(runs[0].model, runs[1].model) == 0
    for theirs, ours in zip(*map(history, runs), strict=True):
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            # We take the mean over items, not over batches, which is the same but for rounding
            # where all batches have as many.
            close = dict(rel=1e-6) if name == "eval_loss" else dict(rel=0, abs=0)
            assert ours[name] == pytest.approx(value, **close)


# Killed and resumed


class KillIn(TrainerCallback):
    """Breaks a training off in the middle of the step after the given one."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def a_run(output_dir, loss: str, callbacks=(), seed: int = 1) -> BANTrainer:
    """Three epochs of three steps of two micro-batches, saved after step 4."""
    args = arguments(
        output_dir,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=9,
        save_strategy="steps",
        save_steps=4,
        remove_unused_columns=False,
        **SEQUENCE | LOSSES[loss],
    )
    student, teacher = vit(seed, hidden_dropout_prob=0.2), confident(vit(2))
    options = dict(train_dataset=views(24), data_collator=collate, callbacks=list(callbacks))
    return BANTrainer(student, args, teacher=teacher, **options)


@pytest.mark.parametrize("loss", ["BAN", "DKPP"])
def test_killed_and_resumed_is_never_killed_bit_for_bit(loss, tmp_path):
    whole = a_run(tmp_path / "whole", loss)
    whole.train()
    with pytest.raises(Killed):
        a_run(tmp_path / "killed", loss, [KillIn(5)]).train()
    resumed = a_run(tmp_path / "killed", loss, seed=7)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 9
    assert distance(resumed.model, whole.model) == 0
    assert history(resumed) == history(whole)
    rates = [line["learning_rate"] for line in history(resumed)]
    assert rates == pytest.approx(
        [LOSSES[loss].get("learning_rate", 0.1) * f for f in [1] * 3 + [0.2] * 2 + [0.04] * 4]
    )


def test_a_training_that_was_broken_off_leaves_nothing_in_the_next_one_s_logs(tmp_path):
    # Without learning, and with all images in each step, all steps have the same label loss.
    options = dict(gradient_accumulation_steps=2, learning_rate=0.0)
    args = arguments(tmp_path, logging_steps=3, max_steps=3, **options)
    data = Images(32)
    trainer = BANTrainer(vit(1), args, teacher=vit(2), train_dataset=data, callbacks=[KillIn(1)])
    with pytest.raises(Killed):
        trainer.train()
    trainer.remove_callback(KillIn)
    trainer.train()
    expected = F.cross_entropy(vit_logits(vit(1), data), data.labels).item()
    assert history(trainer)[-1]["label_loss"] == pytest.approx(expected, rel=1e-5)


# Optimizer and schedule


def test_the_learning_rate_falls_at_the_milestones(tmp_path):
    options = dict(max_steps=10, lr_milestones=[0.25, 0.6, 0.9], lr_gamma=0.5)
    trainer = trained(vit(1), tmp_path, **options)
    rates = [line["learning_rate"] for line in history(trainer)]  # at the end of each step
    assert rates == pytest.approx([0.1] * 2 + [0.05] * 4 + [0.025] * 3 + [0.0125])


@pytest.mark.parametrize(
    ("decay", "decayed"),
    [
        (True, {"conv.weight", "fc.weight", "bn.weight", "bn.bias", "fc.bias"}),
        (False, {"conv.weight", "fc.weight"}),
        (None, {"conv.weight", "fc.weight", "bn.weight"}),
    ],
    ids=["paper", "none", "as transformers"],
)
def test_weight_decay_of_norms_and_biases(decay, decayed, tmp_path):
    args = arguments(tmp_path, decay_norms_and_biases=decay, weight_decay=0.5)
    trainer = BANTrainer(timm_model("test_resnet"), args, train_dataset=Images())
    groups = {
        group["weight_decay"]: group["params"] for group in trainer.create_optimizer().param_groups
    }
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    short = {
        "timm_model.conv1.0.weight": "conv.weight",
        "timm_model.bn1.weight": "bn.weight",
        "timm_model.bn1.bias": "bn.bias",
        "timm_model.fc.weight": "fc.weight",
        "timm_model.fc.bias": "fc.bias",
    }
    assert set(short) <= set(names.values())
    assert {short.get(names[id(p)]) for p in groups[0.5]} - {None} == decayed
    assert sum(map(len, groups.values())) == len(names)


def test_bfloat16_reaches_teacher_and_student_also_in_an_evaluation_before_training(tmp_path):
    seen = []
    student, teacher = vit(1), vit(2)
    for name, model in (("student", student), ("teacher", teacher)):
        model.classifier.register_forward_hook(
            lambda module, inputs, logits, name=name: seen.append((name, logits.dtype))
        )
    args = arguments(tmp_path, bf16=True, max_steps=1)
    data = Images(16)
    trainer = BANTrainer(student, args, teacher=teacher, train_dataset=data, eval_dataset=data)
    before = weights(student)
    trainer.evaluate()
    trainer.train()
    trainer.evaluate()
    assert {dtype for _, dtype in seen} == {torch.bfloat16}
    assert [name for name, _ in seen].count(
        "student"
    ) == 7  # the first two of them check the labels
    assert distance(student, before) > 0
    assert all(p.dtype == torch.float32 for p in student.parameters())


# Arguments


@pytest.mark.parametrize("weight", [None, 0.0, 1.0])
def test_a_copy_of_arguments_has_the_label_weight_that_was_given(weight, tmp_path):
    given = arguments(tmp_path, objective="cwtm", label_weight=weight)
    values = {f.name: getattr(given, f.name) for f in dataclasses.fields(given) if f.init}
    moved = dataclasses.replace(given, output_dir="elsewhere")
    for again in (moved, BANTrainingArguments(**values), copy.copy(given)):
        assert (again.objective, again.label_weight) == ("cwtm", weight)


def test_a_sequence_of_copied_arguments_learns_with_labels_where_the_task_does(tmp_path):
    weights_of = {}
    for name, build, data in (("texts", gpt2, SENTENCES), ("images", vit, Images(16))):
        args = dataclasses.replace(
            arguments(tmp_path, max_steps=1), output_dir=str(tmp_path / name)
        )
        train_generations(
            lambda generation, build=build: build(torch.initial_seed() % 1000),
            args,
            generations=1,
            train_dataset=data,
            ensemble=False,
        )
        student = Record.read(tmp_path / name / "generation-1")
        weights_of[name] = student.objective.label_weight
        noted = read_json(tmp_path / name / "lineage.json")["run"]["arguments"]
        assert student.training.arguments == noted  # with the family's seed
    assert weights_of == {"texts": 1.0, "images": 0.0}
    assert args.label_weight is None
