"""MobileNetV2 for small images, of any width.

Source: Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018.
Deviates as the CIFAR variant does: stem and second stage of stride 1, ReLU instead of ReLU6, and a 1x1 shortcut with
BatchNorm where a block of stride 1 changes the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.family import (
    Family,
    GlobalPoolNetwork,
    Recognition,
    count_blocks,
    find_renames,
    read_classes,
    rename,
    shape,
)
from banaudit.shapes import Features, Weights

_RENAMES = ((r"^fc\.", "linear."),)
BLOCKS = 17


@dataclass(frozen=True)
class Inverted:
    """One inverted residual: channels inside, channels out, stride."""

    width: int
    out: int
    stride: int


@final
class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection; a shortcut where the stride is 1."""

    def __init__(self, channels_in: int, block: Inverted) -> None:
        super().__init__()
        self.has_shortcut = block.stride == 1
        self.conv1 = nn.Conv2d(channels_in, block.width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(block.width)
        self.conv2 = nn.Conv2d(
            block.width, block.width, 3, stride=block.stride, padding=1, groups=block.width, bias=False
        )
        self.bn2 = nn.BatchNorm2d(block.width)
        self.conv3 = nn.Conv2d(block.width, block.out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(block.out)
        self.shortcut = nn.Sequential()
        if block.stride == 1 and channels_in != block.out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, block.out, 1, bias=False), nn.BatchNorm2d(block.out))

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        residual: Tensor = self.bn3(self.conv3(hidden))
        return residual + self.shortcut(inputs) if self.has_shortcut else residual


@final
class MobileNetV2(GlobalPoolNetwork):
    """Stem, inverted residuals, 1x1 convolution, pooling, ``linear``.

    Args:
        stem: Channels of the stem.
        blocks: The inverted residuals in order.
        last: Channels D of the last 1x1 convolution.
        classes: Number of classes K.
        channels: Number of image channels C.
    """

    def __init__(self, stem: int, blocks: tuple[Inverted, ...], last: int, classes: int, *, channels: int = 3) -> None:
        super().__init__(last, classes)
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        inputs = (stem, *(block.out for block in blocks))
        self.layers = nn.Sequential(*(InvertedResidual(inputs[n], block) for n, block in enumerate(blocks)))
        self.conv2 = nn.Conv2d(inputs[-1], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H/8, W/8]."""
        hidden = self.layers(F.relu(self.bn1(self.conv1(inputs))))
        return F.relu(self.bn2(self.conv2(hidden)))


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, _RENAMES)
    ours = rename(weights, renames)
    stem, last = shape(ours, "conv1.weight"), shape(ours, "conv2.weight")
    if len(stem) != 4 or len(last) != 4 or count_blocks(ours, "layers") != BLOCKS:
        return
    blocks: list[Inverted] = []
    channels_in = stem[0]
    for number in range(BLOCKS):
        inside, out = shape(ours, f"layers.{number}.conv1.weight"), shape(ours, f"layers.{number}.conv3.weight")
        if not inside or not out:
            return
        # A block that changes the width either has a projection (stride 1) or none (stride 2).
        keeps = out[0] == channels_in or f"layers.{number}.shortcut.0.weight" in ours
        blocks.append(Inverted(inside[0], out[0], 1 if keeps else 2))
        channels_in = out[0]
    classes, channels = read_classes(ours), stem[1]
    yield Recognition(
        name="mobilenetv2",
        description=f"MobileNetV2 with a 3x3 stem of stride 1, width {stem[0]}, {last[0]} features",
        classes=classes,
        channels=channels,
        build=lambda: MobileNetV2(stem[0], tuple(blocks), last[0], classes, channels=channels),
        renames=renames,
    )


FAMILY = Family(("mobilenetv2",), _propose)
