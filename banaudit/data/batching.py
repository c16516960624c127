"""Images cut into parts that one pass through a network can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from banaudit.shapes import Images, Labels

PASS_PIXELS = 2**21
"""Pixels of the images of one pass with gradients, where it can be cut up: 41 images of 224 x 224, or 2,048 of 32 x 32.
The memory of a pass is then bounded, whatever the number of classes."""


def images_of_a_pass(images: Images) -> int:
    """How many images of this size, at least one, :data:`PASS_PIXELS` allows in one pass."""
    return max(1, PASS_PIXELS // (images.shape[2] * images.shape[3]))


def passes(images: Images) -> tuple[Tensor, ...]:
    """Images [B, C, H, W], in order, in parts that one pass can hold."""
    return torch.split(images, images_of_a_pass(images))


def batches(images: Images, labels: Labels, size: int) -> list[tuple[Images, Labels]]:
    """Images and labels cut into batches of at most ``size``, in order."""
    return list(zip(torch.split(images, size), torch.split(labels, size), strict=True))
