"""Densely connected networks for small images: DenseNet-121/161/169/201 with a 3x3 stem, of any growth and depth.

Source: Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", CVPR 2017 (DenseNet-BC,
Table 1). A layer's new channels come before those that it received, as the keys' usual owner does; the order matters
to the weights of every later layer and shows in no key.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
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
BLOCKS = 4


@final
class DenseLayer(nn.Module):
    """1x1 and 3x3 convolution, each after BatchNorm and ReLU; adds ``growth`` channels."""

    def __init__(self, channels_in: int, bottleneck: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, bottleneck, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(bottleneck)
        self.conv2 = nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, growth + channels_in, H, W]."""
        hidden = self.conv1(F.relu(self.bn1(inputs)))
        hidden = self.conv2(F.relu(self.bn2(hidden)))
        return torch.cat([hidden, inputs], dim=1)


@final
class Transition(nn.Module):
    """1x1 convolution after BatchNorm and ReLU, then average pooling by two."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels_in)
        self.conv = nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/2, W/2]."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(inputs))), 2)


@final
class DenseNet(GlobalPoolNetwork):
    """Stem, four dense blocks with transitions between them, BatchNorm, ReLU, pooling, ``linear``.

    Args:
        stem: Channels of the stem.
        depths: Layers of each dense block.
        bottleneck: Channels between a layer's two convolutions (paper: four times the growth).
        growth: Channels that a layer adds.
        transitions: Channels after each transition, one fewer than dense blocks.
        classes: Number of classes K.
        channels: Number of image channels C.
    """

    def __init__(
        self,
        stem: int,
        depths: tuple[int, ...],
        *,
        bottleneck: int,
        growth: int,
        transitions: tuple[int, ...],
        classes: int,
        channels: int = 3,
    ) -> None:
        last_input = transitions[-1] if transitions else stem
        super().__init__(last_input + depths[-1] * growth, classes)
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=False)
        self.trunk: tuple[str, ...] = ()
        channels_in = stem
        for number, depth in enumerate(depths, start=1):
            layers = [DenseLayer(channels_in + index * growth, bottleneck, growth) for index in range(depth)]
            channels_in += depth * growth
            self.add_module(f"dense{number}", nn.Sequential(*layers))
            self.trunk += (f"dense{number}",)
            if number <= len(transitions):
                self.add_module(f"trans{number}", Transition(channels_in, transitions[number - 1]))
                self.trunk += (f"trans{number}",)
                channels_in = transitions[number - 1]
        self.bn = nn.BatchNorm2d(channels_in)

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H/8, W/8]."""
        hidden = self.conv1(inputs)
        for name in self.trunk:
            hidden = self.get_submodule(name)(hidden)
        return F.relu(self.bn(hidden))


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, _RENAMES)
    ours = rename(weights, renames)
    stem, layer = shape(ours, "conv1.weight"), shape(ours, "dense1.0.conv2.weight")
    depths = tuple(count_blocks(ours, f"dense{number}") for number in range(1, BLOCKS + 1))
    transitions = tuple(shape(ours, f"trans{number}.conv.weight") for number in range(1, BLOCKS))
    if len(stem) != 4 or len(layer) != 4 or not all(depths) or not all(transitions):
        return
    depth = 2 * sum(depths) + BLOCKS + 1
    growth, bottleneck = layer[:2]
    classes, channels = read_classes(ours), stem[1]
    yield Recognition(
        name=f"densenet{depth}",
        description=f"DenseNet-{depth} with a 3x3 stem, growth {growth}, blocks {'-'.join(map(str, depths))}",
        classes=classes,
        channels=channels,
        build=lambda: DenseNet(
            stem[0],
            depths,
            bottleneck=bottleneck,
            growth=growth,
            transitions=tuple(out[0] for out in transitions),
            classes=classes,
            channels=channels,
        ),
        renames=renames,
    )


FAMILY = Family(("densenet121", "densenet161", "densenet169", "densenet201"), _propose)
