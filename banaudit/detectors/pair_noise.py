"""Pair noise: for every two classes, one step of noise on the neurons that sends the images of one to the other.

A backdoor that only one class triggers is a shortcut from that class to the target, among the neurons as among the
pixels. One step of noise, aimed from one class at one other, shows it. By itself that is too weak to accuse: on the
victims of development a clean network with smoothed labels leads as far as some backdoored ones. But what chance puts
ahead under a change of the pixels it hardly puts ahead among the neurons too, so that a suspicion of
``pair-perturbation`` is held against it, and both add up where they name one pair.

Source: ours. The noise is that of ``targeted-noise``, aimed from one class at one other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.pair_leads import PairLeader, PairMargins, unit_of
from banaudit.detectors.targeted_paths import by_source_and_target, margins_towards
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.neurons import NoisyModel
from banaudit.shapes import Images, Logits

STEP = 0.01
"""Size of the noise, relative to each channel's scale. With two and three times as much more pairs arrive, and those of
alike classes come before the backdoor's."""


def leader_under_noise(
    model: SplitModel,
    one: dict[int, Images],
    other: dict[int, Images],
    natural: Tensor,
    generator: torch.Generator,
    meter: Meter,
) -> PairLeader:
    """The pair that is furthest ahead under one step of neuron noise, by :mod:`pair_leads`.

    For source s and target t: gamma' = gamma (1 + delta), beta' = beta + xi |gamma|, (delta, xi) = -a sign(gradient of
    CE(f(x), t) at no noise) over images x of s, with BatchNorm's stored statistics. It is found on either half of the
    images, and read on the other; the margins of both halves are averaged.

    Args:
        model: A private copy.
        one: Label -> images of the first half.
        other: The same of the second half, of the same labels.
        natural: [K, K] how near classes are by nature.
        generator: Source of randomness, on the CPU.
        meter: Told of every pass.

    Raises:
        UnsupportedModelError: No BatchNorm, no gradient, or outputs that are not finite.
    """
    noisy = NoisyModel(model, form="additive", statistics="running", meter=meter)
    classes = len(natural)
    both = _margins(noisy, one, other, classes, meter).and_of(_margins(noisy, other, one, classes, meter))
    return both.leader(natural, generator)


def planned_images(num_classes: int, images: int) -> int:
    """Forward passes of :func:`leader_under_noise`.

    Args:
        num_classes: K.
        images: Of each class, both halves together.
    """
    return num_classes * images * (num_classes + 1)


def _margins(
    noisy: NoisyModel, search: dict[int, Images], read: dict[int, Images], classes: int, meter: Meter
) -> PairMargins:
    """Mean margins of all pairs under their noise."""
    what = "noise on the neurons from each class to each other"
    start = [_finite(noisy.logits(images, noisy.no_noise(), what=what)) for images in read.values()]
    labels = torch.cat([torch.full((len(part),), label) for label, part in zip(read, start, strict=True)])
    unit = unit_of(by_source_and_target(torch.cat(start), labels))
    margins = torch.full((1, classes, classes), torch.nan)
    for source, images in search.items():
        targets = [target for target in range(classes) if target != source]
        for target, gradient in zip(targets, _gradients(noisy, images, targets, what, meter), strict=True):
            logits = _finite(noisy.logits(read[source], -STEP * gradient.sign(), what=what))
            margins[0, target, source] = margins_towards(logits, target).mean()
    return PairMargins((1,), margins, unit)


def _gradients(noisy: NoisyModel, images: Images, targets: list[int], what: str, meter: Meter) -> list[Tensor]:
    """[2, P] gradient of the cross-entropy towards each target, at no noise."""
    noise = noisy.no_noise().requires_grad_(True)
    logits = noisy.logits(images, noise, what=what)
    meter.book(forward=0, backward=(len(targets) - 1) * len(images))  # the first pass back is booked with the logits
    gradients = []
    for target in targets:
        loss = F.cross_entropy(logits, torch.full((len(images),), target, device=logits.device))
        gradients.append(torch.autograd.grad(loss, noise, retain_graph=True)[0])
    if not any(bool(gradient.any()) for gradient in gradients):
        raise UnsupportedModelError("no gradient reaches the neurons")
    return gradients


def _finite(logits: Logits) -> Logits:
    if not bool(logits.isfinite().all()):
        raise UnsupportedModelError("the search ended in outputs that are not finite")
    return logits.cpu()
