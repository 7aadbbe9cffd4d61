"""Born-Again Networks (Furlanello et al., ICML 2018) for the Hugging Face ecosystem."""

from importlib.metadata import version

from ban_hf.data import ImageSplits, ImageViews, collate, load_images
from ban_hf.ensemble import BornAgainEnsemble, BornAgainEnsembleConfig
from ban_hf.generations import train_generations
from ban_hf.image_family import run_image_family
from ban_hf.lineage import Lineage, Record, load_family
from ban_hf.metrics import compute_classification_metrics
from ban_hf.models import (
    CifarNetConfig,
    CifarNetForImageClassification,
    create_classifier,
    image_processor,
)
from ban_hf.objectives import OBJECTIVES
from ban_hf.recipe import parse_recipe
from ban_hf.trainer import BANTrainer
from ban_hf.training_args import BANTrainingArguments

__version__ = version("ban-hf")

__all__ = [
    "OBJECTIVES",
    "BANTrainer",
    "BANTrainingArguments",
    "BornAgainEnsemble",
    "BornAgainEnsembleConfig",
    "CifarNetConfig",
    "CifarNetForImageClassification",
    "ImageSplits",
    "ImageViews",
    "Lineage",
    "Record",
    "collate",
    "compute_classification_metrics",
    "create_classifier",
    "image_processor",
    "load_family",
    "load_images",
    "parse_recipe",
    "run_image_family",
    "train_generations",
]
