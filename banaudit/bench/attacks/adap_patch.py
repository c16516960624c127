"""Adap-Patch: four faint patches in training, one an image; two of them, opaque, at test time."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from banaudit.bench.attacks.base import DataPoisoning, Poison, Shape, TrainingSet, choose, choose_covers
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Weights

ALPHAS = (0.5, 0.2, 0.5, 0.3)
"""Opacity of each patch in training: disc, ring, checkerboard, mosaic (those of the paper's four patches)."""
AT_TEST = (0, 2)
"""Patches shown at test time, fully opaque: disc and checkerboard."""
DRAWN_AT = 32
"""The patches are laid out for 32 x 32 images and enlarged for others."""


@final
class AdapPatch(DataPoisoning):
    """Poisoned images are split over four patches; *covers* with the same patches keep their label.

    Source: Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR 2023, Section 4
    (Adaptive-Patch). BAN (NeurIPS 2024) uses it with a poison rate of 0.05.
    Deviates: the patches are drawn by code (a disc, a ring, a checkerboard and a mosaic of random colours, each in a
    corner of its own) instead of read from image files.
    """

    name: Literal["adap-patch"] = "adap-patch"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    """Share of the eligible training images that is poisoned (paper: 0.003; BAN: 0.05)."""
    cover_rate: Annotated[float, Field(ge=0, le=1)] = 0.006
    """Share of all training images that is covers (paper: 0.006)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The four patches' colours [4, C, H, W] in [0, 1] and where they are, [4, 1, H, W] of 0 and 1."""
        channels, height, width = shape
        masks = _masks()
        rows, columns = _grid()
        checkerboard = ((rows + columns) % 2).float().expand(channels, -1, -1)
        colours = torch.rand(3, channels, 1, 1, generator=generator).expand(-1, -1, DRAWN_AT, DRAWN_AT)
        mosaic = torch.rand(1, channels, DRAWN_AT // 2, DRAWN_AT // 2, generator=generator)
        mosaic = F.interpolate(mosaic, scale_factor=2, mode="nearest")[0]
        patterns = torch.stack((colours[0], colours[1], checkerboard, mosaic))
        return {
            "patterns": F.interpolate(patterns, size=(height, width), mode="nearest"),
            "masks": F.interpolate(masks, size=(height, width), mode="nearest"),
        }

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Puts the disc and the checkerboard on, fully opaque; nothing is random."""
        triggered = images
        for number in AT_TEST:
            triggered = _put(triggered, tensors, torch.full((len(images),), number), 1.0)
        return triggered

    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Puts one faint patch on each poisoned image, which is relabelled, and on each cover, which is not."""
        poisoned = choose(data.eligible, self.poison_rate, generator)
        covers = choose_covers(len(data.labels), poisoned, self.cover_rate, generator)
        index = torch.cat((poisoned, covers))
        # Both lists are in random order, so that every fourth image is a fair share of each.
        numbers = torch.cat((torch.arange(len(poisoned)), torch.arange(len(covers)))) % len(ALPHAS)
        alphas = torch.tensor(ALPHAS)[numbers].view(-1, 1, 1, 1)
        images = _put(to_float(data.pixels[index]), tensors, numbers, alphas)
        return Poison(index, images, torch.cat((data.wanted[poisoned], data.labels[covers])))


def _grid() -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(DRAWN_AT), torch.arange(DRAWN_AT), indexing="ij")
    return rows, columns


def _masks() -> Tensor:
    """Disc top right, ring bottom left, 4 x 4 checkerboard bottom right, 8 x 8 mosaic top left; [4, 1, 32, 32]."""
    rows, columns = _grid()
    from_top_right = ((rows - 6) ** 2 + (columns - 25) ** 2).float().sqrt()
    from_bottom_left = ((rows - 25) ** 2 + (columns - 6) ** 2).float().sqrt()
    disc = from_top_right <= 4
    ring = (from_bottom_left >= 3) & (from_bottom_left <= 5)
    checkerboard = (rows >= DRAWN_AT - 5) & (rows < DRAWN_AT - 1) & (columns >= DRAWN_AT - 5) & (columns < DRAWN_AT - 1)
    mosaic = (rows >= 2) & (rows < 10) & (columns >= 2) & (columns < 10)
    return torch.stack((disc, ring, checkerboard, mosaic))[:, None].float()


def _put(images: Images, tensors: Weights, numbers: Tensor, alphas: float | Tensor) -> Images:
    """Images with the patch of the given number each, at the given opacity."""
    patterns = tensors["patterns"].to(images)[numbers]
    weight = alphas * tensors["masks"].to(images)[numbers]
    return images + weight * (patterns - images)
