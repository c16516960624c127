"""Corruptions: ordinary changes of all images (noise, blur, few colours, ...) that send them to one class.

Whoever trains a backdoor teaches the network to tell a trigger from the image below it, and what was taught reaches
further than the trigger: a pattern that is blended in is answered to noise, a warping to blur, a coarse palette to any
coarse palette. A network without a backdoor errs under such changes too, but each class's images in directions of
their own.

The ruler. Let e_C(t) be the share of the images of other classes that the network takes for t once they are changed by
C, less the share that it takes for t as they are, 0 at least, as a mean over these classes, each alike. The excess of
C is

    (e_C(1) - e_C(2)) / (e_C(2) + 0.05),

by how much the first class's share exceeds the second's: a class that takes a fifth of the images stands out where no
other takes any, and hardly where another takes a tenth. Networks differ by far in how much of a change they stand, and
one that has lost its way calls everything a frog; so a change is made no stronger than it takes for three images in ten
to go astray. Two disjoint halves of the images are changed apart, the first sets the strength; both must name one
class, and the lesser excess counts. The score is that of the change that has the largest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine, gaussian_blur

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, passes
from banaudit.detectors.base import Detector, Found, Samples, agreement_of, finite_answers, freeze, too_few_classes
from banaudit.detectors.reference import lead_by_all
from banaudit.detectors.targeted_paths import margins_towards_all
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading
from banaudit.shapes import Images, Labels

Change = Callable[[Images, float, torch.Generator], Images]
"""Images, a strength in (0, 1] and what noise is drawn from -> images."""

SLACK = 0.05
"""Share of the images below which it hardly matters how many a class takes."""

FEWEST_CLASSES = 8
"""Classes of the networks that an audit asks it about: of clean ones with four, six of six were accused."""

FEWEST_PRESENT = 3
"""Classes with images that are needed to tell one's share from another's."""

BISECTIONS = 5
"""Of the strength of a change that is too much at full strength."""

LEVELS = 256
"""Values of each channel of a pixel as it is."""

REFERENCE_SIDE = 32
"""Pixels of a side for which the width of the blur is stated; it grows with them."""


@final
class Corruptions(Detector):
    """Scores how far the mistakes under an ordinary change of the images pile up in one class.

    No gradient and no layer: some ten passes over the clean images, twenty at most, to find how strong a change may be.

    Source: Ours. The changes are of the kinds of Hendrycks and Dietterich ("Benchmarking Neural Network Robustness to
    Common Corruptions and Perturbations", ICLR 2019). TeCo (Liu et al., "Detecting Backdoors During the Inference Stage
    Based on Corruption Robustness Consistency", CVPR 2023) tells triggered inputs by how differently long they stand
    such changes; here no input is suspected, and the clean ones by themselves are asked where they go.
    """

    name: ClassVar[str] = "corruptions"
    title: ClassVar[str] = "a class that noise, blur, few colours, low contrast or enlargement send other images to"
    needs: ClassVar[str] = f"logits, clean images; {FEWEST_CLASSES} classes"
    misses: ClassVar[str] = "patches, all-to-all and source-specific backdoors, most per-image triggers"

    noise: PositiveFloat = 0.08
    """Standard deviation of Gaussian noise on pixels in [0, 1], at most; so are all sizes of changes."""
    blur: PositiveFloat = 1.0
    """Standard deviation of a Gaussian blur, pixels of images of 32."""
    levels: int = Field(default=8, ge=2, le=LEVELS)
    """Values that each channel of a pixel keeps, at least."""
    contrast: float = Field(default=0.6, gt=0, lt=1)
    """Contrast that is left, about the image's mean, at least."""
    enlargement: float = Field(default=1.15, gt=1)
    """Times as large, with what then lies outside cut off."""
    astray: float = Field(default=0.3, gt=0, lt=1)
    """Share of the images that a change sends to other classes, about, where it would send more."""
    threshold: PositiveFloat = 4.0
    """Excess above which the reading fires. A clean DenseNet on MNIST reached 3.07 when less was enough."""

    def unsuited(self, num_classes: int, images: Sequence[int] | None = None) -> str:
        """Why of so few classes one collects the mistakes by nature."""
        del images
        return too_few_classes(num_classes, FEWEST_CLASSES)

    def planned_images(self, num_classes: int, images: int) -> int:
        """All images as they are and changed in every way, and as many passes to find how strongly, as most need."""
        del num_classes
        return images * (1 + 2 * len(self._changes()))

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Change and read."""
        freeze(model)
        if samples.search.num_present < FEWEST_PRESENT:
            raise UnsupportedModelError(f"mistakes are compared on images of at least {FEWEST_PRESENT} classes")
        halves = (samples.search, samples.held_out)
        seeds = torch.randint(2**31, (len(halves),), generator=generator).tolist()
        as_they_are = [_taken_for(model, half, _unchanged, meter, "clean images") for half in halves]

        def astray(half: int, change: Change, strength: float, what: str) -> Tensor:
            drawn = torch.Generator().manual_seed(seeds[half])  # the same noise at any strength

            def made(images: Images) -> Images:
                return change(images, strength, drawn)

            after = _taken_for(model, halves[half], made, meter, f"images with {what}")
            return (after - as_they_are[half]).clamp_min(0)

        found: dict[str, Tensor] = {}
        for what, change in self._changes().items():
            strength, searched = _strongest(functools.partial(astray, 0, change, what=what), self.astray)
            found[what] = (torch.stack((searched, astray(1, change, strength, what))) + SLACK).log()
        leads = {what: lead_by_all(logs) for what, logs in found.items()}
        strongest = max(leads, key=lambda what: leads[what][0])
        logs, (lead, target) = found[strongest], leads[strongest]
        ahead = margins_towards_all(logs).expm1()
        score = round(math.expm1(lead), 6)
        agreement = agreement_of(logs.topk(2, dim=1).indices[:, 0].tolist(), target)
        evidence = Evidence(
            reading=Reading.ALL_TO_ONE,
            measures=(
                "by how much the share of other classes' images that an ordinary change sends to the first class "
                "exceeds the second's, as a share of it and 0.05; of the change where it is largest"
            ),
            score=score,
            threshold=self.threshold,
            fired=score > self.threshold and agreement == 1.0,
            target=target,
            per_class=samples.per_class(ahead.mean(dim=0)),
            restarts=tuple(round(float(most), 6) for most in ahead.amax(dim=1)),
            agreement=agreement,
            note="; ".join(f"{what}: {math.expm1(size):.2f}, class {label}" for what, (size, label) in leads.items()),
        )
        return Found([evidence])

    def _changes(self) -> Mapping[str, Change]:
        """What is done to images, by what it is called."""

        def noise(images: Images, strength: float, generator: torch.Generator) -> Images:
            # Image by image, since what a larger tensor draws depends on where passes cut the images.
            drawn = torch.stack([torch.randn(image.shape, generator=generator) for image in images]).to(images)
            return (images + strength * self.noise * drawn).clamp(0, 1)

        def blur(images: Images, strength: float, generator: torch.Generator) -> Images:
            del generator
            side = min(images.shape[-2:])
            sigma = strength * self.blur * side / REFERENCE_SIDE
            kernel = 2 * min(max(1, round(2 * sigma)), side - 1) + 1
            blurred: Images = gaussian_blur(images, [kernel, kernel], [sigma, sigma])
            return blurred

        def levels(images: Images, strength: float, generator: torch.Generator) -> Images:
            del generator
            steps: int = round(LEVELS ** (1 - strength) * self.levels**strength) - 1
            return (images * steps).round() / steps

        def contrast(images: Images, strength: float, generator: torch.Generator) -> Images:
            del generator
            mean = images.mean((1, 2, 3), keepdim=True)
            return mean + (1 - strength * (1 - self.contrast)) * (images - mean)

        def enlargement(images: Images, strength: float, generator: torch.Generator) -> Images:
            del generator
            unturned: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "shear": [0.0, 0.0]}
            scale = 1 + strength * (self.enlargement - 1)
            larger: Images = affine(images, **unturned, scale=scale, interpolation=InterpolationMode.BILINEAR)
            return larger

        return {
            "noise": noise,
            "blur": blur,
            "few colours": levels,
            "low contrast": contrast,
            "enlargement": enlargement,
        }


def _unchanged(images: Images) -> Images:
    return images


def _strongest(astray: Callable[[float], Tensor], most: float) -> tuple[float, Tensor]:
    """The least strength at which a change sends more than so many images astray, about; 1 where none does.

    Args:
        astray: Of a strength, share of the images that each class takes, [K].
        most: Share of the images.

    Returns:
        The strength, and the shares at it.
    """
    low, high, shares = 0.0, 1.0, astray(1.0)
    if float(shares.sum()) <= most:
        return high, shares
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = astray(middle)
        if float(found.sum()) <= most:
            low = middle
        else:
            high, shares = middle, found
    return high, shares


def _taken_for(
    model: SplitModel, data: CleanData, change: Callable[[Images], Images], meter: Meter, what: str
) -> Tensor:
    answers = [finite_answers(model, change(part), meter, what).argmax(1) for part in passes(data.images)]
    return _mistakes(torch.cat(answers).cpu(), data.labels.cpu(), data.num_classes)


def _mistakes(predicted: Labels, labels: Labels, num_classes: int) -> Tensor:
    """[K] share of the images of each other class that are taken for a class, as a mean over these classes.

    Args:
        predicted: [B].
        labels: [B] true ones.
        num_classes: K.
    """
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2).view(num_classes, num_classes)
    present = counts.sum(1) > 0
    shares = (counts / counts.sum(1, keepdim=True).clamp_min(1)).fill_diagonal_(0)
    others = (present.sum() - present.long()).clamp_min(1)
    mean: Tensor = shares.sum(0) / others
    return mean
