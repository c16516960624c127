"""How often a clean model would score as high: the p-value of a scan, and the models it may be given for.

The p-value is conformal: the audited model's rank among clean development models, (1 + those that score at least as
high) / (1 + all of them). If the model is clean and drawn like them, a p-value of at most q comes up with a probability
of at most q, whatever the distribution. It says nothing where the model is far from all of them. The same models chose
the thresholds, which were raised until they hardly accused any of them, so a fresh model may rank somewhat higher.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from banaudit.detectors import Detector, default_detectors, suited
from banaudit.detectors.base import MAPPING_AGREEMENT
from banaudit.results import Finding, Reading, Verdict
from banaudit.statistics import clopper_pearson

CLEAN_STRENGTHS = (
    0.376, 0.441, 0.459, 0.493, 0.496, 0.500, 0.515, 0.521, 0.524, 0.538, 0.538, 0.538, 0.538,
    0.544, 0.544, 0.545, 0.549, 0.578, 0.583, 0.600, 0.623, 0.638, 0.647, 0.694, 0.696, 0.710,
    0.711, 0.712, 0.717, 0.739, 0.739, 0.750, 0.750, 0.750, 0.759, 0.763, 0.766, 0.777, 0.783,
    0.788, 0.796, 0.797, 0.800, 0.800, 0.806, 0.808, 0.808, 0.812, 0.816, 0.824, 0.824, 0.829,
    0.829, 0.830, 0.832, 0.840, 0.847, 0.851, 0.882, 0.903, 0.905, 0.907, 0.910, 0.912, 0.918,
    0.918, 0.921, 0.924, 0.928, 0.928, 0.931, 0.939, 0.940, 0.948, 0.952, 0.965, 0.965, 0.970,
    0.970, 0.975, 0.976, 1.000,
)  # fmt: skip
""":func:`strength` of the clean development models (``docs/benchmark/development.json``, ``opened-*.json``) that were
kept when ``corruptions`` joined, or opened since, with inputs of :data:`SIDES` and of :data:`FAMILIES`."""

MEASURED = (13, 157)
"""Clean models of the sealed test that were accused, and all of them, over all parts, each by the rule of its time
(``docs/benchmark/test-*.json``, ``test.json``; nine that two rules judged count once, and as accused if either did)."""

FAMILIES = re.compile(r"((preact)?resnet|densenet|vgg|wrn-)\d[\w-]*")
"""Names of the families of networks among those models, as recognised; a user's ``resnet9.py:make`` is none."""
CLASSES = range(10, 44)
"""Between these lie the two numbers of classes that they have."""
PARAMETERS = range(60_000, 1_000_001)
"""Between these lie the weights that they have, 64,378 to 705,723; a network of full width has
ten times as many."""
SIDES = range(28, 33)
"""Sides of their inputs, pixels."""
LEAST_ACCURACY = 0.69
"""Clean accuracy of the least accurate of them, on the images of the scan."""
IMAGES = 1000
"""Clean images that they were scanned with; half as many are taken to be near enough."""


class Score(Protocol):
    """What :func:`may_fire` reads of a reading, live (:class:`~banaudit.results.Evidence`) or recorded."""

    @property
    def reading(self) -> Reading:
        """The kind of backdoor."""

    @property
    def score(self) -> float | None:
        """None where it was not finite."""

    @property
    def threshold(self) -> float:
        """What the score was held against."""

    @property
    def fired(self) -> bool:
        """Whether it was above, and all else was met."""

    @property
    def agreement(self) -> float | None:
        """Share of the restarts that say the same."""


AnyScore = TypeVar("AnyScore", bound=Score)


def may_fire(item: Score) -> bool:
    """Whether a reading would fire if its threshold were low enough.

    A score above its threshold that did not fire lacked something else that the reading asks. Below the threshold what
    is known of that is looked at: restarts have to agree (on 80 % of an all-to-all map). Other conditions count as met.
    """
    if item.score is None:
        return False
    if item.fired or item.score > item.threshold:
        return item.fired
    if item.agreement is None:
        return True
    return item.agreement >= MAPPING_AGREEMENT if item.reading is Reading.ALL_TO_ALL else item.agreement == 1.0


def strength(
    readings: Iterable[AnyScore], threshold_of: Callable[[AnyScore], float] = lambda item: item.threshold
) -> float:
    """The largest score / threshold among readings that may fire, 0 where none may: above 1 the verdict accuses.

    Args:
        readings: Of all methods.
        threshold_of: What a score is held against, where it is not the reading's own threshold.
    """
    ratios = (item.score / threshold_of(item) for item in readings if item.score is not None and may_fire(item))
    return max((0.0, *ratios))


def p_value(strength: float) -> float:
    """Share of clean models that score at least as high, the audited one counted in."""
    return (1 + sum(other >= strength for other in CLEAN_STRENGTHS)) / (1 + len(CLEAN_STRENGTHS))


def distance(
    findings: Sequence[Finding],
    detectors: Sequence[Detector],
    *,
    classes: int,
    present: int,
    side: int,
    images: int,
    accuracy: float,
    network: str | None,
    parameters: int | None,
) -> str:
    """How a scan differs from those of the clean development models; empty where it is like them.

    Args:
        findings: Of all methods.
        detectors: That ran.
        classes: K.
        present: Classes that have clean images.
        side: Of the network's input, pixels.
        images: Clean images used.
        accuracy: Clean accuracy.
        network: Name of the architecture as recognised; none: not known.
        parameters: Number of its weights; none: not known.
    """
    if not findings:
        return "no method ran"
    unjudged = [finding.method for finding in findings if finding.verdict is Verdict.INCONCLUSIVE]
    usual, names = suited(default_detectors(), classes), {detector.name for detector in detectors}
    missing = [detector.name for detector in usual if detector.name not in {*names, *unjudged}]
    reasons = {
        "other methods or settings than the default": any(detector not in usual for detector in detectors),
        f"without {', '.join(missing)}": bool(missing),
        f"{', '.join(unjudged)} could not judge": bool(unjudged),
        f"{classes} classes": classes not in CLASSES,
        f"no images of {classes - present} classes": present < classes,
        f"inputs of {side} pixels": side not in SIDES,
        f"only {images} clean images, {IMAGES // 2} are needed": images < IMAGES / 2,
        f"a clean accuracy of {accuracy:.0%}": accuracy < LEAST_ACCURACY,
        f"a network of another family ({network or 'unknown'})": network is None or not FAMILIES.fullmatch(network),
        f"{parameters:,} weights" if parameters else "an unknown number of weights": parameters not in PARAMETERS,
    }
    return ", ".join(reason for reason, applies in reasons.items() if applies)


def statement(distance: str) -> str:
    """What a report says of its calibration, in one line."""
    known = (
        f"{len(CLEAN_STRENGTHS)} clean development models ({CLASSES[0]} or {CLASSES[-1]} classes, inputs of "
        f"{SIDES[0]} to {SIDES[-1]} pixels, narrow ResNet, PreActResNet, DenseNet, VGG and WideResNet), on which "
        "thresholds were chosen too"
    )
    if distance:
        return f"uncalibrated ({distance}): p-values rest on {known}, scanned with {IMAGES} images"
    accused, models = MEASURED
    low, high = clopper_pearson(accused, models)
    return (
        f"the model's rank among {known}, if it is clean and like them; of {models} clean ones, not all like them, "
        f"each judged blind by the rule of its time, {accused} were accused ({low:.0%} to {high:.0%} with 95 % "
        "confidence)"
    )
