"""Pre-activation residual networks for small images: PreActResNet-18/34/50/101/152, of any width and depth.

Source: He, Zhang, Ren, Sun, "Identity mappings in deep residual networks", ECCV 2016, Figure 1(b). The shortcut's 1x1
convolution takes the activated input and has no BatchNorm. The paper ends with BatchNorm and ReLU before pooling; the
variant that most backdoor studies use leaves both out. Which one a file is shows in its keys.
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
from banaudit.architectures.resnet import DEPTHS, STAGES, STEM_KERNEL
from banaudit.shapes import Features, Weights

_RENAMES = ((r"^fc\.", "linear."), (r"^bn1\.", "bn."), (r"\.downsample\.", ".shortcut."))


def _shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False))


@final
class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions; the first takes the stride."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, stage.width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stage.width)
        self.conv2 = nn.Conv2d(stage.width, stage.out, 3, padding=1, bias=False)
        self.shortcut = _shortcut(channels_in, stage.out, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        active = F.relu(self.bn1(inputs))
        shortcut = inputs if self.shortcut is None else self.shortcut(active)
        residual: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + shortcut


@final
class PreActBottleneck(nn.Module):
    """BatchNorm and ReLU before 1x1, 3x3 and 1x1 convolutions; the 3x3 one takes the stride."""

    def __init__(self, channels_in: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, stage.width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stage.width)
        self.conv2 = nn.Conv2d(stage.width, stage.width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(stage.width)
        self.conv3 = nn.Conv2d(stage.width, stage.out, 1, bias=False)
        self.shortcut = _shortcut(channels_in, stage.out, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        active = F.relu(self.bn1(inputs))
        shortcut = inputs if self.shortcut is None else self.shortcut(active)
        hidden = self.conv2(F.relu(self.bn2(self.conv1(active))))
        residual: Tensor = self.conv3(F.relu(self.bn3(hidden)))
        return residual + shortcut


@final
class PreActResNet(GlobalPoolNetwork):
    """Stem convolution, four stages, with ``final_norm`` one more BatchNorm and ReLU, pooling, ``linear``.

    Args:
        stem: Channels of the stem.
        stages: Depth and widths of each stage.
        classes: Number of classes K.
        channels: Number of image channels C.
        bottleneck: Whether the blocks are bottlenecks.
        final_norm: Whether BatchNorm ``bn`` and ReLU follow the last stage, as in the paper.
    """

    def __init__(
        self,
        stem: int,
        stages: tuple[Stage, ...],
        classes: int,
        *,
        channels: int = 3,
        bottleneck: bool = False,
        final_norm: bool = False,
    ) -> None:
        super().__init__(stages[-1].out, classes)
        self.conv1 = nn.Conv2d(channels, stem, STEM_KERNEL, padding=1, bias=False)
        block = PreActBottleneck if bottleneck else PreActBlock
        self.stages = tuple(f"layer{number}" for number in range(1, len(stages) + 1))
        channels_in = stem
        for name, stage in zip(self.stages, stages, strict=True):
            blocks: list[nn.Module] = []
            for index in range(stage.blocks):
                stride = 2 if index == 0 and name != "layer1" else 1
                blocks.append(block(channels_in, stage, stride))
                channels_in = stage.out
            self.add_module(name, nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels_in) if final_norm else None

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H/8, W/8]."""
        hidden: Tensor = self.conv1(inputs)
        for name in self.stages:
            hidden = self.get_submodule(name)(hidden)
        return hidden if self.bn is None else F.relu(self.bn(hidden))


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, _RENAMES)
    ours = rename(weights, renames)
    stem = shape(ours, "conv1.weight")
    bottleneck = any(key.endswith(".conv3.weight") for key in ours)
    stages = read_stages(ours, "layer{}", "conv3" if bottleneck else "conv2")
    if stem[2:] != (STEM_KERNEL, STEM_KERNEL) or len(stages) != STAGES:
        return
    blocks = tuple(stage.blocks for stage in stages)
    depth = (3 if bottleneck else 2) * sum(blocks) + 2
    classes, channels, final_norm = read_classes(ours), stem[1], "bn.weight" in ours
    yield Recognition(
        name=f"preactresnet{depth}",
        description=f"PreActResNet-{depth} with a 3x3 stem, width {stem[0]}, "
        f"{'bottleneck' if bottleneck else 'basic'} blocks {'-'.join(map(str, blocks))}, "
        f"{'with' if final_norm else 'without'} a final BatchNorm",
        classes=classes,
        channels=channels,
        build=lambda: PreActResNet(
            stem[0], stages, classes, channels=channels, bottleneck=bottleneck, final_norm=final_norm
        ),
        renames=renames,
    )


FAMILY = Family(tuple(f"preactresnet{depth}" for depth in DEPTHS), _propose)
