"""The detectors, by name, and those that make the default verdict."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from banaudit.detectors.ban import BAN
from banaudit.detectors.base import Detector, Samples
from banaudit.detectors.bti_dbf import BTIDBF, BTIDBFStar
from banaudit.detectors.clean_logits import CleanLogits
from banaudit.detectors.corruptions import Corruptions
from banaudit.detectors.feature_re import FeatureRE
from banaudit.detectors.free_eagle import FreeEagle
from banaudit.detectors.mixtures import Mixtures
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.pair_perturbation import PairPerturbation
from banaudit.detectors.tabor import Tabor
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.detectors.unicorn import Unicorn
from banaudit.detectors.universal_perturbation import UniversalPerturbation

DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector
    for detector in (
        BAN,
        TargetedNoise,
        UniversalPerturbation,
        PairPerturbation,
        Mixtures,
        Corruptions,
        CleanLogits,
        MMBD,
        NeuralCleanse,
        Tabor,
        BTIDBF,
        BTIDBFStar,
        FeatureRE,
        FreeEagle,
        Unicorn,
    )
}


def default_detectors() -> tuple[Detector, ...]:
    """The methods of the default verdict: the paper's, and unlike searches for a shortcut."""
    # The slowest comes last: a time limit may leave it out, and joint evidence needs the others.
    return (
        Corruptions(),
        TargetedNoise(),
        UniversalPerturbation(),
        MMBD(),
        NeuralCleanse(),
        BAN(),
        Mixtures(),
        PairPerturbation(),
    )


def suited(
    detectors: Iterable[Detector], num_classes: int, images: Sequence[int] | None = None
) -> tuple[Detector, ...]:
    """Those that an audit asks.

    Args:
        detectors: To choose from.
        num_classes: Number of the network's classes K.
        images: Clean images of each class; none: enough.
    """
    return tuple(detector for detector in detectors if not detector.unsuited(num_classes, images))


def leaves_some_out(detectors: Iterable[Detector]) -> bool:
    """Whether an audit may do without those that do not suit a network: where the default verdict is asked for.

    Whoever chose the methods is told that one of them cannot judge.

    Args:
        detectors: All that are asked.
    """
    return {detector.name for detector in default_detectors()} <= {detector.name for detector in detectors}


__all__ = ["DETECTORS", "Detector", "Samples", "default_detectors", "leaves_some_out", "suited"]
