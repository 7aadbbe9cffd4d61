r"""Born-again image classifiers: a teacher, k generations of students, and their ensemble.

Without arguments: three generations of a small Wide-ResNet on scikit-learn's handwritten digits,
about two minutes on two CPU cores, no download.

The real thing (Furlanello et al. 2018, Tables 1 to 3), a file of recipes/configs each:

    accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_wrn_28_2.yaml

Flags override the file's values; any argument of BANTrainingArguments is a flag:

    accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_cpu.yaml \
        --dataset_name path/to/cifar100 --seed 1 --control

A Hub id, a local folder or a file of images will do as --dataset_name, and any model of timm as
--model_name. A run that was killed continues where it stopped when the same command is given again.
With --plan nothing is trained: it says how long the run will take, and how much disk it needs.

Several objectives are students of one teacher, trained once, as in the left half of Table 2; each
has a folder of its own, and one table and picture show them all:

    accelerate launch recipes/ban_cifar.py --objective kd,kd+label,cwtm,dkpp

With --push_to_hub --hub_model_id ns/family each generation is published as soon as it is finished,
the ensemble last. --teacher ns/family-gen2@commit continues from a published generation, --teacher
runs/family/generation-2 from one of yours.
"""

from pathlib import Path

from ban_hf import run_recipe

QUICKSTART = Path(__file__).parent / "configs" / "digits.yaml"
REAL = "accelerate launch recipes/ban_cifar.py recipes/configs/cifar100_wrn_28_2.yaml"

if __name__ == "__main__":
    run_recipe("image-classification", quickstart=QUICKSTART, real=REAL, description=__doc__)
