"""Thresholds refitted from the recorded scores of development victims, and what the joint verdict would then say.

The rule.  A reading can fire on only a share q of the clean victims: its restarts have to agree, and the like.  Let m
be the median of its scores on those, and s the mean by which the scores above m exceed it.  If the upper half falls off
exponentially, the reading fires on a share a of all clean models at the threshold

    m + s log(0.5 q / a),

and that is the proposal, or the largest clean score where that is higher.  The share a is the false-alarm rate aimed
at, divided by the number of readings, since one fired reading accuses.  Whatever the distribution, at the largest score
of n clean models the reading fires on a new one drawn like them with probability at most 1 / (n + 1) (the conformal
bound): what n victims can vouch for, whatever is aimed at.

The thresholds depend on the clean victims alone, so the verdict on a clean victim is out of sample when the thresholds
are fitted without it, and on a backdoored one always.  Leaving out the victim's whole data set and network besides asks
whether the thresholds carry over to others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field

from banaudit.bench.population import OPENED_SEEDS, TEST_SEED
from banaudit.bench.runner import BenchmarkResults, Number, Outcome, ScanSettings, ScoredReading, VictimEntry, asked_of
from banaudit.bench.strata import counted, setup_of, stratum_of
from banaudit.bench.verdicts import Thresholds, is_certain, outcome_at
from banaudit.calibration import may_fire
from banaudit.detectors import default_detectors
from banaudit.errors import UsageError
from banaudit.results import Reading, Record
from banaudit.statistics import median

FEWEST_CLEAN = 4
"""With fewer clean victims on which a reading could have fired, its threshold stays as it is."""

LEAST_SHARE = 0.1
"""A threshold never falls below this share of the one it replaces: it divides the scores, so it must stay positive."""

AIMED_RATE = 0.02
"""False-alarm rate of the joint verdict that thresholds are aimed at."""

Variant = Literal["frozen", "proposed", "left out", "setup left out"]
"""Which thresholds a verdict was made with."""

VARIANTS: tuple[Variant, ...] = ("frozen", "proposed", "left out", "setup left out")


class ReadingFit(Record):
    """One reading's scores and thresholds."""

    key: str
    reading: Reading
    frozen: float = Field(description="The threshold of the scans; the largest, where it differs from scan to scan.")
    proposed: float = Field(description="The refitted one; the frozen one where there was too little to fit it on.")
    fitted: bool = Field(description="Whether there were enough clean victims to fit the threshold.")
    clean: int = Field(description="Clean victims with a score.")
    clean_able: int = Field(description="Those of them on which the reading could have fired.")
    clean_median: Number = Field(default=None, description="Of those on which it could have fired, as the next two.")
    clean_largest: Number = None
    clean_largest_victim: str = ""
    clean_largest_of_all: Number = Field(default=None, description="Also where restarts disagreed or the like.")
    own: int = Field(description="Victims of the kind of backdoor that the reading is meant for, with a score.")
    own_able: int = Field(description="Those of them on which the reading could have fired.")
    own_smallest: Number = Field(default=None, description="Of those on which it could have fired, as the next two.")
    own_median: Number = None
    own_above_frozen: int = 0
    own_above_proposed: int = 0
    uncertain: int = Field(description="Victims on which the record does not say whether it fires as proposed.")


class VictimVerdicts(Record):
    """One victim's outcome at each choice of thresholds."""

    key: str
    stratum: str
    setup: str
    backdoored: bool
    outcomes: dict[Variant, Outcome]


class Calibration(Record):
    """Thresholds refitted from a results file."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["calibration"] = "calibration"
    split: str
    aimed_rate: float
    reading_rate: float = Field(description="The aimed rate divided by the number of readings.")
    current_settings: bool = Field(description="Whether the scans were made with the settings in the code now.")
    outdated: tuple[str, ...] = Field(
        default=(), description="Victims left out since they were scanned with other settings than these."
    )
    excluded: tuple[str, ...] = Field(description="Victims below their floor, left out.")
    readings: tuple[ReadingFit, ...]
    victims: tuple[VictimVerdicts, ...]


def fit_threshold(scores: Sequence[float], rate: float) -> float:
    """The threshold that a share ``rate`` of such scores exceeds, if their upper half falls off exponentially.

    Args:
        scores: At least one.
        rate: Aimed share, above 0.

    Returns:
        The threshold, never below the largest score.

    Raises:
        ValueError: No scores, or no such rate.
    """
    if not scores or rate <= 0:
        raise ValueError(f"expected scores and a rate above 0, got {len(scores)} scores and rate {rate}")
    values = torch.tensor(scores, dtype=torch.float64)
    middle = float(median(values))
    above = values[values > middle]
    excess = float((above - middle).mean()) if len(above) else 0.0
    return max(float(values.max()), middle + excess * math.log(0.5 / rate))


def calibrate(*files: BenchmarkResults, aimed_rate: float = AIMED_RATE) -> Calibration:
    """Refit every threshold and judge every victim anew; no model is needed.

    Args:
        files: Results of development victims, and of test victims that were opened before; one at least.
        aimed_rate: False-alarm rate aimed at, in (0, 0.5).

    Raises:
        UsageError: The victims are of the test, none of them counts, or the rate is not as above.
    """
    split = " and ".join(results.split for results in files)
    held = tuple(entry for results in files for entry in results.entries)
    seeds = {entry.victim.recipe.seed for entry in held}
    if "test" in split.split() or any(seed >= TEST_SEED and seed not in OPENED_SEEDS for seed in seeds):
        raise UsageError(
            f"split {split}: thresholds are never fitted on test victims; give results of development victims"
        )
    if not 0 < aimed_rate < 0.5:
        raise UsageError(f"--rate {aimed_rate:g}: expected a share between 0 and 0.5, e.g. --rate {AIMED_RATE}")
    settings = {digest: item for results in files for digest, item in results.settings.items()}
    current = tuple(entry for entry in held if is_of_today(entry, settings[entry.scan.settings]))
    judged = current or held  # scores of other settings are none of these
    entries = _on_one_scale(counted(judged))
    if not any(not entry.truth.backdoored for entry in entries):
        raise UsageError(f"split {split}: holds no clean victim to fit thresholds on; scan some")
    readings = {item.key: item for entry in entries for item in entry.scan.readings}
    if not readings:
        raise UsageError(f"split {split}: its scans hold no scores; scan again")
    rate = aimed_rate / len(readings)

    proposed = _thresholds(entries, readings, rate)
    setups = dict.fromkeys(setup_of(entry.victim.recipe) for entry in entries)
    without_setup = {
        setup: _thresholds([other for other in entries if setup_of(other.victim.recipe) != setup], readings, rate)
        for setup in setups
    }
    # Backdoored victims fit no threshold, so nothing has to be left out for them.
    without = {
        entry.key: proposed
        if entry.truth.backdoored
        else _thresholds([other for other in entries if other.key != entry.key], readings, rate)
        for entry in entries
    }
    counting = {entry.key for entry in entries}
    return Calibration(
        split=split,
        aimed_rate=aimed_rate,
        reading_rate=rate,
        current_settings=bool(current),
        outdated=tuple(entry.key for entry in held if current and entry not in current),
        excluded=tuple(entry.key for entry in judged if entry.key not in counting),
        readings=tuple(_fit(key, readings[key], entries, proposed) for key in readings),
        victims=tuple(
            VictimVerdicts(
                key=entry.key,
                stratum=stratum_of(entry.victim.recipe),
                setup=setup_of(entry.victim.recipe),
                backdoored=entry.truth.backdoored,
                outcomes={
                    "frozen": outcome_at(entry, {}),
                    "proposed": outcome_at(entry, proposed),
                    "left out": outcome_at(entry, without[entry.key]),
                    "setup left out": outcome_at(entry, without_setup[setup_of(entry.victim.recipe)]),
                },
            )
            for entry in entries
        ),
    )


def _on_one_scale(entries: Sequence[VictimEntry]) -> list[VictimEntry]:
    """The entries with the scores of each reading as if all had been held against its largest threshold.

    Some thresholds depend on the number of classes, or on what a search found; what can be compared is the score as a
    share of its own. Readings stay in the order in which they come first.
    """
    largest: dict[str, float] = {}
    for item in (item for entry in entries for item in entry.scan.readings):
        largest[item.key] = max(item.threshold, largest.get(item.key, item.threshold))

    def scaled(item: ScoredReading) -> ScoredReading:
        factor = largest[item.key] / item.threshold
        score, null = (None if value is None else value * factor for value in (item.score, item.null))
        return item.model_copy(update={"threshold": largest[item.key], "score": score, "null": null})

    return [
        entry.model_copy(
            update={"scan": entry.scan.model_copy(update={"readings": tuple(map(scaled, entry.scan.readings))})}
        )
        for entry in entries
    ]


def is_of_today(entry: VictimEntry, settings: ScanSettings) -> bool:
    """Whether a scan was made with the default methods as they are now.

    Args:
        entry: The victim and its scan.
        settings: Those of the scan.
    """
    today = asked_of(default_detectors(), entry.victim.recipe, settings.images)
    return {detector.name: detector.settings() for detector in today} == settings.detectors


def _items(
    entries: Sequence[VictimEntry], key: str, wanted: Callable[[VictimEntry], bool]
) -> list[tuple[str, ScoredReading, float]]:
    """Victim, reading and score of the victims that are wanted and have one."""
    return [
        (entry.key, item, item.score)
        for entry in entries
        if wanted(entry)
        for item in entry.scan.readings
        if item.key == key and item.score is not None
    ]


def _thresholds(entries: Sequence[VictimEntry], readings: dict[str, ScoredReading], rate: float) -> dict[str, float]:
    """The threshold of each reading that has enough clean victims."""
    found: dict[str, float] = {}
    for key, some in readings.items():
        clean = _items(entries, key, lambda entry: not entry.truth.backdoored)
        scores = [score for _, item, score in clean if may_fire(item)]
        if len(scores) >= FEWEST_CLEAN:
            threshold = fit_threshold(scores, rate * len(clean) / len(scores))
            found[key] = float(f"{max(LEAST_SHARE * some.threshold, threshold):.6g}")
    return found


def _fit(key: str, some: ScoredReading, entries: Sequence[VictimEntry], proposed: Thresholds) -> ReadingFit:
    threshold = proposed.get(key, some.threshold)
    every = _items(entries, key, lambda _: True)
    clean = _items(entries, key, lambda entry: not entry.truth.backdoored)
    own = _items(entries, key, lambda entry: entry.truth.reading is some.reading)
    clean_able = [(score, victim) for victim, item, score in clean if may_fire(item)]
    own_able = [score for _, item, score in own if may_fire(item)]
    largest, largest_victim = max(clean_able, default=(None, ""))
    return ReadingFit(
        key=key,
        reading=some.reading,
        frozen=some.threshold,
        proposed=threshold,
        fitted=key in proposed,
        clean=len(clean),
        clean_able=len(clean_able),
        clean_median=_median([score for score, _ in clean_able]),
        clean_largest=largest,
        clean_largest_victim=largest_victim,
        clean_largest_of_all=max((score for _, _, score in clean), default=None),
        own=len(own),
        own_able=len(own_able),
        own_smallest=min(own_able, default=None),
        own_median=_median(own_able),
        own_above_frozen=sum(score > some.threshold for score in own_able),
        own_above_proposed=sum(score > threshold for score in own_able),
        uncertain=sum(not is_certain(item, threshold) for _, item, _ in every),
    )


def _median(scores: Sequence[float]) -> Number:
    return float(median(torch.tensor(scores, dtype=torch.float64))) if scores else None
