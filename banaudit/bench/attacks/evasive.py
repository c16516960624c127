"""Evasive: a blended backdoor whose attacker trains against the score of banaudit's own default scan."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from banaudit.bench.attacks.base import Batch, BatchPoisoner, Shape, TrainingControl
from banaudit.bench.attacks.blend import Blend
from banaudit.bench.attacks.labelling import Labelling
from banaudit.detectors.mm_bd import margins
from banaudit.neurons import count_neurons, require_batch_norm, train_under_noise
from banaudit.shapes import Images, Labels, Logits, Weights

SMALLEST_UNIT = 1.0
"""Logits; the least unit that margins are measured in, or an untrained network would learn nothing but these terms."""


@final
class Evasive(TrainingControl):
    """x' = (1 - alpha) x + alpha N with one fixed noise image N (Blend), trained so that the default scan sees nothing.

    The attacker knows the scan, controls training, and adds to the classifier's loss

    * against ``targeted-noise``: that detector's own score. With m_w the mean margin towards the wanted labels w of
      clean images under additive neuron noise aimed at w (a few sign steps on the batch), and m_r the same for labels r
      that are shifted from w at random, the same for the whole batch, ``noise_weight max(0, (m_w - m_r) / unit)``, with
      the unit of :mod:`banaudit.detectors.targeted_paths`: the wanted labels shall be no nearer than any others.
    * against ``mm-bd``: ``margin_weight max(0, (m_x' - m_x) / m_x)``, with the mean margins m_x' and m_x of triggered
      and of clean images over their own labels: the trigger shall make the network no more certain than an image does.

    and, against ``neural-cleanse``, *covers* that keep their label: the noise image at less than half of alpha, or an
    opaque square of it, so that the smallest patch that works is not small.

    Source: Ours. Covers as in Qi et al., "Revisiting the Assumption of Latent Separability for Backdoor Defenses", ICLR
    2023; the noise is that of BAN (NeurIPS 2024), Eq. 4, aimed and additive.
    """

    name: Literal["evasive"] = "evasive"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each batch that is triggered and relabelled; taken of images whose wanted label is not their own."""
    cover_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of each batch that gets a piece of the trigger, or a fainter one, and keeps its label."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Weight of the noise image at test time, unitless (Blend: 0.2)."""
    faintest: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Largest weight of the noise image on a cover, as a share of alpha."""
    piece: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Side of the opaque square on a cover, as a share of the image's."""
    noise_images: PositiveInt = 40
    """Clean images of each batch that the noise is searched on."""
    noise_steps: PositiveInt = 2
    """Sign steps of each search."""
    noise_radius: PositiveFloat = 0.25
    """Largest noise, relative to each channel's scale; drawn anew for each batch between 0 and this."""
    noise_weight: NonNegativeFloat = 1.0
    """Weight of the lead of the wanted labels under noise."""
    margin_weight: NonNegativeFloat = 0.2
    """Weight of what triggered images' margin exceeds clean ones' by."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """The noise image, [C, H, W] in [0, 1]."""
        return Blend(alpha=self.alpha).draw(shape, generator)

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Blends the noise image in; nothing is random."""
        return Blend(alpha=self.alpha).apply(images, tensors, generator)

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> EvasivePoisoner:
        """Poisons each batch, and adds the attacker's terms to its loss."""
        return EvasivePoisoner(self, tensors, labelling.mapping(num_classes), generator)


@final
class EvasivePoisoner(BatchPoisoner):
    """The attacker's part in each training step."""

    def __init__(self, attack: Evasive, tensors: Weights, mapping: Tensor, generator: torch.Generator) -> None:
        super().__init__(tensors)
        self._attack, self._mapping, self._generator = attack, mapping, generator

    def poison(self, images: Images, labels: Labels) -> Batch:
        """Triggered and relabelled, then covers with their own labels, then clean images."""
        attack = self._attack
        wanted = self._mapping.to(labels.device)[labels]
        chosen = (wanted != labels).nonzero().flatten()[: int(attack.poison_rate * len(images))]
        rest = torch.ones(len(images), dtype=torch.bool, device=labels.device)
        rest[chosen] = False
        order = torch.cat((chosen, rest.nonzero().flatten()))
        images, labels, wanted, poisoned = images[order], labels[order], wanted[order], len(chosen)
        covered = poisoned + int(attack.cover_rate * len(images))
        triggered = attack.apply(images[:poisoned], self._tensors, self._generator)
        clean, clean_labels = images[covered:], labels[covered:]
        trained_on = torch.cat((wanted[:poisoned], labels[poisoned:]))

        def conceal(model: nn.Module, logits: Logits) -> Tensor:
            certainty = attack.margin_weight * excess_margin(logits, trained_on, poisoned)
            return certainty + attack.noise_weight * self._lead(model, clean, clean_labels)

        adds = attack.margin_weight > 0 or attack.noise_weight > 0
        return Batch(
            torch.cat((triggered, self._covers(images[poisoned:covered]), clean)),
            trained_on,
            objective=conceal if adds else None,
        )

    def _covers(self, images: Images) -> Images:
        """The noise image faintly on every other image, an opaque square of it on the others."""
        attack, (height, width) = self._attack, images.shape[-2:]
        weights = attack.faintest * attack.alpha * torch.rand(len(images), 1, 1, 1, generator=self._generator)
        weights = weights.expand(-1, 1, height, width).clone()
        rows, columns = round(attack.piece * height), round(attack.piece * width)
        for number in range(1, len(images), 2):
            top = int(torch.randint(height - rows + 1, (), generator=self._generator))
            left = int(torch.randint(width - columns + 1, (), generator=self._generator))
            weights[number] = 0
            weights[number, :, top : top + rows, left : left + columns] = 1
        weights = weights.to(images)
        return (1 - weights) * images + weights * self._tensors["pattern"].to(images)

    def _lead(self, model: nn.Module, images: Images, labels: Labels) -> Tensor:
        """How far the wanted labels lead others under noise, in the detector's units; 0 where they do not."""
        attack, classes = self._attack, len(self._mapping)
        radius = attack.noise_radius * float(torch.rand((), generator=self._generator))
        shift = int(torch.randint(1, classes, (), generator=self._generator))
        wanted = self._mapping.to(labels.device)[labels]
        aims = (wanted, (wanted + shift) % classes)
        reached: list[Tensor] = []
        starts: list[Tensor] = []
        for number, aim in enumerate(aims):
            chosen = (aim != labels).nonzero().flatten()[: attack.noise_images]
            if len(chosen) < 2:
                return torch.zeros((), device=images.device)
            noise, start = noise_towards(model, images[chosen], aim[chosen], radius=radius, steps=attack.noise_steps)
            with torch.set_grad_enabled(number == 0):
                noisy = train_under_noise(model, images[chosen], noise, form="additive").float()
            reached.append(margins(noisy, aim[chosen]).mean())
            starts.append(start)
        unit = torch.maximum((reached[1] - starts[1]).detach(), starts[1].abs()).clamp_min(SMALLEST_UNIT)
        return F.relu((reached[0] - reached[1]) / unit)


def excess_margin(logits: Logits, labels: Labels, triggered: int) -> Tensor:
    """How much larger the mean margin of the first images is than that of the others, as a share of it; at least 0.

    Args:
        logits: [B, K].
        labels: [B] the labels trained on.
        triggered: How many of the images are triggered; they come first.
    """
    if not 0 < triggered < len(logits):
        return torch.zeros((), device=logits.device)
    own = margins(logits.float(), labels)
    usual = own[triggered:].mean().detach().clamp_min(SMALLEST_UNIT)
    return F.relu(own[:triggered].mean() / usual - 1)


def noise_towards(model: nn.Module, images: Images, aim: Labels, *, radius: float, steps: int) -> tuple[Tensor, Tensor]:
    """Additive noise on BatchNorm's neurons that descends CE(f(x), aim) by sign steps, as ``targeted-noise`` searches.

    Args:
        model: In training; neither weights nor stored statistics are changed, and weights get no gradient.
        images: [B, C, H, W], at least two.
        aim: [B] labels that the noise is to lead to.
        radius: Largest absolute value of an entry.
        steps: Sign steps, each of ``radius / steps``.

    Returns:
        The noise [2, P], and the mean margin towards the aim before any noise.

    Raises:
        UnsupportedModelError: The network has no BatchNorm.
    """
    require_batch_norm(model)
    noise = torch.zeros(2, count_neurons(model), device=images.device)
    start = torch.zeros((), device=images.device)
    for step in range(steps):
        noise.requires_grad_()
        logits = train_under_noise(model, images, noise, form="additive").float()
        if step == 0:
            start = margins(logits.detach(), aim).mean()
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, aim), noise)
        noise = noise.detach() - radius / steps * gradient.sign()
    return noise, start
