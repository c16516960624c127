"""The thin CIFAR residual networks of three stages: ResNet-20/32/44/56/110, of any width and depth.

Source: He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, Section 4.2: 6n + 2 layers,
widths 16, 32, 64, shortcuts without parameters (option A).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.family import (
    Family,
    Recognition,
    find_renames,
    read_classes,
    read_stages,
    rename,
    shape,
)
from banaudit.architectures.resnet import RENAMES, STEM_KERNEL, ResNet, projection_shortcut
from banaudit.shapes import Weights

STAGES = 3


@final
class PadShortcut(nn.Module):
    """Option A: every second pixel, the new channels zero, half of them on each side (a side the paper leaves open)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (channels_out - channels_in) // 2
        self.after = channels_out - channels_in - self.before

    def forward(self, inputs: Tensor) -> Tensor:
        """Feature map [B, out, H/stride, W/stride]."""
        return F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def pad_shortcut(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """Identity where the shapes agree, else :class:`PadShortcut`."""
    if stride == 1 and channels_in == channels_out:
        return nn.Sequential()
    return PadShortcut(channels_in, channels_out, stride)


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, RENAMES)
    ours = rename(weights, renames)
    stem = shape(ours, "conv1.weight")
    bottleneck = any(key.endswith(".conv3.weight") for key in ours)
    stages = read_stages(ours, "layer{}", "conv3" if bottleneck else "conv2")
    if stem[2:] != (STEM_KERNEL, STEM_KERNEL) or len(stages) != STAGES or "bn1.weight" not in ours:
        return
    padded = not any(".shortcut." in key for key in ours)
    depth = (3 if bottleneck else 2) * sum(stage.blocks for stage in stages) + 2
    classes, channels = read_classes(ours), stem[1]
    yield Recognition(
        name=f"resnet{depth}",
        description=f"CIFAR ResNet-{depth} of three stages, width {stem[0]}, "
        f"{'bottleneck' if bottleneck else 'basic'} blocks, "
        f"{'shortcuts without parameters (option A)' if padded else 'projection shortcuts (option B)'}",
        classes=classes,
        channels=channels,
        build=lambda: ResNet(
            stem[0],
            stages,
            classes,
            channels=channels,
            bottleneck=bottleneck,
            shortcut=pad_shortcut if padded else projection_shortcut,
        ),
        renames=renames,
    )


FAMILY = Family(("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), _propose)
