"""Universal perturbation: one small change of the pixels, the same for all images, aimed at each class in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.meter import Meter
from banaudit.neurons import fast_precision
from banaudit.shapes import Images, Logits


class _PixelShift:
    """A universal perturbation of the pixels, grown along an L2 sphere of rising radius."""

    def __init__(self, model: SplitModel, shape: torch.Size, device: torch.device, step: float, meter: Meter) -> None:
        self._model = model.eval().requires_grad_(False)
        self._shape = shape
        self._device = device
        self._step = step
        self._meter = meter

    def zero(self) -> Tensor:
        return torch.zeros(1, *self._shape, device=self._device)

    def logits(self, images: Images, perturbation: Tensor, what: str) -> Logits:
        gradient = perturbation.requires_grad
        self._meter.spend(what, forward=len(images), backward=len(images) if gradient else 0)
        with fast_precision(self._device):
            logits: Tensor = self._model((images + perturbation).clamp(0, 1))
        return logits.float()

    def descend(self, perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
        moved = perturbation - self._step * gradient / gradient.norm().clamp_min(1e-12)
        radius = self._step * step
        return moved * (radius / moved.norm().clamp_min(radius))
