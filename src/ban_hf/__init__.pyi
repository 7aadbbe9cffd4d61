"""The public names, and where each is: `__init__.py` imports it when it is first used."""

from .cli.recipe import run_recipe
from .data import (
    ImageSplits,
    ImageViews,
    TextSplits,
    TokenWindows,
    collate,
    load_images,
    load_text,
)
from .errors import BANError, HubError, LineageError, PublishError
from .hub.download import pull
from .hub.publishing import push_family, push_generation
from .hub.verification import load_lineage, verify_lineage
from .lineage.record import Lineage, Record, load_family
from .models import (
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
from .objectives import OBJECTIVES
from .sequence import train_generations
from .tasks.metrics import compute_classification_metrics
from .training.arguments import BANTrainingArguments
from .training.ensemble import BornAgainEnsemble, BornAgainEnsembleConfig
from .training.trainer import BANTrainer
