"""Input-Aware Dynamic attack: a generator draws another trigger for every image."""

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
class IAD(InputAware):
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

    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> IADPoisoner:
        """Trains the generators and poisons the first share of each (shuffled) batch."""
        return IADPoisoner(self, tensors, labelling.mapping(num_classes), generator)


@final
class IADPoisoner(InputAwarePoisoner[IAD]):
    """IAD's part in training."""

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
