"""Changes of an image's pixels that grow step by step inside an L2 ball: what searches for shortcuts have in common."""

from __future__ import annotations

import math

from torch import Tensor

from banaudit.shapes import Images

REFERENCE_VALUES = 3 * 32 * 32
"""Values in the image for which a step is stated; the norm of a like change grows with their square root."""


def step_length(step: float, image: Tensor) -> float:
    """The L2 norm of a step for images of another size.

    Args:
        step: Norm for 3 x 32 x 32 images in [0, 1].
        image: [C, H, W], for its size.
    """
    return step * math.sqrt(image.numel() / REFERENCE_VALUES)


def grow(changes: Images, gradients: Images, length: float, step: int) -> Images:
    """Each change a step further against its gradient, and no larger than so many steps in one direction.

    Args:
        changes: [B, C, H, W].
        gradients: The same shape; where one is zero its change stays.
        length: L2 norm of a step.
        step: Number of this step, from 1: the ball's radius is ``step * length``.
    """
    moved = changes - length * gradients / _norms(gradients).clamp_min(1e-12)
    radius = length * step
    inside: Images = moved * (radius / _norms(moved).clamp_min(radius))
    return inside


def _norms(changes: Images) -> Tensor:
    norms: Tensor = changes.flatten(1).norm(dim=1)
    return norms.view(-1, 1, 1, 1)
