"""What `Trainer` offers, under a teacher: metrics, labels, evaluation sets, streams, kernels."""

import datasets
import pytest
import torch
import torch.nn.functional as F
from test_is_trainer import SENTENCES, Metrics, Stream, giving_tuples
from tiny import (
    Images,
    arguments,
    bert,
    cifar,
    confident,
    distance,
    gpt2,
    history,
    lstm,
    vit,
    windows,
)
from torch import nn
from torch.utils.data import Subset
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import ImageClassifierOutput

from ban_hf import BANTrainer
from ban_hf.errors import BANError
from ban_hf.tasks.auto import TASKS
from ban_hf.tasks.base import Labels, Task, class_labels


def taught(output_dir, student, teacher, data, kind=BANTrainer, **changes):
    """A trainer under a teacher, or a stock one; by other names, arguments of the trainer."""
    names = ("eval_dataset", "compute_metrics", "preprocess_logits_for_metrics", "task")
    options = {name: changes.pop(name) for name in names if name in changes}
    if kind is BANTrainer:
        options["teacher"] = teacher
    defaults = dict(per_device_train_batch_size=4, per_device_eval_batch_size=4)
    args = arguments(output_dir, **defaults | changes)
    return kind(student, args, train_dataset=data, **{"eval_dataset": data, **options})


# What metrics are given


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(include_for_metrics=["inputs", "loss"]),
        dict(include_for_metrics=["inputs", "loss"], batch_eval_metrics=True),
        dict(preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1)),
        dict(eval_accumulation_steps=1),
    ],
    ids=["predictions", "inputs and losses", "batch by batch", "preprocessed", "accumulated"],
)
@pytest.mark.parametrize("build", [vit, gpt2, bert], ids=["images", "words", "sentences"])
def test_metrics_are_given_what_trainer_gives_them(build, changes, tmp_path):
    """But for the loss of words: a mean over all that are predicted."""
    data = {vit: Images(10), gpt2: SENTENCES[:10]}.get(
        build, [{"input_ids": row["input_ids"], "labels": i % 5} for i, row in enumerate(SENTENCES)]
    )
    found = []
    for kind in (Trainer, BANTrainer):
        metrics = Metrics(("predictions", "label_ids", "inputs", "losses")[: 4 - (build is gpt2)])
        trainer = taught(
            tmp_path, build(1), build(2), data, kind, compute_metrics=metrics, **changes
        )
        found.append((metrics.given, trainer.evaluate(), trainer.predict(data)))
    (given, logged, predicted), (also_given, also_logged, also_predicted) = found
    assert len(given) == len(also_given) > 0
    for mine, expected in zip(also_given, given, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    expected = logged["eval_loss"]
    if build is gpt2:
        words = torch.stack([row["input_ids"] for row in data])
        expected = gpt2(1)(words, labels=words).loss.item()
    assert also_logged["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert also_logged["eval_count"] == logged["eval_count"]
    for part in ("predictions", "label_ids"):
        mine, expected = (getattr(output, part) for output in (also_predicted, predicted))
        torch.testing.assert_close(torch.as_tensor(mine), torch.as_tensor(expected))
    assert also_predicted.metrics["test_loss"] == also_logged["eval_loss"]
    assert {"test_teacher_kl", "test_teacher_agreement"} <= also_predicted.metrics.keys()


def test_with_prediction_loss_only_all_is_measured(tmp_path):
    metrics = Metrics()
    options = dict(prediction_loss_only=True, compute_metrics=metrics)
    short = taught(tmp_path, vit(1), vit(2), Images(10), **options)
    whole = taught(tmp_path, vit(1), vit(2), Images(10))
    found, expected = short.predict(Images(10)), whole.predict(Images(10))
    assert found.predictions is None
    assert metrics.given == []
    for name in ("loss", "teacher_kl", "teacher_agreement"):
        assert found.metrics[f"test_{name}"] == expected.metrics[f"test_{name}"]


def test_several_evaluation_sets_are_measured_each_for_itself(tmp_path):
    """With the exact mean of each, though their last batches are short."""
    sets = {"a": Images(9, seed=1), "b": Images(6, seed=2)}
    teacher = confident(vit(2))
    trainer = taught(
        tmp_path,
        vit(1),
        teacher,
        Images(),
        eval_dataset=sets,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="best",
        metric_for_best_model="eval_b_teacher_agreement",
        greater_is_better=True,
    )
    found = trainer.evaluate()
    for name, data in sets.items():
        with torch.no_grad():
            logits = trainer.model(data.pixel_values).logits  # (N, C)
            theirs = teacher(data.pixel_values).logits  # (N, C)
        agreement = (logits.argmax(1) == theirs.argmax(1)).float().mean().item()
        divergence = F.kl_div(
            logits.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
        )
        assert found[f"eval_{name}_loss"] == pytest.approx(
            F.cross_entropy(logits, data.labels).item(), rel=1e-5
        )
        assert found[f"eval_{name}_teacher_agreement"] == pytest.approx(100 * agreement)
        assert found[f"eval_{name}_teacher_kl"] == pytest.approx(divergence.item(), rel=1e-4)
    trainer.train()
    logged = [line for line in trainer.state.log_history if "eval_a_loss" in line]
    assert len(logged) == 2
    best = max(
        line["eval_b_teacher_agreement"]
        for line in trainer.state.log_history[1:]
        if "eval_b_teacher_agreement" in line
    )
    assert trainer.state.best_metric == best


def test_several_texts_are_each_read_from_their_beginning(tmp_path):
    """An evaluation of one leaves no hidden state for the next."""
    texts = {"a": windows(200, seed=1, warmup=14), "b": windows(150, seed=2, warmup=14)}
    data = windows()
    trainer = taught(tmp_path, lstm(1), lstm(2), data, eval_dataset=texts, label_weight=1.0)
    together = trainer.evaluate()
    for name, part in texts.items():
        alone = trainer.evaluate(part)
        for measured in ("loss", "perplexity", "teacher_kl", "teacher_agreement"):
            assert together[f"eval_{name}_{measured}"] == alone[f"eval_{measured}"]


# Outputs and labels


@pytest.mark.parametrize("build", [cifar, lstm], ids=["images", "words"])
def test_a_model_that_gives_tuples_teaches_and_learns_the_same(build, tmp_path):
    data = Images(16, 32) if build is cifar else SENTENCES
    runs = []
    for change in (lambda model: model, giving_tuples):
        options = dict(label_weight=0.5, fast=False)
        trainer = taught(tmp_path, change(build(1)), change(build(2)), data, **options)
        trainer.train()
        runs.append((trainer, trainer.evaluate()["eval_teacher_kl"]))
        assert trainer.model.config.return_dict is (change is not giving_tuples)
    assert distance(runs[0][0].model, build(1)) > 1e-3
    assert distance(runs[0][0].model, runs[1][0].model) == 0
    assert runs[0][1] == runs[1][1]


class Named(nn.Module):
    """A classifier whose labels have a name of its own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3 * 8 * 8, 5)

    def forward(self, pixel_values, target=None) -> ImageClassifierOutput:
        logits = self.head(pixel_values.flatten(1))
        loss = None if target is None else F.cross_entropy(logits, target)
        return ImageClassifierOutput(loss=loss, logits=logits)


class NamedTask(Task):
    facts = TASKS["image-classification"].facts
    label_names = ("target",)
    one_item_a_row = True

    def labels(self, model, inputs, outputs) -> Labels:
        return class_labels(inputs.get("target"), outputs.logits[:, 0])


class Targets(Images):
    def __getitem__(self, i: int) -> dict:
        return {"pixel_values": self.pixel_values[i], "target": self.labels[i]}


@pytest.mark.parametrize("names", [None, ["target"]], ids=["of the task", "of the arguments"])
def test_labels_of_another_name_are_read_by_a_task_of_ones_own(names, tmp_path):
    data = Targets(16)
    options = dict(task=NamedTask(), label_names=names, label_weight=1.0, learning_rate=0.0)
    trainer = taught(tmp_path, Named(1), Named(2), data, logging_steps=4, **options)
    trainer.train()
    with torch.no_grad():
        logits = Named(1)(data.pixel_values).logits
    expected = F.cross_entropy(logits, data.labels).item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert history(trainer)[0]["label_loss"] == pytest.approx(expected, rel=1e-5)


def test_label_names_that_the_task_does_not_read_are_refused(tmp_path):
    """Else the loss of an evaluation would be 0."""
    with pytest.raises(BANError, match=r"label_names=\['target'\].* reads its labels from labels"):
        taught(tmp_path, vit(1), vit(2), Targets(16), label_names=["target"])


def test_the_arguments_stay_as_they_were(tmp_path):
    args = arguments(tmp_path, fast=None)
    before = args.to_dict()
    trainer = BANTrainer(vit(1), args, teacher=vit(2), train_dataset=Images())
    trainer.train()
    assert trainer.args.fast is True
    assert args.to_dict() == before


# Data


@pytest.mark.parametrize(
    ("objective", "accumulation", "items"), [("kd", 1, 20), ("kd", 2, 16), ("dkpp", 2, 16)]
)
def test_a_stream_teaches_what_the_same_items_teach_in_their_order(
    objective, accumulation, items, tmp_path
):
    """Of an epoch's end that is too short for a step nothing comes into the next one."""
    data = Images(20)
    listed = datasets.Dataset.from_list(
        [{name: value.tolist() for name, value in data[i].items()} for i in range(20)]
    )
    kinds = {
        "listed": Subset(data, range(items)),
        "stream": Stream(data),
        "listed by datasets": listed.select(range(items)),
        "stream of datasets": listed.to_iterable_dataset(),
    }
    models, divergences = {}, {}
    for name, part in kinds.items():
        trainer = taught(
            tmp_path,
            vit(1),
            confident(vit(2)),
            part,
            eval_dataset=Stream(data) if "stream" in name else data,
            train_sampling_strategy="sequential",
            max_steps=6,  # more than an epoch
            objective=objective,
            gradient_accumulation_steps=accumulation,
            label_weight=0.5,
        )
        trainer.train()
        models[name], divergences[name] = trainer.model, trainer.evaluate()["eval_teacher_kl"]
    for name, model in models.items():
        assert distance(model, models["listed"]) < 1e-6, name
        assert divergences[name] == pytest.approx(divergences["listed"], rel=1e-5)
    assert distance(models["listed"], vit(1)) > 1e-2


def test_what_a_stream_cannot_have_is_refused(tmp_path):
    stream = Stream(Images(16))
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        taught(tmp_path, vit(1), vit(2), stream, max_steps=-1, num_train_epochs=2)
    trainer = taught(tmp_path, vit(1), vit(2), stream, teacher_cache=str(tmp_path / "cache"))
    with pytest.raises(BANError, match=r"teacher_cache.* not Stream, a stream, whose items"):
        trainer.train()


# Memory and kernels


class OutOfMemory(TrainerCallback):
    """Has no room for a batch of 10."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.train_batch_size >= 10:
            raise RuntimeError("CUDA out of memory.")


@pytest.mark.parametrize("objective", ["kd", "dkpp"])
def test_a_batch_size_that_is_found_gives_what_it_gives_when_it_is_given(objective, tmp_path):
    """In the weights, and in the logs from the first line on."""
    runs = []
    for found in (False, True):
        trainer = taught(
            tmp_path,
            vit(1),
            confident(vit(2)),
            Images(27),
            objective=objective,
            per_device_train_batch_size=10 if found else 9,  # nine tenths
            auto_find_batch_size=found,
            train_sampling_strategy="sequential",
        )
        if found:
            trainer.add_callback(OutOfMemory())
        trainer.train()
        runs.append(trainer)
    assert distance(runs[0].model, vit(1)) > 1e-2
    assert distance(runs[0].model, runs[1].model) == 0
    assert history(runs[0]) == history(runs[1])


def test_gradient_checkpointing_changes_nothing(tmp_path):
    options = dict(label_weight=0.5, optim_args="momentum=0.9")
    models = []
    for checkpointing in (False, True):
        trainer = taught(
            tmp_path,
            gpt2(1, resid_pdrop=0.2, n_layer=2),
            gpt2(2, n_layer=2),
            SENTENCES,
            gradient_checkpointing=checkpointing,
            **options,
        )
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is checkpointing
        assert not trainer.teacher.is_gradient_checkpointing
        models.append(trainer.model)
    assert distance(models[0], gpt2(1, n_layer=2)) > 1e-2
    assert distance(*models) < 1e-6


def apply_kernels(model, config):
    """As Liger's kernels: a model in training, or asked to, gives its loss without logits."""
    forward = model.forward

    def fused(input_ids=None, labels=None, skip_logits=None, **kwargs):
        outputs = forward(input_ids, labels=labels, **kwargs)
        skips = model.training and labels is not None if skip_logits is None else skip_logits
        if skips:
            model.skipped += 1
            if labels is None:
                raise ValueError("no labels, and no logits wanted")
            outputs["logits"] = None
        return outputs

    model.skipped = 0
    model.forward = fused


def test_fused_kernels_give_the_logits_that_a_teacher_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", apply_kernels)
    found = []
    for kernels in (False, True):
        options = dict(label_weight=0.5, use_liger_kernel=kernels)
        trainer = taught(tmp_path, gpt2(1), gpt2(2), SENTENCES, **options)
        trainer.train()
        found.append((trainer.model, trainer.evaluate()))
    assert distance(found[0][0], found[1][0]) == 0
    for name in ("eval_loss", "eval_perplexity", "eval_teacher_kl", "eval_teacher_agreement"):
        assert found[0][1][name] == found[1][1][name]
    plain = taught(tmp_path, gpt2(1), None, SENTENCES, use_liger_kernel=True)
    plain.train()
    assert plain.model.skipped == 4  # each step, by the model's own loss
    assert plain.evaluate()["eval_perplexity"] > 1
    with pytest.raises(BANError, match=r"use_liger_kernel .* leave teacher_cache out"):
        taught(tmp_path, gpt2(1), gpt2(2), SENTENCES, use_liger_kernel=True, teacher_cache="x")
