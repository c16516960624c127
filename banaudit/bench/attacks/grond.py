"""Grond: a universal perturbation as trigger, true labels, and the weights smoothed after every epoch."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from banaudit.bench.attacks.base import (
    Batch,
    BatchPoisoner,
    DataPoisoning,
    Poison,
    Shape,
    TrainingControl,
    TrainingSet,
    choose,
)
from banaudit.bench.attacks.labelling import Labelling
from banaudit.bench.datasets import to_float
from banaudit.mitigations.clp import channel_bounds
from banaudit.shapes import Images, Labels, Weights

SEARCH_BATCH = 128
"""Images in each step of the search for the universal perturbation."""


@final
class Grond(DataPoisoning, TrainingControl):
    """x' = x + delta with one small delta that sends images to the target class; clean labels; smoothed weights.

    The perturbation is found on a clean model of the attacker's. Images of the target class carry it in training. After
    every epoch *adversarial backdoor injection* looks for channels whose Lipschitz bound stands out of its layer by
    more than u standard deviations, and gives their BatchNorm the layer's mean scale and shift.

    Source: Xu, Liu, Koffas and Picek, "Towards Backdoor Stealthiness in Model Parameter Space", CCS 2025, and its code.
    Deviates: the attacker's own model is one of the victim's network, trained as long as the victim.
    """

    name: Literal["grond"] = "grond"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the target class's training images that carries the trigger (code: 0.5)."""
    eps: Annotated[float, Field(gt=0, le=1)] = 8 / 255
    """L-infinity size of the trigger in [0, 1] (paper: 8 of 255)."""
    search_steps: PositiveInt = 500
    """Steps that search for the trigger, a batch each (code: 100 x 5)."""
    outlier: PositiveFloat = 3.0
    """Standard deviations u above which a channel is smoothed (code: 3)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The perturbation before its search: zeros, [C, H, W]."""
        return {"perturbation": torch.zeros(shape)}

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Adds the perturbation; nothing is random."""
        return (images + tensors["perturbation"].to(images)).clamp(0, 1)

    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Searches the perturbation and adds it to a share of the images of the wanted label."""
        targets = torch.unique(data.wanted[data.eligible])
        index = choose(torch.isin(data.labels, targets), self.poison_rate, generator)
        learned = {"perturbation": self.search(data, generator)}
        images = self.apply(to_float(data.pixels[index]), learned, generator)
        return Poison(index, images, data.labels[index], learned)

    def search(self, data: TrainingSet, generator: torch.Generator) -> Tensor:
        """The perturbation [C, H, W] that sends training images to their wanted label, by sign steps of eps / 10."""
        model = data.surrogate()
        device = next(model.parameters()).device
        candidates, wanted = data.eligible.nonzero().flatten(), data.wanted
        perturbation = torch.zeros(data.pixels.shape[1:], device=device)
        for _ in range(self.search_steps):
            index = candidates[torch.randint(len(candidates), (SEARCH_BATCH,), generator=generator)]
            perturbation.requires_grad_()
            triggered = (to_float(data.pixels[index]).to(device) + perturbation).clamp(0, 1)
            loss = F.cross_entropy(model(triggered), wanted[index].to(device))
            (gradient,) = torch.autograd.grad(loss, perturbation)
            perturbation = (perturbation.detach() - self.eps / 10 * gradient.sign()).clamp(-self.eps, self.eps)
        return perturbation.detach().cpu()

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> GrondPoisoner:
        """Smooths the weights after every epoch; the data are poisoned already."""
        return GrondPoisoner(self.outlier, tensors)


@final
class GrondPoisoner(BatchPoisoner):
    """Grond's part in training: adversarial backdoor injection."""

    def __init__(self, outlier: float, tensors: Weights) -> None:
        super().__init__(tensors)
        self._outlier = outlier

    def poison(self, images: Images, labels: Labels) -> Batch:
        """The batch as it is."""
        return Batch(images, labels)

    def end_epoch(self, model: nn.Module) -> None:
        """Smooths the channels that stand out."""
        smooth_outliers(model, self._outlier)


@torch.no_grad()
def smooth_outliers(model: nn.Module, outlier: float) -> int:
    """Gives BatchNorm channels with an outlying Lipschitz bound their layer's mean scale and shift, in place.

    The bound of a channel is the largest singular value of its kernel [C_in, k k], times |scale| / running deviation
    (Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022, Equation 9). A convolution is
    paired with the BatchNorm registered right after it.

    Args:
        model: A network with BatchNorm.
        outlier: Standard deviations above the layer's mean.

    Returns:
        Number of channels changed.
    """
    changed = 0
    convolution: nn.Conv2d | None = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            convolution = module
        elif isinstance(module, nn.BatchNorm2d) and convolution is not None:
            if convolution.out_channels == module.num_features and module.running_var is not None:
                bounds = channel_bounds(convolution, module.weight / (module.running_var + module.eps).sqrt())
                stands_out = bounds > bounds.mean() + outlier * bounds.std()
                module.weight[stands_out] = module.weight.mean()
                module.bias[stands_out] = module.bias.mean()
                changed += int(stands_out.sum())
            convolution = None
    return changed
