"""Recovered triggers as pictures: what a method found, for the eye. They travel beside a report, never in it.

A report holds the facts (:class:`banaudit.results.TriggerFacts`); a :data:`TriggerSink` gets the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from banaudit.results import TriggerFacts

GREY = 0.5
"""What stands for "no trigger here" in a picture of a trigger alone."""

Pixels = NDArray[np.uint8]
"""[H, W] grey or [H, W, 3] colour, 0 to 255."""


@dataclass(frozen=True)
class TriggerPicture:
    """One picture.

    Args:
        name: A word that can be part of a file's name.
        shows: What there is to see, in one line.
        pixels: The picture.
    """

    name: str
    shows: str
    pixels: Pixels


@dataclass(frozen=True)
class RecoveredTrigger:
    """A trigger that a method recovered for one class.

    Args:
        method: Name of the method.
        facts: Class, size, success: what the report says of it.
        pictures: At least one.
    """

    method: str
    facts: TriggerFacts
    pictures: tuple[TriggerPicture, ...]


TriggerSink = Callable[[RecoveredTrigger], None]
"""Called with each recovered trigger once its method has ended, e.g. ``list.append``."""


def pixels(image: Tensor) -> Pixels:
    """An image [C, H, W] in [0, 1], C 1 or 3, as bytes; values outside are cut off."""
    scaled = image.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(scaled[..., 0] if scaled.shape[2] == 1 else scaled)


def picture_of_change(change: Tensor, name: str) -> TriggerPicture:
    """A signed change of an image as a picture: grey where there is none, its largest value at black or white.

    Args:
        change: [C, H, W].
        name: Of the picture.
    """
    largest = float(change.detach().abs().max())
    factor = GREY / largest if largest > 0 else 1.0
    return TriggerPicture(
        name, f"what changes, times {factor:.3g}; grey: nothing", pixels(GREY + factor * change.detach())
    )


def before_and_after(clean: Tensor, triggered: Tensor) -> tuple[TriggerPicture, TriggerPicture]:
    """A clean image [C, H, W] and the same with the trigger."""
    return (
        TriggerPicture("clean", "a clean image that played no part in the search", pixels(clean)),
        TriggerPicture("triggered", "the same image with the trigger", pixels(triggered)),
    )


def patch_pictures(mask: Tensor, pattern: Tensor, clean: Tensor, triggered: Tensor) -> tuple[TriggerPicture, ...]:
    """A patch: pattern where the mask is on grey, the mask, and an image without and with it.

    Args:
        mask: [1, H, W], or [C, H, W] where each channel has its own, in [0, 1].
        pattern: [C, H, W] in [0, 1].
        clean: [C, H, W] in [0, 1].
        triggered: The same with the patch.
    """
    alone = mask * pattern + (1 - mask) * GREY
    return (
        TriggerPicture("pattern", "the patch alone; grey: nothing", pixels(alone)),
        TriggerPicture("mask", "where the patch covers the image; white: all of it", pixels(mask)),
        *before_and_after(clean, triggered),
    )


def change_pictures(clean: Tensor, triggered: Tensor) -> tuple[TriggerPicture, ...]:
    """A change that depends on the image: an image without and with it, and their difference, amplified.

    Args:
        clean: [C, H, W] in [0, 1].
        triggered: The same with the trigger.
    """
    return *before_and_after(clean, triggered), picture_of_change(triggered - clean, "difference")
