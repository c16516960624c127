"""Wide residual networks WRN-d-k, of any depth and width, in the two layouts in use.

Source: Zagoruyko and Komodakis, "Wide residual networks", BMVC 2016: d = 6n + 4 layers, widths 16k, 32k, 64k,
pre-activation blocks. The layouts differ in more than names:

- ``block1.layer.0``: no biases; the first convolution takes the stride; where the widths differ, the 1x1 shortcut takes
  the activated input.
- ``layer1.0``: convolutions with biases; the second takes the stride; the 1x1 shortcut takes the raw input.
"""

from __future__ import annotations

from collections.abc import Iterator
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

_RENAMES = (
    (r"^layer(\d)\.", r"block\1.layer."),
    (r"\.shortcut\.0\.", ".shortcut."),
    (r"\.convShortcut\.", ".shortcut."),
    (r"^fc\.", "linear."),
)
BASE_WIDTH = 16
"""Width of the first stage at k = 1."""
STAGES = 3


@final
class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions.

    Args:
        channels_in: Channels of the input.
        stage: Widths of the stage.
        stride: Stride of the block.
        biased: The layout with biases, a stride in the second convolution and a shortcut from the raw input.
    """

    def __init__(self, channels_in: int, stage: Stage, stride: int, *, biased: bool) -> None:
        super().__init__()
        self.biased = biased
        first, second = (1, stride) if biased else (stride, 1)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, stage.width, 3, stride=first, padding=1, bias=biased)
        self.bn2 = nn.BatchNorm2d(stage.width)
        self.conv2 = nn.Conv2d(stage.width, stage.out, 3, stride=second, padding=1, bias=biased)
        self.shortcut = (
            None
            if channels_in == stage.out and stride == 1
            else nn.Conv2d(channels_in, stage.out, 1, stride=stride, bias=biased)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        active = F.relu(self.bn1(inputs))
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        if self.shortcut is None:
            return residual + inputs
        shortcut: Tensor = self.shortcut(inputs if self.biased else active)
        return residual + shortcut


@final
class Group(nn.Module):
    """The blocks of one stage, under the key ``layer``."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map of the last block."""
        outputs: Tensor = self.layer(inputs)
        return outputs


@final
class WideResNet(GlobalPoolNetwork):
    """Stem, three groups, BatchNorm, ReLU, pooling, ``linear``.

    Args:
        stem: Channels of the stem.
        stages: Depth and widths of the three groups.
        classes: Number of classes K.
        channels: Number of image channels C.
        biased: The layout with biases; see :class:`WideBlock`.
    """

    def __init__(
        self, stem: int, stages: tuple[Stage, ...], classes: int, *, channels: int = 3, biased: bool = False
    ) -> None:
        super().__init__(stages[-1].out, classes)
        self.conv1 = nn.Conv2d(channels, stem, 3, padding=1, bias=biased)
        self.groups = tuple(f"block{number}" for number in range(1, len(stages) + 1))
        channels_in = stem
        for name, stage in zip(self.groups, stages, strict=True):
            blocks: list[nn.Module] = []
            for index in range(stage.blocks):
                stride = 2 if index == 0 and name != "block1" else 1
                blocks.append(WideBlock(channels_in, stage, stride, biased=biased))
                channels_in = stage.out
            self.add_module(name, Group(blocks))
        self.bn1 = nn.BatchNorm2d(channels_in)

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H/4, W/4]."""
        hidden = self.conv1(inputs)
        for name in self.groups:
            hidden = self.get_submodule(name)(hidden)
        return F.relu(self.bn1(hidden))


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, _RENAMES)
    ours = rename(weights, renames)
    biased = "block1.layer.0.conv1.bias" in ours
    # Without biases, ``layer1.0`` may be any pre-activation network: what its shortcut takes is not in the keys.
    if not biased and not any(key.startswith("block1.layer.") for key in weights):
        return
    stem = shape(ours, "conv1.weight")
    stages = read_stages(ours, "block{}.layer", "conv2")
    if len(stem) != 4 or len(stages) != STAGES:
        return
    depth = 2 * sum(stage.blocks for stage in stages) + 4
    widening = stages[0].out / BASE_WIDTH
    classes, channels = read_classes(ours), stem[1]
    yield Recognition(
        name=f"wrn-{depth}-{widening:g}",
        description=f"WideResNet-{depth}-{widening:g}, widths {'-'.join(str(stage.out) for stage in stages)}, "
        f"{'with' if biased else 'without'} convolution biases",
        classes=classes,
        channels=channels,
        build=lambda: WideResNet(stem[0], stages, classes, channels=channels, biased=biased),
        renames=renames,
    )


FAMILY = Family(("wrn-16-1", "wrn-16-2", "wrn-28-10", "wrn-34-10", "wrn-40-2", "wrn-40-4"), _propose)
