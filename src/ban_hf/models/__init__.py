"""Networks. Importing this package registers ours with timm and with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForImageClassification

from .cifar_networks import build_cifar_network
from .factory import create_classifier, image_processor
from .modeling_cifar import CifarNetConfig, CifarNetForImageClassification
from .timm_registry import PRESETS

__all__ = [
    "PRESETS",
    "CifarNetConfig",
    "CifarNetForImageClassification",
    "build_cifar_network",
    "create_classifier",
    "image_processor",
]

AutoConfig.register(CifarNetConfig.model_type, CifarNetConfig, exist_ok=True)
AutoModelForImageClassification.register(
    CifarNetConfig, CifarNetForImageClassification, exist_ok=True
)
CifarNetConfig.register_for_auto_class()
CifarNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
