r"""Born-again image classifiers: a teacher, k generations of students, and their ensemble.

Without arguments: three generations of a small Wide-ResNet on scikit-learn's handwritten digits,
about two minutes on two CPU cores, no download.

The real thing (Furlanello et al. 2018, Tables 1 to 3), a file of recipes/configs each:

    accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_wrn_28_2.yaml

Flags override the file's values; any argument of BANTrainingArguments is a flag:

    accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_cpu.yaml \
        --dataset_name path/to/cifar100 --seed 1 --control

A Hub id, a local folder or a file of images will do as --dataset_name, and any model of timm as
--model_name. A run that was killed goes on where it stopped when the same command is given again.
"""

import json
import logging
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

import ban_hf
from ban_hf import BANTrainingArguments

QUICKSTART = Path(__file__).parent / "configs" / "digits.yaml"


@dataclass
class ImageArguments:
    """What is trained, and on what."""

    dataset_name: str = field(
        default="digits",
        metadata={"help": "cifar10, cifar100, digits, a Hub id, a local folder, or a file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Of a Hub dataset."})
    image_column: str | None = field(default=None, metadata={"help": "By default by its type."})
    label_column: str | None = field(
        default=None, metadata={"help": "By default the ClassLabel column with the most classes."}
    )
    image_size: int | None = field(default=None, metadata={"help": "Side to resize to."})
    validation: float = field(
        default=0.1, metadata={"help": "Fraction of the training images held out for validation."}
    )
    split_seed: int = field(default=0, metadata={"help": "Of the validation split alone."})
    train_samples: int | None = field(
        default=None, metadata={"help": "Train on this many images, stratified. Default: all."}
    )
    model_name: str = field(
        default="cifar_wrn_16_1",
        metadata={"help": "cifar_wrn_28_10, cifar_densenet_90_60, ..., or any name of timm."},
    )
    model_args: str = field(
        default="{}", metadata={"help": "Arguments of the network, as JSON: '{\"dropout\": 0.3}'."}
    )
    generations: int = field(default=3, metadata={"help": "Number of students after the teacher."})
    control: bool = field(
        default=False,
        metadata={"help": "Train label-trained networks too, as many as the ensemble has members."},
    )
    control_from: list[str] = field(
        default_factory=list,
        metadata={"help": "Output directories of other seeds: take their teachers as controls."},
    )
    smoke: bool = field(default=False, metadata={"help": "Shrink the run to seconds, on digits."})

    def __post_init__(self) -> None:
        try:
            self.network_args = json.loads(self.model_args)
        except json.JSONDecodeError as error:
            raise ValueError(f"model_args={self.model_args!r} is not JSON: {error}") from error
        if not isinstance(self.network_args, dict):
            raise ValueError(f"model_args={self.model_args!r} must be a JSON object of names.")


def shrink(image: ImageArguments, args: BANTrainingArguments) -> None:
    """Two generations of a step each, on eight digits of 8x8 pixels."""
    image.dataset_name, image.dataset_config = "digits", None
    image.image_column = image.label_column = None
    image.image_size, image.train_samples = 8, 8
    image.generations = min(2, image.generations)
    args.num_train_epochs, args.max_steps, args.logging_steps = 1, -1, 1
    args.per_device_train_batch_size = 8


def print_first_line(image: ImageArguments, args: BANTrainingArguments, argv: list[str]) -> None:
    """What is about to run, and how to run the real thing."""
    if args.process_index:
        return
    real = "accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_wrn_28_2.yaml"
    print(
        f"{image.model_name} on {image.dataset_name}: a teacher and {image.generations} students, "
        f"{args.num_train_epochs:g} epochs each, into {args.output_dir}."
        + ("" if argv else f" This is the quickstart; the real thing: {real}"),
        flush=True,
    )
    threads, cores = torch.get_num_threads(), os.cpu_count()
    if args.device.type == "cpu" and threads == 1 and cores > 1:  # what accelerate launch sets
        print(f"On one of {cores} cores: put OMP_NUM_THREADS={cores} before the command for all.")


def main(argv: list[str]) -> None:
    """Train, measure, report."""
    image, args = ban_hf.parse_recipe(
        (ImageArguments, BANTrainingArguments), argv, quickstart=QUICKSTART, description=__doc__
    )
    transformers.utils.logging.disable_progress_bar()  # of every load and save; training's stays
    if image.smoke:
        shrink(image, args)
        if not any(word.startswith("--output_dir") for word in argv):
            args.output_dir += "-smoke"
    print_first_line(image, args, argv)
    splits = ban_hf.load_images(
        image.dataset_name,
        config=image.dataset_config,
        image_column=image.image_column,
        label_column=image.label_column,
        image_size=image.image_size,
        validation=image.validation,
        train_samples=image.train_samples,
        seed=image.split_seed,
    )
    if image.smoke:
        splits.validation, splits.test = (
            part and part.select(range(16), augment=False)
            for part in (splits.validation, splits.test)
        )
    ban_hf.run_image_family(
        splits,
        args,
        model_name=image.model_name,
        model_args=image.network_args,
        generations=image.generations,
        control=image.control,
        control_from=image.control_from,
        command=shlex.join(["accelerate", "launch", "recipes/ban_cifar.py", *argv]),
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError) as error:
        logging.getLogger("ban_hf").debug("", exc_info=True)
        sys.exit(f"ban_cifar.py: error: {error}")
