"""Makes the Auto classes of transformers know our networks."""

from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from .configuration import CharCNNLSTMConfig, CifarNetConfig, LSTMConfig
from .modeling_cifar import CifarNetForImageClassification
from .modeling_lstm import CharCNNLSTMForCausalLM, LSTMForCausalLM


def register() -> None:
    """Register our classes with the Auto classes; safe to call again."""
    for config, model, auto in (
        (CifarNetConfig, CifarNetForImageClassification, AutoModelForImageClassification),
        (LSTMConfig, LSTMForCausalLM, AutoModelForCausalLM),
        (CharCNNLSTMConfig, CharCNNLSTMForCausalLM, AutoModelForCausalLM),
    ):
        auto.register(config, model, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class(auto.__name__)


register()
