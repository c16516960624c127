"""Recorded scans as today's thresholds judge them, without the models.

A threshold that was raised changes no score: what the search found stays, and fewer readings fire. So the findings of a
scan are put together again from its record, held against today's thresholds, and combined by the audit's own code; so
is what several methods say together, by its rule of today. What is left of difference from a new scan:

- a second restart that an old threshold had asked for and today's would not still counts, with the weaker of both
  scores, or with none where both name different classes;
- noise on the neurons used to be asked only about a pair that leads under a change of the pixels: a record that lacks
  what it says of such a pair stays as it is; of all others it counts as if noise named another pair. Where it was asked
  then, the score is the lead among pixels alone, and not yet the sum of both;
- a scan that joint evidence alone accuses stays as it is, unless its images are too few to tell what is natural: what
  it is held against are networks that would have to be trained;
- the threshold that falls where few images arrive at any class is taken from the note of the paths, which has whole
  per cents, and paths that would be followed a second time today were followed once: their lead counts beside others,
  but does not fire by a threshold that fell.

Nor does a method change what another finds: each draws from its own seed. So two scans of one victim by different
methods, on the same images and with the same seed, are one scan by all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from banaudit.agreement import JOINT_EVIDENCE, together
from banaudit.audit import NOTED, combine, undecided
from banaudit.bench.cost import MethodCost
from banaudit.bench.results_files import kind_of, need_results, update_results
from banaudit.bench.runner import (
    BenchmarkResults,
    ScanRecord,
    ScanSettings,
    ScoredReading,
    StudyResults,
    VictimEntry,
    asked_of,
    drawn_alike,
    hold_against,
    measures_of,
    readings_of,
)
from banaudit.bench.victims import VictimFacts
from banaudit.bench.workplace import Progress
from banaudit.bench.zoo import ZooEntry, ZooResults
from banaudit.detectors import Detector, default_detectors
from banaudit.detectors.ban import BAN, MASK_BY_CLASS, NEGATIVE_MASK, NOISE_ALONE
from banaudit.detectors.base import conclude, threshold_for
from banaudit.detectors.corruptions import Corruptions
from banaudit.detectors.mixtures import Mixtures
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.pair_perturbation import CONFIRMED, SECOND_LOOK, PairPerturbation
from banaudit.detectors.reference import few_images
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.errors import UsageError
from banaudit.results import ClassScore, Evidence, Finding, Reading, Scalar, Verdict

AnyResults = TypeVar("AnyResults", BenchmarkResults, StudyResults, ZooResults)
Scans = BenchmarkResults | ZooResults
Entry = VictimEntry | ZooEntry

THRESHOLDS = {
    (TargetedNoise.name, "", Reading.ALL_TO_ONE): "lead_threshold",
    (UniversalPerturbation.name, "", Reading.ALL_TO_ONE): "lead_threshold",
    (MMBD.name, "", Reading.ALL_TO_ONE): "threshold",
    (NeuralCleanse.name, "", Reading.ALL_TO_ONE): "threshold",
    (BAN.name, NOISE_ALONE, Reading.ALL_TO_ONE): "errors_threshold",
    (BAN.name, NEGATIVE_MASK, Reading.ALL_TO_ONE): "share_threshold",
    (BAN.name, MASK_BY_CLASS, Reading.ALL_TO_ALL): "share_threshold",
    (UniversalPerturbation.name, "", Reading.ALL_TO_ALL): "mapping_threshold",
    (UniversalPerturbation.name, "", Reading.SOURCE_TARGET): "pair_threshold",
    (PairPerturbation.name, "", Reading.SOURCE_TARGET): "threshold",
    (PairPerturbation.name, CONFIRMED, Reading.SOURCE_TARGET): "confirmed_threshold",
    (Corruptions.name, "", Reading.ALL_TO_ONE): "threshold",
    (Mixtures.name, "", Reading.ALL_TO_ONE): "threshold",
}
"""Method, label and kind of a reading -> the setting that is its threshold, or for ten classes is: of those that joint
evidence is made of, of masks, of pairs, of mixtures, and of the map of universal perturbations."""

DECLINES = {
    (UniversalPerturbation.name, "mapping_threshold"): "mapping_decline",
    (Mixtures.name, "threshold"): "decline",
}
"""Method and threshold -> the setting by which it falls with the number of classes."""

FOLLOWS = {
    (UniversalPerturbation.name, "unreached_share"),
    (UniversalPerturbation.name, "relied_on"),
    (PairPerturbation.name, "confirmed_threshold"),
}
"""Settings that recorded scans may lack, since what they do follows from a record, as far as is said above."""

_LEAD = f"{UniversalPerturbation.name}/{Reading.ALL_TO_ONE}"

REACH = re.compile(r"(\d+)% after \d+ steps")
"""In the note of a path: the share of the images that reach the median class."""

AND = "+"
"""Between the digests of scans that were put together."""


def rejudged(
    results: AnyResults, detectors: Sequence[Detector] | None = None, others: Sequence[Scans] = ()
) -> AnyResults:
    """Results with every scan judged by the thresholds and the settings of today, where its record says enough.

    Args:
        results: Of ``bench run``, a study or a zoo.
        detectors: Whose thresholds count; none: the default ones.
        others: Of ``bench run``, or of a zoo as these are: scans of the same models by the methods that are missing.

    Returns:
        The results; scans that were made with other settings beyond the thresholds, with a higher threshold or without
        one of the methods stay as they are, and those that lack what a threshold falls with, what noise says of a pair
        or what is natural: their record does not say what a scan of today would find.
    """
    detectors = tuple(detectors) if detectors is not None else default_detectors()
    settings, measures = dict(results.settings), dict(results.measures)
    for other in others:
        settings, measures = {**other.settings, **settings}, {**other.measures, **measures}
    entries: list[Entry] = []
    for entry in results.entries:
        then = results.settings[_digest(entry)]
        now = _of_today(entry, then, detectors)
        whole: Entry = entry
        for other in others:
            whole, then = _put_together(whole, then, other, now)
        moved = _lead_threshold_moved(then, now)
        if not _only_thresholds_differ(then, now) or (moved and _lacks_a_note(whole)) or _lacks_noise(whole):
            entries.append(entry)
            continue
        judged = _judged(whole, now, measures, moved=moved)
        if _lacks_nature(judged, now):
            entries.append(entry)
            continue
        settings[now.digest] = now
        entries.append(judged)
    used = {digest for judged in entries for digest in _digests(judged)}
    return results.model_copy(
        update={
            "settings": {digest: item for digest, item in settings.items() if digest in used},
            "measures": measures,
            "entries": tuple(entries),
        }
    )


def _of_today(entry: Entry, then: ScanSettings, detectors: Sequence[Detector]) -> ScanSettings:
    """The settings with which a scan of the same images is made today."""
    # A zoo's settings name what was asked of all its files, a victim's what its classes and images are asked.
    asked = detectors if isinstance(entry, ZooEntry) else asked_of(detectors, entry.victim.recipe, then.images)
    return ScanSettings.of(asked, then.images, then.seed)


def _digest(entry: Entry) -> str:
    return entry.settings if isinstance(entry, ZooEntry) else entry.scan.settings


def _digests(entry: Entry) -> set[str]:
    """Of all settings that an entry names."""
    return {_digest(entry), *(entry.scan.scanned_with.split(AND) if entry.scan else ())}


def _put_together(entry: Entry, then: ScanSettings, other: Scans, now: ScanSettings) -> tuple[Entry, ScanSettings]:
    """A scan with what the methods of today that it lacks found in another file, and the settings of both."""
    found = next((item for item in other.entries if _is_of_the_same(item, entry)), None)
    if found is None:
        return entry, then
    settings = other.settings[_digest(found)]
    missing = settings.detectors.keys() & now.detectors.keys() - then.detectors.keys()
    extra = {name: settings.detectors[name] for name in missing}
    if not extra or (settings.images, settings.seed) != (then.images, then.seed):
        return entry, then
    both = then.model_copy(update={"detectors": {**then.detectors, **extra}})
    if entry.scan is None:
        return entry, both  # a file that is no model has nothing to be found in
    if found.scan is None:
        return entry, then
    return entry.model_copy(update={"scan": _one_scan(entry.scan, found.scan, extra, now)}), both


def _is_of_the_same(item: Entry, entry: Entry) -> bool:
    """Whether two scans are of one model on the same images."""
    if isinstance(item, ZooEntry) or isinstance(entry, ZooEntry):
        return isinstance(item, ZooEntry) and isinstance(entry, ZooEntry) and _facts(item) == _facts(entry)
    same = (item.key, item.condition) == (entry.key, entry.condition)
    return same and _same_training(entry.victim, item.victim)


def _facts(entry: ZooEntry) -> tuple[object, ...]:
    """What two scans of one file have in common."""
    return entry.file, entry.dataset, entry.truth, entry.architecture, entry.accuracy, entry.accuracy_images


def _one_scan(scan: ScanRecord, found: ScanRecord, extra: Mapping[str, object], now: ScanSettings) -> ScanRecord:
    """A scan with what the methods ``extra`` found in another."""
    costs = [cost for cost in found.methods if cost.method in extra]
    readings = (*scan.readings, *(item for item in found.readings if _method(item) in extra))
    place = {name: number for number, name in enumerate(now.detectors)}
    return scan.model_copy(
        update={
            "scanned_with": AND.join((scan.scanned_with or scan.settings, found.settings)),
            "code": AND.join(dict.fromkeys((*scan.code.split(AND), found.code))),
            "seconds": round(scan.seconds + sum(cost.seconds for cost in costs), 3),
            "forward_images": scan.forward_images + sum(cost.forward_images for cost in costs),
            "backward_images": scan.backward_images + sum(cost.backward_images for cost in costs),
            "caveats": tuple(dict.fromkeys((*scan.caveats, *found.caveats))),
            "methods": tuple(sorted((*scan.methods, *costs), key=lambda cost: place.get(cost.method, len(place)))),
            "readings": tuple(sorted(readings, key=lambda item: place.get(_method(item), len(place)))),
        }
    )


def _same_training(one: VictimFacts, other: VictimFacts) -> bool:
    """Whether two trainings of a recipe, if they were two, ended alike: in all that was measured but their time."""
    return one == other.model_copy(update={"seconds": one.seconds})


def _lead_threshold_moved(then: ScanSettings, now: ScanSettings) -> bool:
    """Whether the threshold that falls where few images arrive is another today than in the record."""
    before, after = (item.detectors.get(UniversalPerturbation.name, {}) for item in (then, now))
    return any(before.get(name) != after.get(name) for name in ("lead_threshold", "unreached_share"))


def _lacks_a_note(entry: Entry) -> bool:
    """Whether a record does not say how many images the paths of universal perturbations led to a class."""
    readings = entry.scan.readings if entry.scan is not None else ()
    return any(item.key == _LEAD and not REACH.search(item.note) for item in readings)


def _lacks_noise(entry: Entry) -> bool:
    """Whether a record does not say what noise on the neurons has to say of the pair that a change of pixels leads."""
    readings = entry.scan.readings if entry.scan is not None else ()
    of_pairs = {_label(item): item.score or 0.0 for item in readings if _method(item) == PairPerturbation.name}
    return of_pairs.get("", 0.0) > SECOND_LOOK and CONFIRMED not in of_pairs


def _lacks_nature(entry: Entry, settings: ScanSettings) -> bool:
    """Whether joint evidence alone accuses, and was not held against what the clean images lean to by themselves."""
    fired = [item for item in entry.scan.readings if item.fired] if entry.scan is not None else []
    if {_method(item) for item in fired} != {JOINT_EVIDENCE} or fired[0].null is not None:
        return False
    return not few_images(drawn_alike(settings.images, len(fired[0].per_class)))


def _judged(entry: Entry, now: ScanSettings, measures: dict[str, str], *, moved: bool) -> Entry:
    changes: dict[str, object] = {"settings": now.digest} if isinstance(entry, ZooEntry) else {}
    if entry.scan is not None:  # of a file that was refused there is none
        scan = _scan_judged(entry.scan, now, measures, moved=moved)
        changes |= {"scan": scan, "outcome": hold_against(entry.truth, scan)}
    return entry.model_copy(update=changes)


def _only_thresholds_differ(then: ScanSettings, now: ScanSettings) -> bool:
    names = {(method, setting) for (method, _, _), setting in THRESHOLDS.items()}
    after = _flat(now)
    before = {key: value for key, value in after.items() if key in FOLLOWS} | _flat(then)
    return before.keys() == after.keys() and all(
        _number(before[key]) <= _number(after[key]) if key in names else before[key] == after[key] for key in before
    )


def _flat(settings: ScanSettings) -> dict[tuple[str, str], Scalar]:
    return {(method, name): value for method, values in settings.detectors.items() for name, value in values.items()}


def _number(value: Scalar) -> float:
    return float(value) if value is not None else math.nan


def _scan_judged(scan: ScanRecord, now: ScanSettings, measures: dict[str, str], *, moved: bool) -> ScanRecord:
    kept = (item for item in scan.readings if _method(item) in now.detectors)
    readings = tuple(
        (_held_against_what_falls(item, now) if moved else item) if item.key == _LEAD else _held_against(item, now)
        for item in kept
    )
    findings = [
        _finding(cost, [item for item in readings if _method(item) == cost.method], measures)
        for cost in scan.methods
        if cost.method in now.detectors
    ]
    joint = together(findings)
    measures.update(measures_of(joint))
    verdict, reason, strongest = combine((*findings, *joint), _against(scan))
    accused = strongest[1] if strongest is not None and verdict is Verdict.BACKDOORED else None
    return scan.model_copy(
        update={
            "settings": now.digest,
            "scanned_with": scan.scanned_with or (scan.settings if scan.settings != now.digest else ""),
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


def _against(scan: ScanRecord) -> tuple[str, ...]:
    """The reason against any verdict that lay in images or model; empty where there was none."""
    if scan.verdict is not Verdict.INCONCLUSIVE:
        return ()
    reason = scan.reason.partition(NOTED)[0]
    unjudged = {undecided(cost.method, cost.reason) for cost in scan.methods if cost.verdict is Verdict.INCONCLUSIVE}
    return () if reason in unjudged else (reason,)


def _method(item: ScoredReading) -> str:
    return item.key.partition("/")[0]


def _label(item: ScoredReading) -> str:
    name = item.key.partition("/")[2].partition("#")[0]
    return "" if name in set(Reading) else name


def _held_against(item: ScoredReading, now: ScanSettings) -> ScoredReading:
    """The reading at today's threshold."""
    name = THRESHOLDS.get((_method(item), _label(item), item.reading))
    if name is None:
        return item
    settings = now.detectors[_method(item)]
    threshold = _number(settings[name])
    decline = DECLINES.get((_method(item), name))
    if decline is not None:
        threshold = threshold_for(len(item.per_class), threshold, _number(settings[decline]))
    if name == "mapping_threshold":
        threshold = min(1.0, threshold)
    return _at(item, threshold, item.fired)


def _held_against_what_falls(item: ScoredReading, now: ScanSettings) -> ScoredReading:
    """The reading of paths at today's threshold, which falls with the share of the images that arrived."""
    detector = UniversalPerturbation.model_validate(now.detectors[UniversalPerturbation.name])
    threshold = detector.lead_threshold_at(max(int(share) for share in REACH.findall(item.note)) / 100)
    return _at(item, threshold, item.fired or item.agreement == 1.0)


def _at(item: ScoredReading, threshold: float, else_met: bool) -> ScoredReading:
    fired = else_met and item.score is not None and item.score > threshold
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
    if verdict is not Verdict.INCONCLUSIVE and evidence:
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


def rejudge_file(path: Path, progress: Progress, others: Sequence[Path] = ()) -> None:
    """Judge the scans of a results file by the thresholds of today, in place.

    Args:
        path: Results file of ``bench run``, a study or a zoo.
        progress: Told how many there were, and of each whose outcome changed or whose record does not say enough.
        others: Results files of ``bench run``, or of a zoo where ``path`` is of one: the same models scanned by methods
            that are missing.

    Raises:
        UsageError: A file is missing, or something else; the others have clean images from elsewhere.
    """
    kind = kind_of(path, ("benchmark", "study", "zoo"))
    if kind == "zoo":
        _rejudge_file(path, ZooResults, progress, [need_results(other, ZooResults) for other in others])
        return
    added = [need_results(other, BenchmarkResults) for other in others]
    if kind == "benchmark":
        _rejudge_file(path, BenchmarkResults, progress, added)
    else:
        _rejudge_file(path, StudyResults, progress, added)


def _rejudge_file(path: Path, kind: type[AnyResults], progress: Progress, others: Sequence[Scans]) -> None:
    before = need_results(path, kind)
    if isinstance(before, BenchmarkResults) and any(
        isinstance(other, BenchmarkResults) and before.clean_images != other.clean_images for other in others
    ):
        raise UsageError(f"{path}: its clean images are from the {before.clean_images}, those of a file to add are not")

    def judge_anew(results: AnyResults) -> AnyResults:
        nonlocal before
        before = results
        return rejudged(results, others=others)

    after = update_results(path, before, judge_anew)
    both = [(old, new) for old, new in zip(before.entries, after.entries, strict=True) if new != old]
    progress(f"{path}: {len(both)} of {len(after.entries)} scans judged anew")
    for old, new in both:
        if new.outcome != old.outcome:
            progress(f"  {_name(new)}: {old.outcome.value}, now {new.outcome.value}")
    for entry in after.entries:
        then = after.settings[_digest(entry)]
        if then != _of_today(entry, then, default_detectors()) or _lacks_nature(entry, then) or _lacks_noise(entry):
            progress(f"  {_name(entry)}: stays {entry.outcome.value}, its record does not say what today's scan finds")


def _name(entry: Entry) -> str:
    return entry.file if isinstance(entry, ZooEntry) else entry.key
