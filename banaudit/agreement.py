"""What several methods say together of one class, though none of them may be sure of it; no pass through the network.

Where several are sure, :func:`says_most` has which of them names the backdoor.

Two findings. *Joint evidence* adds up how near the all-to-one readings of six methods come to their own thresholds,
class by class; *common suspect* counts, where classes are many, how many methods put the same one first, however little
they hold against it, if anything at all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from banaudit.detectors.ban import BAN, NOISE_ALONE
from banaudit.detectors.base import restarts_agree
from banaudit.detectors.corruptions import Corruptions
from banaudit.detectors.mixtures import Mixtures
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.results import ClassScore, Evidence, Finding, Reading, Verdict

HELD_BACK = 0.9
"""Most that a reading which did not fire counts, after its weight: alone it may not accuse. Its figure for
a class can be above the threshold and yet lack what the reading asks besides (a patch that works on other images, a gap
to the runner-up)."""


@dataclass(frozen=True)
class Witness:
    """An all-to-one reading that joint evidence is made of.

    Args:
        method: Its method.
        label: Its label.
        weight: What a score at the reading's own threshold counts; above 1 where that is the threshold of an accusation
            by this reading alone, and less is enough beside others.
        most: Most that it counts where it did not fire.
    """

    method: str
    label: str = ""
    weight: float = 1.0
    most: float = HELD_BACK


WITNESSES = (
    Witness(TargetedNoise.name),
    Witness(UniversalPerturbation.name),
    Witness(MMBD.name, most=0.6),  # of clean networks for digits it names the same class, the 8, for three in four
    Witness(NeuralCleanse.name, weight=1.475),
    Witness(BAN.name, NOISE_ALONE),
    Witness(Corruptions.name),
)
"""What joint evidence is made of: readings that look for the target in six unlike ways."""

FEWEST_WITNESSES = 2

NULL_MARGIN = 0.1
"""How far the share of the mistakes that unaimed noise sends to a class must lie above that of random noise to speak
against the class. Of networks trained on imbalanced classes mistakes lean to a frequent one under any noise; no
backdoored network of development that is detected needs a smaller margin."""

JOINT_EVIDENCE = "joint-evidence"
JOINT_THRESHOLD = 1.4
"""Two readings that nearly fire are not enough. Clean networks of development, all for digits, reached 1.21 to 1.29
and, by four or five readings, 1.47 and 1.48; of these two most is natural (:mod:`~banaudit.natural_leaning`)."""
MANY_CLASSES = 40
"""From so many classes on it is rare that chance, or what is natural in the data, leans several methods to one class;
of ten, clean networks for digits had six of seven methods for one class."""
JOINT_THRESHOLD_OF_MANY = 1.0
"""For networks of that many classes. Of 43 classes clean networks of development had 0.80 at most, all-to-one ones
1.11 at least, six of Adap-Blend among them with less than 1.4; source-specific ones stay below."""

COMMON_SUSPECT = "common-suspect"
VOTERS = (*WITNESSES, Witness(Mixtures.name))
"""Whose first class counts."""
COMMON_THRESHOLD = 4
"""Methods that may put the same class first. When this was set, clean networks of 43 classes had three at most; of
those opened since one has four. All-to-one ones have four at least, two of them just four, which is not enough."""

TOGETHER = frozenset((JOINT_EVIDENCE, COMMON_SUSPECT))
"""Names of what :func:`together` gives."""


class Reads(Protocol):
    """What :func:`says_most` looks at of a reading, live (:class:`~banaudit.results.Evidence`) or recorded."""

    @property
    def reading(self) -> Reading:
        """The kind of backdoor."""

    @property
    def target(self) -> int | None:
        """The class that it names."""


AnyReading = TypeVar("AnyReading", bound=Reads)


def says_most(fired: Sequence[AnyReading], ratio: Callable[[AnyReading], float]) -> AnyReading | None:
    """Which of the readings that fired names the backdoor: the one furthest above its threshold.

    But a source of the same target says more: a backdoor that all classes trigger has no source that stands out, while
    one of a single class moves the others a little as well.

    Args:
        fired: All that fired.
        ratio: Score / threshold.
    """
    strongest = max(fired, key=ratio, default=None)
    if strongest is None or strongest.reading is not Reading.ALL_TO_ONE:
        return strongest
    same = [item for item in fired if item.reading is Reading.SOURCE_TARGET and item.target == strongest.target]
    return max(same, key=ratio, default=strongest)


def together(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """What the findings of the methods that ran say together; empty where too few of them could judge.

    Args:
        findings: Of the methods that ran.
    """
    found = (joint_evidence(findings), common_suspect(findings))
    return tuple(finding for finding in found if finding is not None)


def rests_on_joint_evidence(findings: Sequence[Finding]) -> bool:
    """Whether joint evidence accuses, and nothing else does.

    Args:
        findings: Of the methods that ran, and what they say together.
    """
    return {finding.method for finding in findings for item in finding.evidence if item.fired} == {JOINT_EVIDENCE}


def joint_evidence(findings: Sequence[Finding], natural: Sequence[float] = ()) -> Finding | None:
    """Whether the methods' suspicions of one class add up.

    For class c the score is ``sqrt(sum over readings r of max(0, w_r s_r(c) / threshold_r)^2)``, the distance from a
    network that no reading suspects at all; w_r is the :class:`Witness`'s weight. s_r(c) is a mean over restarts, and
    no reading counts more than its score, the lead of the weakest restart. Where restarts name different classes a
    reading counts nothing; one that did not fire counts no more than its witness's most, and nothing where random noise
    says the same (:data:`NULL_MARGIN`). The methods look for the target in different places (weights, pixels, margins),
    so on a clean network their chance leanings towards a class rarely coincide; a backdoor leans all of them the same
    way. But so may the data. Where n(c) is what they say of networks trained on the clean images alone
    (:mod:`~banaudit.natural_leaning`), ``sqrt(max(0, score(c)^2 - n(c)^2))`` is left.

    Args:
        findings: Of the methods that ran.
        natural: [K] n(c); empty: not known, and nothing is taken off.

    Returns:
        None where fewer than :data:`FEWEST_WITNESSES` of them could judge.
    """
    readings = {witness: _reading(findings, witness) for witness in WITNESSES}
    held = {witness: item for witness, item in readings.items() if item is not None and item.per_class}
    if len(held) < FEWEST_WITNESSES:
        return None
    labels = next(iter(held.values())).per_class
    scores = [
        math.hypot(*(_share(witness, item, place) for witness, item in held.items())) for place in range(len(labels))
    ]
    if natural:
        pairs = zip(scores, natural, strict=True)
        scores = [math.sqrt(max(0.0, score**2 - leaning**2)) for score, leaning in pairs]
    place = max(range(len(scores)), key=scores.__getitem__)
    threshold = JOINT_THRESHOLD if len(labels) < MANY_CLASSES else JOINT_THRESHOLD_OF_MANY
    named = ", ".join(f"{witness.method} {_share(witness, item, place):.2f}" for witness, item in held.items())
    evidence = Evidence(
        reading=Reading.ALL_TO_ONE,
        measures=(
            "root of the summed squares of what the all-to-one readings of the note count: score / threshold, by a "
            f"weight; one that did not fire counts {HELD_BACK:g} at most, or less. Null: the same of networks trained "
            "on the clean images alone, which is taken off, in squares"
        ),
        score=scores[place],
        threshold=threshold,
        fired=scores[place] > threshold,
        null=natural[place] if natural else None,
        target=labels[place].label,
        per_class=tuple(
            ClassScore(label=item.label, name=item.name, score=round(score, 6))
            for item, score in zip(labels, scores, strict=True)
        ),
        note=f"class {labels[place].label}: {named}" + (f"; by nature {natural[place]:.2f}" if natural else ""),
    )
    return _finding(
        JOINT_EVIDENCE,
        "a class that several methods suspect at once",
        f"they suspect class {evidence.target} most",
        evidence,
    )


def common_suspect(findings: Sequence[Finding]) -> Finding | None:
    """Whether most methods put one class first, of many.

    The score is the number of readings of :data:`VOTERS` whose first class it is; one whose restarts name different
    classes, or that holds nothing against any class, has no vote. A backdoor that hides from each of
    them still bends them all a little towards its target; on a clean network seven searches in unlike places have
    little reason to meet at one class of forty.

    Args:
        findings: Of the methods that ran.

    Returns:
        None where classes are fewer than :data:`MANY_CLASSES`, or too few of the methods could judge to accuse.
    """
    readings = [item for voter in VOTERS if (item := _reading(findings, voter)) is not None and item.per_class]
    if len(readings) <= COMMON_THRESHOLD or len(readings[0].per_class) < MANY_CLASSES:
        return None
    counts = Counter(item.target for item in readings if _names_a_class(item))
    (target, votes), *others = counts.most_common(2) or [(None, 0)]
    evidence = Evidence(
        reading=Reading.ALL_TO_ONE,
        measures=(
            "number of methods that put the same class first, in every restart and however little above 0; null: of "
            "the class that the most put first besides"
        ),
        score=votes,
        threshold=COMMON_THRESHOLD,
        fired=votes > COMMON_THRESHOLD,
        null=others[0][1] if others else 0,
        target=target,
    )
    named = f"{votes} of {len(readings)} put class {target} first" if votes else "none of them puts one class first"
    return _finding(COMMON_SUSPECT, "a class that most methods put first", named, evidence)


def _names_a_class(item: Evidence) -> bool:
    """Whether a reading holds something against its first class, and in every restart against the same."""
    first, second, *_ = sorted((entry.score for entry in item.per_class), reverse=True)
    return restarts_agree(item.agreement) and first > max(second, 0.0)


def _share(witness: Witness, item: Evidence, place: int) -> float:
    """What a reading counts against a class: never more than its score, the lead of its weakest restart."""
    if not restarts_agree(item.agreement):
        return 0.0
    share = witness.weight * max(0.0, min(item.per_class[place].score, item.score) / item.threshold)
    if item.fired:
        return share
    return min(share, witness.most) if _beyond_random(item) else 0.0


def _beyond_random(item: Evidence) -> bool:
    """Whether random noise says less of the class than the reading; those of the other methods have no such null."""
    return item.label != NOISE_ALONE or item.null is None or item.score - item.null >= NULL_MARGIN


def _finding(method: str, title: str, named: str, evidence: Evidence) -> Finding:
    return Finding(
        method=method,
        title=title,
        verdict=Verdict.BACKDOORED if evidence.fired else Verdict.NO_EVIDENCE,
        reason=f"{named}: score {evidence.score:.3g}, threshold {evidence.threshold:g}",
        evidence=(evidence,),
    )


def _reading(findings: Sequence[Finding], witness: Witness) -> Evidence | None:
    """The reading of a witness."""
    for finding in findings:
        if finding.method == witness.method and finding.verdict is not Verdict.INCONCLUSIVE:
            for item in finding.evidence:
                if item.reading is Reading.ALL_TO_ONE and item.label == witness.label and item.target is not None:
                    return item
    return None
