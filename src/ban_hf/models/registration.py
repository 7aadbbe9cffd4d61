"""Makes the Auto classes of transformers know our networks, and timm our presets."""

import sys

from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from .configuration import CharCNNLSTMConfig, CifarNetConfig, LSTMConfig
from .factory import register_with_timm
from .modeling_char_cnn_lstm import CharCNNLSTMForCausalLM
from .modeling_cifar import CifarNetForImageClassification
from .modeling_lstm import LSTMForCausalLM


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
