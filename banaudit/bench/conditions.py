"""Conditions that a victim is scanned under, the clean images drawn for them, and the studies that compare them."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from banaudit.bench.datasets import PixelData, attacker_and_pool, dataset_spec, load_split, to_pixels
from banaudit.data import CleanData
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


DRAWS_KEPT = 4
"""Drawings of clean images held in memory at once."""


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


@functools.lru_cache(maxsize=DRAWS_KEPT)
def draw_condition(
    dataset: str, condition: Condition, *, root: Path | None = None, cache: Path | None = None
) -> CleanData:
    """The clean images of a condition; the last few drawings are kept.

    Args:
        dataset: Name of the data set.
        condition: Which images, how many, and what is done to them.
        root: Folder of the data sets.
        cache: Where decoded data are kept.
    """
    clean = draw_clean(
        dataset,
        condition.source,
        condition.images,
        condition.draw_seed,
        part=condition.part,
        parts=condition.parts,
        root=root,
        cache=cache,
    )
    if condition.jpeg_quality is None:
        return clean
    return CleanData(recompress(clean.images, condition.jpeg_quality), clean.labels, clean.class_names)


def draw_clean(
    dataset: str,
    source: CleanSource,
    count: int,
    seed: int,
    *,
    part: int = 0,
    parts: int = 1,
    root: Path | None = None,
    cache: Path | None = None,
) -> CleanData:
    """Clean images of a data set, as evenly over the classes as they allow.

    Args:
        dataset: Name of the data set.
        source: The held-out split, the defender's pool of training images, or the images that victims are trained on.
        count: How many at most.
        seed: Of the drawing.
        part: Which of the disjoint parts to draw from, 0 to ``parts`` - 1.
        parts: Into how many parts, each with its share of every class, the images are cut before the drawing.
        root: Folder of the data sets.
        cache: Where decoded data are kept.
    """
    if source == "test":
        data = load_split(dataset, dataset_spec(dataset).held_out, root=root, cache=cache)
        index = torch.arange(len(data))
    else:
        data = load_split(dataset, "train", root=root, cache=cache)
        attacker, pool = attacker_and_pool(data)
        index = pool if source == "pool" else attacker
    return data.subset(index[_evenly(data, index, count, seed, part, parts)]).clean()


def _evenly(data: PixelData, index: Tensor, count: int, seed: int, part: int, parts: int) -> Tensor:
    """Positions in ``index`` of ``count`` samples: the first of each class, then the second, and so on.

    Of several parts each takes every so manieth of a class.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(index), generator=generator)
    labels = data.labels[index][order]
    rank = torch.empty(len(labels), dtype=torch.int64)
    for label in range(len(data.class_names)):
        members = (labels == label).nonzero().flatten()
        rank[members] = torch.arange(len(members))
    in_turn = rank.argsort(stable=True)
    return order[in_turn[rank[in_turn] % parts == part][:count]]
