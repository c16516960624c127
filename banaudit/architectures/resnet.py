"""Residual networks for small images: ResNet-18/34/50/101/152 with a 3x3 stem, of any width and depth.

Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, Table 1; the 7x7 stem and its
max-pooling replaced by one 3x3 convolution of stride 1, as is usual for 32x32 images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.family import (
    Family,
    GlobalPoolNetwork,
    Recognition,
    Stage,
    find_renames,
    read_classes,
    read_stages,
    rename,
    shape,
)
from banaudit.shapes import Features, Weights

RENAMES = ((r"^fc\.", "linear."), (r"\.downsample\.", ".shortcut."))
"""Other spellings of the same keys."""

DEPTHS = (18, 34, 50, 101, 152)
STEM_KERNEL = 3
STAGES = 4

Shortcut = Callable[[int, int, int], nn.Module]
"""Makes a block's shortcut from its input channels, output channels and stride."""


def projection_shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Identity where the shapes agree, else a 1x1 convolution with BatchNorm (option B of the paper)."""
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
    )


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the first takes the stride."""

    def __init__(self, channels_in: int, stage: Stage, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, stage.width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stage.width)
        self.conv2 = nn.Conv2d(stage.width, stage.out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stage.out)
        self.shortcut = shortcut(channels_in, stage.out, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))


@final
class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the 3x3 one takes the stride."""

    def __init__(self, channels_in: int, stage: Stage, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, stage.width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stage.width)
        self.conv2 = nn.Conv2d(stage.width, stage.width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stage.width)
        self.conv3 = nn.Conv2d(stage.width, stage.out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(stage.out)
        self.shortcut = shortcut(channels_in, stage.out, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        return F.relu(self.bn3(self.conv3(hidden)) + self.shortcut(inputs))


@final
class ResNet(GlobalPoolNetwork):
    """Stem, stages ``layer1``, ``layer2``, ... (each but the first halves the resolution), pooling, ``linear``.

    Args:
        stem: Channels of the stem.
        stages: Depth and widths of each stage.
        classes: Number of classes K.
        channels: Number of image channels C.
        bottleneck: Whether the blocks are bottlenecks.
        shortcut: Makes the shortcuts.
    """

    def __init__(
        self,
        stem: int,
        stages: tuple[Stage, ...],
        classes: int,
        *,
        channels: int = 3,
        bottleneck: bool = False,
        shortcut: Shortcut = projection_shortcut,
    ) -> None:
        super().__init__(stages[-1].out, classes)
        self.conv1 = nn.Conv2d(channels, stem, STEM_KERNEL, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        block = Bottleneck if bottleneck else BasicBlock
        self.stages = tuple(f"layer{number}" for number in range(1, len(stages) + 1))
        channels_in = stem
        for name, stage in zip(self.stages, stages, strict=True):
            blocks: list[nn.Module] = []
            for index in range(stage.blocks):
                stride = 2 if index == 0 and name != "layer1" else 1
                blocks.append(block(channels_in, stage, stride, shortcut))
                channels_in = stage.out
            self.add_module(name, nn.Sequential(*blocks))

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H/2^(stages-1), W/2^(stages-1)]."""
        hidden = F.relu(self.bn1(self.conv1(inputs)))
        for name in self.stages:
            hidden = self.get_submodule(name)(hidden)
        return hidden


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, RENAMES)
    ours = rename(weights, renames)
    stem = shape(ours, "conv1.weight")
    bottleneck = any(key.endswith(".conv3.weight") for key in ours)
    stages = read_stages(ours, "layer{}", "conv3" if bottleneck else "conv2")
    if stem[2:] != (STEM_KERNEL, STEM_KERNEL) or len(stages) != STAGES or "bn1.weight" not in ours:
        return
    blocks = tuple(stage.blocks for stage in stages)
    depth = (3 if bottleneck else 2) * sum(blocks) + 2
    classes, channels = read_classes(ours), stem[1]
    yield Recognition(
        name=f"resnet{depth}",
        description=f"ResNet-{depth} with a 3x3 stem and no max-pooling, width {stem[0]}, "
        f"{'bottleneck' if bottleneck else 'basic'} blocks {'-'.join(map(str, blocks))}",
        classes=classes,
        channels=channels,
        build=lambda: ResNet(stem[0], stages, classes, channels=channels, bottleneck=bottleneck),
        renames=renames,
    )


FAMILY = Family(tuple(f"resnet{depth}" for depth in DEPTHS), _propose)
