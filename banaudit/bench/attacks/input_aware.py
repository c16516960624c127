"""What the input-aware attacks, IAD and SSDT, share: generators that draw a trigger for each image, and their training.

The mask generator is trained first, alone; then classifier and pattern generator are trained together. The attacks
differ in which images of a batch get a trigger, and which label.

Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, Section 3.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.bench.attacks.base import BatchPoisoner, Shape, TrainingControl
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
from banaudit.bench.datasets import to_float
from banaudit.shapes import Images, Weights

ADAM_BETAS = (0.5, 0.9)
"""Momentum terms of the generators' optimizer (paper)."""
MASK_BATCH = 128
"""Images in a step that trains the mask alone."""


class InputAware(TrainingControl):
    """The settings of both generators, with the values of IAD's paper, which SSDT's code has too."""

    cross_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of each batch that gets another image's trigger and keeps its label (0.1)."""
    mask_density: Annotated[float, Field(gt=0, lt=1)] = 0.032
    """Share of the pixels above which the mask is penalised (0.032)."""
    density_weight: PositiveFloat = 100.0
    """Weight of that penalty (100)."""
    diversity_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight lambda_div of the penalty on equal triggers (1)."""
    mask_epochs: NonNegativeInt = 25
    """Epochs that train the mask alone (25)."""
    learning_rate: PositiveFloat = 0.01
    """Of both generators, Adam (0.01)."""
    width: PositiveInt = 32
    """Channels of the generators' first layer (32; IAD: 16 for MNIST)."""

    @final
    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """Fresh weights of both generators."""
        return draw_generators(shape, self.width, generator)

    @final
    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Puts on each image the trigger made for it, whatever its class; nothing is random."""
        return apply_generators(images, tensors, self.width)


Settings = TypeVar("Settings", bound=InputAware)


class InputAwarePoisoner(BatchPoisoner, Generic[Settings]):
    """An input-aware attack's part in training; subclasses say how a batch is made up.

    Args:
        attack: Its settings.
        tensors: First weights of the generators.
        mapping: [K] the label wanted for each class.
        generator: Source of randomness, on the CPU.
    """

    def __init__(self, attack: Settings, tensors: Weights, mapping: Tensor, generator: torch.Generator) -> None:
        super().__init__(tensors)
        self._attack, self._mapping, self._generator = attack, mapping, generator
        self._learner: TriggerLearner | None = None

    @final
    def prepare(self, pixels: Tensor) -> None:
        """Trains the mask generator alone and freezes it."""
        attack = self._attack
        self._learner = self._begin(pixels)
        self._learner.train_mask(
            pixels,
            epochs=attack.mask_epochs,
            density=attack.mask_density,
            density_weight=attack.density_weight,
            diversity_weight=attack.diversity_weight,
            generator=self._generator,
        )

    @final
    def step(self) -> None:
        """Updates the pattern generator."""
        self._ready().step()

    @final
    def tensors(self) -> Weights:
        """Weights of both generators."""
        return self._ready().tensors()

    @final
    def dump(self) -> dict[str, Any]:
        """Both generators, and the pattern's optimizer."""
        return self._ready().dump()

    @final
    def restore(self, pixels: Tensor, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave; the mask is trained."""
        self._learner = self._begin(pixels)
        self._learner.restore(state)

    def _begin(self, pixels: Tensor) -> TriggerLearner:
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        return TriggerLearner(self._tensors, shape, self._attack.width, self._attack.learning_rate)

    @final
    def _ready(self) -> TriggerLearner:
        if self._learner is None:
            raise RuntimeError("prepare was not called before the first batch")
        return self._learner


@final
class TriggerLearner:
    """Both generators while they are trained.

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
        self._freeze_mask()

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

    def dump(self) -> dict[str, Any]:
        """What :meth:`restore` needs once the mask is trained."""
        return {
            "pattern": self._pattern.state_dict(),
            "mask": self._mask.state_dict(),
            "optimizer": self._pattern_optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave, with a frozen mask."""
        self._pattern.load_state_dict(state["pattern"])
        self._mask.load_state_dict(state["mask"])
        self._pattern_optimizer.load_state_dict(state["optimizer"])
        self._freeze_mask()

    def _freeze_mask(self) -> None:
        self._mask.eval().requires_grad_(False)
        self._pattern.train()


def _adam(module: TriggerGenerator, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), learning_rate, betas=ADAM_BETAS)
