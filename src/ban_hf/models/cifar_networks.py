"""Networks for images of 32x32 pixels, built from timm's blocks.

| name | network | depth |
| --- | --- | --- |
| `cifar_wrn_DEPTH_WIDTH` | Wide-ResNet (Zagoruyko & Komodakis 2016, arXiv 1605.07146) | 6n + 4 |
| `cifar_densenet_DEPTH_GROWTH` | DenseNet-BC (Huang et al. 2017, arXiv 1608.06993) | any |
| `cifar_preact_resnet_DEPTH` | bottleneck ResNet v2 (He et al. 2016, arXiv 1603.05027) | 9n + 2 |

All have a 3x3 stem of 16 channels, no max-pool and three stages at full, half and quarter
resolution; `stem_stride=2` halves all three and costs a quarter. This file travels with published
weights, so it needs torch and timm only.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.densenet import DenseBlock, DenseNet, DenseTransition
from timm.models.resnetv2 import PreActBasic, PreActBottleneck, ResNetV2
from torch import nn

STEM_CHANNELS = 16


class CifarResNetV2(ResNetV2):
    """timm's pre-activation ResNet behind a CIFAR stem, with dropout inside its units.

    Shapes: images `(B, in_chans, H, W)` to logits `(B, num_classes)`. Convolutions start from He's
    normal initialisation over the fan-out, as in Wide-ResNet.
    `dropout` acts before the second convolution of each unit, in training only.
    """

    def __init__(
        self,
        layers: list[int],
        channels: tuple[int, ...],
        *,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        stem_stride: int = 1,
        dropout: float = 0.0,
        basic: bool = False,
        bottle_ratio: float = 0.25,
    ) -> None:
        super().__init__(
            layers,
            channels,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            stem_chs=STEM_CHANNELS,
            basic=basic,
            bottle_ratio=bottle_ratio,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
        )
        self.stem = nn.Sequential(OrderedDict(conv=_stem_conv(in_chans, stem_stride)))
        self.stem.apply(_init_weights)
        for stage, info in enumerate(self.feature_info):  # the stem, then the stages
            info["reduction"] = stem_stride * 2 ** max(stage - 1, 0)
        for unit in self.modules():
            if dropout > 0 and isinstance(unit, PreActBasic | PreActBottleneck):
                # timm's place for dropout is before the ReLU, which commutes with it
                unit.norm2.drop = nn.Dropout(dropout)


class CifarDenseNet(DenseNet):
    """DenseNet-BC in its CIFAR form: three blocks of `ceil((depth - 4) / 6)` bottleneck units.

    Shapes: images `(B, in_chans, H, W)` to logits `(B, num_classes)`. A transition keeps the
    fraction `compression` of its channels. `dropout` acts after every unit, in training only.
    """

    def __init__(
        self,
        units: int,
        growth: int,
        *,
        compression: float = 0.5,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        stem_stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        # no block: what DenseNet builds here is its ImageNet stem, which the lines below replace
        super().__init__(growth, (), num_classes, in_chans, global_pool)
        features = OrderedDict[str, nn.Module](conv0=_stem_conv(in_chans, stem_stride))
        channels, reduction = STEM_CHANNELS, stem_stride
        info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": reduction, "module": "features.conv0"}
        ]
        for i in (1, 2, 3):
            features[f"denseblock{i}"] = DenseBlock(
                units, channels, bn_size=4, growth_rate=growth, drop_rate=dropout
            )
            channels += units * growth
            name = "norm5" if i == 3 else f"denseblock{i}"
            info.append({"num_chs": channels, "reduction": reduction, "module": f"features.{name}"})
            if i < 3:
                kept = math.floor(compression * channels)
                features[f"transition{i}"] = DenseTransition(channels, kept)
                channels, reduction = kept, 2 * reduction
        features["norm5"] = BatchNormAct2d(channels)
        self.features = nn.Sequential(features)
        self.feature_info = info
        self.feature_ends = [list(features).index(f["module"].split(".")[1]) for f in info]
        self.num_features = channels
        self.reset_classifier(num_classes)
        self.apply(_init_weights)


def wide_resnet(depth: int, width: int, **kwargs: Any) -> CifarResNetV2:
    """Wide-ResNet-depth-width: basic units, (depth - 4) / 6 of them per stage."""
    units = _units_per_stage("cifar_wrn", depth, offset=4, step=6)
    channels = (16 * width, 32 * width, 64 * width)
    return CifarResNetV2([units] * 3, channels, basic=True, bottle_ratio=1.0, **kwargs)


def densenet_bc(depth: int, growth: int, **kwargs: Any) -> CifarDenseNet:
    """DenseNet-BC-depth-growth: ceil((depth - 4) / 6) units per block.

    The paper's depths are not 6n + 4 and its block sizes cannot be recovered; rounding up comes
    within 0.8 % of its parameter counts for 90-60, 80-80 and 80-120, and to 6.6M, not 6.3M, for
    112-33.
    """
    if depth < 5:
        raise ValueError(f"cifar_densenet: depth {depth} leaves the blocks empty; use 10 or more")
    return CifarDenseNet(math.ceil((depth - 4) / 6), growth, **kwargs)


def preact_resnet(depth: int, **kwargs: Any) -> CifarResNetV2:
    """Pre-activation ResNet-depth: bottleneck units, (depth - 2) / 9 of them per stage.

    As everywhere in timm, a unit that halves the resolution does so in its 3x3 convolution.
    """
    units = _units_per_stage("cifar_preact_resnet", depth, offset=2, step=9)
    return CifarResNetV2([units] * 3, (64, 128, 256), **kwargs)


_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    r"cifar_wrn_(\d+)_(\d+)": wide_resnet,
    r"cifar_densenet_(\d+)_(\d+)": densenet_bc,
    r"cifar_preact_resnet_(\d+)": preact_resnet,
}


def is_cifar_name(name: str) -> bool:
    """Whether `name` follows one of the name patterns of this module."""
    return any(re.fullmatch(pattern, name) for pattern in _FAMILIES)


def build_cifar_network(name: str, **kwargs: Any) -> nn.Module:
    """The freshly initialised network `name`, see the table at the top of this module.

    Args:
        name: such as `"cifar_wrn_28_2"`.
        **kwargs: `num_classes=100`, `in_chans=3`, `stem_stride=1`, `dropout=0.0`, `global_pool`;
            for DenseNets also `compression=0.5`.

    Raises:
        ValueError: the name fits no pattern, or its depth no network of that family.
    """
    for pattern, build in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            return build(*map(int, match.groups()), **kwargs)
    raise ValueError(f"unknown CIFAR network {name!r}: names follow {', '.join(_FAMILIES)}")


def _stem_conv(in_chans: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_chans, STEM_CHANNELS, 3, stride=stride, padding=1, bias=False)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _units_per_stage(family: str, depth: int, *, offset: int, step: int) -> int:
    units, rest = divmod(depth - offset, step)
    if rest or units < 1:
        near = offset + step * max(1, round((depth - offset) / step))
        raise ValueError(f"{family}: depth {depth} is not {step}n + {offset}; {near} is")
    return units
