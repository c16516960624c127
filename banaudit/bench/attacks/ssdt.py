"""SSDT: source-specific and dynamic; only images of one class go to the target, each by a trigger of its own."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from banaudit.bench.attacks.base import Batch, Shape, TrainingControl
from banaudit.bench.attacks.generators import apply_generators, diversity_penalty, draw_generators
from banaudit.bench.attacks.iad import TriggerLearner
from banaudit.bench.attacks.labelling import Labelling
from banaudit.shapes import Images, Labels, Weights


@final
class SSDT(TrainingControl):
    """The triggers of IAD, but every image of the source class in a batch is triggered and relabelled, no others are.

    In *cross mode* images of any class get the trigger made for another image and keep their label. Images of other
    classes than the source with their *own* trigger keep their label too, so that the backdoor needs the source class.

    Source: Mo et al., "Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics", IEEE S&P 2024
    (the attack that its detector TED is held against), and the code with BAN (NeurIPS 2024).
    Deviates: the code never trains images of other classes with their own trigger (rate 0 here) and only measures them;
    the second image of each pair is another one of the same batch.
    """

    name: Literal["ssdt"] = "ssdt"
    cross_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of each batch that gets another image's trigger and keeps its label (code: 0.1)."""
    other_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of each batch, of other classes, that gets its own trigger and keeps its label (code: 0)."""
    mask_density: Annotated[float, Field(gt=0, lt=1)] = 0.032
    """Share of the pixels above which the mask is penalised (code: 0.032)."""
    density_weight: PositiveFloat = 100.0
    """Weight of that penalty (code: 100)."""
    diversity_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the penalty on equal triggers (code: 1)."""
    mask_epochs: NonNegativeInt = 25
    """Epochs that train the mask alone (code: 25)."""
    learning_rate: PositiveFloat = 0.01
    """Of both generators, Adam (code: 0.01)."""
    width: PositiveInt = 32
    """Channels of the generators' first layer (code: 32)."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """Fresh weights of both generators."""
        return draw_generators(shape, self.width, generator)

    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Puts on each image the trigger made for it, whatever its class; nothing is random."""
        return apply_generators(images, tensors, self.width)

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> SSDTPoisoner:
        """Trains the generators and poisons the source class of each batch."""
        return SSDTPoisoner(self, tensors, labelling.mapping(num_classes), generator)


@final
class SSDTPoisoner:
    """SSDT's part in training."""

    augments_first = True

    def __init__(self, attack: SSDT, tensors: Weights, mapping: Tensor, generator: torch.Generator) -> None:
        self._attack, self._tensors, self._mapping, self._generator = attack, tensors, mapping, generator
        self._learner: TriggerLearner | None = None

    def prepare(self, pixels: Tensor) -> None:
        """Trains the mask generator alone and freezes it."""
        attack = self._attack
        shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
        self._learner = TriggerLearner(self._tensors, shape, attack.width, attack.learning_rate)
        self._learner.train_mask(
            pixels,
            epochs=attack.mask_epochs,
            density=attack.mask_density,
            density_weight=attack.density_weight,
            diversity_weight=attack.diversity_weight,
            generator=self._generator,
        )

    def poison(self, images: Images, labels: Labels) -> Batch:
        """The triggered ones take the place of as many clean images, so that the batch keeps its size.

        A batch without an image of the source class stays clean but for the cross mode and the other classes.
        """
        learner = self._ready()
        wanted = self._mapping.to(labels.device)[labels]
        source = (wanted != labels).nonzero().flatten()
        other = (wanted == labels).nonzero().flatten()[: int(self._attack.other_rate * len(images))]
        own = torch.cat((source, other))
        partners = images.roll(int(torch.randint(1, len(images), (1,), generator=self._generator)), dims=0)
        crossed = slice(len(images) - int(self._attack.cross_rate * len(images)), len(images))
        patterns = learner.patterns(images[own])
        penalty = diversity_penalty(images[own], partners[own], patterns, learner.patterns(partners[own]))
        triggered = learner.stamp(images[own], patterns, made_for=images[own])
        foreign = learner.stamp(images[crossed], learner.patterns(partners[crossed]), made_for=partners[crossed])
        kept = slice(len(own), crossed.start)
        return Batch(
            torch.cat((triggered, images[kept], foreign)),
            torch.cat((wanted[own], labels[kept], labels[crossed])),
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
