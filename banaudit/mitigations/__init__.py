"""The mitigations, by name."""

from __future__ import annotations

from banaudit.mitigations.anp import ANP
from banaudit.mitigations.ban import BANFineTuning
from banaudit.mitigations.ban_distillation import BANDistillation
from banaudit.mitigations.base import (
    FineTuningMitigation,
    Mitigation,
    Repaired,
    RepairJob,
    SGDMitigation,
    TargetedMitigation,
)
from banaudit.mitigations.bti_dbf_unlearning import BTIDBFUnlearning
from banaudit.mitigations.clp import CLP
from banaudit.mitigations.feature_flip import FeatureFlip
from banaudit.mitigations.fine_tuning import FineTuning
from banaudit.mitigations.ft_sam import FTSAM

MITIGATIONS: dict[str, type[Mitigation]] = {
    mitigation.name: mitigation
    for mitigation in (BANFineTuning, BANDistillation, FineTuning, FTSAM, ANP, CLP, BTIDBFUnlearning, FeatureFlip)
}

DEFAULT: type[Mitigation] = BANDistillation
"""What ``purify`` repairs by if nothing else is asked for."""

__all__ = [
    "ANP",
    "CLP",
    "DEFAULT",
    "FTSAM",
    "MITIGATIONS",
    "BANDistillation",
    "BANFineTuning",
    "BTIDBFUnlearning",
    "FeatureFlip",
    "FineTuning",
    "FineTuningMitigation",
    "Mitigation",
    "RepairJob",
    "Repaired",
    "SGDMitigation",
    "TargetedMitigation",
]
