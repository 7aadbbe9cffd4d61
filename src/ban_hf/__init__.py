"""Born-Again Networks (Furlanello et al., ICML 2018) for the Hugging Face ecosystem."""

from importlib.metadata import version

from ban_hf.cli.recipe import (
    FamilyArguments,
    begin_recipe,
    parse_recipe,
    run_recipe,
    shareable_command,
)
from ban_hf.data import (
    ImageSplits,
    ImageViews,
    TextSplits,
    TokenWindows,
    collate,
    load_images,
    load_text,
)
from ban_hf.errors import HubError, LineageError, PublishError
from ban_hf.hub.download import pull
from ban_hf.hub.publishing import push_family, push_generation
from ban_hf.hub.verification import load_lineage, verify_lineage
from ban_hf.jobs.image_family import run_image_family
from ban_hf.jobs.language_family import run_language_family
from ban_hf.lineage.family import Lineage, load_family
from ban_hf.lineage.record import Record
from ban_hf.models import (
    CharCNNLSTMConfig,
    CharCNNLSTMForCausalLM,
    CifarNetConfig,
    CifarNetForImageClassification,
    LSTMConfig,
    LSTMForCausalLM,
    create_classifier,
    create_language_model,
    image_processor,
)
from ban_hf.objectives import OBJECTIVES
from ban_hf.sequence import train_generations
from ban_hf.tasks.metrics import compute_classification_metrics
from ban_hf.training.arguments import BANTrainingArguments
from ban_hf.training.ensemble import BornAgainEnsemble, BornAgainEnsembleConfig
from ban_hf.training.trainer import BANTrainer

__version__ = version("ban-hf")

__all__ = [
    "OBJECTIVES",
    "BANTrainer",
    "BANTrainingArguments",
    "BornAgainEnsemble",
    "BornAgainEnsembleConfig",
    "CharCNNLSTMConfig",
    "CharCNNLSTMForCausalLM",
    "CifarNetConfig",
    "CifarNetForImageClassification",
    "FamilyArguments",
    "HubError",
    "ImageSplits",
    "ImageViews",
    "LSTMConfig",
    "LSTMForCausalLM",
    "Lineage",
    "LineageError",
    "PublishError",
    "Record",
    "TextSplits",
    "TokenWindows",
    "begin_recipe",
    "collate",
    "compute_classification_metrics",
    "create_classifier",
    "create_language_model",
    "image_processor",
    "load_family",
    "load_images",
    "load_lineage",
    "load_text",
    "parse_recipe",
    "pull",
    "push_family",
    "push_generation",
    "run_image_family",
    "run_language_family",
    "run_recipe",
    "shareable_command",
    "train_generations",
    "verify_lineage",
]
