"""How far networks trained on the clean images alone lean to each class: what joint evidence is held against.

The methods suspect a class that is reached easily. One class may be reached easily because of the data: networks for
digits lean to the 8, whoever trained them. Small networks that saw nothing but the clean images cannot carry a
backdoor, so that the same methods, asked about these, tell what is natural.
"""

from __future__ import annotations

import torch

from banaudit.agreement import WITNESSES, joint_evidence
from banaudit.architectures import SplitModel
from banaudit.data import CleanData
from banaudit.detectors import Detector
from banaudit.detectors.base import SEARCH_SHARE
from banaudit.detectors.reference import know_enough, known_share, logits_of, references
from banaudit.meter import Meter
from banaudit.randomness import isolated_random

WITNESS_METHODS = frozenset(witness.method for witness in WITNESSES)


def natural_leaning(
    clean: CleanData, detectors: tuple[Detector, ...], *, seed: int = 0, meter: Meter | None = None
) -> tuple[float, ...]:
    """Joint evidence against each class of a network without a backdoor: the most that one of the references has.

    The most, and not the mean: what one small network does by nature, the audited one may do as well. Each reference is
    trained on one half of the images (:mod:`~banaudit.detectors.reference`) and then scanned with all of them.

    Args:
        clean: Clean images, enough of them (:func:`~banaudit.detectors.reference.few_images`).
        detectors: That could judge the audited network: of another one nothing was added up, so nothing may be taken
            off. Those that are no witness are not asked.
        seed: Of the references and of every method.
        meter: Keeps the time limit and tells progress; no pass through the audited network is made.

    Returns:
        [K]; empty where too few of the methods could judge any reference that knows enough of images that it has not
        seen. One that does not is left out: trained on a skewed folder it may name one class whatever it is shown.

    Raises:
        TimeLimitReached: From the meter.
    """
    aside = (meter if meter is not None else Meter()).aside("networks trained on the clean images alone")
    witnesses = [detector for detector in detectors if detector.name in WITNESS_METHODS]
    generator = torch.Generator().manual_seed(seed)
    every: list[list[float]] = []
    with isolated_random(clean.images.device, seed):
        trained = references(*clean.split(SEARCH_SHARE, generator), generator, aside)
        sound = [network for network, unseen in trained if _knows_enough(network, unseen)]
        for network in sound:
            found = joint_evidence([detector(network, clean, seed=seed, meter=aside) for detector in witnesses])
            if found is not None:
                every.append([item.score for item in found.evidence[0].per_class])
            aside.spend("what is natural", forward=0)  # a method that the time limit ends says so, and does not raise
    return tuple(map(max, zip(*every, strict=True)))


def _knows_enough(network: SplitModel, unseen: CleanData) -> bool:
    return know_enough(known_share(logits_of(network, unseen), unseen.labels.cpu()), unseen.num_classes)
