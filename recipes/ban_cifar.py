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
With --plan nothing is trained: it says how long the run will take, and how much disk it needs.

Several objectives are students of one teacher, trained once, as in the left half of Table 2; each
has a folder of its own, and one table and picture show them all:

    accelerate launch recipes/ban_cifar.py --objective kd,kd+label,cwtm,dkpp

With --push_to_hub --hub_model_id ns/family each generation is published as soon as it is finished,
the ensemble last. --teacher ns/family-gen2@commit goes on from somebody's generation, --teacher
runs/family/generation-2 from one of yours.
"""

from dataclasses import dataclass, field
from pathlib import Path

import ban_hf
from ban_hf import BANTrainingArguments, FamilyArguments

QUICKSTART = Path(__file__).parent / "configs" / "digits.yaml"
REAL = "accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_wrn_28_2.yaml"


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


def shrink(image: ImageArguments, args: BANTrainingArguments) -> None:
    """A step a generation, on eight digits of 8x8 pixels."""
    image.dataset_name, image.dataset_config = "digits", None
    image.image_column = image.label_column = None
    image.image_size, image.train_samples = 8, 8
    args.per_device_train_batch_size = 8


def main(argv: list[str]) -> None:
    """Train, measure, report."""
    image, family, args = ban_hf.parse_recipe(
        (ImageArguments, FamilyArguments, BANTrainingArguments),
        argv,
        quickstart=QUICKSTART,
        description=__doc__,
    )
    if family.smoke:
        shrink(image, args)
    ban_hf.begin_recipe(
        f"{image.model_name} on {image.dataset_name}", family, args, argv, real=REAL
    )
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
    if family.smoke:
        splits.validation, splits.test = (
            part and part.select(range(16), augment=False)
            for part in (splits.validation, splits.test)
        )
    ban_hf.run_image_family(
        splits,
        args,
        model_name=image.model_name,
        model_args=family.network_args,
        generations=family.generations,
        control=family.control,
        control_from=family.control_from,
        teacher=family.teacher,
        command=ban_hf.shareable_command("ban_cifar.py", argv, args.hub_token),
        plan=family.plan,
    )


if __name__ == "__main__":
    ban_hf.run_recipe(main)
