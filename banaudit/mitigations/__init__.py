"""The mitigations, by name."""

from __future__ import annotations

from banaudit.mitigations.ban import BANFineTuning
from banaudit.mitigations.base import Mitigation, Repaired
from banaudit.mitigations.fine_tuning import FineTuning

MITIGATIONS: dict[str, type[Mitigation]] = {mitigation.name: mitigation for mitigation in (BANFineTuning, FineTuning)}

__all__ = ["MITIGATIONS", "BANFineTuning", "FineTuning", "Mitigation", "Repaired"]
