"""What the architecture files share: how a family says which member a file of weights is.

A family reads keys and shapes only. What it proposes is a guess: :mod:`banaudit.architectures.recognise` builds the
proposal without memory and compares every key and shape with the file before it believes it.
"""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import final

import torch.nn.functional as F
from torch import nn

from banaudit.architectures.base import SplitNetwork
from banaudit.shapes import Features, Logits, Weights


@dataclass(frozen=True)
class Recognition:
    """A network that a file of weights may belong to.

    Args:
        name: What ``--arch`` calls it, e.g. ``resnet18``.
        description: The same in words, with width, depth and whatever the keys do not tell.
        classes: Number of classes K.
        channels: Number of image channels C.
        build: Makes the network, with fresh weights.
        renames: Key in the file -> key in the network, for keys whose name differs.
    """

    name: str
    description: str
    classes: int
    channels: int
    build: Callable[[], SplitNetwork]
    renames: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One family of architectures.

    Args:
        names: The usual members, for lists and messages; other depths of the family are recognised too.
        propose: Yields the members that weights may belong to; nothing where the keys are of another kind.
    """

    names: tuple[str, ...]
    propose: Callable[[Weights], Iterator[Recognition]]


class GlobalPoolNetwork(SplitNetwork, ABC):
    """A network whose head is global average pooling and one linear layer.

    Args:
        width: Channels D of the last feature map.
        classes: Number of classes K.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    @final
    def head(self, features: Features) -> Logits:
        """Logits [B, K] of the last feature map [B, D, H', W']."""
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Logits = self.linear(pooled)
        return logits


@dataclass(frozen=True)
class Stage:
    """A run of residual blocks at one resolution.

    Args:
        blocks: Number of blocks.
        width: Channels inside a block.
        out: Channels of its output.
    """

    blocks: int
    width: int
    out: int


def shape(weights: Weights, key: str) -> tuple[int, ...]:
    """Shape of a tensor; empty where the file has no such key."""
    return tuple(weights[key].shape) if key in weights else ()


def count_blocks(weights: Weights, prefix: str) -> int:
    """Number of consecutive blocks ``prefix.0``, ``prefix.1``, ... that have a key in the file."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,6})\.")
    numbers = {int(match[1]) for match in map(pattern.match, weights) if match}
    count = 0
    while count in numbers:
        count += 1
    return count


def read_stages(weights: Weights, prefix: str, last_conv: str) -> tuple[Stage, ...]:
    """Depth and widths of the stages of a residual network.

    Args:
        weights: Keys in our spelling.
        prefix: Where a stage lies, with ``{}`` for its number from 1, e.g. ``layer{}``.
        last_conv: Name of a block's last convolution.

    Returns:
        One entry a stage; empty where the widths cannot be read.
    """
    stages: list[Stage] = []
    while blocks := count_blocks(weights, path := prefix.format(len(stages) + 1)):
        width = next(filter(None, (shape(weights, f"{path}.{n}.conv1.weight") for n in range(blocks))), ())
        out = next(filter(None, (shape(weights, f"{path}.{n}.{last_conv}.weight") for n in range(blocks))), ())
        if not width or not out:
            return ()
        stages.append(Stage(blocks, width[0], out[0]))
    return tuple(stages)


def read_classes(weights: Weights) -> int:
    """Class count K of a network whose last layer is ``linear``; 10 where that is missing, for the message's sake."""
    rows = shape(weights, "linear.weight")
    return rows[0] if rows else 10


def find_renames(weights: Weights, patterns: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Keys whose name differs from ours: file key -> our key.

    Args:
        weights: Keys as in the file.
        patterns: Regular expressions and what replaces them, applied in turn.

    Returns:
        The keys that change; empty where two keys would become one.
    """
    renamed: dict[str, str] = {}
    for key in weights:
        ours = key
        for pattern, replacement in patterns:
            ours = re.sub(pattern, replacement, ours)
        renamed[key] = ours
    if len(set(renamed.values())) < len(renamed):
        return {}
    return {key: ours for key, ours in renamed.items() if key != ours}


def rename(weights: Weights, renames: dict[str, str]) -> Weights:
    """The same weights under our keys."""
    return {renames.get(key, key): tensor for key, tensor in weights.items()}
