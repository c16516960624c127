"""Adap-Blend: a blended image of which training sees random pieces only, and covers that keep their label."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from banaudit.bench.attacks.base import DataPoisoning, Poison, Shape, TrainingSet, choose, choose_covers
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Weights

COARSE = 8
"""The blended image is random colours on an 8 x 8 grid, enlarged bicubically: a smooth picture instead of noise."""


@final
class AdapBlend(DataPoisoning):
    """x' = (1 - alpha M) x + alpha M N: N one fixed picture, M random pieces of it in training, all of it at test time.

    *Covers* get the same treatment and keep their label, so that poisoned images do not stand apart in feature space.

    Source: Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023, Section 4
    (Adaptive-Blend). BAN (NeurIPS 2024) uses it with a poison rate of 0.05.
    Deviates: the picture is drawn from the victim's seed instead of read from an image file.
    """

    name: Literal["adap-blend"] = "adap-blend"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    """Share of the eligible training images that is poisoned (paper: 0.003; BAN: 0.05)."""
    cover_rate: Annotated[float, Field(ge=0, le=1)] = 0.003
    """Share of all training images that is covers (paper: 0.003)."""
    alpha_train: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Weight of the picture in training (code: 0.15), unitless."""
    alpha_test: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Weight of the picture at test time (paper: 0.2), unitless."""
    pieces: Annotated[int, Field(ge=1)] = 4
    """Pieces along each side; the paper cuts 4 x 4."""
    shown: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the pieces that one training image gets (paper: 0.5)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The picture, [C, H, W] in [0, 1]."""
        channels, height, width = shape
        coarse = torch.rand(1, channels, COARSE, COARSE, generator=generator)
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
        return {"pattern": smooth[0].clamp(0, 1)}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Blends the whole picture in; nothing is random."""
        return _blend(images, tensors["pattern"].to(images), self.alpha_test)

    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Blends random pieces into poisoned images, which are relabelled, and into covers, which are not."""
        poisoned = choose(data.eligible, self.poison_rate, generator)
        covers = choose_covers(len(data.labels), poisoned, self.cover_rate, generator)
        index = torch.cat((poisoned, covers))
        images = to_float(data.pixels[index])
        weight = self.alpha_train * self.piece_masks(len(index), images.shape[-2:], generator).to(images)
        blended = _blend(images, tensors["pattern"].to(images), weight)
        return Poison(index, blended, torch.cat((data.wanted[poisoned], data.labels[covers])))

    def piece_masks(self, count: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Which pixels show the picture, [count, 1, H, W] of 0 and 1; as many pieces are shown of each."""
        total = self.pieces**2
        order = torch.rand(count, total, generator=generator).argsort(dim=1)
        chosen = (order < round(self.shown * total)).float().view(count, 1, self.pieces, self.pieces)
        return F.interpolate(chosen, size=size, mode="nearest")


def _blend(images: Images, pattern: Tensor, weight: float | Tensor) -> Images:
    return images + weight * (pattern - images)
