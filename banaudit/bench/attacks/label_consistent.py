"""Label-consistent attack: images of the target class are made hard to recognise, and carry trigger and true label."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import nn

from banaudit.bench.attacks.base import DataPoisoning, Poison, Shape, TrainingSet, choose
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Labels, Weights

CORNER = ((1.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""The 3 x 3 pattern of the bottom right corner, 0 black and 1 white; the other corners mirror it."""
BATCH = 250
"""Images whose perturbation is searched at once."""
STEP_SHARE = 2.5
"""Step size of the search, times eps / steps: the field's habit."""


@final
class LabelConsistent(DataPoisoning):
    """Adversarial perturbation away from the true class, then a pattern in each corner; no label is changed.

    Source: Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", 2019, Sections 3 and 4.
    Deviates: the perturbation is found on a normally trained model of the same network, not on a robust one.
    """

    name: Literal["label-consistent"] = "label-consistent"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the target class's training images that is poisoned (paper: up to 1; works from 0.25 on)."""
    eps: Annotated[float, Field(gt=0, le=1)] = 16 / 255
    """L-infinity size of the perturbation in [0, 1] (paper: 8, 16 or 32 of 255)."""
    steps: PositiveInt = 20
    """Steps of projected gradient ascent."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """Colours [C, H, W] and the four corners' place [1, H, W] of 0 and 1; nothing is random."""
        channels, height, width = shape
        pattern, mask = torch.zeros(1, height, width), torch.zeros(1, height, width)
        corner = torch.tensor(CORNER)
        pattern[:, -3:, -3:] = corner
        pattern[:, -3:, :3] = corner.flip(1)
        pattern[:, :3, -3:] = corner.flip(0)
        pattern[:, :3, :3] = corner.flip(0, 1)
        for rows in (slice(None, 3), slice(-3, None)):
            for columns in (slice(None, 3), slice(-3, None)):
                mask[:, rows, columns] = 1
        return {"pattern": pattern.expand(channels, -1, -1).contiguous(), "mask": mask}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Puts the pattern in the four corners; nothing is random."""
        mask = tensors["mask"].to(images)
        return images * (1 - mask) + tensors["pattern"].to(images) * mask

    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Perturbs and stamps a share of the images of each label that somebody is to be sent to."""
        index = choose(torch.isin(data.labels, data.wanted[data.eligible]), self.poison_rate, generator)
        labels = data.labels[index]
        images = perturb(
            data.surrogate(),
            to_float(data.pixels[index]),
            labels,
            eps=self.eps,
            steps=self.steps,
            generator=generator,
        )
        return Poison(index, self.apply(images, tensors, generator), labels)


def perturb(
    model: nn.Module, images: Images, labels: Labels, *, eps: float, steps: int, generator: torch.Generator
) -> Images:
    """Images moved away from their labels by projected gradient ascent from a random start.

    Args:
        model: Images in [0, 1] -> logits, in evaluation mode.
        images: [N, C, H, W] on the CPU.
        labels: [N] on the CPU.
        eps: L-infinity radius.
        steps: Sign steps.
        generator: Source of randomness, on the CPU.
    """
    device = next(model.parameters()).device
    found = []
    for part, wanted in zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True):
        clean, target = part.to(device), wanted.to(device)
        moved = (clean + eps * (2 * torch.rand(part.shape, generator=generator) - 1).to(device)).clamp(0, 1)
        for _ in range(steps):
            moved.requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model(moved), target), moved)
            step = moved.detach() + STEP_SHARE * eps / steps * gradient.sign()
            moved = (clean + (step - clean).clamp(-eps, eps)).clamp(0, 1)
        found.append(moved.detach().cpu())
    return torch.cat(found)
