"""The teacher: any model, frozen, outside the student, and run on the right inputs."""

from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import (
    CLASSES,
    Images,
    arguments,
    bert,
    cifar,
    confident,
    distance,
    history,
    timm_model,
    trained,
    vit,
    weights,
)
from torch import nn
from transformers import TrainerCallback, TrainingArguments, ViTConfig, ViTModel

from ban_hf import BANTrainer, BornAgainEnsemble
from ban_hf.objectives import kd


def large_vit(seed: int = 0) -> nn.Module:
    return vit(seed, image_size=32, patch_size=16)


def timm_resnet(seed: int = 0) -> nn.Module:
    return timm_model("test_resnet", seed)


def ensemble(seed: int = 0) -> BornAgainEnsemble:
    return BornAgainEnsemble.from_members([cifar(seed), timm_resnet(seed + 1)])


# Any mix


@pytest.mark.parametrize(
    ("student", "teacher"),
    [(timm_resnet, large_vit), (large_vit, cifar), (cifar, ensemble)],
)
def test_any_image_classifier_teaches_any_other(student, teacher, tmp_path):
    data = Images(8, 32)
    options = dict(max_steps=5, learning_rate=0.02, per_device_train_batch_size=8)
    trainer = trained(student(1), tmp_path, teacher(5), data, **options)
    losses = [line["teacher_loss"] for line in history(trainer)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("build", "as_type"), [(vit, str), (ensemble, Path)], ids=["vit", "ensemble"]
)
def test_a_teacher_may_be_given_as_the_folder_it_was_saved_to(build, as_type, tmp_path):
    teacher = build(5)
    teacher.save_pretrained(tmp_path / "teacher")
    given = as_type(tmp_path / "teacher")
    trainer = BANTrainer(vit(1), arguments(tmp_path / "run"), teacher=given)
    assert distance(trainer.teacher, teacher) == 0


def test_a_bert_teaches_a_bert_from_a_dataset_with_columns_that_no_model_takes(tmp_path):
    rng = torch.Generator().manual_seed(0)
    columns = {
        "input_ids": torch.randint(1, 30, (16, 6), generator=rng).tolist(),
        "attention_mask": [[1] * 4 + [0] * 2] * 16,
        "label": torch.randint(0, CLASSES, (16,), generator=rng).tolist(),
        "text": ["a film"] * 16,
    }
    data = datasets.Dataset.from_dict(columns)
    trainer = trained(bert(1), tmp_path, bert(2), data, evaluation=data, label_weight=1.0)
    first, *_, last = history(trainer)
    assert last["loss"] < first["loss"]
    assert first["loss"] == pytest.approx(first["teacher_loss"] + first["label_loss"], rel=1e-5)
    assert trainer.evaluate().keys() >= {"eval_loss", "eval_teacher_agreement", "eval_teacher_kl"}


def test_born_again_training_needs_no_labels(tmp_path):
    with_labels, without = (
        trained(vit(1), tmp_path, vit(2), Images(labels=labels)) for labels in (True, False)
    )
    assert distance(with_labels.model, without.model) == 0
    missing = {"label_loss", "ground_truth_term", "dark_knowledge_term"}
    for line, unlabelled in zip(history(with_labels), history(without), strict=True):
        assert unlabelled == {k: v for k, v in line.items() if k not in missing}


# Frozen, and outside the student


class CallsTrain(TrainerCallback):
    """A user's callback that switches the teacher to train mode and unfreezes it."""

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    def on_step_begin(self, *args, **kwargs):
        self.teacher.train().requires_grad_(True)


def test_the_teacher_keeps_every_weight_and_statistic_whatever_is_done_to_its_mode(tmp_path):
    teacher, data = cifar(2), Images(32, 32)
    options = dict(evaluation=data, eval_strategy="steps", eval_steps=1, max_steps=2)
    plain, modes = cifar(1), []
    plain.network.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    student = trained(plain, tmp_path, teacher, data, **options).model
    assert distance(teacher, cifar(2)) == 0
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert modes[:2] == [False, False]  # the first batch, whose labels are checked
    assert modes[2:] == [True, *[False] * 4] * 2  # each step, and its evaluation
    assert distance(student, trained(cifar(1), tmp_path, teacher, data, max_steps=2).model) == 0

    calls_train = [CallsTrain(teacher)]
    disturbed = trained(cifar(1), tmp_path, teacher, data, callbacks=calls_train, **options).model
    assert distance(disturbed, student) == 0
    assert distance(teacher, cifar(2)) == 0
    assert all(p.grad is None for p in teacher.parameters())


def test_the_teacher_is_in_no_state_optimizer_or_checkpoint_of_the_student(tmp_path):
    trainer = trained(cifar(1), tmp_path, large_vit(2), Images(32, 32), save_strategy="epoch")
    assert weights(trainer.model).keys() == weights(cifar(1)).keys()
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in trainer.model.parameters()}
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert saved.keys() == weights(cifar(1)).keys()
    size = sum(p.numel() for p in trainer.model.parameters()) * 4
    files = [f for f in (tmp_path / "checkpoint-4").iterdir() if f.suffix != ".py"]  # not its code
    assert sum(f.stat().st_size for f in files) < size + 50_000


# Evaluation


def test_evaluation_gives_the_label_loss_and_compares_with_the_teacher(tmp_path):
    data, student, teacher = Images(10), confident(vit(1)), confident(vit(2))
    args = arguments(tmp_path, per_device_eval_batch_size=4, temperature=3.0)
    trainer = BANTrainer(
        student, args, teacher=teacher, train_dataset=data, eval_dataset={"a": data, "b": data}
    )
    metrics = trainer.evaluate()
    with torch.no_grad():
        z, t = (m.eval()(pixel_values=data.pixel_values).logits for m in (student, teacher))
    label_loss = F.cross_entropy(z, data.labels).item()
    agreement = 100 * (z.argmax(1) == t.argmax(1)).float().mean().item()
    assert 0 < agreement < 100
    for name in ("a", "b"):
        assert metrics[f"eval_{name}_loss"] == pytest.approx(label_loss, rel=1e-5)
        assert metrics[f"eval_{name}_teacher_agreement"] == pytest.approx(agreement, rel=1e-5)
        assert metrics[f"eval_{name}_teacher_kl"] == pytest.approx(kd(z, t).mean().item(), rel=1e-5)
    output = trainer.predict(data)
    assert output.metrics["test_loss"] == pytest.approx(label_loss, rel=1e-5)
    assert torch.equal(torch.as_tensor(output.predictions), z)


def test_the_best_checkpoint_is_the_one_of_least_label_loss(tmp_path):
    data, teacher = Images(32), vit(2)
    with torch.no_grad():  # a teacher that knows better than the labels
        teacher.classifier.bias.copy_(torch.tensor([5.0, 0, 0, 0, 0]))
    trainer = trained(
        vit(1),
        tmp_path,
        teacher,
        data,
        data,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        per_device_eval_batch_size=32,
    )
    losses = [line["eval_loss"] for line in history(trainer) if "eval_loss" in line]
    divergences = [line["eval_teacher_kl"] for line in history(trainer) if "eval_loss" in line]
    assert losses == sorted(losses)
    assert divergences == sorted(divergences, reverse=True)
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-1"
    assert trainer.evaluate()["eval_loss"] == losses[0]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(objective="cwmt"), "objective='cwmt' is unknown. Did you mean 'cwtm'"),
        (
            dict(objective="focal"),
            "objective='focal' is unknown. It is one of kd, cwtm, dkpp, dkd",
        ),
        (dict(objective="kd,kd+label"), "lists, as in kd,kd.label, are arguments of a recipe"),
        (dict(teacher_weight=0.0), "teacher_weight and label_weight are both 0"),
        (dict(label_weight=-1.0), "label_weight=-1.0 must not be negative"),
        (dict(label_weight=float("nan")), "label_weight=nan must not be negative"),
        (dict(temperature=0.0), "temperature=0.0 must be above 0"),
        (dict(temperature=float("nan")), "temperature=nan must be above 0"),
        (dict(lr_milestones=[0.6, 0.3]), "must be rising fractions"),
        (dict(lr_milestones=[0.3, 0.3]), "must be rising fractions"),
        (dict(lr_milestones=[60, 120]), "must be rising fractions"),
        (dict(lr_milestones=[0.3], warmup_steps=5), "leave out warmup_steps"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


def named(labels: str, seed: int = 0) -> nn.Module:
    id2label = dict(enumerate(labels.split()))
    return vit(seed, id2label=id2label, label2id={label: i for i, label in id2label.items()})


def test_a_teacher_that_cannot_teach_is_refused(tmp_path):
    def refuse(message: str, student: nn.Module, teacher, **options) -> None:
        with pytest.raises(ValueError, match=message):
            BANTrainer(
                student, arguments(tmp_path), teacher=teacher, train_dataset=Images(), **options
            )

    student, sharing = vit(1), vit(2)
    sharing.classifier = student.classifier
    ViTModel(ViTConfig(hidden_size=16, num_attention_heads=2)).save_pretrained(tmp_path / "base")
    refuse("same object or share trainable weights", student, student)
    refuse("same object or share trainable weights", student, sharing)
    refuse("teacher has 7 classes and model has 5", student, vit(2, num_labels=7))
    refuse(
        "class 1 is 'cow' to the teacher and 'dog'", named("a dog cow d e"), named("a cow dog d e")
    )
    refuse("compute_loss_func and teacher exclude", student, vit(2), compute_loss_func=print)
    refuse("nowhere' cannot be loaded: it must be a folder", student, str(tmp_path / "nowhere"))
    refuse("ViTModel cannot be distilled: there must be a head", student, tmp_path / "base")
    with pytest.raises(ValueError, match=r"must give logits, as one with a head of"):
        trained(student, tmp_path, vit(2).vit)
    with pytest.raises(TypeError, match="args must be a BANTrainingArguments"):
        BANTrainer(student, TrainingArguments(str(tmp_path)), teacher=vit(2))


def test_named_labels_meet_placeholders_and_frozen_weights_may_be_shared(tmp_path):
    student, teacher = named("a b c d e"), vit(2)
    student.vit.embeddings = teacher.vit.embeddings.requires_grad_(False)
    trained(student, tmp_path, teacher, max_steps=1)
    assert distance(student.vit.embeddings, vit(2).vit.embeddings) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(label_weight=1.0), "label_weight=1.0 needs labels, but train_dataset has none"),
        (dict(objective="cwtm"), "objective 'cwtm' needs labels"),
        (dict(objective="dkd"), "objective 'dkd' needs labels"),
    ],
)
def test_what_needs_labels_says_so(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trained(vit(1), tmp_path, vit(2), Images(labels=False), **options)
