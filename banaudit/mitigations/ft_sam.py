"""FT-SAM: fine-tuning at the worst weights nearby, so that large ones shrink (Zhu et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor
from torch.func import functional_call

from banaudit.architectures.base import SplitModel
from banaudit.mitigations.base import FineTuningMitigation
from banaudit.shapes import Images, Labels, Weights

TINY = 1e-12
"""Added to a norm that is divided by."""


def adaptive_ascent(weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor], radius: float) -> Weights:
    """Weights w + radius w^2 g / || |w| g ||_2: the step up the loss that is longest where weights are large.

    To first order it maximises the loss over all changes e with || e / |w| ||_2 <= radius; products and quotients are
    entry by entry, the norm is over all tensors together.

    Args:
        weights: By name.
        gradients: Of the loss, for some of the weights; the others stay as they are.
        radius: rho.

    Returns:
        All weights, with gradients for the ones that came in as if the step were a constant.
    """
    scaled = [weights[name].detach().abs() * gradient for name, gradient in gradients.items()]
    norm = torch.stack([part.norm() for part in scaled]).norm()
    steps = {
        name: (radius / (norm + TINY)) * weights[name].detach().abs() * part
        for name, part in zip(gradients, scaled, strict=True)
    }
    return {name: weight + steps[name] if name in steps else weight for name, weight in weights.items()}


@final
class FTSAM(FineTuningMitigation):
    """Trains all weights to be right on clean images even after the worst small change of the weights.

    min_w max_{|| e / |w| || <= rho} CE(f(x; w + e), y), the labels smoothed, with the inner maximum taken to first
    order: e = rho w^2 g / || |w| g ||, g the gradient at w; the gradient for the step of SGD is then that at w + e.
    Neurons that carry a backdoor have large weights, so that the change is largest there; being robust to it makes them
    small.

    Source:
        Zhu, Wei, Shen, Fan and Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization",
        ICCV 2023; the defaults are those of the authors' code for CIFAR-10. For GTSRB and Tiny-ImageNet it sets
        ``rho=8`` and ``label_smoothing=0``.
    Deviates:
        From the authors' code: the learning rate falls once over the run (there, its cosine has a period of 200 steps
        whatever the length of the run); no mixed precision. Like there, BatchNorm's running statistics come from the
        pass with the weights as they are, and BatchNorm's own weights are changed too.
    """

    name: ClassVar[str] = "ft-sam"
    title: ClassVar[str] = "sharpness-aware fine-tuning (FT-SAM)"
    needs: ClassVar[str] = "clean images"

    epochs: PositiveInt = 100
    """Passes over the training images."""
    batch_size: PositiveInt = 256
    """Images in a step."""
    learning_rate: PositiveFloat = 0.01
    """Of SGD, at the start."""
    anneal: bool = True
    """Let the learning rate fall to zero as half a cosine."""
    rho: PositiveFloat = 2.0
    """Size of the change of the weights, in units of each weight's own."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the label that is spread over all classes."""

    def loss(self, model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
        """Cross-entropy at the changed weights; its gradient is passed on to the weights as they are."""
        del generator
        weights = dict(model.named_parameters())
        here = F.cross_entropy(model(images), labels, label_smoothing=self.label_smoothing)
        found = torch.autograd.grad(here, list(weights.values()), allow_unused=True)
        gradients = {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}
        # Running statistics of the changed network go into copies and are forgotten.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        worst = adaptive_ascent(weights, gradients, self.rho)
        logits = functional_call(model, {**worst, **buffers}, (images,))
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def passes(self) -> tuple[int, int]:
        """One pass at the weights as they are, one at the changed ones."""
        return 2, 2

    def check(self, model: SplitModel) -> None:
        """Every network can be fine-tuned."""
