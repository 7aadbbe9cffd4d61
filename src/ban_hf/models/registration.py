"""Makes the Auto classes of transformers know our networks."""

from transformers import AutoModelForCausalLM, AutoModelForImageClassification

from .configuration import CharCNNLSTMConfig, CifarNetConfig, LSTMConfig
from .modeling_cifar import CifarNetForImageClassification
from .modeling_lstm import CharCNNLSTMForCausalLM, LSTMForCausalLM

for _config, _model, _auto in (
    (CifarNetConfig, CifarNetForImageClassification, AutoModelForImageClassification),
    (LSTMConfig, LSTMForCausalLM, AutoModelForCausalLM),
    (CharCNNLSTMConfig, CharCNNLSTMForCausalLM, AutoModelForCausalLM),
):
    _auto.register(_config, _model, exist_ok=True)
    _config.register_for_auto_class()
    _model.register_for_auto_class(_auto.__name__)
