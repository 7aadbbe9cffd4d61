"""A family of image classifiers from data to report: what `recipes/ban_cifar.py` runs."""

import copy
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel

from ban_hf.data import ImageSplits, collate
from ban_hf.evaluation import measure_family
from ban_hf.generations import generation_seed, train_generations
from ban_hf.lineage import Lineage
from ban_hf.metrics import compute_classification_metrics
from ban_hf.models import create_classifier, image_processor
from ban_hf.report import write_report
from ban_hf.training_args import BANTrainingArguments

CONTROL = "control"  # folder of the label-trained networks; and what their seeds are drawn with


def run_image_family(
    splits: ImageSplits,
    args: BANTrainingArguments,
    *,
    model_name: str,
    model_args: dict[str, Any] | None = None,
    generations: int = 3,
    control: bool = False,
    command: str = "",
) -> Lineage:
    """Train a teacher and `generations` students, measure them on the test set, and report.

    Leaves under `args.output_dir`: the generations, the ensemble, `lineage.json`, `results.json`,
    `results.md` and `results.png`; with `control`, also `control/1`, `control/2` and so on,
    label-trained networks, so that with generation 0 there are as many as the ensemble has members.

    Args:
        splits: from `load_images`.
        args: of every generation.
        model_name: see `create_classifier`.
        model_args: of the network.
        generations: number of students.
        control: whether to train the controls.
        command: how the run was started, for the report.
    """
    args = copy.copy(args)
    # ImageViews gives ready batches, on the device: there are no columns, and nothing to pin.
    args.remove_unused_columns = args.dataloader_pin_memory = False
    train = splits.train.to(args.device)
    for split in (splits.validation, splits.test):
        if split is not None:
            split.to(args.device)
    mean, std = train.mean.tolist(), train.std.tolist()
    size = train.images.shape[-1]

    def model_init(generation: int) -> PreTrainedModel:
        return create_classifier(
            model_name,
            label_names=train.label_names,
            image_size=size,
            image_mean=mean,
            image_std=std,
            **model_args or {},
        )

    family = {
        "train_dataset": train,
        "eval_dataset": splits.validation,
        "test_dataset": splits.test,
        "data_collator": collate,
        "compute_metrics": compute_classification_metrics,
        "processing_class": image_processor(size, mean, std),
        "data": {"source": splits.source},
    }
    lineage = train_generations(model_init, args, generations=generations, **family)
    controls = []
    for number in range(1, generations if control else 1):
        alone = _alone(args, number)
        train_generations(model_init, alone, generations=0, **family)
        controls.append(alone.output_dir)
    if PartialState().is_main_process:
        results = measure_family(args.output_dir, splits.test, controls=controls)
        results |= {
            "title": f"{model_name} on {Path(str(splits.source['id'])).name}",
            "command": command,
            "dataset": splits.source | {"name": splits.source["id"], "train_samples": len(train)},
        }
        write_report(results, args.output_dir)
        print_results(Path(args.output_dir))
    PartialState().wait_for_everyone()
    return lineage


def _alone(args: BANTrainingArguments, number: int) -> BANTrainingArguments:
    """Arguments of the n-th label-trained network of another seed."""
    alone = copy.copy(args)
    alone.output_dir = str(Path(args.output_dir) / CONTROL / str(number))
    alone.seed = generation_seed(args.seed, 1_000_000 + number)  # beyond every generation's
    return alone


def print_results(output_dir: Path) -> None:
    """Print the table, and where the rest lies."""
    print((output_dir / "results.md").read_text("utf-8"))
    print(f"{output_dir}: generations, ensemble, results.json, results.md, results.png")
