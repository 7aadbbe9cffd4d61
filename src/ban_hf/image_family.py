"""A family of image classifiers from data to report: what `recipes/ban_cifar.py` runs."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from ban_hf.data import ImageSplits, collate
from ban_hf.evaluation import measure_family
from ban_hf.facts import architecture, describe_data
from ban_hf.generations import generation_seed, train_generations
from ban_hf.lineage import Lineage, Record
from ban_hf.metrics import compute_classification_metrics
from ban_hf.models import create_classifier, image_processor
from ban_hf.report import write_report
from ban_hf.training_args import BANTrainingArguments

CONTROL = "control"  # folder of the label-trained networks
CONTROL_SEEDS = 1_000_000  # beyond every generation's


def run_image_family(
    splits: ImageSplits,
    args: BANTrainingArguments,
    *,
    model_name: str,
    model_args: dict[str, Any] | None = None,
    generations: int = 3,
    control: bool = False,
    control_from: Sequence[str] = (),
    command: str = "",
) -> Lineage:
    """Train a teacher and `generations` students, measure them on the test set, and report.

    Leaves under `args.output_dir`: the generations, the ensemble, `lineage.json`, `results.json`,
    `results.md` and `results.png`; with `control`, also `control/1`, `control/2` and so on,
    label-trained networks, so that with generation 0 there are as many as the ensemble has members.

    Args:
        splits: from `load_images`; moved to the device of `args`.
        args: of every generation.
        model_name: see `create_classifier`.
        model_args: of the network.
        generations: number of students.
        control: whether to train the controls.
        control_from: output directories of runs of other seeds, whose generations 0 are controls
            that cost nothing more.
        command: how the run was started, for the report.
    """
    args = copy.copy(args)
    # ImageViews gives ready batches, on the device: there are no columns, and nothing to pin.
    args.remove_unused_columns = args.dataloader_pin_memory = False
    family = _family(splits, args, model_name, model_args or {})
    for folder in control_from:
        _check_control(Path(folder), args, splits, architecture(family["model_init"](0)))
    train = partial(train_generations, **family)
    lineage = train(args=args, generations=generations)
    members = max(2, generations) if control and generations else 1  # of the ensemble
    controls = [_alone(args, number) for number in range(1, members)]
    for alone in controls:
        train(args=alone, generations=0)
    if PartialState().is_main_process:
        folders = [alone.output_dir for alone in controls] + list(control_from)
        results = measure_family(args.output_dir, splits.test, controls=folders)
        name = Path(str(splits.source["id"])).name
        write_report(
            results
            | {
                "title": f"{model_name} on {name}",
                "command": command,
                "dataset": splits.source | {"name": name, "train_samples": len(splits.train)},
            },
            args.output_dir,
        )
        print((Path(args.output_dir) / "results.md").read_text("utf-8"))
    PartialState().wait_for_everyone()
    return lineage


def _family(
    splits: ImageSplits, args: BANTrainingArguments, model_name: str, model_args: dict[str, Any]
) -> dict[str, Any]:
    """What all calls of `train_generations` have in common."""
    for split in (splits.train, splits.validation, splits.test):
        if split is not None:
            split.to(args.device)
    train = splits.train
    mean, std, size = train.mean.tolist(), train.std.tolist(), train.images.shape[-1]

    def model_init(generation: int) -> PreTrainedModel:
        return create_classifier(
            model_name,
            label_names=train.label_names,
            image_size=size,
            image_mean=mean,
            image_std=std,
            **model_args,
        )

    return {
        "model_init": model_init,
        "train_dataset": train,
        "eval_dataset": splits.validation,
        "test_dataset": splits.test,
        "data_collator": collate,
        "compute_metrics": compute_classification_metrics,
        "processing_class": image_processor(size, mean, std),
        "data": {"source": splits.source},
    }


def _check_control(
    folder: Path, args: BANTrainingArguments, splits: ImageSplits, network: dict[str, Any]
) -> None:
    """Hold that a folder's generation 0 is a control: as ours, but for the seed."""
    try:
        record = Record.read(folder / "generation-0")
    except OSError as error:
        raise ValueError(f"control_from: {folder} holds no finished generation 0.") from error
    checks = {
        "has the same seed as this run": record.seed["family_seed"] == args.seed,
        "is another network": record.architecture != network,
        "was trained on other data": record.data["train"] != describe_data(splits.train),
    }
    for reason, is_so in checks.items():
        if is_so:
            raise ValueError(f"control_from: the generation 0 of {folder} {reason}.")


def _alone(args: BANTrainingArguments, number: int) -> BANTrainingArguments:
    """Arguments of the n-th label-trained network of another seed."""
    alone = copy.copy(args)
    alone.output_dir = str(Path(args.output_dir) / CONTROL / str(number))
    alone.seed = generation_seed(args.seed, CONTROL_SEEDS + number)
    return alone
