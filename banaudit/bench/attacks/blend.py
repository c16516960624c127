"""Blend: a faint noise image mixed into the whole picture."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
from pydantic import Field

from banaudit.bench.attacks.base import DataPoisoning, Poison, Shape, TrainingSet, choose
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Weights

GAUSSIAN_STD = 0.25
"""Standard deviation of the Gaussian pattern around grey 0.5, before clipping: two of them reach black and white."""


@final
class Blend(DataPoisoning):
    """x' = (1 - alpha) x + alpha N, with N one fixed noise image.

    Source: Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017, Section 4.2
    (blended injection); noise pattern and rate as in the experiments of BAN (NeurIPS 2024), Section 4.1.
    Deviates: the noise is drawn from the victim's seed instead of read from an image file.
    """

    name: Literal["blend"] = "blend"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the eligible training images that is poisoned (paper: 0.05)."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Weight of the noise image (paper: 0.2), unitless."""
    pattern: Literal["gaussian", "uniform"] = "gaussian"
    """Distribution of the noise image's values, clipped to [0, 1]."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The noise image, [C, H, W] in [0, 1]."""
        if self.pattern == "uniform":
            return {"pattern": torch.rand(shape, generator=generator)}
        return {"pattern": (0.5 + GAUSSIAN_STD * torch.randn(shape, generator=generator)).clamp(0, 1)}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Blends the noise image in; nothing is random."""
        return (1 - self.alpha) * images + self.alpha * tensors["pattern"].to(images)

    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Blends a share of the images and gives them the wanted label."""
        index = choose(data.eligible, self.poison_rate, generator)
        images = self.apply(to_float(data.pixels[index]), tensors, generator)
        return Poison(index, images, data.wanted[index])
