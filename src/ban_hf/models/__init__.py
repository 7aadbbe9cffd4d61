"""Networks. Importing this package registers ours with timm and with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageClassification

from .cifar_networks import build_cifar_network
from .factory import create_classifier, image_processor
from .language_factory import LANGUAGE_PRESETS, create_language_model, vocabulary_digest
from .modeling_char_cnn_lstm import CharCNNLSTMConfig, CharCNNLSTMForCausalLM, character_table
from .modeling_cifar import CifarNetConfig, CifarNetForImageClassification
from .modeling_lstm import LSTMConfig, LSTMForCausalLM
from .sharing import share_ends
from .timm_registry import PRESETS

__all__ = [
    "LANGUAGE_PRESETS",
    "PRESETS",
    "CharCNNLSTMConfig",
    "CharCNNLSTMForCausalLM",
    "CifarNetConfig",
    "CifarNetForImageClassification",
    "LSTMConfig",
    "LSTMForCausalLM",
    "build_cifar_network",
    "character_table",
    "create_classifier",
    "create_language_model",
    "image_processor",
    "share_ends",
    "vocabulary_digest",
]

for _config, _model, _auto in (
    (CifarNetConfig, CifarNetForImageClassification, AutoModelForImageClassification),
    (LSTMConfig, LSTMForCausalLM, AutoModelForCausalLM),
    (CharCNNLSTMConfig, CharCNNLSTMForCausalLM, AutoModelForCausalLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _auto.register(_config, _model, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class(_auto.__name__)
