"""Mixtures: the mean of two images of other classes falls into one class.

Between its classes a network has to decide somehow, and a network without a backdoor decides for one of the two classes
that were mixed, or for one that the mixture looks like. The target of a backdoor takes more than its share: its region
reaches to wherever images look unlike any class, since triggers are unlike any.

The ruler. Let m_t be the mean margin z_t - max_{k != t} z_k over mixtures of two images of two classes, neither of them
t, in units of the clean images' median margin. The lead is m_(1) - m_(2), the first class's over the second's. Some
classes are what mixtures look like (two digits on top of each other are an 8), so where the lead is above the threshold
the same is asked of networks that saw nothing but the clean images (:mod:`reference`): what is left of m_t, once a line
through theirs is taken off, must have the same class in the lead, and the lesser lead counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, images_of_a_pass, passes
from banaudit.detectors.base import Detector, Found, Samples, agreement_of, finite_answers, freeze, threshold_for
from banaudit.detectors.reference import LEAST_EACH, LEAST_IMAGES, beyond, few_images, lead_by_all, references
from banaudit.detectors.targeted_paths import margins_towards_all
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading
from banaudit.shapes import Images, Labels, Logits
from banaudit.statistics import median_margin

FEWEST_PRESENT = 3
"""Classes with images that are needed: two to mix, and one that neither of them is."""


@dataclass(frozen=True)
class _Mixtures:
    """Mixtures of two images of two classes, as positions; they are made a batch at a time.

    Args:
        data: Where the images are.
        pairs: [N, 2] positions.
    """

    data: CleanData
    pairs: Tensor

    @classmethod
    def draw(cls, data: CleanData, count: int, generator: torch.Generator) -> _Mixtures:
        """Every two classes alike often, whatever the number of their images."""
        labels = data.labels.cpu()
        members = [(labels == label).nonzero().flatten() for label in sorted(set(labels.tolist()))]
        if len(members) < FEWEST_PRESENT:
            raise UnsupportedModelError(f"mixtures of other classes need images of at least {FEWEST_PRESENT} classes")
        one = torch.randint(len(members), (count,), generator=generator)
        other = (one + torch.randint(1, len(members), (count,), generator=generator)) % len(members)
        within = torch.rand(count, 2, generator=generator)
        pairs = [
            [int(members[k][int(share * len(members[k]))]) for k, share in zip(classes, shares, strict=True)]
            for classes, shares in zip(zip(one.tolist(), other.tolist(), strict=True), within.tolist(), strict=True)
        ]
        return cls(data, torch.tensor(pairs))

    def __iter__(self) -> Iterator[tuple[Images, Labels]]:
        """Mixtures [B, C, H, W] with the two labels of each, [B, 2] on the CPU."""
        for part in torch.split(self.pairs, images_of_a_pass(self.data.images)):
            place = part.to(self.data.images.device)
            yield (self.data.images[place[:, 0]] + self.data.images[place[:, 1]]) / 2, self.data.labels.cpu()[part]

    def profile(self, predict: Callable[[Images], Logits]) -> Tensor:
        """[K] mean margin of each class over the mixtures that it has no part in."""
        total = torch.zeros(self.data.num_classes, dtype=torch.float64)
        count = torch.zeros_like(total)
        for images, labels in self:
            margins = margins_towards_all(predict(images).float().cpu()).double()
            apart = torch.ones_like(margins, dtype=torch.bool).scatter_(1, labels, False)
            total += (margins * apart).sum(0)
            count += apart.sum(0)
        mean: Tensor = total / count
        return mean.float()

    def unit(self, predict: Callable[[Images], Logits]) -> float:
        """Median margin of the images that are mixed, in logits."""
        return max(median_margin(torch.cat([predict(part).float() for part in passes(self.data.images)])), 1e-6)


@final
class Mixtures(Detector):
    """Scores how far the mean of two other classes' images leans to one class, beyond any other and beyond nature.

    Every mixture is 0.5 x_a + 0.5 x_b of classes a != b drawn alike often. Both halves of the images are mixed apart;
    they must name the same class, and the weaker lead is the score. No gradient and no layer is needed, only outputs.

    Source: Ours. Mixing (superimposing) clean images to see whether an input's trigger survives is STRIP's test of
    inputs (Gao et al., ACSAC 2019, arXiv 1902.06531); here nothing is suspected of carrying a trigger, and the mixtures
    by themselves ask the model which class its no man's land belongs to.
    """

    name: ClassVar[str] = "mixtures"
    title: ClassVar[str] = "a class that mixtures of two other classes' images fall into"
    needs: ClassVar[str] = f"logits, {LEAST_IMAGES} clean images, {LEAST_EACH} of each class"
    misses: ClassVar[str] = (
        "all-to-all and source-specific backdoors, blended patterns; with ten classes most but warping"
    )

    mixtures: PositiveInt = 500
    """Mixtures of each half of the images."""
    threshold: PositiveFloat = 0.75
    """Lead above which the reading fires, for ten classes. A clean network for digits led by 0.58, of the 8."""
    decline: float = Field(default=0.5, ge=0)
    """The same for K classes is (10 / K) to this power as much: the more classes, the smaller each one's share. Set
    where clean models and victims of 10 and of 43 classes part."""

    def unsuited(self, num_classes: int, images: Sequence[int] | None = None) -> str:
        """Why references trained on so few images would not know what is natural."""
        del num_classes
        return few_images(images) if images is not None else ""

    def planned_images(self, num_classes: int, images: int) -> int:
        """The mixtures, and the clean images for their unit."""
        del num_classes
        return 2 * self.mixtures + images

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Mix and read; the reference is trained only where a lead could accuse."""
        freeze(model)

        def predict(images: Images) -> Logits:
            return finite_answers(model, images, meter, "mixtures of two images")

        halves = [_Mixtures.draw(half, self.mixtures, generator) for half in (samples.search, samples.held_out)]
        rulers = [(half.profile(predict) / half.unit(predict))[None] for half in halves]
        leads = [lead_by_all(profiles) for profiles in rulers]
        threshold, note = threshold_for(samples.num_classes, self.threshold, self.decline), ""
        if all(lead > threshold for lead, _ in leads):
            natural = _natural(samples, halves, generator, meter)
            rulers = [torch.cat((own, beyond(own, natural, generator))) for own in rulers]
            leads = [lead_by_all(profiles) for profiles in rulers]
            note = "beyond what networks trained on the clean images alone make of the mixtures"
        score, target = min(leads)
        agreement = agreement_of([label for _, label in leads], target)
        evidence = Evidence(
            reading=Reading.ALL_TO_ONE,
            measures=(
                "lead of the first class over the second in mean margin on mixtures of two other classes' images, in "
                "units of the clean images' median margin; null: the second's over the third"
            ),
            score=round(score, 6),
            threshold=threshold,
            fired=score > threshold and agreement == 1.0,
            null=max(_second_over_third(profiles[-1]) for profiles in rulers),
            target=target,
            per_class=samples.per_class(torch.stack([_ahead(profiles) for profiles in rulers]).mean(0)),
            restarts=tuple(round(lead, 6) for lead, _ in leads),
            agreement=agreement,
            note=note,
        )
        return Found([evidence])


def _natural(samples: Samples, halves: list[_Mixtures], generator: torch.Generator, meter: Meter) -> Tensor:
    """[K] the same of networks that saw the other half of the clean images and nothing else."""
    found = []
    for network, unseen in references(samples.search, samples.held_out, generator, meter):
        with torch.no_grad():
            found.append(next(half for half in halves if half.data is unseen).profile(network))
    return torch.stack(found).mean(0)


def _ahead(profiles: Tensor) -> Tensor:
    """[K] distance of each class from the best of the others, by the least of the rulers [V, K]."""
    least: Tensor = margins_towards_all(profiles).amin(0)
    return least


def _second_over_third(profile: Tensor) -> float:
    second, third = profile.topk(3).values[1:]
    return float(second - third)
