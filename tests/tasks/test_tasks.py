"""Tasks: found by a model's class, exact by the model's own word, or refused."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForTokenClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.modeling_outputs import ImageClassifierOutput

from ban_hf import BANTrainer, BornAgainEnsemble
from ban_hf.data.description import IGNORED
from ban_hf.errors import BANError
from ban_hf.lineage.catalog import CATALOG, LOWER_IS_BETTER, TaskFacts
from ban_hf.tasks.auto import TASKS, build_model, load_model, resolve_task, task_of
from ban_hf.tasks.base import Task, class_labels
from ban_hf.tasks.losses import check_label_loss

WORDS = tiny.VOCABULARY
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)


class OwnViTForImageClassification(ViTForImageClassification):
    """A user's subclass."""


class OwnForCausalLM(GPT2LMHeadModel):
    """A user's language model, which no Auto class knows by its own name."""


def deit(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return DeiTForImageClassificationWithTeacher(
        DeiTConfig(**SIZES, image_size=8, patch_size=4, num_labels=tiny.CLASSES)
    )


def bart(seed: int = 0) -> BartForCausalLM:
    """A decoder that takes its labels as they are, without a shift."""
    torch.manual_seed(seed)
    layers = dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, d_model=16)
    special = dict(pad_token_id=0, bos_token_id=0, eos_token_id=0, dropout=0.0)
    return BartForCausalLM(
        BartConfig(vocab_size=WORDS, max_position_embeddings=32, **layers, **special)
    )


def mixtral(seed: int = 0, **overrides) -> MixtralForCausalLM:
    """A mixture of experts, whose router adds a balance to the loss."""
    torch.manual_seed(seed)
    experts = dict(num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2)
    router = dict(output_router_logits=True, router_aux_loss_coef=0.5)
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=WORDS, **SIZES, **experts, **router | overrides)
    )


def ensemble(build, seed: int = 0) -> BornAgainEnsemble:
    return BornAgainEnsemble.from_members([build(seed), build(seed + 1)])


MODELS = {
    "image-classification": [
        tiny.vit,
        tiny.cifar,
        deit,
        lambda: OwnViTForImageClassification(tiny.vit().config),
        lambda: tiny.timm_model("test_vit"),
        lambda: ensemble(tiny.vit),
    ],
    "text-classification": [tiny.bert, lambda: ensemble(tiny.bert)],
    "text-generation": [
        tiny.gpt2,
        tiny.lstm,
        mixtral,
        lambda: OwnForCausalLM(tiny.gpt2().config),
        lambda: ensemble(tiny.lstm),
        lambda: BornAgainEnsemble.from_members([ensemble(tiny.lstm), tiny.gpt2()]),
    ],
}
CASES = [(name, build) for name, builds in MODELS.items() for build in builds]


def batch_of(task: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """Four rows with labels; one label, or the padding of a text, does not count."""
    rng = torch.Generator().manual_seed(0)
    if task == "text-generation":
        words = tiny.text(32).view(4, 8)
        mask = (torch.arange(8) < torch.tensor([8, 5, 2, 7])[:, None]).long()
        return {
            "input_ids": words,
            "attention_mask": mask,
            "labels": words.masked_fill(mask == 0, IGNORED),
        }
    labels = torch.tensor([0, IGNORED, 3, 4])
    if task == "text-classification":
        return {"input_ids": torch.randint(1, 30, (4, 6), generator=rng), "labels": labels}
    size = 8 if "ViT" in type(model).__name__ or "DeiT" in type(model).__name__ else 32
    if isinstance(model, BornAgainEnsemble):
        size = 8
    return {"pixel_values": torch.randn(4, 3, size, size, generator=rng), "labels": labels}


@pytest.mark.parametrize(("name", "build"), CASES)
def test_a_model_has_the_task_of_its_class_and_the_loss_that_it_reports(name, build, tmp_path):
    model = build()
    task = task_of(model)
    assert task is TASKS[name]
    batch = batch_of(name, model)
    if isinstance(model, tiny.LSTMForCausalLM | BornAgainEnsemble):
        batch.pop("attention_mask", None)
    assert check_label_loss(task, model, batch) == (
        WORDS if name == "text-generation" else tiny.CLASSES
    )
    if type(model) in (OwnViTForImageClassification, OwnForCausalLM):
        return  # no Auto class loads it
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert task_of(loaded.config) is task
    assert tiny.distance(loaded, model) == 0
    assert type(build_model(loaded.config)) is type(model)


class BareForImageClassification(PreTrainedModel):
    """A class of ours alone, by whose name transformers takes its loss to be that of images."""

    config_class = ViTConfig


def test_a_class_that_no_auto_class_knows_has_the_task_of_its_loss():
    model = BareForImageClassification(ViTConfig(**SIZES, attn_implementation="eager"))
    assert task_of(model) is TASKS["image-classification"]


def test_the_catalog_names_the_tasks():
    assert list(CATALOG) == list(TASKS)
    for name, task in TASKS.items():
        assert task.facts is CATALOG[name]
        for metric in task.facts.metrics:
            assert (metric.name in LOWER_IS_BETTER) is not metric.greater_is_better


# The check


def sentences(model_vocabulary: int = WORDS) -> list[dict[str, torch.Tensor]]:
    words = tiny.text(64).view(8, 8) % model_vocabulary
    return [{"input_ids": row, "labels": row} for row in words]


def trainer(folder, student, data, teacher=None, **options) -> BANTrainer:
    task = options.pop("task", None)
    arguments = tiny.arguments(folder, per_device_train_batch_size=4, max_steps=2, **options)
    return BANTrainer(
        student, arguments, teacher=teacher, task=task, train_dataset=data, eval_dataset=data
    )


class BackwardsForCausalLM(GPT2LMHeadModel):
    """A head that reads its labels as no task knows it."""

    def forward(self, input_ids, labels=None, **options):
        return super().forward(input_ids, labels=labels if labels is None else labels.flip(1))


@pytest.mark.parametrize("start", ["train", "evaluate"])
def test_a_head_that_reads_its_labels_otherwise_is_refused_with_both_losses(start, tmp_path):
    student, before = BackwardsForCausalLM(tiny.gpt2().config), tiny.gpt2(1).state_dict()
    student.load_state_dict(before)
    found = trainer(tmp_path, student, sentences(), tiny.gpt2(2) if start == "train" else None)
    with pytest.raises(BANError, match=r"BackwardsFor\S+ reports a loss of \d.* 'text-generation'"):
        getattr(found, start)()
    assert tiny.distance(found.model, tiny.gpt2(1)) == 0


def test_an_unshifted_head_is_refused_by_a_task_that_shifts():
    model = BertForTokenClassification(BertConfig(vocab_size=WORDS, **SIZES))
    assert task_of(model) is TASKS["token-classification"]
    batch = batch_of("text-generation", model)
    batch["labels"] = (batch["labels"] % 2).where(batch["labels"] != IGNORED, IGNORED)
    with pytest.raises(BANError, match="reads its labels in another way"):
        check_label_loss(TASKS["text-generation"], model, batch)


def test_the_check_leaves_no_trace():
    vit = tiny.vit(1, hidden_dropout_prob=0.5, problem_type=None)
    vit.classifier.eval()
    for model in (vit, tiny.cifar().train()):  # which has statistics of BatchNorm
        modes = [module.training for module in model.modules()]
        state, before, kind = torch.get_rng_state(), tiny.weights(model), model.config.problem_type
        check_label_loss(task_of(model), model, batch_of("image-classification", model))
        assert torch.equal(torch.get_rng_state(), state)
        assert tiny.distance(model, before) == 0
        assert [module.training for module in model.modules()] == modes
        # A forward with labels writes it, in transformers too.
        assert model.config.problem_type == kind or kind is None
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trainer_checks_once(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ban_hf.training.trainer.check_label_loss",
        lambda *args: seen.append(args) or tiny.CLASSES,
    )
    found = trainer(tmp_path, tiny.vit(1), tiny.Images(), tiny.vit(2))
    found.evaluate()
    found.train()
    found.evaluate()
    assert len(seen) == 1


def test_a_loss_of_the_users_own_is_not_checked(tmp_path):
    def half(outputs, labels, **_):
        return F.cross_entropy(outputs.logits, labels) / 2

    arguments = tiny.arguments(tmp_path, max_steps=1)
    options = dict(train_dataset=tiny.Images(), compute_loss_func=half)
    BANTrainer(tiny.vit(1), arguments, **options).train()


# What a model adds to its loss


def test_the_balance_of_a_router_is_added_under_a_teacher(tmp_path):
    losses = {}
    for coefficient in (0.0, 0.5):
        student = mixtral(1, router_aux_loss_coef=coefficient)
        found = trainer(tmp_path, student, sentences(), mixtral(2), learning_rate=0.0)
        found.train()
        losses[coefficient] = tiny.history(found)[0]["loss"]
    model, rows = mixtral(1), torch.stack([row["input_ids"] for row in sentences()])
    found = trainer(tmp_path, mixtral(1), sentences(), mixtral(2))
    order = torch.tensor(list(found.get_train_dataloader().sampler))[:4]
    with torch.no_grad():
        balance = model(rows[order], output_router_logits=True).aux_loss
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * balance.item(), rel=0.05)


def test_the_balance_of_a_router_is_that_of_the_whole_step(tmp_path):
    data = [sentences()[0]] * 8  # every micro-batch has the same balance
    whole = trainer(tmp_path, mixtral(1), data, mixtral(2))
    parts = trainer(tmp_path, mixtral(1), data, mixtral(2), gradient_accumulation_steps=2)
    parts.args.per_device_train_batch_size = 2
    parts._train_batch_size = 2
    for found in (whole, parts):
        found.train()
    assert tiny.distance(whole.model, mixtral(1)) > 1e-4
    assert tiny.distance(whole.model, parts.model) < 1e-5


# A task of one's own


class Tiny(nn.Module):
    """A classifier that no Auto class knows."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3 * 8 * 8, tiny.CLASSES)

    def forward(self, pixel_values, labels=None) -> ImageClassifierOutput:
        logits = self.head(pixel_values.flatten(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def test_a_model_of_ones_own_class_is_taught_as_the_task_that_is_named(tmp_path):
    found = trainer(
        tmp_path, Tiny(1), tiny.Images(), tiny.confident(tiny.vit(2)), task="image-classification"
    )
    first = found.evaluate()["eval_teacher_kl"]
    found.train()
    assert found.evaluate()["eval_teacher_kl"] < first
    with pytest.raises(BANError, match=r"Tiny cannot be distilled.* give BANTrainer its task"):
        trainer(tmp_path, Tiny(1), tiny.Images(), tiny.vit(2))


class FrameClassification(Task):
    """A class for each place of a sequence, not shifted."""

    facts = TaskFacts("frames", "AutoModelForTokenClassification")


def test_a_task_of_ones_own_makes_a_new_head_exact(tmp_path):
    def head(seed):
        torch.manual_seed(seed)
        config = BertConfig(vocab_size=WORDS, num_labels=3, **SIZES, hidden_dropout_prob=0.0)
        return BertForTokenClassification(config)

    data = [{**row, "labels": row["input_ids"] % 3} for row in sentences()]
    options = dict(task=FrameClassification(), label_weight=1.0, learning_rate=0.0)
    found = trainer(tmp_path, head(1), data, head(2), **options)
    found.train()
    found.evaluate()
    words = torch.stack([row["input_ids"] for row in data])
    with torch.no_grad():
        logits = head(1).eval()(words).logits
    expected = F.cross_entropy(logits.flatten(0, 1), words.flatten() % 3).item()
    assert found.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert {line["label_loss"] > 0 for line in tiny.history(found) if "label_loss" in line}


# Bad input


def test_a_name_that_fits_no_task_or_not_the_model_is_refused():
    with pytest.raises(BANError, match=r"'text-generatoin' is unknown\. Did you mean 'text-gen"):
        resolve_task("text-generatoin", tiny.gpt2())
    with pytest.raises(BANError, match=r"'text-generation' does not fit ViTForImageClass.*'image"):
        resolve_task("text-generation", tiny.vit())
    assert resolve_task("text-generation", tiny.gpt2()) is TASKS["text-generation"]


def test_a_model_without_a_head_is_refused():
    with pytest.raises(BANError, match="ViTModel cannot be distilled: there must be a head for"):
        task_of(ViTModel(ViTConfig(**SIZES)))


@pytest.mark.parametrize(
    ("value", "teacher", "place"),
    [(-1, None, 0), (tiny.CLASSES, tiny.vit, 0), (99, None, -1), (-1, tiny.vit, -1)],
)
def test_labels_that_are_no_class_are_named(value, teacher, place, tmp_path):
    data = tiny.Images(8)
    arguments = tiny.arguments(tmp_path, per_device_train_batch_size=4, max_steps=2)
    found = BANTrainer(tiny.vit(1), arguments, teacher=teacher and teacher(2), train_dataset=data)
    order = list(found.get_train_dataloader().sampler)
    data.labels[order[place]] = value
    with pytest.raises(BANError, match=rf"labels has the value {value}, but .* classes 0 to 4"):
        found.train()


def test_labels_of_another_shape_are_refused():
    with pytest.raises(BANError, match=r"class numbers of shape \(4,\).* not \(4, 5\)"):
        class_labels(torch.zeros(4, 5), torch.zeros(4))


def test_members_of_different_tasks_make_no_ensemble():
    classifier, model = tiny.bert(), tiny.gpt2()
    model.config.id2label = classifier.config.id2label
    with pytest.raises(BANError, match=r"members\[1\] is for text-generation, but members\[0\]"):
        BornAgainEnsemble.from_members([classifier, model])


def test_a_text_classifier_with_another_vocabulary_teaches_nobody(tmp_path):
    torch.manual_seed(0)
    config = tiny.bert().config.to_dict() | {"vocab_size": 31}
    teacher = type(tiny.bert())(BertConfig.from_dict(config))
    with pytest.raises(BANError, match="vocabulary of 31 and model one of 30"):
        BANTrainer(tiny.bert(1), tiny.arguments(tmp_path), teacher=teacher)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression", None])
def test_heads_that_predict_other_things_are_not_paired(kind, tmp_path):
    """Softmax of them would be a wrong number without an error, without labels even in training."""
    other = "single_label_classification" if kind != "regression" else "multi_label_classification"
    models = [tiny.vit(1, problem_type=kind), tiny.vit(2, problem_type=other)]
    if kind is None:  # which is one class until labels tell otherwise
        assert BornAgainEnsemble.from_members(models).activation == "softmax"
        return
    with pytest.raises(BANError, match=f"has problem_type='{other}' and model has '{kind}'"):
        BANTrainer(models[0], tiny.arguments(tmp_path), teacher=models[1])
    with pytest.raises(BANError, match=r"members\[1\] has another problem_type"):
        BornAgainEnsemble.from_members(models)
