"""Universal perturbation: one small change of the pixels, the same for all images, aimed at each class in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import Samples, too_few_classes
from banaudit.detectors.shortcut import ShortcutDetector
from banaudit.detectors.targeted_paths import Leader
from banaudit.meter import Meter
from banaudit.pixel_changes import grow, step_length
from banaudit.precision import fast_precision
from banaudit.results import TriggerFacts
from banaudit.shapes import Images, Logits
from banaudit.triggers import RecoveredTrigger, before_and_after, picture_of_change

FEWEST_CLASSES = 8
"""Classes of the networks that an audit asks it about: of four, six or seven, cut out of a clean network of ten, chance
puts one far ahead."""

MEDIAN_REACHED = 0.5
"""Share of the images from which on the median class counts as reached: the mean margin is about nought there."""


class _PixelShift:
    """A universal perturbation, grown inside an L2 ball whose radius rises by one step at a time."""

    def __init__(self, model: SplitModel, like: Images, step: float, meter: Meter) -> None:
        self._model = model.eval().requires_grad_(False)
        self._like = like[:1]
        self._step = step_length(step, self._like[0])
        self._meter = meter

    def zero(self) -> Tensor:
        return torch.zeros_like(self._like)

    def random(self, step: int, generator: torch.Generator) -> Tensor:
        direction: Tensor = torch.randn(self._like.shape, generator=generator).to(self._like.device)
        scaled: Tensor = direction * (self._step * step / direction.norm())
        return scaled

    def logits(self, images: Images, perturbation: Tensor, what: str) -> Logits:
        gradient = perturbation.requires_grad
        self._meter.spend(what, forward=len(images), backward=len(images) if gradient else 0)
        with fast_precision(images.device):
            logits: Tensor = self._model((images + perturbation).clamp(0, 1))
        return logits.float()

    def descend(self, perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
        return grow(perturbation, gradient, self._step, step)


@final
class UniversalPerturbation(ShortcutDetector):
    """Scores how much further than any other class one class is reached by one small change of all images' pixels.

    For each class t a perturbation v, |v|_2 growing step by step, descends CE(f(clip(x + v)), t) over images x of the
    other classes; the model runs as it is (stored statistics).  Classes are compared where the median class is reached
    by nearly all images (:mod:`targeted_paths` has the ruler).  Patches and blended patterns, which noise on neurons
    misses, are exactly such changes.

    Source:
        The idea that a backdoor makes universal perturbations towards its target cheap: Xu et al., "Universal Soldier",
        DSN-W 2024. The growing ball, the ruler and the all-to-all search are ours.
    """

    name: ClassVar[str] = "universal-perturbation"
    title: ClassVar[str] = "a class that one small change of all images reaches too easily"
    needs: ClassVar[str] = f"clean images; {FEWEST_CLASSES} classes"
    misses: ClassVar[str] = "triggers that no fixed additive pattern imitates: warping, per-image triggers"
    perturbs: ClassVar[str] = "universal perturbation"

    step_size: PositiveFloat = 0.6
    """Growth of the L2 norm with each step, for 3 x 32 x 32 images in [0, 1]."""
    mapping_step_share: PositiveFloat = 1.0
    """Growth of a perturbation that is to map classes one to one, as a share of ``step_size``."""
    mapping_images: PositiveInt = 128
    """Images that each step of that search descends on."""
    mapping_threshold: PositiveFloat = 0.5
    """Share of held-out images that follow the map above which the all-to-all reading fires."""
    lead_threshold: PositiveFloat = 0.4
    """Lead of one class above which the all-to-one reading fires, where at least half of the images reach the median
    class."""
    unreached_share: float = Field(default=0.5, gt=0, le=1)
    """The same as a share of ``lead_threshold`` where no image reaches it; between them it rises evenly. Where a
    network is hard to steer (digits), margins have moved a part of the way when the paths end, and chance puts a class
    ahead by less."""
    relied_on: float = Field(default=0.5, gt=0, le=1)
    """Share of the threshold above which paths are followed once more, since joint evidence relies on the lead too."""
    pair_threshold: PositiveFloat = 1.2
    """Lead of one (source, target) pair above which the source-target reading fires."""

    def lead_threshold_at(self, reach: float) -> float:
        """Lower where few images arrive (``unreached_share``)."""
        reached = min(1.0, reach / MEDIAN_REACHED)
        return self.lead_threshold * (self.unreached_share + (1 - self.unreached_share) * reached)

    def relied_on_above(self, reach: float) -> float:
        """The share ``relied_on`` of the threshold."""
        return self.relied_on * self.lead_threshold_at(reach)

    def unsuited(self, num_classes: int, images: Sequence[int] | None = None) -> str:
        """Why of so few classes one is ahead by chance."""
        del images
        return too_few_classes(num_classes, FEWEST_CLASSES)

    def perturbation(self, model: SplitModel, images: Images, meter: Meter, *, share: float = 1.0) -> _PixelShift:
        """A universal perturbation of images of this shape."""
        return _PixelShift(model, images, share * self.step_size, meter)

    def shown(self, leader: Leader, samples: Samples, *, accused: bool) -> RecoveredTrigger:
        """The perturbation, and an image without and with it."""
        change, clean = leader.perturbation[0], samples.example(leader.target)
        return shown_change(
            self.name,
            change,
            clean,
            leader.target,
            what="universal perturbation",
            success=leader.success,
            accused=accused,
        )


def shown_change(
    method: str, change: Tensor, clean: Tensor, target: int, *, what: str, success: float, accused: bool
) -> RecoveredTrigger:
    """A change of the pixels, and an image without and with it.

    Args:
        method: That found it.
        change: [C, H, W].
        clean: An image [C, H, W] that it is meant for.
        target: Label that it leads to.
        what: What the change is, in words.
        success: Share of the held-out images that it moves there.
        accused: Whether the reading fired for this label.
    """
    facts = TriggerFacts(
        target=target,
        accused=accused,
        what=what,
        size=round(float(change.norm()), 4),
        size_of="L2 norm, pixels in [0, 1]",
        success=round(success, 4),
    )
    pictures = (picture_of_change(change, "perturbation"), *before_and_after(clean, clean + change))
    return RecoveredTrigger(method, facts, pictures)
