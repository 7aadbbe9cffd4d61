"""Without a teacher `BANTrainer` is `transformers.Trainer`: weights, logs, callbacks, arguments."""

import copy
import random

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import CLASSES, Images, arguments, bert, cifar, distance, gpt2, lstm, text, vit, weights
from torch import nn
from torch.utils.data import IterableDataset, Subset
from transformers import Trainer, TrainerCallback

from ban_hf import BANTrainer

SENTENCES = [{"input_ids": row, "labels": row} for row in text(88).view(11, 8)]


class Line(nn.Module):
    """A regression that is no `PreTrainedModel` and no task of ours, and draws random numbers."""

    def __init__(self, gives_tuple: bool = True) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))
        self.gives_tuple = gives_tuple
        self.config = None

    def forward(self, x, positions, target=None):
        y = self.slope * x + positions + 0.1 * torch.randn(()) + np.random.rand() + random.random()
        outputs = {"y": y}
        if target is not None:
            outputs = {"loss": F.mse_loss(y, target), "y": y}
        return tuple(outputs.values()) if self.gives_tuple else outputs


def giving_tuples(model):
    model.config.return_dict = False
    return model


def points(n: int = 22) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, 2)).astype("float32")
    return [{"x": x, "positions": p, "target": 2 * x} for x, p in rows]


class Stream(IterableDataset):
    def __init__(self, items) -> None:
        self.items = items

    def __iter__(self):
        for i in range(len(self.items)):
            yield self.items[i]


class Poisoned(Images):
    """Images of which the third is not a number."""

    def __getitem__(self, i: int) -> dict:
        item = super().__getitem__(i)
        return item | {"pixel_values": item["pixel_values"] * torch.nan} if i == 2 else item


class Watching(TrainerCallback):
    """Notes which callbacks there are while a training runs."""

    def on_step_end(self, args, state, control, **kwargs):
        self.found = [type(callback) for callback in self.trainer.callback_handler.callbacks]


def own_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs["logits"]
    return 0.3 * F.cross_entropy(logits.flatten(0, -2), labels.flatten())


class Metrics:
    """Keeps all that it is given."""

    def __init__(self, names=("predictions", "label_ids", "inputs", "losses")) -> None:
        self.names, self.given = names, []

    def __call__(self, prediction, compute_result=True):
        for name in self.names:
            part = getattr(prediction, name)
            arrays = part.values() if isinstance(part, dict) else [part]
            self.given += [torch.as_tensor(array) for array in arrays if array is not None]
        return {"count": len(self.given)}


def line_case(**changes):
    return dict(model=Line, data=points(), label_names=["target"], max_grad_norm=1.0) | changes


EVERYTHING = ["inputs", "loss"]
#: For each case the model, the data, arguments of `Trainer`, and, by other names, of the training.
CASES = {
    "a model that no task knows": line_case(),
    "a dictionary without logits": line_case(model=lambda: Line(gives_tuple=False)),
    "label_names that no item has": line_case(label_names=["target", "other"]),
    "no labels in evaluations": line_case(label_names=None),
    "a stream": line_case(data=Stream(points()), evaluation=Stream(points(9))),
    "a stream of images": dict(data=Stream(Images(22)), evaluation=Stream(Images(9))),
    "datasets.Dataset": line_case(data=datasets.Dataset.from_list(points())),
    "datasets.IterableDataset": line_case(
        data=datasets.Dataset.from_list(points()).to_iterable_dataset()
    ),
    "a subset": dict(data=Subset(Images(22), range(3, 20))),
    "epochs": dict(max_steps=-1, num_train_epochs=2, eval_strategy="epoch"),
    "several evaluation sets": dict(evaluation={"a": Images(9, seed=1), "b": Images(5, seed=2)}),
    "losses that are no numbers": dict(data=Poisoned(22)),
    "filtered": dict(data=Poisoned(22), evaluation=None, logging_nan_inf_filter=True),
    "tuples": dict(model=lambda: giving_tuples(cifar(1)), data=Images(22, 32)),
    "tuples of words": dict(model=lambda: giving_tuples(lstm(1)), data=SENTENCES, evaluation=None),
    "batch_eval_metrics": dict(batch_eval_metrics=True, include_for_metrics=EVERYTHING),
    "include_for_metrics": dict(include_for_metrics=EVERYTHING),
    "prediction_loss_only": dict(prediction_loss_only=True),
    "preprocess_logits_for_metrics": dict(preprocess_logits_for_metrics=lambda x, _: x.argmax(-1)),
    "a loss of one's own": dict(compute_loss_func=own_loss),
    "a loss of one's own for words": dict(
        model=lambda: gpt2(1), data=SENTENCES, compute_loss_func=own_loss
    ),
    "gradient checkpointing": dict(
        model=lambda: gpt2(1, resid_pdrop=0.1),
        data=SENTENCES,
        evaluation=None,
        gradient_checkpointing=True,
    ),
    "label smoothing": dict(label_smoothing_factor=0.1),
    "compiled": dict(torch_compile=True, torch_compile_backend="eager"),
    "the best checkpoint": line_case(  # of a ViT Trainer loads none: save_pretrained renames it
        load_best_model_at_end=True, save_strategy="steps", save_steps=2, save_total_limit=1
    ),
    "the model is built by a function": dict(model_init=lambda: vit(1, hidden_dropout_prob=0.2)),
}
OF_TRAINER = ("model_init", "compute_loss_func", "preprocess_logits_for_metrics")


def build(kind, output_dir, model=None, data=None, **changes):
    """A trainer, its arguments as they were, its metrics, and the callbacks that it ran with."""
    data = Images(22) if data is None else data
    evaluation = changes.pop("evaluation", data)
    options = {name: changes.pop(name) for name in OF_TRAINER if name in changes}
    if "model_init" not in options:
        options["model"] = vit(1, hidden_dropout_prob=0.2) if model is None else model()
    defaults = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=5)
    evaluates = dict(eval_strategy="no" if evaluation is None else "steps", eval_steps=2)
    args = arguments(output_dir, **defaults | evaluates | dict(optim="adamw_torch") | changes)
    before, watching, metrics = copy.deepcopy(args.to_dict()), Watching(), Metrics()
    trainer = kind(
        args=args,
        train_dataset=data,
        eval_dataset=evaluation,
        compute_metrics=metrics,
        callbacks=[watching],
        **options,
    )
    watching.trainer = trainer
    assert trainer.args is args
    return trainer, before, metrics, watching


def logs(trainer) -> list[dict[str, str]]:
    """What was logged, without times; as text, so that NaN equals NaN.

    The loss of an evaluation to six digits: it is our mean over items, not that over batches.
    """
    times = ("runtime", "per_second", "preparation_time")
    return [
        {
            name: f"{value:.6g}"
            if name.startswith("eval") and name.endswith("loss")
            else repr(value)
            for name, value in line.items()
            if not name.endswith(times)
        }
        for line in trainer.state.log_history
    ]


def random_states() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_a_teacher_all_is_as_with_the_stock_class(case, tmp_path):
    runs = []
    for kind in (Trainer, BANTrainer):
        trainer, before, metrics, watching = build(kind, tmp_path, **case)
        first = copy.deepcopy(trainer.model)
        callbacks = [type(callback) for callback in trainer.callback_handler.callbacks]
        trainer.train()
        assert trainer.args.to_dict() == before
        if "Poisoned" not in str(case):
            assert distance(trainer.model, first) > 0
        runs.append((trainer, callbacks, watching.found, logs(trainer), random_states(), metrics))
    (stock, *theirs, given), (ours, *found, also_given) = runs
    for mine, expected in zip(found, theirs, strict=True):
        assert mine == expected
    for key, tensor in weights(stock.model).items():
        torch.testing.assert_close(
            ours.model.state_dict()[key], tensor, rtol=0, atol=0, equal_nan=True
        )
    assert len(given.given) == len(also_given.given)
    for mine, expected in zip(also_given.given, given.given, strict=True):  # with losses of batches
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "case", [dict(model=lambda: bert(1)), line_case()], ids=["words", "points"]
)
def test_a_training_is_resumed_as_with_the_stock_class(case, tmp_path):
    if "data" not in case:
        case["data"] = [
            {"input_ids": row["input_ids"], "labels": i % 5} for i, row in enumerate(SENTENCES)
        ]
    options = dict(save_strategy="steps", save_steps=2, eval_strategy="no", evaluation=None)
    runs = []
    for kind in (Trainer, BANTrainer):
        build(kind, tmp_path / kind.__name__, **case, **options)[0].train()
        trainer, *_ = build(kind, tmp_path / kind.__name__, **case, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / kind.__name__ / "checkpoint-2"))
        runs.append(trainer)
    assert runs[0].state.global_step == 5
    assert logs(runs[0]) == logs(runs[1])
    assert distance(runs[0].model, runs[1].model) == 0


class Chained:
    """Two loaders, one after the other, with no more than a loader must have."""

    def __init__(self, *loaders) -> None:
        self.loaders = loaders

    def __len__(self):
        return sum(map(len, self.loaders))

    def __iter__(self):
        for loader in self.loaders:
            yield from loader


class WithChainedLoaders:
    def get_train_dataloader(self):
        return Chained(super().get_train_dataloader(), super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset=None):
        loaders = [super(WithChainedLoaders, self).get_eval_dataloader() for _ in range(2)]
        return Chained(*loaders)


@pytest.mark.parametrize("case", [{}, line_case()], ids=["images", "points"])
def test_a_loader_needs_no_dataset(case, tmp_path):
    runs = []
    for kind in (Trainer, BANTrainer):
        chained = type("ChainedTrainer", (WithChainedLoaders, kind), {})
        trainer = build(chained, tmp_path, **case, max_steps=-1, num_train_epochs=1)[0]
        trainer.train()
        runs.append(trainer)
    assert runs[0].state.global_step > len(Images(22)) // 8 + 1  # more than of one loader
    assert logs(runs[0]) == logs(runs[1])
    assert distance(runs[0].model, runs[1].model) == 0


def test_the_check_of_the_labels_draws_no_random_number_and_leaves_the_model_as_it_was(tmp_path):
    """On a classifier whose forward draws from all generators, in evaluation mode too."""

    class NoisyForImageClassification(type(vit())):
        calls = 0

        def forward(self, pixel_values, labels=None):
            self.calls += 1
            noise = torch.randn(()) + np.random.rand() + random.random()
            return super().forward(pixel_values + 0 * noise, labels)

    trainer, *_ = build(
        BANTrainer, tmp_path, model=lambda: NoisyForImageClassification(vit(1).config)
    )
    batch = next(iter(trainer.get_train_dataloader()))
    states, before = random_states(), weights(trainer.model)
    config = trainer.model.config.to_dict()
    trainer._check_labels(batch)
    assert trainer.model.calls == 2
    assert trainer._classes == CLASSES
    assert random_states() == states
    assert distance(trainer.model, before) == 0
    learned = {"problem_type": "single_label_classification"}  # as by the first step
    assert trainer.model.config.to_dict() == config | learned
    assert trainer.model.training


def test_the_task_of_a_model_that_no_task_knows_is_asked_for_in_vain(tmp_path):
    trainer, *_ = build(BANTrainer, tmp_path, **line_case())
    with pytest.raises(ValueError, match="Line cannot be distilled"):
        _ = trainer.task
