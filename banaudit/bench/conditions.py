"""Conditions that a victim is scanned under, and the studies that compare them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from banaudit.bench.datasets import to_pixels
from banaudit.detectors import Detector
from banaudit.detectors.ban import BAN
from banaudit.results import Record
from banaudit.shapes import Images

CleanSource = Literal["test", "pool", "trained on"]
"""Where clean images come from: the held-out split, the training images that no victim was trained on, or those that
victims were trained on (as they were before any of them was poisoned)."""

StudyName = Literal["seeds", "images", "recompressed", "trained-on", "released"]

SEEDS = 10
"""Seeds of the first study, each with clean images of its own."""

IMAGE_COUNTS = (50, 100, 250, 500, 1000)
"""Clean images of the second."""

JPEG_QUALITIES = (75, 50)
"""Qualities at which clean images are compressed again, in the scale of libjpeg."""


class Condition(Record):
    """All that may differ between two scans of one victim."""

    name: str
    seed: int = Field(default=0, description="Of every method.")
    images: int = Field(default=1000, description="Most clean images.")
    source: CleanSource = "test"
    draw_seed: int = Field(default=0, description="Of the drawing of clean images.")
    part: int = Field(default=0, description="Which of the disjoint parts of the clean images to draw from.")
    parts: int = Field(default=1, description="Into how many disjoint parts they are cut.")
    jpeg_quality: int | None = Field(default=None, description="Compress the images again; none: as they are.")
    released: bool = Field(default=False, description="Run BAN as its authors released it, and nothing else.")

    def detectors(self, usual: Sequence[Detector]) -> tuple[Detector, ...]:
        """The methods to run under this condition."""
        return (BAN.released(),) if self.released else tuple(usual)


def study_conditions(study: StudyName, *, images: int = 1000, seed: int = 0) -> list[Condition]:
    """The conditions of a study; the first is what the others are compared with.

    Args:
        study: Its name.
        images: Most clean images, where the study does not vary them.
        seed: Of methods and drawing, where the study does not vary them.
    """
    match study:
        case "seeds":
            return [
                Condition(name=f"seed {number}", seed=number, images=images, draw_seed=seed, part=number, parts=SEEDS)
                for number in range(SEEDS)
            ]
        case "images":
            return [
                Condition(name=f"{count} images", seed=seed, draw_seed=seed, images=count)
                for count in reversed(IMAGE_COUNTS)
            ]
    plain = Condition(name="plain", seed=seed, draw_seed=seed, images=images)
    match study:
        case "recompressed":
            return [
                plain,
                *(
                    plain.model_copy(update={"name": f"JPEG {quality}", "jpeg_quality": quality})
                    for quality in JPEG_QUALITIES
                ),
            ]
        case "trained-on":
            return [plain, plain.model_copy(update={"name": "trained on", "source": "trained on"})]
        case "released":
            return [plain, plain.model_copy(update={"name": "released", "released": True})]


def recompress(images: Images, quality: int) -> Images:
    """The same images after JPEG compression.

    Args:
        images: [N, C, H, W] in [0, 1], C 1 or 3.
        quality: 1 to 95, in the scale of libjpeg.

    Returns:
        [N, C, H, W] in [0, 1].
    """
    decoded = []
    for pixels in to_pixels(images).permute(0, 2, 3, 1).numpy():
        encoded = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(encoded, "JPEG", quality=quality)
        with Image.open(encoded) as image:
            decoded.append(np.asarray(image).reshape(pixels.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float().div(255)
