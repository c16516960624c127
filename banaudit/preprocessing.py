"""How an image becomes the network's input, and how that is found out when nobody says.

A checkpoint does not tell how its inputs were resized and normalised. What the user gives is used as given; what is
left open is tried, and what gives the best clean accuracy is taken, as a wrong normalisation costs accuracy.

Presets that differ by a few hundredths (CIFAR-10's, ImageNet's) cannot be told apart on a few hundred images, and need
not be: on the networks tried, taking one for another moved the accuracy by a point or two.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData, ImageSet
from banaudit.errors import BanauditError, UnsupportedModelError, UsageError
from banaudit.meter import Meter
from banaudit.preflight import judge_predictions, predictions
from banaudit.results import PreprocessingFacts
from banaudit.shapes import Labels

MAX_TRIED_IMAGES = 250
"""Images on which the promising candidates are compared."""

SCREENING_IMAGES = 100
"""Images on which all candidates are tried first; the ones far behind drop out."""

SCREENING_MARGIN = 0.10
"""How far behind the best a candidate may be in the screening and still be compared: two standard errors."""

POOR_ACCURACY = 0.6
"""Accuracy of the best candidate below which the size that the architecture is usually used with is tried too."""

COMMON_SIZES = (28, 32, 64, 96, 128, 160, 224)
"""Input sizes of the field, pixels; the nearest one is tried where the images have no size in common."""

MAX_GUESSED_SIZE = 320
"""Largest side that is tried unasked, pixels: above the inputs of the field, and a thousand images take 1.2 GB."""

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R 601), as image libraries use them."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

PRESETS: dict[str, Statistics] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-2023": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # mean of the images' own deviations
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629)),
    "mnist": ((0.1307,), (0.3081,)),
    "0-255": ((0.0,), (1 / 255,)),
}
"""Name -> mean and standard deviation, of one channel or three. The order decides between equals for RGB networks."""

_GREY_FIRST = ("mnist", "none", "half")  # the order for grey networks starts with these


@dataclass(frozen=True)
class Preprocessing:
    """Resize to a square, scale to [0, 1], then (image - mean) / std.

    Args:
        size: Side of the square, pixels.
        channels: 1 (grey) or 3 (RGB).
        mean: One number a channel, on the scale of [0, 1].
        std: One number a channel, on the scale of [0, 1].
        name: A preset's name, or ``custom``.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str

    def model(self, network: SplitNetwork) -> SplitModel:
        """The network with this normalisation in front, on the network's device; the network itself is shared."""
        tensor = next(iter(network.parameters()), None)
        return SplitModel(network, self.mean, self.std).to(tensor.device if tensor is not None else "cpu")


def named(preset: str, *, size: int, channels: int) -> Preprocessing:
    """A preset for a number of channels.

    One number stands for every channel; three become one weighted by :data:`LUMINANCE` (exact for the mean, and close
    for the deviation, as the channels of photographs move together).

    Args:
        preset: A name in :data:`PRESETS`.
        size: Side, pixels.
        channels: 1 or 3.

    Returns:
        The preprocessing.

    Raises:
        UsageError: No such preset.
    """
    if preset not in PRESETS:
        raise UsageError(f"preset {preset!r} is unknown; there are {', '.join(PRESETS)}")
    mean, std = (_for_channels(values, channels) for values in PRESETS[preset])
    return Preprocessing(size, channels, mean, std, preset)


def candidates(channels: int, sizes: Iterable[int]) -> tuple[Preprocessing, ...]:
    """Every plausible preprocessing, the more usual first.

    Args:
        channels: 1 or 3, as the network takes.
        sizes: Sides, pixels, the likelier first.

    Returns:
        All presets of the first size, then all of the next.
    """
    names = list(dict.fromkeys((*_GREY_FIRST, *PRESETS))) if channels == 1 else list(PRESETS)
    return tuple(named(name, size=size, channels=channels) for size in sizes for name in names)


def choose(
    network: SplitNetwork,
    images: ImageSet,
    *,
    channels: int,
    preset: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    size: int | None = None,
    size_hint: int | None = None,
    usual_size: int | None = None,
    meter: Meter | None = None,
) -> tuple[Preprocessing, PreprocessingFacts]:
    """Settle the preprocessing: as given, and by clean accuracy where it is left open.

    Sizes tried when none is given: the images' own, if all are squares of one size, and ``size_hint``, neither above
    :data:`MAX_GUESSED_SIZE`; failing both, ``usual_size`` and the :data:`COMMON_SIZES` member nearest to the images'
    median side. ``usual_size`` is also tried where all others are poor. A size that the network cannot take drops out.
    Every candidate sees :data:`SCREENING_IMAGES` images, the best also see up to :data:`MAX_TRIED_IMAGES`. Of equal
    ones the first in the order of :func:`candidates` is taken. Where all are poor, one that is right in another order
    of the classes goes before.

    Args:
        network: The classifier, on its device.
        images: Clean images with labels.
        channels: Channels the network takes, 1 or 3.
        preset: A name in :data:`PRESETS`.
        mean: One number, or one a channel, on the scale of [0, 1]; needs ``std``.
        std: As ``mean``.
        size: Side, pixels.
        size_hint: Side that the checkpoint speaks of, pixels.
        usual_size: Side that the architecture is usually used with, pixels.
        meter: Books the passes.

    Returns:
        The preprocessing, and what the report says of it, the accuracy of all that was tried included.

    Raises:
        UsageError: What was given contradicts itself.
        UnsupportedModelError: The network takes none of the sizes.
    """
    sizes = _sizes(images, size, size_hint, usual_size)
    given = _given(preset, mean, std, channels)
    tried = candidates(channels, sizes) if given is None else tuple(replace(given, size=side) for side in sizes)
    other = usual_size if size is None and usual_size not in sizes else None
    if len(tried) == 1 and other is None:
        one = {tried[0].size: images.decode(tried[0].size, channels, 1)}
        _answers(network, one, tried, slice(1), meter)  # refuses a size that the network cannot take
        return tried[0], _facts(tried[0], {}, chosen=False)

    clean = {side: images.decode(side, channels, MAX_TRIED_IMAGES) for side in sizes}
    seen = min(SCREENING_IMAGES, len(images))
    answers = _answers(network, clean, tried, slice(seen), meter)
    labels = clean[sizes[0]].labels.cpu()
    hits = _count_hits(answers, labels[:seen])
    if other is not None and max(hits.values()) < POOR_ACCURACY * seen:
        further = [replace(candidate, size=other) for candidate in tried if candidate.size == sizes[0]]
        clean[other] = images.decode(other, channels, MAX_TRIED_IMAGES)
        with contextlib.suppress(UnsupportedModelError):  # the sizes before may be the only ones that it takes
            answers |= _answers(network, clean, further, slice(seen), meter)
            sizes = (*sizes, other)
        hits = _count_hits(answers, labels[:seen])
    accuracies = {candidate: count / seen for candidate, count in hits.items()}
    close = [one for one, accuracy in accuracies.items() if accuracy >= max(accuracies.values()) - SCREENING_MARGIN]
    seen = min(MAX_TRIED_IMAGES, len(images))
    if len(close) > 1 and seen > SCREENING_IMAGES:
        more = _count_hits(
            _answers(network, clean, close, slice(SCREENING_IMAGES, None), meter), labels[SCREENING_IMAGES:]
        )
        close = [candidate for candidate in close if candidate in more]
        accuracies |= {candidate: (hits[candidate] + more[candidate]) / seen for candidate in close}
    chosen = max(close, key=accuracies.__getitem__)  # the first of equals
    if accuracies[chosen] < POOR_ACCURACY:
        renamed = _right_if_renamed(answers, clean[sizes[0]])
        best = max(renamed, key=renamed.__getitem__, default=chosen)
        if renamed.get(best, 0.0) >= max(POOR_ACCURACY, accuracies[chosen] + SCREENING_MARGIN):
            chosen = best
    told = {
        f"{candidate.name} at {candidate.size}" if len(sizes) > 1 else candidate.name: accuracy
        for candidate, accuracy in accuracies.items()
    }
    return chosen, _facts(chosen, told, chosen=True)


def _answers(
    network: SplitNetwork, clean: dict[int, CleanData], tried: Iterable[Preprocessing], part: slice, meter: Meter | None
) -> dict[Preprocessing, Labels]:
    """What the network answers under each to a part of the images; those that it cannot take are left out."""
    answers: dict[Preprocessing, Labels] = {}
    refused: dict[int, str] = {}
    for candidate in tried:
        size = candidate.size
        try:
            answers[candidate] = predictions(
                candidate.model(network), clean[size].images[part], meter=meter, what="preprocessing"
            )
        except (BanauditError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            # Torch's for shapes that do not fit, or whatever a network raises that checks its input, pixels included.
            refused[size] = " ".join(str(error).split())
    if not answers:
        reasons = "; ".join(f"{size}: {reason}" for size, reason in refused.items())
        raise UnsupportedModelError(f"the network takes no images of the sizes tried ({reasons}); give --size")
    return answers


def _count_hits(answers: dict[Preprocessing, Labels], labels: Labels) -> dict[Preprocessing, int]:
    """How many answers of each are right."""
    return {candidate: int((found == labels).sum()) for candidate, found in answers.items()}


def _right_if_renamed(answers: dict[Preprocessing, Labels], clean: CleanData) -> dict[Preprocessing, float]:
    """Accuracy in another order of the classes, of the candidates for which there is a convincing one.

    Where the labels are in a wrong order, the accuracy favours whatever makes the network answer badly.
    """
    renamed: dict[Preprocessing, float] = {}
    for candidate, found in answers.items():
        if int(found.max()) < clean.num_classes:
            judged = judge_predictions(found, clean.subset(torch.arange(len(found), device=clean.labels.device)))
            if judged.label_permutation is not None:
                names = torch.tensor([judged.label_permutation.get(label, label) for label in range(clean.num_classes)])
                renamed[candidate] = float((names[clean.labels.cpu()[: len(found)]] == found).double().mean())
    return renamed


def _sizes(images: ImageSet, size: int | None, size_hint: int | None, usual_size: int | None) -> tuple[int, ...]:
    if size is not None:
        if size < 1:
            raise UsageError(f"size {size} is not a positive number of pixels")
        return (size,)
    likely = [side for side in (size_hint, images.own_size) if side is not None and 1 <= side <= MAX_GUESSED_SIZE]
    if not likely:
        nearest = min(COMMON_SIZES, key=lambda side: abs(math.log(side / images.typical_size)))
        likely = [nearest] if usual_size is None else [usual_size, nearest]
    return tuple(dict.fromkeys(likely))


def _given(
    preset: str | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int
) -> Preprocessing | None:
    """What the user gave, of no size yet (0); none: nothing was given."""
    if preset is not None:
        if mean is not None or std is not None:
            raise UsageError("a preset and a mean or std were given; give one or the other")
        return named(preset, size=0, channels=channels)
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise UsageError("mean and std belong together; only one of them was given")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in {1, channels}:
            raise UsageError(f"{name} has {len(values)} numbers; the network takes {channels} channels")
        if not all(math.isfinite(value) for value in values):
            raise UsageError(f"{name} {values} is not made of finite numbers")
        if max(values) > 1:
            raise UsageError(f"{name} {values} is not on the scale of [0, 1]; divide it by 255")
    if min(std) <= 0:
        raise UsageError(f"std {std} is not above zero")
    return Preprocessing(0, channels, _for_channels(mean, channels), _for_channels(std, channels), "custom")


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    return (round(sum(weight * value for weight, value in zip(LUMINANCE, values, strict=True)), 4),)


def _facts(preprocessing: Preprocessing, tried: dict[str, float], *, chosen: bool) -> PreprocessingFacts:
    return PreprocessingFacts(
        size=preprocessing.size,
        channels=preprocessing.channels,
        mean=preprocessing.mean,
        std=preprocessing.std,
        name=preprocessing.name,
        source="chosen by clean accuracy" if chosen else "given",
        tried=tried,
    )
