"""Targeted neuron noise: additive noise on BatchNorm's neurons, aimed at each class in turn."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import Detector, Samples
from banaudit.detectors.mapping import MappingSettings, search_mapping
from banaudit.detectors.targeted_paths import follow, lead, pair_lead
from banaudit.meter import Meter
from banaudit.neurons import NoisyModel, Statistics
from banaudit.results import Evidence, Reading
from banaudit.shapes import Images, Logits


class _NeuronShift:
    """Additive neuron noise as a perturbation that grows by one sign step at a time."""

    def __init__(self, model: NoisyModel, step: float) -> None:
        self._model = model
        self._step = step

    def zero(self) -> Tensor:
        return self._model.no_noise()

    def logits(self, images: Images, perturbation: Tensor, what: str) -> Logits:
        return self._model.logits(images, perturbation, what=what)

    def descend(self, perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
        radius = self._step * step
        return (perturbation - self._step * gradient.sign()).clamp(-radius, radius)
