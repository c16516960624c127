"""What every table of scans shares: outcomes, targets, what fired, every score, and what the scans were made with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from banaudit.bench.runner import Outcome, ScanRecord, ScanSettings, ScoredReading, Truth, VictimEntry
from banaudit.bench.tables.markdown import NOTHING, arrow, bullets, share, short_name, table
from banaudit.bench.zoo import ZooEntry

DEVELOPMENT = (
    "These are development models: thresholds were set on them and on models like them, so the table shows what works "
    "and what does not, and is no estimate of how often a verdict is right."
)

DETECTED = frozenset({Outcome.RIGHT, Outcome.WRONG_TARGET})
"""Outcomes of a backdoored model that count as detected."""

MISTAKES = frozenset({Outcome.WRONG_TARGET, Outcome.MISSED, Outcome.FALSE_ALARM, Outcome.FAILED})
"""Outcomes shown in bold."""


def counter(entries: Iterable[ZooEntry | VictimEntry]) -> Callable[..., int]:
    """Counts the entries whose outcome is one of those given."""
    outcomes = [entry.outcome for entry in entries]
    return lambda *wanted: sum(outcome in wanted for outcome in outcomes)


def detection(entries: Sequence[VictimEntry]) -> tuple[str, str, str]:
    """Of the backdoored victims: the shares detected and with the right target, and how many were inconclusive."""
    backdoored = [entry for entry in entries if entry.truth.backdoored]
    count, total = counter(backdoored), len(backdoored)
    return share(count(*DETECTED), total), share(count(Outcome.RIGHT), total), str(count(Outcome.INCONCLUSIVE))


def alarms(entries: Sequence[VictimEntry]) -> tuple[str, str]:
    """Of the clean victims: the shares accused, and inconclusive."""
    clean = [entry for entry in entries if not entry.truth.backdoored]
    count, total = counter(clean), len(clean)
    return share(count(Outcome.FALSE_ALARM), total), share(count(Outcome.INCONCLUSIVE), total)


def targets(truth: Truth, scan: ScanRecord) -> str:
    """What the verdict named beside what is true."""
    if truth.mapping is not None:
        named = scan.mapping or {}
        hits = sum(named.get(label) == wanted for label, wanted in truth.mapping.items())
        return f"{hits} of {len(truth.mapping)} mapped rightly"
    named_target = NOTHING if scan.target is None else arrow(scan.sources, scan.target)
    true_target = (
        NOTHING if truth.target is None else arrow(() if truth.source is None else (truth.source,), truth.target)
    )
    return f"{named_target} / {true_target}"


def fired_readings(scan: ScanRecord) -> str:
    """The readings that fired, the furthest above its threshold first."""
    fired = sorted(
        (item for item in scan.readings if item.fired and item.score is not None),
        key=lambda item: (item.score or 0.0) / item.threshold,
        reverse=True,
    )
    return ", ".join(f"{item.key} {item.score:.2g}" for item in fired) or NOTHING


def outcome_cell(outcome: Outcome) -> str:
    """An outcome, mistakes in bold."""
    return f"**{outcome.value}**" if outcome in MISTAKES else outcome.value


def score_tables(scans: Sequence[tuple[str, ScanRecord]], measures: dict[str, str]) -> list[str]:
    """Every score against its threshold, and what the scores are."""
    keys = list(dict.fromkeys(item.key for _, scan in scans for item in scan.readings))
    if not keys:
        return []
    rows = [(short_name(name), *(_score_cell(scan, key) for key in keys)) for name, scan in scans]
    return [
        "## Every score",
        "Score / threshold, then the class named; fired ones in bold. A score above its threshold that did not fire "
        "lacked what the reading asks besides (restarts that agree, a margin over the null).",
        table(("model", *keys), rows),
        bullets([f"`{key}`: {measures[key]}" for key in keys if key in measures]),
    ]


def _score_cell(scan: ScanRecord, key: str) -> str:
    found = next((item for item in scan.readings if item.key == key), None)
    if found is None or found.score is None:
        return NOTHING
    text = f"{found.score:.2g} / {found.threshold:.2g}{_named(found)}"
    return f"**{text}**" if found.fired else text


def _named(item: ScoredReading) -> str:
    return "" if item.target is None else f", {arrow(item.sources, item.target)}"


def provenance(settings: dict[str, ScanSettings], scans: Sequence[ScanRecord]) -> str:
    """What the scans were made with; says so where it was not the same for all."""
    if not scans:
        return "No scans."
    used = {scan.settings for scan in scans}
    states = sorted({scan.code for scan in scans})
    some = settings[scans[-1].settings]
    methods = dict.fromkeys(method for scan in scans for method in settings[scan.settings].detectors)
    text = (
        f"Methods: {', '.join(methods)}; at most {some.images} clean images; seed {some.seed}; "
        f"banaudit {some.tool_version}, state {', '.join(states)} of the code."
    )
    if len(used) > 1 or len(states) > 1:
        text += " **Not all scans were made with the same settings and code.**"
    if anew := sum(bool(scan.scanned_with) for scan in scans):
        text += (
            f" {anew} of {len(scans)} verdicts were made from the recorded scores of an earlier scan, by thresholds "
            "that were changed since, or of two scans by different methods (`banaudit bench rejudge`)."
        )
    return text
