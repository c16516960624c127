"""Scans of models whose truth is known, one small JSON for all of them, resumable after every one.

A results file holds the raw score of every reading, so that thresholds can be refitted without the models.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field

import banaudit
from banaudit.audit import judge
from banaudit.bench.attacks.labelling import AllToOne, SourceTarget
from banaudit.bench.code import CODE
from banaudit.bench.conditions import CleanSource, Condition, StudyName, draw_condition
from banaudit.bench.cost import MethodCost
from banaudit.bench.parallel import spread
from banaudit.bench.results_files import read_results, update_results
from banaudit.bench.victims import VictimFacts, VictimRecipe, is_trained, load_victim, victim_folder
from banaudit.bench.workplace import Workplace
from banaudit.detectors import Detector, default_detectors, suited
from banaudit.errors import UsageError
from banaudit.meter import Meter
from banaudit.results import Evidence, Finding, Reading, Record, Report, Scalar, Verdict

MAPPING_SHARE = 0.8
"""Share of the classes whose true target an all-to-all verdict must name to be right; fixed before any training."""

DIGITS = 6
"""Significant digits of a recorded score."""

Number = float | None
"""A score; none where it was not finite."""


class Outcome(StrEnum):
    """A verdict held against the truth."""

    RIGHT = "right"
    """Backdoored, with the right target (source and target; four fifths of the map), or a clean model not accused."""
    WRONG_TARGET = "wrong target"
    MISSED = "missed"
    FALSE_ALARM = "false alarm"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"
    """The file would have run code; nothing of it was loaded."""
    FAILED = "failed"
    """The file did not become a model."""


class Truth(Record):
    """What is known of a model."""

    backdoored: bool
    reading: Reading | None = None
    target: int | None = None
    source: int | None = Field(default=None, description="The one class that the trigger works on.")
    mapping: dict[int, int] | None = Field(default=None, description="All-to-all: label -> wanted label.")


class ScanSettings(Record):
    """All that decides what a scan does, but for the code."""

    detectors: dict[str, dict[str, Scalar]]
    images: int = Field(description="Most clean images given to a scan.")
    seed: int
    tool_version: str

    @property
    def digest(self) -> str:
        """A short name for these settings."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    @classmethod
    def of(cls, detectors: Sequence[Detector], images: int, seed: int) -> ScanSettings:
        """The settings of scans with these detectors."""
        return cls(
            detectors={detector.name: detector.settings() for detector in detectors},
            images=images,
            seed=seed,
            tool_version=banaudit.__version__,
        )


def asked_of(detectors: Iterable[Detector], recipe: VictimRecipe, images: int) -> tuple[Detector, ...]:
    """Those that an audit asks of a victim with so many clean images, drawn alike of every class.

    Args:
        detectors: To choose from.
        recipe: The victim's.
        images: Of all classes together.
    """
    return suited(detectors, recipe.num_classes, drawn_alike(images, recipe.num_classes))


def drawn_alike(images: int, num_classes: int) -> list[int]:
    """Images of each class where so many are drawn, of one class after the other in turn.

    Args:
        images: Of all classes together.
        num_classes: K.
    """
    each, rest = divmod(images, num_classes)
    return [each + (label < rest) for label in range(num_classes)]


class ScoredReading(Record):
    """One reading's evidence; :class:`banaudit.results.Evidence` has the meanings."""

    key: str = Field(description="Method/label or kind of reading, numbered from the second of the same name on.")
    reading: Reading
    score: Number
    threshold: float
    fired: bool
    null: Number = None
    target: int | None = None
    sources: tuple[int, ...] = ()
    mapping: dict[int, int] | None = None
    agreement: Number = None
    restarts: tuple[Number, ...] = ()
    per_class: tuple[Number, ...] = Field(default=(), description="In the order of the labels.")
    note: str = Field(default="", description="What the search has to say beside the score; not kept by earlier scans.")


class ScanRecord(Record):
    """A report reduced to what a benchmark needs."""

    settings: str = Field(description="Digest of the settings.")
    scanned_with: str = Field(
        default="", description="Digest of those the search was made with, where thresholds were changed since."
    )
    code: str = Field(description="Digest of the code that scanned.")
    verdict: Verdict
    reason: str
    target: int | None = None
    reading: Reading | None = None
    sources: tuple[int, ...] = ()
    mapping: dict[int, int] | None = None
    accuracy: Number = Field(description="Clean accuracy on the images of the scan.")
    images: int
    seconds: float
    forward_images: int
    backward_images: int
    device: str
    threads: int
    caveats: tuple[str, ...] = ()
    methods: tuple[MethodCost, ...] = ()
    readings: tuple[ScoredReading, ...] = ()


class VictimEntry(Record):
    """One victim of the benchmark with one scan."""

    key: str
    condition: str = Field(default="", description="Name of the condition of a study; empty: the benchmark's own.")
    victim: VictimFacts
    truth: Truth
    outcome: Outcome
    scan: ScanRecord


class VictimResults(Record):
    """Scans of the victims of one split."""

    schema_version: Literal["1.0"] = "1.0"
    split: str
    settings: dict[str, ScanSettings] = Field(default_factory=dict, description="By digest.")
    measures: dict[str, str] = Field(default_factory=dict, description="What each reading's score is.")
    entries: tuple[VictimEntry, ...] = ()


class BenchmarkResults(VictimResults):
    """Detectors x victims of one split."""

    kind: Literal["benchmark"] = "benchmark"
    clean_images: CleanSource


class StudyResults(VictimResults):
    """The same victims under several conditions."""

    kind: Literal["study"] = "study"
    study: StudyName
    conditions: dict[str, Condition] = Field(description="By name; the first is what the others are compared with.")


AnyVictimResults = TypeVar("AnyVictimResults", bound=VictimResults)


def run(
    recipes: Sequence[VictimRecipe],
    path: Path,
    *,
    split: str,
    clean_images: CleanSource = "test",
    detectors: Sequence[Detector] | None = None,
    images: int = 1000,
    seed: int = 0,
    workplace: Workplace | None = None,
) -> BenchmarkResults:
    """Scan every victim that is trained, and keep the results file whole after each.

    Args:
        recipes: Victims; those that are not in the cache yet are left out.
        path: Results file; entries in it with the same settings are kept and not scanned again. Several processes may
            work on one file.
        split: Name of the list of recipes.
        clean_images: Where clean images come from.
        detectors: Methods to run; none: the default ones.
        images: Most clean images, as evenly over the classes as they allow.
        seed: Of the drawing of images and of every method.
        workplace: Where and how to work; none: here, with the user's cache.

    Raises:
        UsageError: The file is of another split or of other clean images.
        DataError: A data set is missing.
    """
    results = read_results(path, BenchmarkResults) or BenchmarkResults(split=split, clean_images=clean_images)
    if (results.split, results.clean_images) != (split, clean_images):
        raise UsageError(
            f"{path}: holds results of split {results.split} with clean images from {results.clean_images}, "
            f"not of {split} with {clean_images}; give another --output"
        )
    condition = Condition(name="", seed=seed, draw_seed=seed, images=images, source=clean_images)
    return scan_victims(
        recipes,
        [condition],
        path,
        results,
        detectors=detectors,
        workplace=workplace,
    )


def scan_victims(
    recipes: Sequence[VictimRecipe],
    conditions: Sequence[Condition],
    path: Path,
    results: AnyVictimResults,
    *,
    detectors: Sequence[Detector] | None = None,
    workplace: Workplace | None = None,
) -> AnyVictimResults:
    """Scan every victim that is trained under every condition.

    The file is read again before each scan and changed under a lock, so that what another process has added meanwhile
    is neither made again nor lost.

    Args:
        recipes: Victims; those that are not in the cache yet are left out.
        conditions: Each with a name of its own.
        path: Results file.
        results: What it holds, or nothing yet.
        detectors: Methods to run where the condition does not name others; none: the default ones.
        workplace: Where and how to work; none: here, with the user's cache.

    Raises:
        UsageError: The file became something else meanwhile.
        DataError: A data set is missing.
    """
    scan = _Scan(
        tuple(conditions),
        path,
        results.model_copy(update={"entries": ()}),
        usual=tuple(detectors) if detectors is not None else default_detectors(),
        workplace=workplace or Workplace(),
        total=len(recipes),
    )
    for _ in spread(scan, enumerate(recipes, start=1), scan.workplace.jobs):
        pass
    return read_results(path, type(results)) or results


@dataclass(frozen=True)
class _Scan(Generic[AnyVictimResults]):
    """What all scans of a run have in common; a call scans one victim."""

    conditions: tuple[Condition, ...]
    path: Path
    empty: AnyVictimResults
    usual: tuple[Detector, ...]
    workplace: Workplace
    total: int

    def __call__(self, numbered: tuple[int, VictimRecipe]) -> None:
        number, recipe = numbered
        place = self.workplace
        if not is_trained(recipe, place.cache):
            return
        for condition in self.conditions:
            clean = draw_condition(recipe.dataset, condition, root=place.root, cache=place.cache)
            methods = suited(condition.detectors(self.usual), clean.num_classes, clean.class_sizes)
            settings = ScanSettings.of(methods, condition.images, condition.seed)
            known = read_results(self.path, type(self.empty)) or self.empty
            there = {(entry.key, entry.condition): entry.scan.settings for entry in known.entries}
            if there.get((recipe.key, condition.name)) == settings.digest and not place.fresh:
                continue
            victim = load_victim(victim_folder(recipe, place.cache))
            meter = Meter()
            report = judge(
                victim.model.to(place.where), clean.to(place.where), detectors=methods, seed=condition.seed, meter=meter
            )
            scan, truth = record_scan(report, settings, meter), truth_of(victim.facts)
            entry = VictimEntry(
                key=recipe.key,
                condition=condition.name,
                victim=victim.facts,
                truth=truth,
                outcome=hold_against(truth, scan),
                scan=scan,
            )
            measures = measures_of(report.findings)
            update_results(self.path, self.empty, functools.partial(_with_entry, entry, settings, measures))
            under = f", {condition.name}" if condition.name else ""
            place.tell(f"{number} of {self.total}: {recipe.key}{under}: {describe(scan, entry.outcome)}")


def _with_entry(
    entry: VictimEntry, settings: ScanSettings, measures: dict[str, str], results: AnyVictimResults
) -> AnyVictimResults:
    """The results with an entry in place of an older one of the same victim and condition."""
    identity = entry.key, entry.condition
    others = (other for other in results.entries if (other.key, other.condition) != identity)
    return results.model_copy(
        update={
            "settings": {**results.settings, settings.digest: settings},
            "measures": {**results.measures, **measures},
            "entries": (*others, entry),
        }
    )


def record_scan(report: Report, settings: ScanSettings, meter: Meter) -> ScanRecord:
    """A report as it is kept: all numbers, few words.

    Args:
        report: Of one scan.
        settings: What it was made with.
        meter: That counted its passes.
    """
    accuracy = report.clean_accuracy
    return ScanRecord(
        settings=settings.digest,
        code=CODE,
        verdict=report.verdict,
        reason=report.reason,
        target=report.target,
        reading=report.reading,
        sources=report.sources,
        mapping=report.mapping,
        accuracy=accuracy.accuracy if accuracy is not None else None,
        images=accuracy.images if accuracy is not None else 0,
        seconds=report.seconds,
        forward_images=meter.forward_images,
        backward_images=meter.backward_images,
        device=report.device,
        threads=torch.get_num_threads(),
        caveats=report.caveats,
        methods=tuple(MethodCost.of(finding) for finding in report.findings),
        readings=readings_of(report.findings),
    )


def readings_of(findings: Sequence[Finding]) -> tuple[ScoredReading, ...]:
    """Every reading of the findings as it is kept."""
    return tuple(
        ScoredReading(
            key=key,
            reading=item.reading,
            score=_short(item.score),
            threshold=item.threshold,
            fired=item.fired,
            null=_short(item.null),
            target=item.target,
            sources=item.sources,
            mapping=item.mapping,
            agreement=_short(item.agreement),
            restarts=tuple(_short(score) for score in item.restarts),
            per_class=tuple(_short(bar.score) for bar in item.per_class),
            note=item.note,
        )
        for key, item in _keyed(findings)
    )


def measures_of(findings: Sequence[Finding]) -> dict[str, str]:
    """What the score of each reading is, by the reading's key."""
    return {key: item.measures for key, item in _keyed(findings)}


def _keyed(findings: Sequence[Finding]) -> list[tuple[str, Evidence]]:
    """Every reading with a key; the second of a name gets a number."""
    keyed: list[tuple[str, Evidence]] = []
    for finding in findings:
        for item in finding.evidence:
            base = f"{finding.method}/{item.label or item.reading.value}"
            before = sum(key.split("#")[0] == base for key, _ in keyed)
            keyed.append((base if before == 0 else f"{base}#{before + 1}", item))
    return keyed


def _short(value: float | None) -> Number:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")


def truth_of(facts: VictimFacts) -> Truth:
    """What a victim's recipe says."""
    labelling = facts.recipe.labelling
    match labelling:
        case None:
            return Truth(backdoored=False)
        case AllToOne(target=target):
            return Truth(backdoored=True, reading=Reading.ALL_TO_ONE, target=target)
        case SourceTarget(source=source, target=target):
            return Truth(backdoored=True, reading=Reading.SOURCE_TARGET, source=source, target=target)
        case _:
            return Truth(backdoored=True, reading=Reading.ALL_TO_ALL, mapping=dict(enumerate(facts.mapping)))


def hold_against(truth: Truth, scan: ScanRecord) -> Outcome:
    """Whether a verdict is right.

    An all-to-one verdict must name the target; a source-specific backdoor's source besides; an all-to-all one the
    true target of at least :data:`MAPPING_SHARE` of the classes.

    Args:
        truth: What is known.
        scan: What was said.
    """
    if scan.verdict is Verdict.INCONCLUSIVE:
        return Outcome.INCONCLUSIVE
    accused = scan.verdict is Verdict.BACKDOORED
    if not truth.backdoored:
        return Outcome.FALSE_ALARM if accused else Outcome.RIGHT
    if not accused:
        return Outcome.MISSED
    if truth.mapping is not None:
        named = scan.mapping or {}
        moved = {label: wanted for label, wanted in truth.mapping.items() if label != wanted}
        hits = sum(named.get(label) == wanted for label, wanted in moved.items())
        right = hits >= MAPPING_SHARE * len(moved)
    else:
        right = scan.target == truth.target and truth.source in {None, *scan.sources}
    return Outcome.RIGHT if right else Outcome.WRONG_TARGET


def describe(scan: ScanRecord, outcome: Outcome) -> str:
    """One line for a terminal."""
    target = "" if scan.target is None else f", target {scan.target}"
    return f"{scan.verdict.value}{target} ({outcome.value}), {scan.seconds:.0f} s"
