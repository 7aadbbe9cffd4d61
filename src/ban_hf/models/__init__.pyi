"""The public names of the networks, and where each is."""

from .configuration import CharCNNLSTMConfig as CharCNNLSTMConfig
from .configuration import CifarNetConfig as CifarNetConfig
from .configuration import LSTMConfig as LSTMConfig
from .factory import LANGUAGE_PRESETS as LANGUAGE_PRESETS
from .factory import check_model_args as check_model_args
from .factory import create_classifier as create_classifier
from .factory import create_language_model as create_language_model
from .factory import image_processor as image_processor
from .factory import share_ends as share_ends
from .factory import vocabulary_digest as vocabulary_digest
from .modeling_cifar import CifarNetForImageClassification as CifarNetForImageClassification
from .modeling_lstm import CharCNNLSTMForCausalLM as CharCNNLSTMForCausalLM
from .modeling_lstm import LSTMForCausalLM as LSTMForCausalLM
from .modeling_lstm import character_table as character_table
from .presets import PRESETS as PRESETS
from .registration import register as register
