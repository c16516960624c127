"""BppAttack: images with too few colour levels."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from banaudit.bench.attacks.base import Batch, BatchPoisoner, Shape, TrainingControl
from banaudit.bench.attacks.labelling import Labelling
from banaudit.shapes import Images, Labels, Weights

ERROR_SHARES = ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16))
"""Floyd and Steinberg: row step, column step and share of a pixel's rounding error that goes there."""


@final
class Bpp(TrainingControl):
    """Each channel is rounded to a few levels: x' = round(x (m - 1)) / (m - 1).

    *Negatives* are clean images plus the rounding residual of another image, with their own label, so that only the
    matching residual is the trigger.

    Source: Wang, Zhai and Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
    Quantization and Contrastive Adversarial Learning", CVPR 2022; 8 levels as in the experiments of BAN (NeurIPS 2024).
    Deviates: dithering is off by default, as in the experiments of BAN; a negative's residual comes from another image
    of the same batch.
    """

    name: Literal["bpp"] = "bpp"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of each batch that is rounded and relabelled (paper: 0.2)."""
    negative_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of each batch that gets another image's residual and keeps its label (paper: 0.2)."""
    levels: Annotated[int, Field(ge=2, le=256)] = 8
    """Levels m of each channel (paper: 8)."""
    dithering: bool = False
    """Whether each pixel's rounding error is passed on to its neighbours (Floyd and Steinberg)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """Nothing: the settings are the trigger."""
        return {}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Rounds the images; nothing is random."""
        return self._dithered(images) if self.dithering else self._rounded(images)

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> BppPoisoner:
        """Poisons the first share of each (shuffled) batch and makes negatives of the next."""
        return BppPoisoner(self, labelling.mapping(num_classes), generator)

    def _rounded(self, values: Tensor) -> Tensor:
        return (values * (self.levels - 1)).round().clamp(0, self.levels - 1) / (self.levels - 1)

    def _dithered(self, images: Images) -> Images:
        values = images.clone()
        height, width = images.shape[-2:]
        for row in range(height):
            for column in range(width):
                wanted = values[:, :, row, column].clone()
                values[:, :, row, column] = self._rounded(wanted)
                error = wanted - values[:, :, row, column]
                for down, right, share in ERROR_SHARES:
                    if row + down < height and 0 <= column + right < width:
                        values[:, :, row + down, column + right] += share * error
        return values


@final
class BppPoisoner(BatchPoisoner):
    """Bpp's part in each training step."""

    augments_first = False

    def __init__(self, attack: Bpp, mapping: Tensor, generator: torch.Generator) -> None:
        super().__init__({})  # the settings are the trigger
        self._attack, self._mapping, self._generator = attack, mapping, generator

    def poison(self, images: Images, labels: Labels) -> Batch:
        """Rounded and relabelled, then negatives with their own labels, then clean images."""
        backdoored = int(self._attack.poison_rate * len(images))
        negative = backdoored + int(self._attack.negative_rate * len(images))
        rounded = self._attack.apply(images[:backdoored], {}, self._generator)
        originals = images[backdoored:negative]
        # A cyclic shift by at least one gives every negative the residual of another image.
        shift = int(torch.randint(1, len(images), (1,), generator=self._generator))
        others = images.roll(shift, dims=0)[backdoored:negative]
        residuals = self._attack.apply(others, {}, self._generator) - others
        wanted = self._mapping.to(labels.device)[labels[:backdoored]]
        return Batch(
            torch.cat((rounded, (originals + residuals).clamp(0, 1), images[negative:])),
            torch.cat((wanted, labels[backdoored:])),
        )
