"""BAN fine-tuning: training against adversarial neuron noise (Xu et al., NeurIPS 2024)."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.mitigations.base import FineTuningMitigation, SGDMitigation
from banaudit.neurons import Form, require_batch_norm, train_under_noise, worst_noise
from banaudit.shapes import Images, Labels


class NoiseTraining(SGDMitigation, ABC):
    """A mitigation that trains against the worst neuron noise of each batch: BAN's, and what builds on it."""

    needs: ClassVar[str] = "BatchNorm, clean images"
    trains_against: ClassVar[frozenset[str]] = frozenset({"ban"})

    eps: PositiveFloat = 0.3
    """Largest relative change of a neuron's weight and bias. The paper: 0.3 at 32 pixels, 0.2 at 64, 0.1 at 224."""
    noise_steps: PositiveInt = 1
    """Steps of the ascent, each of eps / noise_steps. The authors' code takes 1; the paper's 30 are for detection."""
    form: Form = "relative"
    """How the noise enters. The paper's is relative; additive noise also moves neurons whose shift is near zero."""
    noise_weight: NonNegativeFloat = 0.5
    """lambda_2, the weight of the loss under noise."""

    @final
    def noisy_loss(
        self, model: SplitModel, images: Images, labels: Labels, generator: torch.Generator, *, clip: bool
    ) -> Tensor:
        """lambda_2 CE under the noise that raises the cross-entropy of the batch most (Eq. 4), a scalar.

        Args:
            model: In train mode.
            images: [B, C, H, W].
            labels: [B].
            generator: Draws the start of the noise.
            clip: Keep the noise within eps; else start and steps add up to 2 eps.
        """
        noise = self._worst_noise(model, images, labels, generator, clip=clip)
        return self.noise_weight * F.cross_entropy(train_under_noise(model, images, noise, form=self.form), labels)

    @final
    def _worst_noise(
        self, model: SplitModel, images: Images, labels: Labels, generator: torch.Generator, *, clip: bool
    ) -> Tensor:
        """That noise, [2, P]."""
        return worst_noise(
            model,
            images,
            labels,
            eps=self.eps,
            steps=self.noise_steps,
            clip=clip,
            form=self.form,
            generator=generator,
        )

    @final
    def check(self, model: SplitModel) -> None:
        """The network must have BatchNorm."""
        require_batch_norm(model)


@final
class BANFineTuning(NoiseTraining, FineTuningMitigation):
    """Trains all weights to be right on clean images with and without the worst noise on the neurons.

    min_w CE(f(x; w), y) + lambda_2 CE(f(x; (1 + delta) w, (1 + xi) b), y)   (Eq. 8)

    with noise delta, xi on every BatchNorm channel that maximises the second term (Eq. 3-4), found anew for each batch
    by sign-gradient ascent of total length eps from a random start in [-eps, eps]. Backdoor neurons are the ones that
    such noise sets off most easily, so that the second term takes their influence away.

    Source:
        Xu, Liu, Koffas, Yu and Picek, "BAN", NeurIPS 2024, Eq. 8 and Section 4.3.
    Deviates:
        From the authors' code: BatchNorm's running statistics come from the clean pass alone
        (there, two noisy passes are mixed in for each clean one); 25 epochs are 25 (24 there); the ascent takes five
        steps (one there); the noise is no parameter of the optimiser of the weights, whose momentum and weight decay
        act on it there; images are shuffled and the seed set. Like there, the final linear layer gets no noise, and
        the noise is not clipped to eps.
    """

    name: ClassVar[str] = "ban"
    title: ClassVar[str] = "fine-tuning against adversarial neuron noise (BAN, Eq. 8)"

    noise_steps: PositiveInt = 5
    """Steps of the ascent, each of eps / noise_steps. On development victims five left less of the backdoor than the
    authors' one (``docs/benchmark/repair-steps.md``), for 7 passes of each kind instead of 3."""
    clip: bool = False
    """Keep the noise within eps. The published figures are of noise that is not: start and steps add up to 2 eps."""

    def loss(self, model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
        """Both cross-entropies of Eq. 8."""
        noisy = self.noisy_loss(model, images, labels, generator, clip=self.clip)
        return F.cross_entropy(model(images), labels) + noisy

    def passes(self) -> tuple[int, int]:
        """The ascent, then a noisy and a clean pass."""
        return self.noise_steps + 2, self.noise_steps + 2
