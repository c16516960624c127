"""Input-Aware Dynamic attack: a generator draws another trigger for every image."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from banaudit.bench.attacks.base import Batch, Shape, TrainingControl
from banaudit.bench.attacks.generators import (
    TriggerGenerator,
    apply_generators,
    build_generators,
    diversity_penalty,
    draw_generators,
    harden,
    read_generators,
    stamp,
)
from banaudit.bench.attacks.labelling import Labelling
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Labels, Weights

ADAM_BETAS = (0.5, 0.9)
"""Momentum terms of the generators' optimizer (paper)."""
MASK_BATCH = 128
"""Images in a step that trains the mask alone."""


@final
class IAD(TrainingControl):
    """x' = x + m(x) (p(x) - x): pattern p and mask m come from generators that see the image.

    The mask generator is trained first, alone, to be sparse and to differ between images; then classifier and pattern
    generator are trained together. In *cross mode* further images get the trigger made for another image and keep
    their label, so that a trigger works on its own image only.

    Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, Section 3.
    Deviates: the second image of each pair is another one of the same batch; the pattern generator's gradient is set to
    zero before each step, which the released code leaves out; the schedule of its learning rate is constant.
    """

    name: Literal["iad"] = "iad"
    poison_rate: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of each batch that gets its own trigger and is relabelled (paper: 0.1)."""
    cross_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of each batch that gets another image's trigger and keeps its label (paper: 0.1)."""
    mask_density: Annotated[float, Field(gt=0, lt=1)] = 0.032
    """Share of the pixels above which the mask is penalised (paper: 0.032)."""
    density_weight: PositiveFloat = 100.0
    """Weight of that penalty (paper: 100)."""
    diversity_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight lambda_div of the penalty on equal triggers (paper: 1)."""
    mask_epochs: NonNegativeInt = 25
    """Epochs that train the mask alone (paper: 25)."""
    learning_rate: PositiveFloat = 0.01
    """Of both generators, Adam (paper: 0.01)."""
    width: PositiveInt = 32
    """Channels of the generators' first layer (paper: 32; 16 for MNIST)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """Fresh weights of both generators."""
        return draw_generators(shape, self.width, generator)

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Puts on each image the trigger made for it; nothing is random."""
        return apply_generators(images, tensors, self.width)

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> IADPoisoner:
        """Trains the generators and poisons the first share of each (shuffled) batch."""
        return IADPoisoner(self, tensors, labelling.mapping(num_classes), generator)


@final
class IADPoisoner:
    """IAD's part in training."""

    augments_first = True

    def __init__(self, attack: IAD, tensors: Weights, mapping: Tensor, generator: torch.Generator) -> None:
        self._attack, self._tensors, self._mapping, self._generator = attack, tensors, mapping, generator
        self._learner: TriggerLearner | None = None

    def prepare(self, pixels: Tensor) -> None:
        """Trains the mask generator alone and freezes it."""
        attack = self._attack
        self._learner = TriggerLearner(
            self._tensors, (pixels.shape[1], pixels.shape[2], pixels.shape[3]), attack.width, attack.learning_rate
        )
        self._learner.train_mask(
            pixels,
            epochs=attack.mask_epochs,
            density=attack.mask_density,
            density_weight=attack.density_weight,
            diversity_weight=attack.diversity_weight,
            generator=self._generator,
        )

    def poison(self, images: Images, labels: Labels) -> Batch:
        """Own trigger and relabelled, then another image's trigger with their own labels, then clean images."""
        learner = self._ready()
        backdoored = int(self._attack.poison_rate * len(images))
        crossed = backdoored + int(self._attack.cross_rate * len(images))
        others = images.roll(int(torch.randint(1, len(images), (1,), generator=self._generator)), dims=0)
        patterns = learner.patterns(images[:backdoored])
        own = learner.stamp(images[:backdoored], patterns, made_for=images[:backdoored])
        others_seen = others[backdoored:crossed]
        foreign = learner.stamp(images[backdoored:crossed], learner.patterns(others_seen), made_for=others_seen)
        other_patterns = learner.patterns(others[:backdoored])
        penalty = diversity_penalty(images[:backdoored], others[:backdoored], patterns, other_patterns)
        wanted = self._mapping.to(labels.device)[labels[:backdoored]]
        return Batch(
            torch.cat((own, foreign, images[crossed:])),
            torch.cat((wanted, labels[backdoored:])),
            self._attack.diversity_weight * penalty,
        )

    def step(self) -> None:
        """Updates the pattern generator."""
        self._ready().step()

    def end_epoch(self, model: nn.Module) -> None:
        """Leaves the model as it is."""

    def tensors(self) -> Weights:
        """Weights of both generators."""
        return self._ready().tensors()

    def _ready(self) -> TriggerLearner:
        if self._learner is None:
            raise RuntimeError("prepare was not called before the first batch")
        return self._learner


@final
class TriggerLearner:
    """Both generators while they are trained; SSDT trains the same ones.

    Args:
        tensors: Their first weights.
        shape: C, H, W of the images.
        width: Channels of their first layer.
        learning_rate: Of both, Adam.
    """

    def __init__(self, tensors: Weights, shape: Shape, width: int, learning_rate: float) -> None:
        self._pattern, self._mask = build_generators(tensors, shape, width)
        self._pattern_optimizer = _adam(self._pattern, learning_rate)
        self._mask_optimizer = _adam(self._mask, learning_rate)

    def train_mask(
        self,
        pixels: Tensor,
        *,
        epochs: int,
        density: float,
        density_weight: float,
        diversity_weight: float,
        generator: torch.Generator,
    ) -> None:
        """Trains the mask generator alone, then freezes it.

        Args:
            pixels: [N, C, H, W] uint8, training images.
            epochs: Passes over them.
            density: Mask values above it are penalised.
            density_weight: Weight of that penalty.
            diversity_weight: Weight of the penalty on equal masks.
            generator: Source of randomness, on the CPU.
        """
        self._mask.train()
        for _ in range(epochs):
            order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
            for index in torch.split(order, MASK_BATCH):
                if len(index) < 2:
                    continue
                images = to_float(pixels[index])
                others = images.roll(1, dims=0)
                with torch.autocast(pixels.device.type, torch.bfloat16):
                    masks, other_masks = harden(self._mask(images)), harden(self._mask(others))
                loss = density_weight * F.relu(masks - density).mean()
                loss = loss + diversity_weight * diversity_penalty(images, others, masks, other_masks)
                self._mask_optimizer.zero_grad()
                torch.autograd.backward(loss)
                self._mask_optimizer.step()
        self._mask.eval().requires_grad_(False)
        self._pattern.train()

    def patterns(self, images: Images) -> Tensor:
        """Patterns made for images, [B, C, H, W] in [0, 1], with gradients."""
        made: Tensor = self._pattern(images)
        return made

    def stamp(self, images: Images, patterns: Tensor, *, made_for: Images) -> Images:
        """Images with patterns where the mask made for other images (or themselves) is 1, [B, C, H, W] in [0, 1]."""
        return stamp(images, patterns, harden(self._mask(made_for)))

    def step(self) -> None:
        """Updates the pattern generator by the gradient that the loss left there."""
        self._pattern_optimizer.step()
        self._pattern_optimizer.zero_grad()

    def tensors(self) -> Weights:
        """Weights of both generators."""
        return read_generators(self._pattern, self._mask)


def _adam(module: TriggerGenerator, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), learning_rate, betas=ADAM_BETAS)
