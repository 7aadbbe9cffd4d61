"""Networks for images of 32x32 pixels, built from timm's blocks.

| name | network | depth |
| --- | --- | --- |
| `cifar_wrn_DEPTH_WIDTH` | Wide-ResNet (Zagoruyko & Komodakis 2016, arXiv 1605.07146) | 6n + 4 |
| `cifar_densenet_DEPTH_GROWTH` | DenseNet-BC (Huang et al. 2017, arXiv 1608.06993) | any |
| `cifar_preact_resnet_DEPTH` | bottleneck ResNet v2 (He et al. 2016, arXiv 1603.05027) | 9n + 2 |
| `cifar_densenet_DEPTH_GROWTH_wide_N_R` | its residual student, N basic units per stage | |
| `cifar_densenet_DEPTH_GROWTH_preact_N_R` | the same, N bottleneck units per stage | |

All have a 3x3 stem of 16 channels, no max-pool and three stages at full, half and quarter
resolution; `stem_stride=2` halves all three and costs a quarter. This file travels with published
weights, so it needs torch and timm only.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.layers.classifier import ClassifierHead
from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.densenet import DenseBlock, DenseLayer, DenseNet, DenseTransition
from timm.models.resnetv2 import PreActBasic, PreActBottleneck, ResNetStage, ResNetV2
from torch import nn

STEM_CHANNELS = 16


class CifarResNetV2(ResNetV2):
    """timm's pre-activation ResNet behind a CIFAR stem: (B, in_chans, H, W) to (B, num_classes).

    Convolutions start from He's normal initialization over the fan-out, as in Wide-ResNet.
    `dropout` acts before the second convolution of each unit, in training only.
    """

    def __init__(
        self,
        layers: list[int],
        channels: tuple[int, ...],
        *,
        in_chans: int = 3,
        stem_stride: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            layers,
            channels,
            in_chans=in_chans,
            stem_chs=STEM_CHANNELS,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
            **kwargs,
        )
        self.stem = nn.Sequential(OrderedDict(conv=_stem_conv(in_chans, stem_stride)))
        self.stem.apply(_init_weights)
        for stage, info in enumerate(self.feature_info):  # the stem, then the stages
            info["reduction"] = stem_stride * 2 ** max(stage - 1, 0)
        self._set_dropout(dropout)

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The first convolution and the last linear layer."""
        return self.get_submodule("stem.conv"), self.get_classifier()

    def _set_dropout(self, dropout: float) -> None:
        for unit in self.modules():
            if dropout > 0 and isinstance(unit, PreActBasic | PreActBottleneck):
                # timm's place for dropout is before the ReLU, which commutes with it
                unit.norm2.drop = nn.Dropout(dropout)


class MatchedResNet(CifarResNetV2):
    """A residual student with the hidden states of DenseNet-BC-depth-growth.

    As in Table 5 of Born-Again Networks: `units` pre-activation units per stage, of `ratio` times
    the channels that the DenseNet has after its transitions (after the last block: the fraction
    `compression`). A stage ends in a 1x1 convolution to these, where they differ, and the last one
    always in one to the DenseNet's features. Its first convolution and last linear layer have the
    DenseNet's shapes, so that `ban_hf.models.factory.share_ends` can put the trained ones there.
    """

    def __init__(
        self,
        depth: int,
        growth: int,
        units: int,
        ratio: float,
        *,
        basic: bool,
        compression: float = 0.5,
        num_classes: int = 100,
        global_pool: str = "avg",
        stem_stride: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        (_, first), (_, second), (features, last) = _dense_states(
            _units_per_block(depth), growth, compression
        )
        states = (first, second, last)
        if units < 1 or round(ratio * min(states)) < 1:
            raise ValueError(
                f"cifar_densenet_{depth}_{growth}: {units} units at {ratio:g} times the channels "
                f"{states} leave a stage empty; use 1 or more of each"
            )
        # no stage: ResNetV2's follow each other without the 1x1 convolutions
        super().__init__([], (), stem_stride=stem_stride, num_classes=0, **kwargs)
        before = STEM_CHANNELS
        for i, (state, out) in enumerate(zip(states, (first, second, features), strict=True)):
            width = round(ratio * state)
            stage = ResNetStage(  # timm rounds the width inside of a unit to a multiple of 8
                before,
                width,
                stride=1 if i == 0 else 2,
                dilation=1,
                depth=units,
                bottle_ratio=1.0 if basic else 0.25,
                block_fn=PreActBasic if basic else PreActBottleneck,
                norm_layer=BatchNormAct2d,
                conv_layer=create_conv2d,
            )
            if width != state or i == 2:
                stage.blocks.add_module("match", nn.Conv2d(width, out, 1, bias=False))
            self.stages.add_module(str(i), stage)
            reduction, before = stem_stride * 2**i, out
            info = {"num_chs": out, "reduction": reduction, "module": f"stages.{i}"}
            self.feature_info.append(info)
        self.num_features, self.num_classes = features, num_classes
        self.norm = BatchNormAct2d(features)
        # a linear layer as in DenseNets, where timm's ResNetV2 has a 1x1 convolution
        self.head = ClassifierHead(features, num_classes, pool_type=global_pool)
        self.head_hidden_size = features
        self.apply(_init_weights)
        self._set_dropout(dropout)


class CifarDenseNet(DenseNet):
    """DenseNet-BC in its CIFAR form: three blocks of `ceil((depth - 4) / 6)` bottleneck units.

    The paper's depths are not 6n + 4 and its block sizes cannot be recovered; rounding up comes
    within 0.8 % of its parameter counts for 90-60, 80-80 and 80-120, and to 6.6M, not 6.3M, for
    112-33.

    Shapes: images `(B, in_chans, H, W)` to logits `(B, num_classes)`. A transition keeps the
    fraction `compression` of its channels. `dropout` acts after every unit, in training only.

    `depth_ratio` and `compression_ratio` change the blocks while the states after the transitions
    keep their channels (Born-Again Networks, Table 4): the first multiplies the units of a block
    and divides their growth, the second multiplies the fraction of channels that a transition
    drops, so that blocks of another width, the last one too, lead to the same states.
    """

    def __init__(
        self,
        depth: int,
        growth: int,
        *,
        compression: float = 0.5,
        depth_ratio: float = 1.0,
        compression_ratio: float = 1.0,
        in_chans: int = 3,
        stem_stride: int = 1,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # no block: what DenseNet builds here is its ImageNet stem, which the lines below replace
        super().__init__(growth, (), in_chans=in_chans, **kwargs)
        features = OrderedDict[str, nn.Module](conv0=_stem_conv(in_chans, stem_stride))
        channels, reduction = STEM_CHANNELS, stem_stride
        info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": reduction, "module": "features.conv0"}
        ]
        units = _units_per_block(depth)
        scaled = _scaled_units(units, depth_ratio)
        widening = _widening(compression, compression_ratio)
        for i, (width, kept) in enumerate(_dense_states(units, growth, compression), 1):
            # a block without units of its own, which would all grow the same
            block = DenseBlock(0, channels, bn_size=4, growth_rate=0)
            growths = _growths(round(widening * width) - channels, scaled)
            for unit, more in enumerate(growths, 1):
                layer = DenseLayer(channels, more, bn_size=4, drop_rate=dropout)
                block.add_module(f"denselayer{unit}", layer)
                channels += more
            features[f"denseblock{i}"] = block
            name = "norm5" if i == 3 else f"denseblock{i}"
            info.append({"num_chs": channels, "reduction": reduction, "module": f"features.{name}"})
            if i < 3:
                features[f"transition{i}"] = DenseTransition(channels, kept)
                channels, reduction = kept, 2 * reduction
        features["norm5"] = BatchNormAct2d(channels)
        self.features = nn.Sequential(features)
        self.feature_info = info
        self.feature_ends = [list(features).index(f["module"].split(".")[1]) for f in info]
        self.num_features = channels
        self.reset_classifier(self.num_classes)
        self.apply(_init_weights)

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The first convolution and the last linear layer."""
        return self.get_submodule("features.conv0"), self.get_classifier()


def wide_resnet(depth: int, width: int, **kwargs: Any) -> CifarResNetV2:
    """Wide-ResNet-depth-width: basic units, (depth - 4) / 6 of them per stage."""
    units = _units_per_stage("cifar_wrn", depth, offset=4, step=6)
    channels = (16 * width, 32 * width, 64 * width)
    return CifarResNetV2([units] * 3, channels, basic=True, bottle_ratio=1.0, **kwargs)


def preact_resnet(depth: int, **kwargs: Any) -> CifarResNetV2:
    """Pre-activation ResNet-depth: bottleneck units, (depth - 2) / 9 of them per stage.

    As everywhere in timm, a unit that halves the resolution does so in its 3x3 convolution.
    """
    units = _units_per_stage("cifar_preact_resnet", depth, offset=2, step=9)
    return CifarResNetV2([units] * 3, (64, 128, 256), **kwargs)


CifarNetwork = CifarResNetV2 | CifarDenseNet

ARGUMENTS = ("stem_stride", "dropout", "global_pool")
"""Arguments of every network, beside `num_classes` and `in_chans`."""

_STUDENT = r"cifar_densenet_(\d+)_(\d+)_{}_(\d+)_(\d+(?:\.\d+)?)"

_FAMILIES: dict[str, tuple[Callable[..., CifarNetwork], tuple[str, ...]]] = {
    # By pattern of the name: what builds it, and its own arguments.
    r"cifar_wrn_(\d+)_(\d+)": (wide_resnet, ()),
    r"cifar_densenet_(\d+)_(\d+)": (
        CifarDenseNet,
        ("compression", "depth_ratio", "compression_ratio"),
    ),
    r"cifar_preact_resnet_(\d+)": (preact_resnet, ()),
    _STUDENT.format("wide"): (partial(MatchedResNet, basic=True), ("compression",)),
    _STUDENT.format("preact"): (partial(MatchedResNet, basic=False), ("compression",)),
}


def is_cifar_name(name: str) -> bool:
    """Whether `name` follows one of the name patterns of this module."""
    return bool(cifar_arguments(name))


def cifar_arguments(name: str) -> tuple[str, ...]:
    """The keyword arguments of the network `name`, without `num_classes` and `in_chans`."""
    for pattern, (_, own) in _FAMILIES.items():
        if re.fullmatch(pattern, name):
            return (*ARGUMENTS, *own)
    return ()


def build_cifar_network(name: str, *, num_classes: int = 100, **kwargs: Any) -> CifarNetwork:
    """The freshly initialized network `name`, see the table at the top of this module."""
    for pattern, (build, _) in _FAMILIES.items():
        if match := re.fullmatch(pattern, name):
            if unknown := kwargs.keys() - {*cifar_arguments(name), "in_chans"}:
                raise TypeError(f"{name} has no argument {', '.join(sorted(unknown))}")
            numbers = [float(n) if "." in n else int(n) for n in match.groups()]
            return build(*numbers, num_classes=num_classes, **kwargs)
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


def _units_per_block(depth: int) -> int:
    if depth < 5:
        raise ValueError(f"cifar_densenet: depth {depth} leaves the blocks empty; use 10 or more")
    return math.ceil((depth - 4) / 6)


def _dense_states(units: int, growth: int, compression: float) -> list[tuple[int, int]]:
    """Per block of a DenseNet its channels, and how many of them a transition keeps."""
    states, channels = [], STEM_CHANNELS
    for _ in range(3):
        width = channels + units * growth
        channels = math.floor(compression * width)
        states.append((width, channels))
    return states


def _scaled_units(units: int, ratio: float) -> int:
    scaled = math.floor(units * ratio + 0.5) if 0 < ratio < math.inf else 0
    if scaled < 1:
        raise ValueError(f"depth_ratio={ratio} of {units} units leaves the blocks empty")
    return scaled


def _widening(compression: float, ratio: float) -> float:
    """The factor on a block's channels that a transition dropping `ratio` times as many needs.

    Of the readings of Table 4's "compression" that were tried, only this one comes near its sizes:
    for DenseNet-90-60 5.9M, 9.4M and 76.2M, where it has 5.1M, 10.1M and 80.5M.
    """
    kept = 1 - ratio * (1 - compression)
    if not 0 < kept <= 1:
        raise ValueError(
            f"compression_ratio={ratio} leaves the fraction {kept:g} of the channels, where "
            f"compression={compression} drops {1 - compression:g}: it must be over 0, at most 1"
        )
    return compression / kept


def _growths(channels: int, units: int) -> list[int]:
    """The channels that a block adds, spread over its units as evenly as whole numbers go."""
    growth, rest = divmod(channels, units)
    if growth < 1:
        raise ValueError(
            f"{units} units cannot share the {channels} channels that their block adds: lower "
            "depth_ratio or raise compression_ratio"
        )
    return [growth + (unit < rest) for unit in range(units)]
