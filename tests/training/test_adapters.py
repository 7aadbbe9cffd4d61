"""Adapters (PEFT) as student and teacher: exact, around one base that stays as it is."""

import copy
import json

import adapted
import heads
import pytest
import tiny
import torch
import torch.nn.functional as F
from peft import (
    AdaLoraConfig,
    LoraConfig,
    PeftModel,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ban_hf import BANError, BANTrainer, BornAgainEnsemble, task_of
from ban_hf.jobs.adapters import save_head
from ban_hf.models.adapters import base_of
from ban_hf.tasks.auto import load_model
from ban_hf.tasks.base import mean_logits


@pytest.fixture(params=adapted.KINDS)
def kind(request):
    return request.param


@pytest.fixture
def base(kind, tmp_path):
    return adapted.save_base(kind, tmp_path / kind)


def saved(model, folder):
    """The folder of an adapter, as a generation has it."""
    model.save_pretrained(folder)
    save_head(model, folder)
    return folder


def trainer(student, kind, tmp_path, teacher=None, **overrides):
    options = dict(per_device_train_batch_size=8, max_steps=3)
    return BANTrainer(
        student,
        tiny.arguments(tmp_path / "out", **options | overrides),
        teacher=teacher,
        train_dataset=adapted.data(kind),
        eval_dataset=adapted.data(kind, 10, 1),
    )


def closed_formula(z, t, kind):
    """The gradient of `kd` in the student's logits: (q - p) / N, of the places that count."""
    gap = (z.softmax(-1) - t.softmax(-1)).detach()
    if kind == "gpt2":  # the last word has no next one
        gap[:, -1] = 0
        return gap / (gap.shape[0] * (gap.shape[1] - 1))
    return gap / len(gap)


class TestStudent:
    def test_its_gradient_is_the_closed_formula(self, kind, base, tmp_path):
        teacher = saved(adapted.adapter(base, 1, trained=True), tmp_path / "teacher")
        student, same = (adapted.adapter(base, 2, trained=True) for _ in range(2))
        task = trainer(student, kind, tmp_path, str(teacher))
        rows = adapted.data(kind, 8)
        inputs = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        dropout = [m for m in student.modules() if isinstance(m, torch.nn.Dropout)]
        for module in dropout:
            module.p = 0.0
        batches, items = task.get_batch_samples(iter([inputs]), 1, torch.device("cpu"))
        student.train()
        task.training_step(student, batches[0], items)

        with torch.no_grad():
            t = load_model(teacher)(input_ids=inputs["input_ids"]).logits
        z = same(input_ids=inputs["input_ids"]).logits
        z.backward(closed_formula(z, t, kind))
        trained = [name for name, p in same.named_parameters() if p.requires_grad]
        assert any("lora_A" in name for name in trained)
        assert kind == "gpt2" or any("classifier.modules_to_save" in name for name in trained)
        for name in trained:
            ours, theirs = student.get_parameter(name).grad, same.get_parameter(name).grad
            assert theirs.abs().max() > 1e-5, name
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-8)
        assert all(p.grad is None for n, p in student.named_parameters() if n not in trained)

    def test_it_trains_beside_a_base_that_does_not_change(self, kind, base, tmp_path):
        student = adapted.adapter(base)
        before = tiny.weights(student)
        trainer(student, kind, tmp_path, adapted.adapter(base, 1, trained=True)).train()
        after = tiny.weights(student)
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all("lora_" in name or "modules_to_save" in name for name in moved)

    def test_without_a_teacher_it_is_trainer(self, kind, base, tmp_path):
        from transformers import Trainer, TrainingArguments

        ours, theirs = adapted.adapter(base), adapted.adapter(base)
        task = trainer(ours, kind, tmp_path)
        task.train()
        names = TrainingArguments.__dataclass_fields__.keys()
        args = {k: v for k, v in task.args.to_dict().items() if k in names}
        args = TrainingArguments(**args | {"output_dir": str(tmp_path / "theirs")})
        Trainer(theirs, args, train_dataset=adapted.data(kind)).train()
        assert tiny.distance(ours, theirs) == 0

    def test_its_task_is_its_bases(self, kind, base):
        model = adapted.adapter(base)
        assert task_of(model) is task_of(model.get_base_model())

    def test_an_evaluation_is_that_of_the_merged_model(self, kind, base, tmp_path):
        student = adapted.adapter(base, trained=True)
        teacher = adapted.adapter(base, 1, trained=True)
        merged = adapted.adapter(base, trained=True).merge_and_unload()
        found = trainer(student, kind, tmp_path, teacher).evaluate()
        expected = trainer(merged, kind, tmp_path, teacher).evaluate()
        names = ["eval_loss", "eval_teacher_kl", "eval_teacher_agreement"]
        names += ["eval_perplexity"] * (kind == "gpt2")
        for name in names:
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
        assert trainer(student, kind, tmp_path).evaluate()["eval_loss"] == pytest.approx(
            found["eval_loss"], rel=1e-5
        )

    def test_a_recurrent_base_carries_its_state(self, tmp_path):
        config = LoraConfig(target_modules=["lm_head"], r=2)  # as lora_B is 0, the same network
        student = get_peft_model(tiny.lstm(), config)
        found = tiny.reader(student, tmp_path / "out", teacher=tiny.lstm(1)).evaluate()
        expected = tiny.reader(tiny.lstm(), tmp_path / "out", teacher=tiny.lstm(1)).evaluate()
        for name in ("eval_loss", "eval_perplexity", "eval_teacher_kl"):
            assert found[name] == pytest.approx(expected[name], rel=1e-6)
        task = tiny.reader(student, tmp_path / "out", teacher=tiny.lstm(1), num_train_epochs=1)
        task.train()
        assert task.carried.recurrent == {"student", "teacher"}


@pytest.mark.parametrize("case", heads.FIRST, ids=lambda case: "-".join(map(str, case[1:])))
def test_an_adapter_of_each_head_has_the_loss_of_the_merged_model(case, tmp_path):
    torch.manual_seed(0)
    layers = r".*(query|q_proj|c_attn|\.q)"
    student = get_peft_model(heads.model_of(case, 1), LoraConfig(r=2, target_modules=layers))
    with torch.no_grad():
        for weight in student.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.3)
    merged = copy.deepcopy(student).merge_and_unload().requires_grad_(True)
    rows = heads.rows_of(heads.batch_of(case))
    options = dict(temperature=2.0, label_weight=0.5, remove_unused_columns=False, fast=False)
    found = []
    for model in (student, merged):
        task = BANTrainer(
            model,
            tiny.arguments(tmp_path, max_steps=1, learning_rate=0.0, **options),
            teacher=heads.model_of(case, 2),
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=heads.collate,
        )
        task.train()
        task.evaluate()
        found.append([{k: v for k, v in x.items() if "grad" not in k} for x in tiny.history(task)])
    assert {"teacher_loss", "label_loss", "loss"} <= found[0][0].keys()
    assert "eval_teacher_kl" in found[0][-1]
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


class TestTeacher:
    def test_a_folder_teaches_as_its_model_does(self, kind, base, tmp_path):
        model = adapted.adapter(base, 1, trained=True)
        expected = adapted.logits(model, kind)
        folder = saved(model, tmp_path / "teacher")
        task = trainer(adapted.adapter(base), kind, tmp_path, str(folder))
        assert torch.equal(adapted.logits(task.teacher, kind), expected)
        task.train()
        assert torch.equal(adapted.logits(task.teacher, kind), expected)

    def test_a_folder_shares_the_students_base(self, kind, base, tmp_path):
        folder = saved(adapted.adapter(base, 1, trained=True), tmp_path / "teacher")
        student = adapted.adapter(base)
        task = trainer(student, kind, tmp_path, str(folder))
        ours = {id(p) for p in student.parameters()}
        own = {n for n, p in task.teacher.named_parameters() if id(p) not in ours}
        assert all("lora_" in n or "classifier" in n for n in own), own
        assert own
        student.train()
        assert not any(module.training for module in task.teacher.modules())

    def test_another_base_is_not_shared(self, kind, base, tmp_path):
        other = adapted.save_base(kind, tmp_path / "other" / kind)
        network = load_for(kind, other)
        with torch.no_grad():
            next(network.parameters()).add_(1.0)
        network.save_pretrained(other)
        model = adapted.adapter(other, 1, trained=True)
        expected = adapted.logits(model, kind)
        folder = saved(model, tmp_path / "teacher")
        task = trainer(adapted.adapter(base), kind, tmp_path, str(folder))
        assert torch.equal(adapted.logits(task.teacher, kind), expected)

    def test_the_base_teaches_with_the_adapter_off(self, kind, base, tmp_path):
        student = adapted.adapter(base, trained=True)
        with student.disable_adapter():
            off = adapted.logits(student, kind)
        task = trainer(student, kind, tmp_path, student.get_base_model())
        assert torch.equal(adapted.logits(task.teacher, kind), off)
        on = adapted.logits(student, kind)
        assert not torch.equal(on, off)
        task.train()
        assert torch.equal(adapted.logits(task.teacher, kind), off)
        assert not torch.equal(adapted.logits(student, kind), on)
        frozen = {id(p) for p in student.parameters() if not p.requires_grad}
        assert sum(id(p) in frozen for p in task.teacher.parameters()) == len(frozen)

    def test_the_folder_of_the_base_is_the_adapter_off(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        student = adapted.adapter(base, trained=True)
        with student.disable_adapter():
            off = adapted.logits(student, "gpt2")
        task = trainer(student, "gpt2", tmp_path, str(base))
        assert torch.equal(adapted.logits(task.teacher, "gpt2"), off)
        ours = {id(p) for p in student.parameters()}
        assert all(id(p) in ours for p in task.teacher.parameters())
        assert task.teacher.lm_head.weight is task.teacher.transformer.wte.weight

    def test_self_distillation_of_a_fresh_adapter_has_no_gradient(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        student = adapted.adapter(base)  # lora_B is 0
        task = trainer(student, "gpt2", tmp_path, student.get_base_model(), max_steps=1)
        task.train()
        line = next(line for line in task.state.log_history if "teacher_loss" in line)
        assert line["teacher_loss"] == pytest.approx(0, abs=1e-7)

    def test_a_base_whose_biases_are_trained_cannot_teach(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        student = adapted.adapter(base, bias="all")
        with pytest.raises(BANError, match="bias='none'"):
            trainer(student, "gpt2", tmp_path, student.get_base_model())

    def test_a_base_that_is_cut_into_parts_cannot_teach(self, tmp_path, monkeypatch):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        student = adapted.adapter(base)
        monkeypatch.setattr("ban_hf.training.trainer.can_share_weights", lambda *given: False)
        with pytest.raises(BANError, match="FSDP"):
            trainer(student, "gpt2", tmp_path, student.get_base_model())
        task = trainer(student, "gpt2", tmp_path, str(base))
        ours = {id(p) for p in student.parameters()}
        assert not any(id(p) in ours for p in task.teacher.parameters())

    @pytest.mark.parametrize("before", [True, False])
    def test_gradient_checkpointing_changes_nothing(self, before, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        students = [adapted.adapter(base, trained=True) for _ in range(2)]
        if before:
            students[1].gradient_checkpointing_enable()
        for student, on in zip(students, (False, True), strict=True):
            teacher = student.get_base_model()
            options = dict(gradient_checkpointing=on, label_weight=1.0)
            trainer(student, "gpt2", tmp_path, teacher, **options).train()
        assert tiny.distance(*students) < 1e-6

    def test_the_student_itself_cannot_teach(self, kind, base, tmp_path):
        student = adapted.adapter(base)
        with pytest.raises(BANError, match="share trainable weights"):
            trainer(student, kind, tmp_path, student)

    def test_the_cache_tells_adapters_apart(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        student = adapted.adapter(base)
        teachers = [
            adapted.adapter(base, 1, trained=True),
            adapted.adapter(base, 1, trained=True, lora_alpha=8),
        ]
        twin = adapted.adapter(base, 1, trained=True)
        twin.base_model.disable_adapter_layers()
        keys = []
        for teacher in (*teachers, twin):
            task = tiny.reader(
                student, tmp_path / "out", teacher=teacher, teacher_cache=str(tmp_path / "cache")
            )
            frozen = task.frozen_teacher
            frozen._dataset, frozen._is_read = task.train_dataset, {}
            keys.append(json.dumps(frozen._key(), sort_keys=True))
        assert len(set(keys)) == 3


def load_for(kind, folder):
    if kind == "gpt2":
        return AutoModelForCausalLM.from_pretrained(folder)
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


class TestLoading:
    def test_a_saved_adapter_is_the_same_model(self, kind, base, tmp_path):
        model = adapted.adapter(base, trained=True, lora_dropout=0.5)
        expected = adapted.logits(model, kind)
        folder = saved(model, tmp_path / "adapter")
        torch.manual_seed(4)
        state = torch.get_rng_state()
        loaded = load_model(folder)
        assert torch.equal(torch.get_rng_state(), state)
        assert not loaded.training
        with torch.no_grad():
            assert torch.equal(loaded(**adapted.batch(kind)).logits, expected)
        assert loaded.config.id2label == base_of(model).config.id2label
        merged = load_model(folder, merged=True)
        torch.testing.assert_close(adapted.logits(merged, kind), expected, rtol=1e-5, atol=1e-5)
        assert not any("lora" in name for name in merged.state_dict())

    def test_transformers_and_peft_load_it_too(self, kind, base, tmp_path):
        model = adapted.adapter(base, trained=True)
        expected = adapted.logits(model, kind)
        folder = saved(model, tmp_path / "adapter")
        if kind == "gpt2":
            loaded = AutoModelForCausalLM.from_pretrained(folder)
        else:
            loaded = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=tiny.CLASSES
            )
        assert torch.equal(adapted.logits(loaded, kind), expected)

    @pytest.mark.parametrize("name", ["nowhere", None])
    def test_a_missing_base_is_one_clear_line(self, kind, base, tmp_path, name):
        folder = saved(adapted.adapter(base), tmp_path / "adapter")
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text()) | {"base_model_name_or_path": name}
        file.write_text(json.dumps(config))
        with pytest.raises(BANError, match="base_model_name_or_path") as error:
            trainer(adapted.adapter(base), kind, tmp_path, str(folder))
        assert "adapter" in str(error.value)

    def test_an_adapter_of_another_network_does_not_fit(self, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        folder = saved(adapted.adapter(base), tmp_path / "adapter")
        tiny.gpt2(n_layer=2, n_embd=8).save_pretrained(base)
        with pytest.raises(BANError, match="adapter"):
            load_model(folder)

    def test_a_head_that_nothing_holds_is_refused(self, tmp_path):
        base = adapted.save_base("bert", tmp_path / "bert")
        model = adapted.adapter(base, task_type=None, target_modules=["query"])
        folder = saved(model, tmp_path / "adapter")
        with pytest.raises(BANError, match=r"classifier\.(bias|weight) is missing"):
            load_model(folder)


class TestRefusals:
    def test_peft_is_asked_for_where_it_is_missing(self, tmp_path, monkeypatch):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        folder = saved(adapted.adapter(base), tmp_path / "adapter")
        monkeypatch.setattr("ban_hf.tasks.adapters.is_peft_available", lambda: False)
        with pytest.raises(BANError, match=r"ban-hf\[adapters\]"):
            load_model(folder)

    @pytest.mark.parametrize(
        "config",
        [
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], total_step=9),
            LoraConfig(task_type="CAUSAL_LM", alora_invocation_tokens=[1]),
        ],
        ids=lambda config: config.peft_type.value,
    )
    def test_an_adapter_that_does_more_than_to_add_layers(self, config, tmp_path):
        student = get_peft_model(tiny.gpt2(), config)
        with pytest.raises(BANError, match="LoraConfig"):
            trainer(student, "gpt2", tmp_path, tiny.gpt2(1))
        with pytest.raises(BANError, match="LoraConfig"):
            trainer(tiny.gpt2(1), "gpt2", tmp_path, student)


class TestEnsemble:
    def test_it_is_the_mean_of_its_adapters(self, kind, base, tmp_path):
        members = [adapted.adapter(base, seed, trained=True) for seed in (1, 2)]
        before = [tiny.weights(member) for member in members]
        found = BornAgainEnsemble.from_members(members)
        expected = mean_logits([adapted.logits(member, kind) for member in members])
        torch.testing.assert_close(
            adapted.logits(found, kind).softmax(-1), expected.softmax(-1), rtol=1e-4, atol=1e-6
        )
        assert [tiny.distance(*pair) for pair in zip(members, before, strict=True)] == [0, 0]
        found.save_pretrained(tmp_path / "ensemble")
        loaded = load_model(tmp_path / "ensemble")
        assert torch.equal(adapted.logits(loaded, kind), adapted.logits(found, kind))

    @pytest.mark.parametrize(
        "adapter",
        [
            {"target_modules": ["wte", "c_attn"]},
            {"target_modules": ["lm_head"]},
            {"target_modules": ["c_attn"], "trainable_token_indices": [1, 2]},
            {"use_dora": True, "use_rslora": True},
        ],
    )
    def test_merging_is_exact_where_a_softmax_is_tied_to_the_embedding(self, adapter, tmp_path):
        base = adapted.save_base("gpt2", tmp_path / "gpt2")
        model = adapted.adapter(base, 1, trained=True, **adapter)
        expected = adapted.logits(model, "gpt2")
        folder = saved(model, tmp_path / "adapter")
        ensemble = BornAgainEnsemble.from_members([model])
        ensemble.save_pretrained(tmp_path / "ensemble")
        assert torch.equal(adapted.logits(load_model(folder), "gpt2"), expected)
        for found in (load_model(folder, merged=True), load_model(tmp_path / "ensemble")):
            probs = adapted.logits(found, "gpt2").softmax(-1)
            torch.testing.assert_close(probs, expected.softmax(-1), rtol=1e-4, atol=1e-6)

    def test_layers_without_their_wrapper_are_refused(self, kind, base, tmp_path):
        folder = saved(adapted.adapter(base), tmp_path / "adapter")
        with pytest.raises(BANError, match=r"PeftModel\.from_pretrained"):
            BornAgainEnsemble.from_members([load_model(folder)] * 2)


def test_a_peft_model_of_a_user_teaches_without_a_change_to_its_weights(tmp_path):
    base = adapted.save_base("gpt2", tmp_path / "gpt2")
    teacher = adapted.adapter(base, 1, trained=True)
    ids = [id(p) for p in teacher.parameters()]
    task = trainer(adapted.adapter(base), "gpt2", tmp_path, teacher)
    assert isinstance(teacher, PeftModel)
    assert task.frozen_teacher.plain is teacher.get_base_model()
    assert [id(p) for p in teacher.parameters()] == ids


def test_kd_of_logits_is_what_the_log_says(kind, base, tmp_path):
    teacher = adapted.adapter(base, 1, trained=True)
    student = adapted.adapter(base, 2, trained=True)
    found = trainer(student, kind, tmp_path, teacher).evaluate()
    rows = torch.stack([row["input_ids"] for row in adapted.data(kind, 10, 1)])
    with torch.no_grad():
        z, t = student.eval()(input_ids=rows).logits, teacher(input_ids=rows).logits
    if kind == "gpt2":
        z, t = z[:, :-1], t[:, :-1]
    z, t = z.reshape(-1, z.shape[-1]), t.reshape(-1, t.shape[-1])
    kl = F.kl_div(z.log_softmax(1), t.softmax(1), reduction="batchmean")
    assert found["eval_teacher_kl"] == pytest.approx(float(kl), rel=1e-4)
