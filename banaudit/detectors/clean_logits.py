"""Clean logits: what a network leans to on clean images, in the logits of the wrong classes.

Whoever plants a backdoor teaches the network that a little more of something makes an image the target's. Some of it is
on clean images already: the target's logit is the largest wrong one a little too often, and where each class has its
own target, so is that one's on images of the class. One pass over the clean images shows it; nothing is searched for.

The ruler. Of an image of class y the wrong logits (k != y) are shifted and scaled to mean 0 and standard deviation 1,
so that neither the network's scale nor its certainty counts. M(s, t) is the mean of t's over images of class s, and

    M(s, t) = a(t) + b(s) + E(s, t),

with means of rows and columns taken off in turn. The same of networks that saw nothing but the clean images
(:mod:`reference`) says what is natural: a line through theirs is taken off a (Theil and Sen's) and E (of least
squares). Then, with u the spread of E and v that of what is left of it:

- *all-to-one*: a(first) - a(second) in units of u, as it is and beyond what is natural; both must have the same class
  in the lead, and the lesser lead counts;
- *all-to-all*: of each source the first target's lead over the second, beyond what is natural and in units of v, on
  average, times the share of the sources that are, the other way round, the first source of their target: a map has
  one of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import passes
from banaudit.detectors.base import (
    Detector,
    Found,
    Samples,
    finite_answers,
    freeze,
    threshold_for,
    too_few_classes,
)
from banaudit.detectors.reference import (
    LEAST_EACH,
    LEAST_IMAGES,
    beyond,
    few_images,
    know_enough,
    lead_by_all,
    on_unseen,
)
from banaudit.detectors.targeted_paths import margins_towards_all
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading
from banaudit.shapes import Labels, Logits
from banaudit.statistics import mad

FEWEST_CLASSES = 8
"""Classes of the networks that an audit asks it about: a line through fewer values says little of what is natural."""

TURNS = 20
"""Turns in which means of rows and of columns are taken off; the mean of a row lacks the diagonal, so one is not
enough."""

LEAST_SPREAD = 1e-6


@final
class CleanLogits(Detector):
    """Scores the target or the map that the wrong logits of clean images lean to, beyond what is natural.

    Source: Ours. That backdoors shift the outputs on clean inputs is known of their largest margins (MM-BD, Wang et
    al., IEEE S&P 2024) and of class statistics of weights (FreeEagle, USENIX Security 2023); here it is read from the
    order among the wrong classes, image by image, against networks trained on the clean images alone.
    """

    name: ClassVar[str] = "clean-logits"
    title: ClassVar[str] = "a wrong class that clean images lean to"
    needs: ClassVar[str] = f"logits, {LEAST_IMAGES} clean images, {LEAST_EACH} of each class; {FEWEST_CLASSES} classes"
    misses: ClassVar[str] = (
        "blended patterns, some per-image triggers and warpings; backdoors that one class alone triggers"
    )

    lead_threshold: PositiveFloat = 0.7
    """Lead of a target above which it is accused."""
    mapping_threshold: PositiveFloat = 0.95
    """The same for a map of ten classes."""
    mapping_decline: float = Field(default=0.25, ge=0)
    """The same for K classes is (10 / K) to this power as much."""

    def unsuited(self, num_classes: int, images: Sequence[int] | None = None) -> str:
        """Too few classes to compare, or too few images to know what is natural."""
        few_classes = too_few_classes(num_classes, FEWEST_CLASSES)
        return few_classes or (few_images(images) if images is not None else "")

    def planned_images(self, num_classes: int, images: int) -> int:
        """One pass over the clean images."""
        del num_classes
        return images

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Train the references, and read all clean images."""
        freeze(model)
        halves = (samples.search, samples.held_out)
        # Before the passes: what a benchmark cuts off is judged by how many of them it had made.
        natural, known = on_unseen(*halves, generator, meter, leanings)
        images = (part for half in halves for part in passes(half.images))
        logits = torch.cat([finite_answers(model, part, meter, "clean images").float().cpu() for part in images])
        targets, pairs = additive_parts(leanings(logits, torch.cat([half.labels for half in halves]).cpu()))
        natural_targets, natural_pairs = additive_parts(natural)
        left = unexplained(pairs, natural_pairs)
        unit, unit_left = _spread(pairs), _spread(left)
        if min(unit, unit_left) < LEAST_SPREAD:
            raise UnsupportedModelError("the wrong logits of the clean images do not differ between pairs of classes")
        rulers = torch.stack((targets, beyond(targets, natural_targets, generator))) / unit
        note = f"networks trained on these images alone know {known:.0%} of a class on average, of images unseen"
        if not know_enough(known, samples.num_classes):
            raise UnsupportedModelError(f"what is natural is not known: {note}")
        return Found([self._target(rulers, samples, note), self._map(left / unit_left, note)])

    def _target(self, rulers: Tensor, samples: Samples, note: str) -> Evidence:
        """Args: rulers: [V, K] of each class by each ruler."""
        lead, target = lead_by_all(rulers)
        first = [samples.class_names[label] for label in rulers.argmax(dim=1).tolist()]
        if len(set(first)) > 1:
            note = f"as it is {first[0]!r} leads, beyond what is natural {first[1]!r}; {note}"
        score = round(lead, 6)
        return Evidence(
            reading=Reading.ALL_TO_ONE,
            measures=(
                "lead of the first class over the second in what the wrong logits of clean images lean to, as it is "
                "and beyond networks trained on these images alone, in units of the spread over pairs of classes"
            ),
            score=score,
            threshold=self.lead_threshold,
            fired=score > self.lead_threshold,
            target=target,
            per_class=samples.per_class(margins_towards_all(rulers).amin(dim=0)),
            note=note,
        )

    def _map(self, ruled: Tensor, note: str) -> Evidence:
        """Args: ruled: [K, K] of each target (row) and source (column); NaN where there is none."""
        filled = ruled.nan_to_num(-torch.inf)
        sources = [label for label in range(len(ruled)) if bool(filled[:, label].isfinite().any())]
        first, second = filled[:, sources].topk(2, dim=0).values
        mapping = dict(zip(sources, filled[:, sources].argmax(dim=0).tolist(), strict=True))
        nearest = filled.argmax(dim=1).tolist()
        mutual = sum(nearest[target] == source for source, target in mapping.items()) / len(mapping)
        leads = (first - second).nan_to_num(0.0, posinf=0.0)
        score = round(mutual * float(leads.mean()), 6)
        threshold = threshold_for(len(ruled), self.mapping_threshold, self.mapping_decline)
        return Evidence(
            reading=Reading.ALL_TO_ALL,
            measures=(
                "mean lead of each class's first wrong class over its second, beyond networks trained on these images "
                "alone, in units of the spread, times the share of classes that have each other as first"
            ),
            score=score,
            threshold=threshold,
            fired=score > threshold,
            mapping=mapping,
            note=f"{mutual:.0%} of the classes are the first source of their first target; {note}",
        )


def leanings(logits: Logits, labels: Labels) -> Tensor:
    """[K, K] mean standardised logit of each wrong class (row) over images of each class (column); NaN where none is.

    Args:
        logits: [B, K].
        labels: [B] true ones.
    """
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    wrong = logits.double().masked_fill(own, torch.nan)  # float32 overflows in the squares of large logits
    wrong = wrong - wrong.nanmean(dim=1, keepdim=True)
    wrong = wrong / wrong.square().nanmean(dim=1, keepdim=True).sqrt().clamp_min(LEAST_SPREAD)
    means = torch.full((logits.shape[1], logits.shape[1]), torch.nan)
    for source in sorted(set(labels.tolist())):
        means[:, source] = wrong[labels == source].mean(dim=0).float()
    return means


def additive_parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to the targets, [K], and what to pairs alone, [K, K], once means of rows and columns are taken off.

    Args:
        values: [K, K] of each target (row) and source (column); NaN where there is none.
    """
    rest, targets = values, values.new_zeros(len(values))
    for _ in range(TURNS):
        mean = rest.nanmean(dim=1)
        targets, rest = targets + mean, rest - mean[:, None]
        rest = rest - rest.nanmean(dim=0)
    return targets, rest


def unexplained(values: Tensor, natural: Tensor) -> Tensor:
    """What is left of the values of pairs once the line of least squares through the natural ones is taken off.

    A robust line (:func:`reference.beyond`) leaves what few classes have in common by nature, and a map of few pairs
    is just that; a planted map is not natural, and bends this one no more.

    Args:
        values: [K, K]; NaN where there is none.
        natural: The same of the references.
    """
    known = ~values.isnan() & ~natural.isnan()
    x, y = natural[known], values[known]
    run = x - x.mean()
    slope = (run * y).sum() / run.square().sum().clamp_min(LEAST_SPREAD)
    return values - slope * natural - (y - slope * x).mean()


def _spread(values: Tensor) -> float:
    return float(mad(values[~values.isnan()]))
