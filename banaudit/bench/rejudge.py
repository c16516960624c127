"""Recorded scans as today's thresholds judge them, without the models.

A threshold that was raised changes no score: what the search found stays, and fewer readings fire. So the findings of a
scan are put together again from its record, held against today's thresholds, and combined by the audit's own code. One
difference from a new scan is left: a second restart that an old threshold had asked for and today's would not still
counts, with the weaker of both scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from banaudit.agreement import together
from banaudit.audit import combine
from banaudit.bench.cost import MethodCost
from banaudit.bench.runner import (
    AnyVictimResults,
    ScanSettings,
    ScoredReading,
    VictimEntry,
    hold_against,
    measures_of,
    readings_of,
)
from banaudit.detectors import Detector, default_detectors
from banaudit.detectors.base import conclude
from banaudit.results import ClassScore, Evidence, Finding, Reading, Scalar, Verdict

THRESHOLDS = {
    ("targeted-noise", ""): "lead_threshold",
    ("mm-bd", ""): "threshold",
    ("neural-cleanse", ""): "threshold",
    ("ban", "noise alone"): "errors_threshold",
}
"""All-to-one readings, by method and label -> the setting that is their threshold."""


def rejudged(results: AnyVictimResults, detectors: Sequence[Detector] | None = None) -> AnyVictimResults:
    """Results with every scan judged by the thresholds of today; those that have them already stay as they are.

    Args:
        results: Of ``bench run`` or a study.
        detectors: Whose thresholds count; none: the default ones.

    Returns:
        The results; scans that were made with other settings beyond the thresholds, or with a higher threshold, stay as
        they are too: their record does not say what a scan of today would find.
    """
    detectors = tuple(detectors) if detectors is not None else default_detectors()
    settings, measures = dict(results.settings), dict(results.measures)
    entries: list[VictimEntry] = []
    for entry in results.entries:
        then = results.settings[entry.scan.settings]
        now = ScanSettings.of(detectors, then.images, then.seed)
        if then.detectors == now.detectors or not _only_raised(then, now):
            entries.append(entry)
            continue
        settings[now.digest] = now
        entries.append(_judged(entry, now, measures))
    used = {digest for entry in entries for digest in (entry.scan.settings, entry.scan.scanned_with)}
    return results.model_copy(
        update={
            "settings": {digest: item for digest, item in settings.items() if digest in used},
            "measures": measures,
            "entries": tuple(entries),
        }
    )


def _only_raised(then: ScanSettings, now: ScanSettings) -> bool:
    names = {(method, setting) for (method, _), setting in THRESHOLDS.items()}
    before, after = _flat(then), _flat(now)
    return before.keys() == after.keys() and all(
        _number(before[key]) <= _number(after[key]) if key in names else before[key] == after[key] for key in before
    )


def _flat(settings: ScanSettings) -> dict[tuple[str, str], Scalar]:
    return {(method, name): value for method, values in settings.detectors.items() for name, value in values.items()}


def _number(value: Scalar) -> float:
    return float(value) if value is not None else math.nan


def _judged(entry: VictimEntry, now: ScanSettings, measures: dict[str, str]) -> VictimEntry:
    scan = entry.scan
    readings = tuple(_held_against(item, now) for item in scan.readings if _method(item) in now.detectors)
    findings = [
        _finding(cost, [item for item in readings if _method(item) == cost.method], measures)
        for cost in scan.methods
        if cost.method in now.detectors
    ]
    joint = together(findings)
    measures.update(measures_of(joint))
    verdict, reason, strongest = combine((*findings, *joint))
    accused = strongest[1] if strongest is not None else None
    record = scan.model_copy(
        update={
            "settings": now.digest,
            "scanned_with": scan.scanned_with or scan.settings,
            "verdict": verdict,
            "reason": reason,
            "target": accused.target if accused is not None else None,
            "reading": accused.reading if accused is not None else None,
            "sources": accused.sources if accused is not None else (),
            "mapping": accused.mapping if accused is not None else None,
            "methods": tuple(MethodCost.of(finding) for finding in (*findings, *joint)),
            "readings": (*readings, *readings_of(joint)),
        }
    )
    return entry.model_copy(update={"scan": record, "outcome": hold_against(entry.truth, record)})


def _method(item: ScoredReading) -> str:
    return item.key.partition("/")[0]


def _label(item: ScoredReading) -> str:
    name = item.key.partition("/")[2].partition("#")[0]
    return "" if name in set(Reading) else name


def _held_against(item: ScoredReading, now: ScanSettings) -> ScoredReading:
    """The reading at today's threshold."""
    name = THRESHOLDS.get((_method(item), _label(item)))
    if name is None or item.reading is not Reading.ALL_TO_ONE:
        return item
    threshold = _number(now.detectors[_method(item)][name])
    fired = item.fired and item.score is not None and item.score > threshold
    return item.model_copy(update={"threshold": threshold, "fired": fired})


def _finding(cost: MethodCost, readings: Sequence[ScoredReading], measures: Mapping[str, str]) -> Finding:
    """What a method found, as far as the record has it."""
    evidence = tuple(
        Evidence(
            reading=item.reading,
            label=_label(item),
            measures=measures.get(item.key, ""),
            score=item.score,
            threshold=item.threshold,
            fired=item.fired,
            null=item.null,
            target=item.target,
            sources=item.sources,
            mapping=item.mapping,
            per_class=tuple(
                ClassScore(label=label, name=str(label), score=score if score is not None else 0.0)
                for label, score in enumerate(item.per_class)
            ),
            agreement=item.agreement,
        )
        for item in readings
        if item.score is not None
    )
    verdict, reason = cost.verdict, cost.reason
    if verdict is not Verdict.INCONCLUSIVE:
        verdict, reason = conclude(evidence)
    return Finding(
        method=cost.method,
        title="",
        verdict=verdict,
        reason=reason,
        evidence=evidence,
        seconds=cost.seconds,
        forward_images=cost.forward_images,
        backward_images=cost.backward_images,
    )
