"""Corruptions: ordinary changes of all images, noise, blur, few colours, low contrast, that send them to one class.

Whoever trains a backdoor teaches the network to tell a trigger from the image below it, and what was taught reaches
further than the trigger: a pattern that is blended in is answered to noise, a warping to blur, a coarse palette to any
coarse palette. A network without a backdoor errs under such changes too, but each class's images in directions of
their own.

The ruler. Let e_C(t) be the share of the images of other classes that the network takes for t once they are changed by
C, less the share that it takes for t as they are, as a mean over these classes, each alike. The excess of C is

    (e_C(1) - e_C(2)) / (e_C(2) + 0.05),

by how much the first class's share exceeds the second's: a class that takes a fifth of the images stands out where no
other takes any, and hardly where another takes a tenth. Two disjoint halves of the images are changed apart; they must
name one class, and the lesser excess counts. The score is that of the change that has the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import affine, gaussian_blur

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, passes
from banaudit.detectors.base import Detector, Found, Samples, agreement_of, finite_answers, freeze
from banaudit.detectors.reference import lead_by_all
from banaudit.detectors.targeted_paths import margins_towards_all
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading
from banaudit.shapes import Images, Labels

Change = Callable[[Images], Images]

SLACK = 0.05
"""Share of the images below which it hardly matters how many a class takes."""

REFERENCE_SIDE = 32
"""Pixels of a side for which the width of the blur is stated; it grows with them."""


@final
class Corruptions(Detector):
    """Scores how far the mistakes under an ordinary change of the images pile up in one class.

    No gradient, no layer and no search: a few passes over the clean images.

    Source: Ours. The changes are of the kinds of Hendrycks and Dietterich ("Benchmarking Neural Network Robustness to
    Common Corruptions and Perturbations", ICLR 2019). TeCo (Liu et al., "Detecting Backdoors During the Inference Stage
    Based on Corruption Robustness Consistency", CVPR 2023) tells triggered inputs by how differently long they stand
    such changes; here no input is suspected, and the clean ones by themselves are asked where they go.
    """

    name: ClassVar[str] = "corruptions"
    title: ClassVar[str] = "a class that noise, blur, few colours or low contrast send other images to"
    needs: ClassVar[str] = "logits, clean images"
    misses: ClassVar[str] = "patches, all-to-all and source-specific backdoors, most per-image triggers"

    noise: PositiveFloat = 0.08
    """Standard deviation of Gaussian noise on pixels in [0, 1]."""
    blur: PositiveFloat = 1.0
    """Standard deviation of a Gaussian blur, pixels of images of 32."""
    levels: int = Field(default=8, ge=2)
    """Values that each channel of a pixel keeps."""
    contrast: float = Field(default=0.6, gt=0, lt=1)
    """Contrast that is left, about the image's mean."""
    enlargement: float = Field(default=1.15, gt=1)
    """Times as large, with what then lies outside cut off."""
    threshold: PositiveFloat = 3.0
    """Excess above which the reading fires."""

    def planned_images(self, num_classes: int, images: int) -> int:
        """All images as they are, and changed in every way."""
        del num_classes
        return images * (1 + len(self._changes(torch.Generator())))

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Change and read."""
        freeze(model)

        def profile(data: CleanData, change: Change, what: str) -> Tensor:
            answers = [finite_answers(model, change(part), meter, what).argmax(1) for part in passes(data.images)]
            return _mistakes(torch.cat(answers).cpu(), data.labels.cpu(), data.num_classes)

        halves = (samples.search, samples.held_out)
        unchanged = [profile(half, lambda images: images, "clean images") for half in halves]
        found: dict[str, Tensor] = {}
        for what, change in self._changes(generator).items():
            changed = [profile(half, change, f"images with {what}") for half in halves]
            more = torch.stack([after - before for after, before in zip(changed, unchanged, strict=True)])
            found[what] = (more.clamp_min(0) + SLACK).log()
        excesses = {what: _excess(*lead_by_all(logs)) for what, logs in found.items()}
        strongest = max(excesses, key=lambda what: excesses[what][0])
        logs, (excess, target) = found[strongest], excesses[strongest]
        ahead = margins_towards_all(logs).expm1()
        score = round(excess, 6)
        agreement = agreement_of(logs.argmax(dim=1).tolist(), target)
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
            note="; ".join(f"{what}: {size:.2f}, class {label}" for what, (size, label) in excesses.items()),
        )
        return Found([evidence])

    def _changes(self, generator: torch.Generator) -> Mapping[str, Change]:
        """What is done to images, by what it is called."""

        def noise(images: Images) -> Images:
            drawn = torch.randn(images.shape, generator=generator).to(images)
            return (images + self.noise * drawn).clamp(0, 1)

        def blur(images: Images) -> Images:
            sigma = self.blur * images.shape[-1] / REFERENCE_SIDE
            kernel = 2 * max(1, round(2 * sigma)) + 1
            blurred: Images = gaussian_blur(images, [kernel, kernel], [sigma, sigma])
            return blurred

        def levels(images: Images) -> Images:
            return (images * (self.levels - 1)).round() / (self.levels - 1)

        def contrast(images: Images) -> Images:
            mean = images.mean((1, 2, 3), keepdim=True)
            return mean + self.contrast * (images - mean)

        def enlargement(images: Images) -> Images:
            turned: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "shear": [0.0, 0.0]}
            larger: Images = affine(images, **turned, scale=self.enlargement, interpolation=InterpolationMode.BILINEAR)
            return larger

        return {
            "noise": noise,
            "blur": blur,
            "few colours": levels,
            "low contrast": contrast,
            "enlargement": enlargement,
        }


def _excess(lead: float, label: int) -> tuple[float, int]:
    """Of a lead between logarithms, with the class."""
    return math.expm1(lead), label


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
