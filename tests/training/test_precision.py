"""The fast path: chosen by what the hardware computes, and no other result but by rounding."""

import logging

import pytest
import tiny
import torch
from family import views
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from ban_hf import BANTrainer, Record, collate, train_generations
from ban_hf.training import performance as precision
from ban_hf.training.arguments import fast_arguments

BFLOAT16 = {"avx512_bf16": True}


def trainer(folder, student=None, teacher=None, callbacks=None, **changes):
    """A trainer of a Wide-ResNet with another as its teacher, on 24 images of 8 x 8."""
    options = dict(remove_unused_columns=False, per_device_train_batch_size=8)
    return BANTrainer(
        tiny.cifar(1) if student is None else student,
        tiny.arguments(folder, **options | changes),
        teacher=tiny.cifar(2) if teacher is None else teacher,
        train_dataset=views(24),
        data_collator=collate,
        callbacks=callbacks,
    )


def is_channels_last(model) -> bool:
    kernels = [p for p in model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    return all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.fixture
def bfloat16(monkeypatch):
    """A CPU that reports to compute bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: BFLOAT16)


@pytest.mark.parametrize(
    ("capabilities", "computes"),
    [
        ({"amx_bf16": True}, True),
        (BFLOAT16, True),
        ({"avx2": True, "avx512_f": True, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_a_cpu_computes_bfloat16_where_it_has_instructions_for_it(
    capabilities, computes, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.computes_bfloat16(torch.device("cpu")) is computes


@pytest.mark.parametrize(
    ("network", "changes", "found"),
    [
        (tiny.cifar, {}, (True, True, "bf16")),
        (tiny.cifar, {"fast": False}, (False, False, "no")),
        (tiny.cifar, {"fp16": True, "mixed_precision": "fp16"}, (True, False, "fp16")),
        (tiny.vit, {}, (True, False, "no")),  # its first layer alone convolves
        (tiny.lstm, {}, (True, False, "no")),
    ],
    ids=["convolutional", "not fast", "given", "patches", "recurrent"],
)
def test_bfloat16_is_for_convolutional_networks_alone(network, changes, found, bfloat16, tmp_path):
    given = tiny.arguments(tmp_path)
    vars(given).update(changes)  # fp16 may be given on a GPU alone
    before = dict(vars(given))
    fast = fast_arguments(given, network())
    assert (fast.fast, fast.bf16, fast.mixed_precision) == found
    assert vars(given) == before


def test_student_and_teacher_run_in_bfloat16_where_it_is_computed(bfloat16, tmp_path, caplog):
    caplog.set_level(logging.INFO, "ban_hf")
    precision.log_once.cache_clear()
    trained = trainer(tmp_path, max_steps=1)
    seen = []
    for model in (trained.model, trained.teacher):
        model.network.stem.conv.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    trained.train()
    assert seen == [torch.bfloat16] * 4  # the student twice more: its labels are checked
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())
    assert "CifarNetForImageClassification on cpu: bfloat16, channels-last" in caplog.messages


def test_every_generation_of_a_sequence_is_fast_and_its_record_says_so(bfloat16, tmp_path):
    def family(**changes):
        options = dict(remove_unused_columns=False, max_steps=1, per_device_train_batch_size=8)
        return train_generations(
            lambda generation: tiny.cifar(torch.initial_seed() % 1000),
            tiny.arguments(tmp_path, **options | changes),
            generations=1,
            train_dataset=views(24),
            data_collator=collate,
            ensemble=False,
        )

    family()
    for generation in range(2):
        arguments = Record.read(tmp_path / f"generation-{generation}").training.arguments
        assert (arguments["fast"], arguments["bf16"]) == (True, True)
    with pytest.raises(ValueError, match="bf16: True there, False here; fast: True there, False"):
        family(fast=False)


def test_channels_last_changes_nothing_but_rounding(tmp_path):
    fast, slow = trainer(tmp_path / "fast"), trainer(tmp_path / "slow", fast=False)
    assert is_channels_last(fast.model)
    assert is_channels_last(fast.teacher)
    assert not is_channels_last(slow.model)
    for taught in (fast, slow):
        taught.train()
    assert 0 < tiny.distance(fast.model, slow.model) < 1e-4
    assert is_channels_last(fast.model)


def test_a_checkpoint_in_channels_last_goes_on_bit_for_bit(tmp_path):
    options = dict(save_strategy="steps", save_steps=2, max_steps=3)
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    trainer(tmp_path / "cut", **options).train()
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(str(tmp_path / "cut" / "checkpoint-2"))
    assert tiny.distance(resumed.model, whole.model) == 0


class Reads(TorchDispatchMode):
    """Counts what a host reads of tensors: on a GPU each would wait for it."""

    READING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name in self.READING:
            self.found.append(name)
        return function(*args, **kwargs or {})


class CountReads(TrainerCallback):
    """The reads between the beginning and the end of each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[list[str]] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.mode = Reads()
        self.mode.__enter__()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.mode.__exit__(None, None, None)
        self.steps.append(self.mode.found)


@pytest.mark.parametrize("objective", ["kd", "cwtm", "dkpp", "dkd"])
def test_a_step_reads_no_tensor_on_the_host(objective, tmp_path):
    counts = CountReads()
    options = dict(objective=objective, label_weight=1.0, logging_steps=100, max_steps=2)
    trainer(tmp_path, callbacks=[counts], **options).train()
    assert counts.steps == [[], []]


def test_asking_and_replaying_a_teacher_read_nothing_either(tmp_path):
    for _ in ("asked", "replayed"):
        options = dict(max_steps=3, logging_steps=100)  # an epoch
        taught = trainer(tmp_path, teacher_cache=str(tmp_path / "cache"), **options)
        outputs_of, found = taught.frozen_teacher.outputs, []

        def watched(*args, outputs_of=outputs_of, found=found):
            with Reads() as mode:
                outputs = outputs_of(*args)
            found.extend(mode.found)
            return outputs

        taught.frozen_teacher.outputs = watched
        taught.train()
        assert found == []


@pytest.mark.slow
def test_compiled_networks_learn_the_same_and_their_graph_breaks_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "ban_hf")
    torch._dynamo.reset()
    plain = trainer(tmp_path / "plain", tiny.vit(1), tiny.vit(2), max_steps=2)
    plain.train()
    options = dict(torch_compile=True, torch_compile_backend="aot_eager", max_steps=2)
    compiled = trainer(tmp_path / "compiled", tiny.vit(1), tiny.vit(2), **options)
    compiled.train()
    assert tiny.distance(plain.model, compiled.model) < 1e-5
    assert any(m.endswith("graphs, 0 graph breaks") for m in caplog.messages)
    assert type(compiled.teacher).__name__ == "OptimizedModule"


def test_trainers_of_different_precision_follow_one_another(bfloat16, tmp_path):
    given = tiny.arguments(tmp_path, remove_unused_columns=False, fast=True, max_steps=1)
    data = dict(train_dataset=views(24), data_collator=collate)
    found = []
    for network in (tiny.vit, tiny.cifar, tiny.vit):
        taught = BANTrainer(network(1), given, teacher=network(2), **data)
        taught.train()
        found.append(taught.accelerator.mixed_precision)
    assert found == ["no", "bf16", "no"]
