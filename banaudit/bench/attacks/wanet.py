"""WaNet: one smooth, hardly visible warp of the whole picture."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from banaudit.bench.attacks.base import Batch, BatchPoisoner, Shape, TrainingControl
from banaudit.bench.attacks.labelling import Labelling
from banaudit.shapes import Images, Labels, Weights


@final
class WaNet(TrainingControl):
    """Images are resampled on a grid that is shifted by a smooth random field.

    Field: a k x k grid of two-dimensional shifts from U(-1, 1), divided by their mean absolute value, enlarged
    bicubically to the image; sampling position = identity + s / H * field, in the coordinates [-1, 1] of the image. In
    *noise mode* further images get the warp plus a random jitter U(-1, 1) / H and keep their label, so that only the
    exact warp is the trigger.

    Source: Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, Section 3.
    Deviates: augmented after the warp as all victims are (crop, mirror), without the rotation by 10 degrees.
    """

    name: Literal["wanet"] = "wanet"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each batch that is warped and relabelled (paper: 0.1)."""
    cross_ratio: Annotated[float, Field(ge=0)] = 2.0
    """Images of the noise mode for each poisoned one (paper: 2)."""
    grid_size: Annotated[int, Field(ge=2)] = 4
    """Height and width k of the coarse grid of shifts (paper: 4)."""
    strength: PositiveFloat = 0.5
    """Strength s of the warp (paper: 0.5), unitless."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The sampling positions, [1, H, W, 2] (x before y) in [-1, 1]."""
        _, height, width = shape
        coarse = 2 * torch.rand(1, 2, self.grid_size, self.grid_size, generator=generator) - 1
        field = F.interpolate(coarse / coarse.abs().mean(), size=(height, width), mode="bicubic", align_corners=True)
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        identity = torch.stack((columns, rows), dim=-1)[None]
        return {"grid": (identity + self.strength / height * field.permute(0, 2, 3, 1)).clamp(-1, 1)}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Warps the images; nothing is random."""
        return _resample(images, tensors["grid"].to(images).expand(len(images), -1, -1, -1))

    def jitter(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Warps the images with a random jitter U(-1, 1) / H on top, drawn for each image: the noise mode."""
        grid = tensors["grid"].to(images)
        noise = 2 * torch.rand(len(images), *grid.shape[1:], generator=generator) - 1
        return _resample(images, (grid + noise.to(images) / grid.shape[1]).clamp(-1, 1))

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> WaNetPoisoner:
        """Poisons the first share of each (shuffled) batch and jitters the next."""
        return WaNetPoisoner(self, tensors, labelling.mapping(num_classes), generator)


@final
class WaNetPoisoner(BatchPoisoner):
    """WaNet's part in each training step."""

    augments_first = False

    def __init__(self, attack: WaNet, tensors: Weights, mapping: Tensor, generator: torch.Generator) -> None:
        super().__init__(tensors)
        self._attack, self._mapping, self._generator = attack, mapping, generator

    def poison(self, images: Images, labels: Labels) -> Batch:
        """Warped and relabelled, then jittered with their own labels, then clean images."""
        backdoored = int(self._attack.poison_rate * len(images))
        crossed = backdoored + int(backdoored * self._attack.cross_ratio)
        warped = self._attack.apply(images[:backdoored], self._tensors, self._generator)
        noisy = self._attack.jitter(images[backdoored:crossed], self._tensors, self._generator)
        wanted = self._mapping.to(labels.device)[labels[:backdoored]]
        return Batch(torch.cat((warped, noisy, images[crossed:])), torch.cat((wanted, labels[backdoored:])))


def _resample(images: Images, grid: Tensor) -> Images:
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True).clamp(0, 1)
