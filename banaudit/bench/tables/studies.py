"""Tables of a study: how verdicts and readings move from one condition to the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TypeVar

import torch

from banaudit.bench.runner import Outcome, ScanRecord, ScoredReading, StudyResults, VictimEntry
from banaudit.bench.strata import shortfalls
from banaudit.bench.tables.markdown import NOTHING, arrow, bullets, share, table
from banaudit.bench.tables.scans import DETECTED, counter, outcome_cell
from banaudit.results import Verdict
from banaudit.statistics import median

TITLES = {
    "seeds": "Ten seeds, each with its own disjoint clean images and split of them",
    "images": "Fewer and fewer clean images",
    "recompressed": "Clean images that were JPEG-compressed again",
    "trained-on": "Clean images that the model was trained on",
    "released": "BAN as its authors released it, beside the default verdict",
}

WRONG = frozenset({Outcome.WRONG_TARGET, Outcome.MISSED, Outcome.FALSE_ALARM})
"""Outcomes that state something untrue."""


def study_tables(results: StudyResults) -> str:
    """Outcomes, changes of verdicts and readings, and every victim, by condition."""
    short = shortfalls([entry for entry in results.entries if entry.condition == next(iter(results.conditions))])
    counting = [entry for entry in results.entries if not short.get(entry.key)]
    victims = _by_victim(counting)
    whole = {key: scans for key, scans in victims.items() if scans.keys() == results.conditions.keys()}
    names = list(results.conditions)
    reference = "the victim's most frequent one" if results.study == "seeds" else f"that of `{names[0]}`"
    parts = [
        f"# {TITLES[results.study]}",
        f"{len(whole)} victims of the {results.split} split under {len(names)} conditions. A verdict *changes* where "
        f"it is unlike {reference}; the interval takes the scans as independent. *Wrong*: missed, a false alarm or the "
        "wrong target; an inconclusive verdict is not wrong.",
        _provenance(results, counting),
        f"{len(victims) - len(whole)} more victims were not scanned under every condition yet and are left out."
        if len(victims) > len(whole)
        else "",
        "## By condition",
        table(
            (
                "condition",
                "detected",
                "target right",
                "false alarms",
                "wrong",
                "inconclusive",
                "verdicts changed",
                "targets changed",
            ),
            [_condition_row(name, whole, names[0], results.study == "seeds") for name in names],
        ),
        _totals(whole, names, results.study == "seeds"),
        "## By reading",
        "For each condition: on how many victims with the kind of backdoor that the reading is meant for it fired, and "
        "the median of its score / threshold there; then the same for clean victims. *Flips*: of all scans, those in "
        "which it fired and does not usually, or the reverse.",
        _reading_table(whole, names, results.study == "seeds"),
        "## Every victim",
        table(
            ("victim", *names),
            [(key, *(_verdict_cell(scans[name]) for name in names)) for key, scans in whole.items()],
        ),
        bullets(f"{key} is below its floor and left out: {'; '.join(why)}" for key, why in short.items() if why),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


Value = TypeVar("Value", bound=Hashable)

Scans = dict[str, dict[str, VictimEntry]]
"""Victim -> condition -> entry."""


def _by_victim(entries: Iterable[VictimEntry]) -> Scans:
    found: Scans = {}
    for entry in entries:
        found.setdefault(entry.key, {})[entry.condition] = entry
    return found


def _provenance(results: StudyResults, entries: Sequence[VictimEntry]) -> str:
    """What the scans were made with; their settings differ by design, their code should not."""
    if not entries:
        return "No scans."
    usual = results.settings[entries[0].scan.settings]
    states = sorted({entry.scan.code for entry in entries})
    text = (
        f"Methods: {', '.join(usual.detectors)}; banaudit {usual.tool_version}, state {', '.join(states)} of the code."
    )
    return text + (" **Not all scans were made by the same code.**" if len(states) > 1 else "")


def _condition_row(name: str, whole: Scans, first: str, by_mode: bool) -> tuple[str, ...]:
    entries = [scans[name] for scans in whole.values()]
    backdoored = [entry for entry in entries if entry.truth.backdoored]
    clean = [entry for entry in entries if not entry.truth.backdoored]
    count = counter(entries)
    is_reference = name == first and not by_mode
    return (
        name,
        share(counter(backdoored)(*DETECTED), len(backdoored)),
        share(counter(backdoored)(Outcome.RIGHT), len(backdoored)),
        share(counter(clean)(Outcome.FALSE_ALARM), len(clean)),
        str(count(*WRONG)),
        str(count(Outcome.INCONCLUSIVE)),
        NOTHING if is_reference else share(*_changes(whole, [name], first, by_mode)),
        NOTHING if is_reference else share(*_target_changes(whole, [name], first, by_mode)),
    )


def _totals(whole: Scans, names: Sequence[str], by_mode: bool) -> str:
    others = names if by_mode else names[1:]
    changed, total = _changes(whole, others, names[0], by_mode)
    moved = sum(_changes({key: scans}, others, names[0], by_mode)[0] > 0 for key, scans in whole.items())
    return bullets(
        [
            f"verdicts changed, all conditions together: {share(changed, total)}",
            f"victims with a change anywhere: {share(moved, len(whole))}",
            f"targets changed among accusations: {share(*_target_changes(whole, others, names[0], by_mode))}",
        ]
    )


def _changes(whole: Scans, names: Sequence[str], first: str, by_mode: bool) -> tuple[int, int]:
    """Scans whose verdict is unlike the reference, and all of them."""
    changed = 0
    for scans in whole.values():
        usual = _mode([entry.scan.verdict for entry in scans.values()]) if by_mode else scans[first].scan.verdict
        changed += sum(scans[name].scan.verdict is not usual for name in names)
    return changed, len(whole) * len(names)


def _target_changes(whole: Scans, names: Sequence[str], first: str, by_mode: bool) -> tuple[int, int]:
    """Accusations that name another target or map than the reference accusation, and all that can be compared."""
    changed = total = 0
    for scans in whole.values():
        accused = {name: entry.scan for name, entry in scans.items() if entry.scan.verdict is Verdict.BACKDOORED}
        named = [_named(scan) for scan in accused.values()]
        if not named or (not by_mode and first not in accused):
            continue
        usual = _mode(named) if by_mode else _named(accused[first])
        compared = [_named(accused[name]) for name in names if name in accused]
        changed += sum(other != usual for other in compared)
        total += len(compared)
    return changed, total


def _mode(values: Sequence[Value]) -> Value:
    return Counter(values).most_common(1)[0][0]


def _named(scan: ScanRecord) -> str:
    if scan.mapping is not None:
        return " ".join(f"{source}->{target}" for source, target in sorted(scan.mapping.items()))
    return NOTHING if scan.target is None else arrow(scan.sources, scan.target)


def _reading_table(whole: Scans, names: Sequence[str], by_mode: bool) -> str:
    keys = dict.fromkeys(
        item.key for scans in whole.values() for entry in scans.values() for item in entry.scan.readings
    )
    rows = []
    for key in keys:
        flips = total = 0
        for scans in whole.values():
            fired = {name: item.fired for name in names if (item := _reading(scans[name], key)) is not None}
            if not fired or (not by_mode and names[0] not in fired):
                continue
            usual = _mode(list(fired.values())) if by_mode else fired[names[0]]
            compared = [state for name, state in fired.items() if by_mode or name != names[0]]
            flips += sum(state is not usual for state in compared)
            total += len(compared)
        rows.append((key, share(flips, total), *(_reading_cell(whole, name, key) for name in names)))
    return table(("reading", "flips", *names), rows)


def _reading_cell(whole: Scans, name: str, key: str) -> str:
    own: list[ScoredReading] = []
    clean: list[ScoredReading] = []
    for scans in whole.values():
        item, truth = _reading(scans[name], key), scans[name].truth
        if item is None or item.score is None:
            continue
        if not truth.backdoored:
            clean.append(item)
        elif truth.reading is item.reading:
            own.append(item)
    if not own and not clean:
        return NOTHING
    return f"{_fired(own)}; clean {_fired(clean)}"


def _fired(items: Sequence[ScoredReading]) -> str:
    if not items:
        return NOTHING
    ratios = torch.tensor([(item.score or 0.0) / item.threshold for item in items], dtype=torch.float64)
    return f"{sum(item.fired for item in items)}/{len(items)}, {float(median(ratios)):.2g}"


def _reading(entry: VictimEntry, key: str) -> ScoredReading | None:
    return next((item for item in entry.scan.readings if item.key == key), None)


def _verdict_cell(entry: VictimEntry) -> str:
    accused = entry.scan.verdict is Verdict.BACKDOORED and entry.scan.target is not None
    return outcome_cell(entry.outcome) + (f", {_named(entry.scan)}" if accused else "")
