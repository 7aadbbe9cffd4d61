"""Registers our networks for small images with timm; imported as soon as timm is."""

from typing import TYPE_CHECKING, Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

if TYPE_CHECKING:
    from torch import nn

PRESETS = (
    "cifar_densenet_22_12",
    "cifar_densenet_112_33",
    "cifar_densenet_90_60",
    "cifar_densenet_80_80",
    "cifar_densenet_80_120",
    "cifar_wrn_16_1",
    "cifar_wrn_16_2",
    "cifar_wrn_28_1",
    "cifar_wrn_28_2",
    "cifar_wrn_28_5",
    "cifar_wrn_28_10",
    "cifar_preact_resnet_29",
    "cifar_preact_resnet_164",
    "cifar_preact_resnet_1001",
)


def _register(name: str) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> "nn.Module":
        from .cifar_networks import build_cifar_network  # which may be what imports timm now

        feature_cfg = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
        return build_model_with_cfg(
            build_cifar_network, name, pretrained, feature_cfg=feature_cfg, name=name, **kwargs
        )

    build.__name__ = name
    register_model(build)


def _cfg(name: str) -> dict[str, Any]:
    dense = "densenet" in name
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "first_conv": "features.conv0" if dense else "stem.conv",
        "classifier": "classifier" if dense else "head.fc",
    }


default_cfgs = generate_default_cfgs({name: _cfg(name) for name in PRESETS})
"""timm looks for this name in the module of a network that it registers."""

for _name in PRESETS:
    _register(_name)
