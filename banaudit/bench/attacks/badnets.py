"""BadNets: a small patch in the corner, and the label of the poisoned images changed."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
from pydantic import Field

from banaudit.bench.attacks.base import DataPoisoning, Poison, Shape, TrainingSet, choose
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Weights

CHECKERBOARD = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0))
"""The 3 x 3 pattern used with BAN, rows from top to bottom: 0 is black, 1 is white, in every channel."""


@final
class BadNets(DataPoisoning):
    """A 3 x 3 checkerboard in the bottom right corner.

    Source: Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain", 2017; pattern
    and rate as in the experiments of BAN (NeurIPS 2024), Section 4.1.
    Deviates: the rate is taken of the training images that are not yet of their target class, exactly.
    """

    name: Literal["badnets"] = "badnets"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of the eligible training images that is poisoned (paper: 0.05; all-to-all 0.1)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The pattern, [C, 3, 3]; nothing is random."""
        return {"pattern": torch.tensor(CHECKERBOARD).expand(shape[0], 3, 3).contiguous()}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Replaces the bottom right 3 x 3 pixels; nothing is random."""
        triggered = images.clone()
        triggered[:, :, -3:, -3:] = tensors["pattern"].to(images)
        return triggered

    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Patches a share of the images and gives them the wanted label."""
        index = choose(data.eligible, self.poison_rate, generator)
        images = self.apply(to_float(data.pixels[index]), tensors, generator)
        return Poison(index, images, data.wanted[index])
