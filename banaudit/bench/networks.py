"""The networks that victims are made of: the family's usual shape at any width."""

from __future__ import annotations

from collections.abc import Callable

from banaudit.architectures.base import SplitNetwork
from banaudit.architectures.densenet import DenseNet
from banaudit.architectures.family import Stage
from banaudit.architectures.mobilenetv2 import Inverted, MobileNetV2
from banaudit.architectures.preact_resnet import PreActResNet
from banaudit.architectures.resnet import ResNet
from banaudit.architectures.vgg import VGG
from banaudit.architectures.wideresnet import WideResNet
from banaudit.errors import UsageError

Builder = Callable[[int, int, int], SplitNetwork]
"""Makes a network from the channels of its first layer, the image channels C and the number of classes K."""

WRN_STEM = 16
"""Channels of a WideResNet's stem, whatever its width."""
MOBILENET_STEM = 32
"""Channels of the stem of a MobileNetV2 of width multiplier 1."""
MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage (Sandler et al. 2018, Table 2; strides for 32 x 32)."""
MOBILENET_LAST = 1280
"""Channels of its last 1x1 convolution at width multiplier 1."""


def _four_stages(width: int) -> tuple[Stage, ...]:
    return tuple(Stage(2, width * 2**number, width * 2**number) for number in range(4))


def _resnet18(width: int, channels: int, num_classes: int) -> SplitNetwork:
    return ResNet(width, _four_stages(width), num_classes, channels=channels)


def _preact_resnet18(width: int, channels: int, num_classes: int) -> SplitNetwork:
    return PreActResNet(width, _four_stages(width), num_classes, channels=channels)


def _vgg(depths: tuple[int, ...]) -> Builder:
    def build(width: int, channels: int, num_classes: int) -> SplitNetwork:
        groups = tuple((width * factor,) * depth for depth, factor in zip(depths, (1, 2, 4, 8, 8), strict=True))
        return VGG(groups, (), None, num_classes, channels=channels)

    return build


def _densenet(depths: tuple[int, ...]) -> Builder:
    def build(width: int, channels: int, num_classes: int) -> SplitNetwork:
        growth = width // 2
        transitions: list[int] = []
        current = width
        for depth in depths[:-1]:
            current = (current + depth * growth) // 2
            transitions.append(current)
        return DenseNet(
            width,
            depths,
            bottleneck=4 * growth,
            growth=growth,
            transitions=tuple(transitions),
            classes=num_classes,
            channels=channels,
        )

    return build


def _wideresnet(depth: int) -> Builder:
    blocks = (depth - 4) // 6

    def build(width: int, channels: int, num_classes: int) -> SplitNetwork:
        stages = tuple(Stage(blocks, width * 2**number, width * 2**number) for number in range(3))
        return WideResNet(WRN_STEM, stages, num_classes, channels=channels)

    return build


def _mobilenetv2(width: int, channels: int, num_classes: int) -> SplitNetwork:
    blocks: list[Inverted] = []
    scale = width / MOBILENET_STEM
    current = width
    for expansion, out, repeats, first_stride in MOBILENET_STAGES:
        for number in range(repeats):
            blocks.append(Inverted(expansion * current, round(out * scale), first_stride if number == 0 else 1))
            current = round(out * scale)
    return MobileNetV2(width, tuple(blocks), round(MOBILENET_LAST * scale), num_classes, channels=channels)


NETWORKS: dict[str, Builder] = {
    "resnet18": _resnet18,
    "preact_resnet18": _preact_resnet18,
    "vgg11": _vgg((1, 1, 2, 2, 2)),
    "vgg16": _vgg((2, 2, 3, 3, 3)),
    "densenet37": _densenet((2, 4, 6, 4)),
    "densenet121": _densenet((6, 12, 24, 16)),
    "wrn-16": _wideresnet(16),
    "mobilenetv2": _mobilenetv2,
}
"""Architectures by name. The width is the channels of the first stage: 64 is the paper's ResNet-18, VGG16 and
DenseNet121, 16 a WRN-16-1, 32 the usual MobileNetV2."""


def build_network(architecture: str, width: int, channels: int, num_classes: int) -> SplitNetwork:
    """A freshly initialised network; the weights come from the global random generator.

    Args:
        architecture: A key of ``NETWORKS``.
        width: Channels of the first stage.
        channels: Image channels C.
        num_classes: Number of classes K.

    Raises:
        UsageError: No network has this name.
    """
    if architecture not in NETWORKS:
        raise UsageError(f"architecture {architecture!r} is not known: choose one of {', '.join(sorted(NETWORKS))}")
    return NETWORKS[architecture](width, channels, num_classes)
