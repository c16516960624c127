"""Targeted neuron noise: additive noise on BatchNorm's neurons, aimed at each class in turn."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import PositiveFloat
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import Samples
from banaudit.detectors.shortcut import ShortcutDetector
from banaudit.detectors.targeted_paths import Leader
from banaudit.meter import Meter
from banaudit.neurons import NoisyModel, Statistics
from banaudit.shapes import Images, Logits


class _NeuronShift:
    """Additive neuron noise that grows by one sign step at a time; no entry exceeds the number of steps times one."""

    def __init__(self, model: NoisyModel, step: float) -> None:
        self._model = model
        self._step = step

    def zero(self) -> Tensor:
        return self._model.no_noise()

    def random(self, step: int, generator: torch.Generator) -> Tensor:
        return self._model.random_signs(self._step * step, generator)

    def logits(self, images: Images, perturbation: Tensor, what: str) -> Logits:
        return self._model.logits(images, perturbation, what=what)

    def descend(self, perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
        radius = self._step * step
        return (perturbation - self._step * gradient.sign()).clamp(-radius, radius)


@final
class TargetedNoise(ShortcutDetector):
    """Scores how much further than any other class one class is reached by small additive noise on the neurons.

    For each class t: gamma' = gamma (1 + delta), beta' = beta + xi |gamma|, with delta and xi grown by sign steps that
    descend CE(f(x), t) over images x of the other classes; BatchNorm uses the statistics of the batch.  Classes are
    compared where the median class is reached by nearly all images (:mod:`targeted_paths` has the ruler).

    Source:
        Ours. BAN (NeurIPS 2024) perturbs relatively and away from the true label; a shift in units of the channel's own
        scale also moves a backdoor channel whose shift is near zero, and aiming at a class makes the classes
        comparable.
    """

    name: ClassVar[str] = "targeted-noise"
    title: ClassVar[str] = "a class that small noise on the neurons reaches too easily"
    needs: ClassVar[str] = "BatchNorm, clean images"
    misses: ClassVar[str] = (
        "blended patterns, some patches, most warpings and half of the per-image and adaptive triggers towards one "
        "class, most that one class alone responds to"
    )
    perturbs: ClassVar[str] = "neuron noise"

    step_size: PositiveFloat = 0.045
    """Growth of the noise with each step, relative to each channel's scale."""
    lead_threshold: PositiveFloat = 0.18
    """Lead of one class above which the all-to-one reading fires."""
    pair_threshold: PositiveFloat = 0.5
    """Lead of one (source, target) pair above which the source-target reading fires."""
    statistics: Statistics = "batch"
    """Statistics that BatchNorm uses under noise."""

    def lead_threshold_at(self, reach: float) -> float:
        """The same wherever the paths ended."""
        del reach
        return self.lead_threshold

    def relied_on_above(self, reach: float) -> float:
        """What accuses."""
        return self.lead_threshold_at(reach)

    def perturbation(self, model: SplitModel, images: Images, meter: Meter, *, share: float = 1.0) -> _NeuronShift:
        """Additive neuron noise on this model."""
        noisy = NoisyModel(model, form="additive", statistics=self.statistics, meter=meter)
        return _NeuronShift(noisy, share * self.step_size)

    def shown(self, leader: Leader, samples: Samples, *, accused: bool) -> None:
        """Nothing: noise on neurons is no picture."""
