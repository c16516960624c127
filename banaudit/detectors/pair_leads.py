"""How far one (source, target) pair of classes is ahead of all others: what the methods for a single source share.

The ruler. Let m(s, t) be the mean margin z_t - max_{j != t} z_j of the source's images under a change that was made for
the pair, and u the larger of two spreads of all pairs' margins before any change: their scaled median absolute
deviation, and a quarter of the absolute value of their median (of ordinary networks the two are about as large;
training with smoothed labels makes all pairs alike, and would leave nothing of the first). The lead is

    min( m(first) - m(second), r(first) - r(second) ) / u

of the pair that is first by both m and r, what is left of m once a line through the natural closeness of the classes is
taken off (:mod:`reference`): of alike classes (a 9 and a 4) one pair is often far ahead on clean networks too. Where m
is read after several steps, the lead is the largest over them. Backdoors of more classes have no single leader.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from banaudit.data import CleanData
from banaudit.detectors.reference import beyond, lead_by_all
from banaudit.shapes import Images
from banaudit.statistics import mad, median

MEDIAN_SHARE = 0.25
"""Share of the median margin that the unit of a lead is at least."""


@dataclass(frozen=True)
class PairLeader:
    """The pair that is furthest ahead.

    Args:
        score: Its lead.
        null: The same for the pair after it, once it is taken away.
        source: Label.
        target: Label.
        step: Where it leads most.
    """

    score: float
    null: float
    source: int
    target: int
    step: int

    @property
    def pair(self) -> tuple[int, int]:
        """Source and target."""
        return self.source, self.target


@dataclass(frozen=True)
class PairMargins:
    """What a search read.

    Args:
        steps: Where it was read.
        margins: [R, K, K] mean margin of the images of each source (column) towards each target (row); NaN where a
            pair is not followed.
        unit: Of a lead (:func:`unit_of`).
    """

    steps: tuple[int, ...]
    margins: Tensor
    unit: float

    def and_of(self, other: PairMargins) -> PairMargins:
        """The mean of two searches that followed the same pairs."""
        return PairMargins(self.steps, (self.margins + other.margins) / 2, (self.unit + other.unit) / 2)

    def leader(self, natural: Tensor, generator: torch.Generator) -> PairLeader:
        """The pair that is furthest ahead.

        Args:
            natural: [K, K] how near classes are by nature, of :func:`~banaudit.detectors.reference.natural_closeness`.
            generator: Draws the pairs that the line is fitted to, where they are many.
        """
        leaders = []
        for margins, step in zip(self.margins, self.steps, strict=True):
            values = torch.stack((margins, beyond(margins, natural, generator))) / max(self.unit, 1e-6)
            score, place = lead_by_all(values.flatten(1))
            target, source = divmod(place, values.shape[2])
            values[:, target, source] = torch.nan
            leaders.append(PairLeader(score, lead_by_all(values.flatten(1))[0], source, target, step))
        return max(leaders, key=lambda item: item.score)


def unit_of(start: Tensor) -> float:
    """The unit of a lead.

    Args:
        start: [K, K] mean margins without any change; NaN where there is none.
    """
    margins = start[~start.isnan()]
    return float(torch.maximum(mad(margins), MEDIAN_SHARE * median(margins).abs()))


def images_of_each(data: CleanData, most: int, least: int, generator: torch.Generator) -> dict[int, Images]:
    """Label -> some of its images, drawn; without the classes that have too few.

    Args:
        data: Clean images.
        most: Images of a class at most.
        least: Images that a class has to have.
        generator: Source of randomness, on the CPU.
    """
    drawn: dict[int, Images] = {}
    for label in range(data.num_classes):
        members = (data.labels.cpu() == label).nonzero().flatten()
        if len(members) >= least:
            chosen = members[torch.randperm(len(members), generator=generator)[:most]]
            drawn[label] = data.images[chosen.to(data.images.device)]
    return drawn


def left_out(looked_at: set[int], num_classes: int) -> str:
    """Classes that are not looked at as a source, in words for a note; empty: there are none.

    Args:
        looked_at: Labels of the others.
        num_classes: K.
    """
    labels = sorted(set(range(num_classes)) - looked_at)
    named = f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, labels))}"
    return f"; images of {named} are too few for a search" if labels else ""
