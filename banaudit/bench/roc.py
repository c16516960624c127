"""ROC curves of each reading and of the joint verdict, from recorded scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from banaudit.bench.runner import VictimEntry
from banaudit.bench.strata import counted
from banaudit.bench.verdicts import joint_score
from banaudit.errors import UsageError
from banaudit.statistics import auroc, auroc_interval

JOINT = "joint verdict"
"""Name of the curve of the joint score: the largest score / threshold among the readings that may fire."""

ALARM_RATES = (0.0, 0.05)
"""Shares of accused clean victims at which detection is stated."""


@dataclass(frozen=True)
class Curve:
    """One ROC curve.

    Args:
        name: Key of the reading, or :data:`JOINT`.
        positives: [n] float64 scores of backdoored victims.
        negatives: [m] float64 scores of clean ones.
    """

    name: str
    positives: Tensor
    negatives: Tensor

    @property
    def area(self) -> float:
        """Area under the curve."""
        return auroc(self.positives, self.negatives)

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return auroc_interval(self.area, len(self.positives), len(self.negatives))

    def points(self) -> list[tuple[float, float]]:
        """(false alarms, detected) as shares, from (0, 0) to (1, 1), for every threshold from the highest down."""
        scores = sorted({*self.positives.tolist(), *self.negatives.tolist()}, reverse=True)
        thresholds = [*scores, scores[-1] - 1]
        return [self.at(threshold) for threshold in thresholds]

    def at(self, threshold: float) -> tuple[float, float]:
        """Shares of the clean and of the backdoored victims above a threshold."""
        above = [(scores > threshold).double().mean() for scores in (self.negatives, self.positives)]
        return float(above[0]), float(above[1])

    def detected_at(self, alarm_rate: float) -> tuple[int, int]:
        """Backdoored victims above the lowest threshold that accuses at most this share of the clean ones.

        Args:
            alarm_rate: In [0, 1).

        Returns:
            How many, and of how many.
        """
        spared = self.negatives.sort(descending=True).values[math.floor(alarm_rate * len(self.negatives))]
        return int((self.positives > spared).sum()), len(self.positives)


def curves(entries: Sequence[VictimEntry], *, own_kind: bool) -> list[Curve]:
    """The joint verdict's curve, then each reading's that has scores on both sides; victims below floor left out.

    Args:
        entries: Scans of backdoored and clean victims.
        own_kind: Hold each reading against the kind of backdoor that it is meant for alone; the joint verdict is always
            held against all.

    Raises:
        UsageError: There are no backdoored or no clean victims.
    """
    counting = counted(entries)
    backdoored = [entry for entry in counting if entry.truth.backdoored]
    clean = [entry for entry in counting if not entry.truth.backdoored]
    if not backdoored or not clean:
        raise UsageError(
            f"a ROC curve needs backdoored and clean victims; these results hold {len(backdoored)} and {len(clean)}"
        )
    found = [Curve(JOINT, _joint(backdoored), _joint(clean))]
    kinds = {item.key: item.reading for entry in counting for item in entry.scan.readings}
    for key, kind in kinds.items():
        meant = [entry for entry in backdoored if not own_kind or entry.truth.reading is kind]
        curve = Curve(key, scores_of(meant, key), scores_of(clean, key))
        if len(curve.positives) and len(curve.negatives):
            found.append(curve)
    return found


def scores_of(entries: Sequence[VictimEntry], key: str) -> Tensor:
    """A reading's scores on those of the victims that have one, [n] float64."""
    return torch.tensor(
        [item.score for entry in entries for item in entry.scan.readings if item.key == key and item.score is not None],
        dtype=torch.float64,
    )


def _joint(entries: Sequence[VictimEntry]) -> Tensor:
    return torch.tensor([joint_score(entry.scan, {}) for entry in entries], dtype=torch.float64)
