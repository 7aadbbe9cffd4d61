"""A tiny family, and what its tests ask of the files that it leaves."""

import copy
import hashlib
from dataclasses import fields
from pathlib import Path

import tiny
import torch
from transformers import (
    AutoModelForImageClassification,
    PreTrainedModel,
    TrainerCallback,
    ViTForImageClassification,
)

from ban_hf import (
    ImageViews,
    Lineage,
    collate,
    compute_classification_metrics,
    image_processor,
    train_generations,
)
from ban_hf.data import describe_data
from ban_hf.families import Families
from ban_hf.jobs.job import Setup
from ban_hf.jobs.setup import read_objectives

CONFIG = tiny.vit(hidden_dropout_prob=0.1).config
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
STEPS = 6  # of a generation: two epochs of three
TRAINING = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "max_steps": -1,
    "save_strategy": "steps",
    "save_steps": 2,
    "remove_unused_columns": False,
}
TRAINER = {
    "data_collator": collate,
    "compute_metrics": compute_classification_metrics,
    "processing_class": image_processor(8, MEAN, STD),
}


def network(generation: int) -> ViTForImageClassification:
    """A fresh vision transformer with dropout, from torch's global generator."""
    return ViTForImageClassification(copy.deepcopy(CONFIG))


def views(n: int = 24, seed: int = 0, augment: bool = True) -> ImageViews:
    """Random images of 8 x 8 pixels."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, 8, 8), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % tiny.CLASSES
    names = [f"LABEL_{i}" for i in range(tiny.CLASSES)]
    return ImageViews(images, labels, names, mean=MEAN, std=STD, augment=augment, pad=1)


def train(folder: Path, generations: int = 2, model_init=network, **changes) -> Lineage:
    """Train a family; `changes` are arguments of `train_generations`, or of the trainer."""
    of_family = (
        "train_dataset eval_dataset test_dataset callbacks ensemble family data teacher report"
    ).split()
    family = {name: changes.pop(name) for name in of_family if name in changes}
    datasets = {
        "train_dataset": views(),
        "eval_dataset": views(10, seed=1, augment=False),
        "test_dataset": views(10, seed=2, augment=False),
    }
    return train_generations(
        model_init,
        tiny.arguments(folder, **TRAINING | {"eval_strategy": "epoch"} | changes),
        generations=generations,
        **TRAINER | datasets | family,
    )


def families(
    folder: Path, objective: str = "kd", generations: int = 2, callbacks=None, **changes
) -> Families:
    """What a recipe makes of it; `changes` are arguments of `Setup`, `Families` or the training."""

    def chosen(kind: type) -> dict:
        return {f.name: changes.pop(f.name) for f in fields(kind) if f.name in changes}

    of_setup, of_families = chosen(Setup), chosen(Families)
    train, evaluation, test = (
        views(),
        views(10, seed=1, augment=False),
        views(10, seed=2, augment=False),
    )
    given = {
        "model_init": network,
        "train_dataset": train,
        "eval_dataset": evaluation,
        "test_dataset": test,
        "trainer": TRAINER | {"callbacks": callbacks},
        "data": {"train": describe_data(train), "test": describe_data(test)},
    }
    said = {"title": "tiny", "dataset": {"name": "random"}, "command": "a command"}
    return Families(
        Setup(**given | of_setup),
        tiny.arguments(folder, **TRAINING | changes),
        read_objectives(objective, None),
        generations,
        **said | of_families,
    )


class Killed(Exception):
    """The process was killed."""


class KillAt(TrainerCallback):
    """Kills the process at the beginning of a step of a generation."""

    def __init__(self, generation: int, step: int) -> None:
        self.generation, self.step = generation, step

    def on_step_begin(self, args, state, control, **kwargs):
        here = int(Path(args.output_dir).name.removeprefix("generation-"))
        if (here, state.global_step) == (self.generation, self.step):
            raise Killed


def listing(folder: Path) -> dict[str, str]:
    """sha256 of every file under a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def final_weights(folder: Path) -> dict[str, str]:
    """sha256 of the weights that a family left."""
    return {name: sha for name, sha in listing(folder).items() if name.endswith(".safetensors")}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file under a folder: what changes where one is written again."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def same_weights(model: PreTrainedModel, folder: Path) -> bool:
    """Whether a model has, bit for bit, the weights that lie in a folder."""
    return tiny.distance(model, AutoModelForImageClassification.from_pretrained(folder)) == 0
