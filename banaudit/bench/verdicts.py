"""What the verdict would be if each reading had another threshold, from the recorded scores alone.

Every reading is held against its own threshold and no other: what several methods say together is a reading like any
other here, with the score it was recorded with (:mod:`banaudit.bench.rejudge` makes that score anew).
"""

from __future__ import annotations

from collections.abc import Mapping

from banaudit.agreement import says_most
from banaudit.bench.runner import Outcome, ScanRecord, ScoredReading, VictimEntry, hold_against
from banaudit.calibration import may_fire, strength
from banaudit.results import Verdict

Thresholds = Mapping[str, float]
"""Key of a reading -> threshold."""


def is_certain(item: ScoredReading, threshold: float) -> bool:
    """Whether the record says for sure if the reading fires at this threshold."""
    return item.score is None or item.score > item.threshold or item.score <= threshold or not may_fire(item)


def fires(item: ScoredReading, thresholds: Thresholds) -> bool:
    """Whether a reading fires at these thresholds; without one for its key, at its own."""
    return may_fire(item) and item.score is not None and item.score > thresholds.get(item.key, item.threshold)


def joint_score(scan: ScanRecord, thresholds: Thresholds) -> float:
    """The largest score / threshold among readings that may fire, 0 where none may: above 1 the verdict accuses."""
    return strength(scan.readings, lambda item: thresholds.get(item.key, item.threshold))


def outcome_at(entry: VictimEntry, thresholds: Thresholds) -> Outcome:
    """The outcome that a victim's scan would have had at these thresholds.

    The rule is the audit's: of the fired readings the one that says most speaks; without any, a method that could not
    judge makes the verdict inconclusive.

    Args:
        entry: A victim with its scan.
        thresholds: Of the readings; those not in it keep their own.
    """
    scan = entry.scan
    fired = [item for item in scan.readings if fires(item, thresholds)]
    verdict, strongest = Verdict.NO_EVIDENCE, None
    if fired:
        strongest = says_most(fired, lambda item: (item.score or 0.0) / thresholds.get(item.key, item.threshold))
        verdict = Verdict.BACKDOORED
    elif not scan.methods or any(method.verdict is Verdict.INCONCLUSIVE for method in scan.methods):
        verdict = Verdict.INCONCLUSIVE
    return hold_against(
        entry.truth,
        scan.model_copy(
            update={
                "verdict": verdict,
                "target": strongest.target if strongest is not None else None,
                "sources": strongest.sources if strongest is not None else (),
                "mapping": strongest.mapping if strongest is not None else None,
            }
        ),
    )
