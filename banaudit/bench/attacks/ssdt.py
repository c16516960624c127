"""SSDT: source-specific and dynamic; only images of one class go to the target, each by a trigger of its own."""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
from pydantic import Field

from banaudit.bench.attacks.base import Batch
from banaudit.bench.attacks.generators import diversity_penalty
from banaudit.bench.attacks.input_aware import InputAware, InputAwarePoisoner
from banaudit.bench.attacks.labelling import Labelling
from banaudit.shapes import Images, Labels, Weights


@final
class SSDT(InputAware):
    """The triggers of IAD, but every image of the source class in a batch is triggered and relabelled, no others are.

    In *cross mode* images of any class get the trigger made for another image and keep their label. Images of other
    classes than the source with their *own* trigger keep their label too, so that the backdoor needs the source class.

    Source: Mo et al., "Robust Backdoor Detection for Deep Learning via Topological Evolution Dynamics", IEEE S&P 2024
    (the attack that its detector TED is held against), and the code with BAN (NeurIPS 2024).
    Deviates: the code never trains images of other classes with their own trigger (rate 0 here) and only measures them;
    the second image of each pair is another one of the same batch.
    """

    name: Literal["ssdt"] = "ssdt"
    other_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of each batch, of other classes, that gets its own trigger and keeps its label (code: 0)."""

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> SSDTPoisoner:
        """Trains the generators and poisons the source class of each batch."""
        return SSDTPoisoner(self, tensors, labelling.mapping(num_classes), generator)


@final
class SSDTPoisoner(InputAwarePoisoner[SSDT]):
    """SSDT's part in training."""

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
        penalty = None
        if len(own):  # the mean over no pair would be NaN
            penalty = diversity_penalty(images[own], partners[own], patterns, learner.patterns(partners[own]))
        triggered = learner.stamp(images[own], patterns, made_for=images[own])
        foreign = learner.stamp(images[crossed], learner.patterns(partners[crossed]), made_for=partners[crossed])
        kept = slice(len(own), crossed.start)
        return Batch(
            torch.cat((triggered, images[kept], foreign)),
            torch.cat((wanted[own], labels[kept], labels[crossed])),
            None if penalty is None else self._attack.diversity_weight * penalty,
        )
