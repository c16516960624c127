"""VGG-11/13/16/19 with BatchNorm for small images, of any width.

Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, Table 1
(A, B, D, E), with BatchNorm after each convolution and, as usual for 32x32 images, a small classifier.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.base import SplitNetwork
from banaudit.architectures.family import Family, Recognition, find_renames, rename, shape
from banaudit.shapes import Features, Logits, Weights

_GROUPS: dict[tuple[int, ...], int] = {
    (1, 1, 2, 2, 2): 11,
    (2, 2, 2, 2, 2): 13,
    (2, 2, 3, 3, 3): 16,
    (2, 2, 4, 4, 4): 19,
}
"""Convolutions between two max-poolings -> depth."""
_RENAMES = ((r"^(linear|fc)\.", "classifier."),)
IMAGENET_POOLED = 7
"""Pooled resolution of the ImageNet variant, which torchvision's own class serves."""


@final
class VGG(SplitNetwork):
    """3x3 convolutions with bias, each with BatchNorm and ReLU, in groups that end with max-pooling by two.

    The head is average pooling to ``pooled`` x ``pooled`` and the one linear layer; where the classifier has more than
    one linear layer, the features are the input of the last one, [B, D].

    Args:
        groups: Output channels of the convolutions of each group.
        hidden: Position and width of each hidden linear layer of the classifier.
        last: Position of the classifier's last layer; none: the classifier is that layer.
        classes: Number of classes K.
        channels: Number of image channels C.
        pooled: Resolution at which the feature map is flattened.
    """

    def __init__(
        self,
        groups: tuple[tuple[int, ...], ...],
        hidden: tuple[tuple[int, int], ...],
        last: int | None,
        classes: int,
        *,
        channels: int = 3,
        pooled: int = 1,
    ) -> None:
        super().__init__()
        self.pooled = pooled
        layers: list[nn.Module] = []
        channels_in = channels
        for group in groups:
            for width in group:
                layers += [nn.Conv2d(channels_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels_in = width
            layers.append(nn.MaxPool2d(2))
        features_in = channels_in * pooled**2
        self.trunk = nn.Sequential(*layers)
        self.classifier: nn.Module
        if last is None:
            self.classifier = nn.Linear(features_in, classes)
            return
        stack: list[nn.Module] = [nn.Identity() for _ in range(last + 1)]
        for position, width in hidden:
            stack[position] = nn.Linear(features_in, width)
            stack[position + 1] = nn.ReLU()
            features_in = width
        stack[last] = nn.Linear(features_in, classes)
        self.classifier = nn.Sequential(*stack)

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H/32, W/32]; with hidden linear layers, the input [B, D] of the last one."""
        hidden: Tensor = self.trunk(inputs)
        if isinstance(self.classifier, nn.Linear):
            return hidden
        assert isinstance(self.classifier, nn.Sequential)
        hidden = F.adaptive_avg_pool2d(hidden, self.pooled).flatten(1)
        for layer in self.classifier[:-1]:
            hidden = layer(hidden)
        return hidden

    def head(self, features: Features) -> Logits:
        """Logits [B, K] of features."""
        logits: Logits
        if isinstance(self.classifier, nn.Linear):
            logits = self.classifier(F.adaptive_avg_pool2d(features, self.pooled).flatten(1))
            return logits
        assert isinstance(self.classifier, nn.Sequential)
        logits = self.classifier[-1](features)
        return logits


def _read_groups(ours: Weights) -> tuple[tuple[int, ...], ...]:
    """Widths of the convolutions of each group, read from which positions of ``trunk`` hold one."""
    names = (re.fullmatch(r"trunk\.(\d{1,4})\.weight", key) for key in ours)
    positions = sorted(int(name[1]) for name in names if name and len(shape(ours, name[0])) == 4)
    groups: list[list[int]] = [[]]
    expected = 0
    for position in positions:
        if position == expected + 1:  # a max-pooling lies between
            groups.append([])
        elif position != expected:
            return ()
        groups[-1].append(shape(ours, f"trunk.{position}.weight")[0])
        expected = position + 3
    return tuple(map(tuple, groups))


def _propose(weights: Weights) -> Iterator[Recognition]:
    renames = find_renames(weights, (*_RENAMES, (r"^features\.", "trunk.")))
    ours = rename(weights, renames)
    groups = _read_groups(ours)
    depth = _GROUPS.get(tuple(map(len, groups)))
    stem = shape(ours, "trunk.0.weight")
    names = (re.fullmatch(r"classifier\.(\d{1,2}\.)?weight", key) for key in ours)
    linears = {name[0]: shape(ours, name[0]) for name in names if name and len(shape(ours, name[0])) == 2}
    if depth is None or not linears:
        return
    positions = [] if "classifier.weight" in linears else sorted(int(key.split(".")[1]) for key in linears)
    first, last = ("", "") if not positions else (f"{positions[0]}.", f"{positions[-1]}.")
    pooled = math.isqrt(linears[f"classifier.{first}weight"][1] // groups[-1][-1])
    # An activation fits between two linear layers only if a position is left for it.
    if pooled in (0, IMAGENET_POOLED) or any(right - left < 2 for left, right in pairwise(positions)):
        return
    hidden = tuple((position, linears[f"classifier.{position}.weight"][0]) for position in positions[:-1])
    classes, channels = linears[f"classifier.{last}weight"][0], stem[1]
    yield Recognition(
        name=f"vgg{depth}",
        description=f"VGG-{depth} with BatchNorm, widths {'-'.join(str(group[-1]) for group in groups)}, "
        f"{len(linears)} linear layer{'s' if len(linears) > 1 else ''}",
        classes=classes,
        channels=channels,
        build=lambda: VGG(
            groups, hidden, positions[-1] if positions else None, classes, channels=channels, pooled=pooled
        ),
        renames=renames,
    )


FAMILY = Family(tuple(f"vgg{depth}" for depth in _GROUPS.values()), _propose)
