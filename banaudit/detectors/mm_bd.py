"""MM-BD: the class whose logit can be driven furthest above the others is the target. Needs no images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import images_of_a_pass
from banaudit.detectors.base import Detector, Found, Samples, freeze
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.precision import fast_precision
from banaudit.results import Evidence, Reading, TriggerFacts
from banaudit.shapes import Images, Labels, Logits
from banaudit.statistics import median, outlier_scores
from banaudit.triggers import Pixels, RecoveredTrigger, TriggerPicture, pixels

SMALLEST_MARGIN = 1e-3
"""Margins below this count as this; a class that no image reaches has a negative one."""


SHOWN = 2
"""Classes, of the largest margins, whose image is kept to be looked at."""


@dataclass(frozen=True)
class Margins:
    """What a search for large margins found.

    Args:
        margins: [K] the largest of each class.
        images: Label -> the image that attains it; at least for the :data:`SHOWN` classes of the largest margins.
    """

    margins: Tensor
    images: dict[int, Pixels]


def margins(logits: Logits, labels: Labels) -> Tensor:
    """Logit of each label minus the largest of the other logits, [B]."""
    own = logits.gather(1, labels[:, None])[:, 0]
    return own - logits.scatter(1, labels[:, None], -torch.inf).max(1).values


def gamma_p_value(largest: Tensor) -> float:
    """Probability that the largest of K gamma variables is as large as the largest of these.

    The distribution is fitted, by its first two moments, to the K - 1 values left without the largest.

    Args:
        largest: [K] float64, positive; K at least 3.
    """
    ranked = largest.sort().values
    others, top = ranked[:-1], ranked[-1]
    shape = others.mean().square() / others.var().clamp(min=1e-12)
    scale = others.mean() / shape
    beyond = torch.special.gammaincc(shape, top / scale)
    return float(-torch.expm1(len(ranked) * torch.log1p(-beyond.clamp(max=1 - 1e-12))))


@final
class MMBD(Detector):
    """Maximises the margin of each class over all images, and looks for a margin large beyond the others'.

    ``r_t = max over x in [0, 1] of  z_t(x) - max over k != t of z_k(x)``, from several random images. A backdoor
    makes the network certain of its target beyond what any natural class attains.

    Needs logits (no probabilities: their margin ends at 1) and no images. Cannot see all-to-all backdoors: no class
    stands out. Needs no BatchNorm.

    Source: Wang et al., "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using
    a Maximum Margin Statistic", IEEE S&P 2024, Section III.

    Deviates:
        - 6 random images and 60 steps of Adam, clamped to [0, 1] after every step, instead of 30 images and up to 300
          steps of plain gradient descent at a rate of 0.01: that rate is small for one network and large for another,
          Adam's is in pixel units, and it reaches larger margins in a fifth of the steps.
        - The gamma distribution is fitted by its two moments, located at zero (the original fits three parameters to
          nine values), and its p-value is one condition. The other is the score: log margin above the median of the
          other classes', in scaled MADs. Fitted to nine values, the p-value falls below 0.05 on many clean networks.
    """

    name: ClassVar[str] = "mm-bd"
    title: ClassVar[str] = "a class whose logit can be driven further above the others than any other class's"
    needs: ClassVar[str] = "logits"
    misses: ClassVar[str] = (
        "all-to-all and source-specific backdoors, warping, per-image and adaptive triggers, most patches and "
        "blended patterns"
    )
    warns: ClassVar[str] = "some clean models come close to its threshold"

    images: PositiveInt = 6
    """Random starting images for each class at most; the largest margin counts."""
    all_images: PositiveInt = 240
    """Random starting images of all classes together, though at least 2 a class: bounds the cost of many classes."""
    steps: PositiveInt = 60
    """Adam steps."""
    learning_rate: PositiveFloat = 0.05
    """Step size of Adam, in pixel values of [0, 1]."""
    class_batch: PositiveInt = 50
    """Classes searched at once, at most; fewer where images are large."""
    threshold: PositiveFloat = 6.3
    """Robust standard deviations, on the log scale, that the largest margin must lie above the median of the others."""
    p_value: float = Field(default=0.05, gt=0, lt=1)
    """Largest p-value of the gamma test at which the largest margin is an accusation."""

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes that :meth:`search` is expected to take."""
        del images
        return num_classes * self._images_a_class(num_classes) * (self.steps + 1)

    def _images_a_class(self, num_classes: int) -> int:
        return min(self.images, max(2, self.all_images // num_classes))

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Maximise every class's margin, and hold the largest against the others."""
        found = self.maximum_margins(model, samples.search.images, samples.num_classes, generator, meter)
        largest = found.margins.double().cpu().clamp(min=SMALLEST_MARGIN)
        if float((largest <= SMALLEST_MARGIN).double().mean()) > 0.5:
            raise UnsupportedModelError(
                "the search failed: for most classes no image was found that the network gives to it"
            )
        scores = outlier_scores(largest.log(), torch.arange(len(largest)))
        target = int(largest.argmax())
        score = float(scores[target])
        p_value = gamma_p_value(largest)
        evidence = Evidence(
            reading=Reading.ALL_TO_ONE,
            measures="largest margin that any image attains, against the other classes' (logs), in robust std",
            score=round(score, 6),
            threshold=self.threshold,
            fired=score > self.threshold and p_value <= self.p_value,
            target=target,
            per_class=samples.per_class(scores),
            note=f"margin {largest[target]:.3g}, median {median(largest):.3g}; gamma test p = {p_value:.2g}",
        )
        shown = sorted(found.images, key=lambda label: float(largest[label]), reverse=True)[:SHOWN]
        triggers = tuple(
            RecoveredTrigger(
                self.name,
                TriggerFacts(
                    target=label,
                    accused=evidence.fired and label == target,
                    what="input of the largest margin",
                    size=round(float(largest[label]), 4),
                    size_of="margin, in logits",
                ),
                (TriggerPicture("input", "the image with the largest margin that was found", found.images[label]),),
            )
            for label in shown
        )
        return Found([evidence], triggers)

    def maximum_margins(
        self, model: SplitModel, like: Images, num_classes: int, generator: torch.Generator, meter: Meter
    ) -> Margins:
        """Largest margin found for every class.

        Args:
            model: A private copy; frozen in place.
            like: Any images; only their size and device are used.
            num_classes: K.
            generator: On the CPU.
            meter: Is told of every pass.
        """
        freeze(model)
        found: list[Tensor] = []
        shown: dict[int, Pixels] = {}
        each = self._images_a_class(num_classes)
        together = min(self.class_batch, max(1, images_of_a_pass(like) // each))
        for classes in torch.split(torch.arange(num_classes), together):
            labels = classes.repeat_interleave(each).to(like.device)
            images = torch.rand(len(labels), *like.shape[1:], generator=generator).to(like.device).requires_grad_()
            optimizer = torch.optim.Adam([images], lr=self.learning_rate)
            for _ in range(self.steps):
                meter.spend("maximum margins", forward=len(images), backward=len(images))
                with fast_precision(images.device):
                    logits = model(images).float()
                optimizer.zero_grad()
                (-margins(logits, labels)).sum().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    images.clamp_(0, 1)
            meter.spend("maximum margins", forward=len(images))
            with torch.no_grad():
                largest, best = margins(model(images), labels).view(len(classes), -1).max(1)
            found.append(largest)
            for place in largest.topk(min(SHOWN, len(classes))).indices.tolist():
                shown[int(classes[place])] = pixels(images[place * each + int(best[place])])
        return Margins(torch.cat(found), shown)
