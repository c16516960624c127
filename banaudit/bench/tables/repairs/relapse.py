"""The relapse probe: what a repaired model relearns of its trigger, and the share above which that counts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from banaudit.bench.repair_results import Rescan
from banaudit.bench.tables.markdown import NOTHING, table
from banaudit.bench.tables.repairs.cases import Case, View
from banaudit.relapse import THRESHOLDS, comes_back
from banaudit.results import Reading

PERCENTILE = 0.95
"""Of the probe on clean victims: the thresholds in :mod:`banaudit.relapse` are meant to be it."""


def relapse_probe(view: View) -> list[str]:
    """What the probe finds on clean victims, on cured ones and where a backdoor is left.

    Of other settings than the usual ones, those by which clean victims were repaired: thresholds may rest on them.
    """
    rows: list[tuple[str, ...]] = []
    groups = {method: [case for case in view.usual if case.method == method] for method in view.methods}
    for case in view.cases:
        if case.entry.setup not in view.main and case.entry.amount == view.amount and case.group == "clean":
            groups.setdefault(view.labels[case.entry.setup], []).append(case)
    for method, cases in groups.items():
        for reading in Reading:
            clean, cured, left = (
                _shares((case for case in cases if case.group == group), reading)
                for group in ("clean", "cured", "left")
            )
            if not (clean or cured or left):
                continue
            highest, threshold = upper_percentile(clean), THRESHOLDS.get(reading)
            rows.append(
                (
                    method,
                    reading.value,
                    _median(clean),
                    NOTHING if highest is None else f"{highest:.1%}",
                    NOTHING if threshold is None else f"{threshold:.0%}",
                    *(_above(group, reading) for group in (clean, cured, left)),
                )
            )
    head = (
        "method",
        "aimed at",
        "clean repairs: median",
        "95th percentile",
        "threshold",
        "clean, above",
        "cured, above",
        "left, above",
    )
    return [
        "## Relapse probe",
        "Share of held-out images that a stand-in for the trigger moves after a few steps of fine-tuning on images "
        "that carry it. On clean victims it aims at arbitrary classes. With fewer than 19 clean repairs there is no "
        "95th percentile that holds for a new model, and the largest is shown.",
        table(head, rows) if rows else "No repaired model was probed.",
    ]


def _median(values: Sequence[float]) -> str:
    return f"{len(values)}: {statistics.median(values):.1%}" if values else NOTHING


def _above(values: Sequence[float], reading: Reading) -> str:
    if not values:
        return NOTHING
    middle = f"median {statistics.median(values):.0%}"
    if reading not in THRESHOLDS:
        return middle
    return f"{sum(comes_back(reading, value) for value in values)}/{len(values)}, {middle}"


def relapses(rescan: Rescan) -> bool:
    """Whether the probe alone would have said that the backdoor comes back."""
    return any(comes_back(found.reading, found.relapsed) for found in rescan.relapse)


def _shares(cases: Iterable[Case], reading: Reading) -> list[float]:
    return [
        found.relapsed
        for case in cases
        if case.entry.rescan is not None
        for found in case.entry.rescan.relapse
        if found.reading is reading
    ]


def upper_percentile(values: Sequence[float]) -> float | None:
    """The order statistic that a new value of the same kind exceeds with a probability of at most 5 %.

    Args:
        values: Exchangeable with the new one; with fewer than 19 there is no such value, and the largest is taken.

    Returns:
        None where there are no values.
    """
    if not values:
        return None
    rank = math.ceil(PERCENTILE * (len(values) + 1))
    return sorted(values)[min(rank, len(values)) - 1]
