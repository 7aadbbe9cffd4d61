"""Networks. Importing this package makes transformers' Auto classes know ours.

timm, which takes seconds to import, is loaded when a network of it is built.
"""

import sys

from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from .configuration import CharCNNLSTMConfig, CifarNetConfig, LSTMConfig
from .factory import (
    LANGUAGE_PRESETS,
    PRESETS,
    check_model_args,
    create_classifier,
    create_language_model,
    create_model,
    image_processor,
    register_with_timm,
    share_ends,
    vocabulary_digest,
)
from .modeling_char_cnn_lstm import CharCNNLSTMForCausalLM, character_table
from .modeling_cifar import CifarNetForImageClassification
from .modeling_lstm import LSTMForCausalLM

__all__ = [
    "LANGUAGE_PRESETS",
    "PRESETS",
    "CharCNNLSTMConfig",
    "CharCNNLSTMForCausalLM",
    "CifarNetConfig",
    "CifarNetForImageClassification",
    "LSTMConfig",
    "LSTMForCausalLM",
    "character_table",
    "check_model_args",
    "create_classifier",
    "create_language_model",
    "create_model",
    "image_processor",
    "register",
    "register_with_timm",
    "share_ends",
    "vocabulary_digest",
]


def register() -> None:
    """Register our classes with the Auto classes, and `PRESETS` with timm if it is loaded.

    Safe to call again. `create_classifier` needs no registration; for `timm.create_model` after a
    later import of timm, call `register_with_timm`.
    """
    for config, model, auto in (
        (CifarNetConfig, CifarNetForImageClassification, AutoModelForImageClassification),
        (LSTMConfig, LSTMForCausalLM, AutoModelForCausalLM),
        (CharCNNLSTMConfig, CharCNNLSTMForCausalLM, AutoModelForCausalLM),
    ):
        auto.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class(auto.__name__)
    if "timm" in sys.modules:
        register_with_timm()


register()
