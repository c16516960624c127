"""FeatureRE: for each class, a generator whose images share a few features that lead to the class."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors.base import Detector, Found, Samples, freeze
from banaudit.detectors.feature_inversion import (
    bounded_loss,
    class_mean,
    features_of,
    likeness,
    mixed,
    shortfall,
    spread,
    violation,
)
from banaudit.detectors.inversion import ADAM_BETAS, boxed
from banaudit.detectors.unet import UNet, largest_depth
from banaudit.meter import Meter
from banaudit.precision import fast_precision
from banaudit.results import Evidence, Reading, TriggerFacts
from banaudit.shapes import Features
from banaudit.triggers import RecoveredTrigger, TriggerPicture, change_pictures

WARM_UP_WEIGHT = 100.0
"""Weight of the pixels' change during the warm-up, while it is above its bound."""

LIKENESS_WEIGHT = 5.0
"""Weight of the likeness to the class's own features."""

LARGEST_VALUE = 1e6
"""A value that overflows counts as this: it is far from suspicious, and still a number."""


@dataclass(frozen=True)
class FeatureTrigger:
    """What the inversion of one class found.

    Args:
        label: The class.
        mask: Of the features that lead to it, shaped like one image's features, in (0, 1).
        score: Success minus likeness and excess over the bounds, on held-out images; -inf where it is no number.
        success: Share of held-out images of other classes that it moves to the class.
        change: Mean squared change of a pixel of these images.
        pictures: One of them without and with the trigger; none where there are no such images.
    """

    label: int
    mask: Tensor
    score: float
    success: float
    change: float
    pictures: tuple[TriggerPicture, ...]


class FeatureInversion(BaseModel, ABC):
    """The inversion of a trigger in feature space, and its settings: what FeatureRE's detector and repair share."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mask_by_channel: ClassVar[bool]
    """Whether all positions of a channel share one entry of the mask."""

    warm_up: NonNegativeInt = 40
    """Steps on the generator alone, without the mask."""
    steps: PositiveInt = 60
    """Steps on generator and mask by turns."""
    batch_size: int = Field(default=16, ge=2)
    """Images in a step."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of Adam on the generator."""
    mask_rate: PositiveFloat = 0.1
    """Step size of Adam on the raw (boxed) mask."""
    width: PositiveInt = 8
    """Channels of the generator's first level."""
    depth: PositiveInt = 3
    """Halvings in the generator."""
    search_images: PositiveInt = 500
    """Images, at most, that are searched on."""
    held_out_images: PositiveInt = 100
    """Images, from those kept out of the search, that the value is read from."""
    pixel_bound: PositiveFloat = 0.008
    """Largest mean squared change of a pixel in [0, 1]."""
    spread_bound: PositiveFloat = 1.2
    """Largest spread of the masked features over images."""
    mask_bound: float = Field(default=0.06, gt=0, le=1)
    """Largest norm of the mask, as a share of the features."""
    success: float = Field(default=0.9, gt=0, le=1)
    """Share of the batch from which on the cross-entropy is left alone."""
    threshold: float = Field(default=0.75, gt=0)
    """Negated value of a class above which it is accused."""

    @final
    def planned_inversion(self, classes: int, search: int, held_out: int) -> int:
        """Forward passes through the network that :meth:`recover` is expected to take.

        Args:
            classes: How many classes are inverted.
            search: Images to search on.
            held_out: Images to read the values from.
        """
        search, held_out = min(self.search_images, search), min(self.held_out_images, held_out)
        return search + held_out + classes * ((self.warm_up + self.steps) * self.batch_size + held_out)

    @final
    def recover(
        self,
        model: SplitModel,
        search: CleanData,
        held_out: CleanData,
        labels: Sequence[int],
        *,
        generator: torch.Generator,
        meter: Meter,
    ) -> list[FeatureTrigger]:
        """Invert classes in turn, and read the value of each from held-out images.

        Args:
            model: A private copy; frozen in place.
            search: Images to search on.
            held_out: Images that play no part in the search.
            labels: The classes.
            generator: On the CPU.
            meter: Is told of every pass.
        """
        freeze(model)
        search = search.draw(self.search_images, generator)
        held_out = held_out.draw(self.held_out_images, generator)
        features = features_of(model, search, meter, batch_size=128)
        reference = features_of(model, held_out, meter, batch_size=128)
        triggers = []
        for label in labels:
            network, mask = self.invert(model, search, features, label, generator=generator, meter=meter)
            others = held_out.labels != label
            images = held_out.images[others]
            meter.spend("feature inversion on held-out images", forward=len(images))
            with torch.no_grad():
                generated = network(images)
                moved = model.features(generated)
                order = torch.randperm(len(images), generator=generator).to(images.device)
                hits = model.head(mixed(moved, reference[others][order], mask)).argmax(1) == label
                success = hits.float().mean() if len(hits) else torch.zeros((), device=images.device)
                mean = class_mean(features, search.labels, label)
                change = F.mse_loss(generated, images)
                value = self.value(likeness(moved, mean), success, change, moved, mask)
            score = -float(value.nan_to_num(nan=torch.inf, posinf=LARGEST_VALUE))
            pictures = change_pictures(images[0], generated[0]) if len(images) else ()
            triggers.append(FeatureTrigger(label, mask, score, float(success), float(change), pictures))
        return triggers

    @final
    def value(self, like: Tensor, success: Tensor, pixels: Tensor, moved: Features, mask: Tensor) -> Tensor:
        """Likeness minus success plus the relative excess over the bounds: low is suspicious."""
        excess = (
            violation(pixels, self.pixel_bound)
            + violation(spread(moved, mask), self.spread_bound)
            + violation(mask.mean(), self.mask_bound)
            + shortfall(success, self.success)
        )
        return like - success + excess

    @final
    def generator_loss(
        self, logits: Tensor, targets: Tensor, *, like: Tensor, pixels: Tensor, spread_now: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the generator minimises after the warm-up.

        Args:
            logits: Of the mixed features, [B, K].
            targets: [B], all of the target class.
            like: Likeness to the class's own features.
            pixels: Mean squared change of a pixel.
            spread_now: Spread of the masked features.
            before: [3] violations of the last step: spread, pixels, success.

        Returns:
            The loss, and the violations of this step [3].
        """
        success = (logits.argmax(1) == targets).float().mean()
        violations = torch.stack(
            (
                violation(spread_now, self.spread_bound),
                violation(pixels, self.pixel_bound),
                shortfall(success, self.success),
            )
        ).detach()
        bounded = torch.stack((spread_now, pixels))
        entropy = F.cross_entropy(logits, targets)
        return LIKENESS_WEIGHT * like.clamp(min=0) + bounded_loss(entropy, bounded, violations, before), violations

    def mask_loss(self, logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """What the mask minimises: the cross-entropy, and its norm |m|_1 while above the bound."""
        over = (mask.mean() > self.mask_bound).float()
        return F.cross_entropy(logits, targets) + over * mask.sum()

    @final
    def invert(
        self,
        model: SplitModel,
        search: CleanData,
        features: Features,
        label: int,
        *,
        generator: torch.Generator,
        meter: Meter,
    ) -> tuple[UNet, Tensor]:
        """The generator and the feature mask of one class.

        Args:
            model: Frozen.
            search: Images to search on.
            features: Their features.
            label: The class.
            generator: On the CPU.
            meter: Is told of every pass.
        """
        device = search.images.device
        others = (search.labels != label).nonzero().flatten()
        mean = class_mean(features, search.labels, label)
        network = UNet(search.images.shape[1], width=self.width, depth=largest_depth(search.images, self.depth))
        network = network.to(device)
        shape = features.shape[1:]
        entries = (shape[0], *(1 for _ in shape[1:])) if self.mask_by_channel else shape
        raw = torch.ones(entries, device=device).requires_grad_()
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate, betas=ADAM_BETAS)
        mask_optimizer = torch.optim.Adam([raw], lr=self.mask_rate, betas=ADAM_BETAS)
        before = torch.zeros(3, device=device)
        for step in range(self.warm_up + self.steps):
            chosen = others[torch.randperm(len(others), generator=generator)[: self.batch_size].to(device)]
            images = search.images[chosen]
            targets = torch.full((len(images),), label, device=device)
            meter.spend(f"feature inversion of class {label}", forward=len(images), backward=len(images))
            with fast_precision(device):
                generated = network(images)
                moved = model.features(generated)
            generated, moved = generated.float(), moved.float()
            pixels = F.mse_loss(generated, images)
            warm = step < self.warm_up
            reference = features[torch.randint(len(search), (len(images),), generator=generator).to(device)]
            if warm:
                far = (pixels > self.pixel_bound).float()
                loss = F.cross_entropy(model.head(moved), targets) + WARM_UP_WEIGHT * far * pixels
            else:
                mask = boxed(raw.detach()).expand(shape)
                logits = model.head(mixed(moved, reference, mask))
                loss, before = self.generator_loss(
                    logits,
                    targets,
                    like=likeness(moved, mean),
                    pixels=pixels,
                    spread_now=spread(moved, mask),
                    before=before,
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if not warm:
                mask = boxed(raw).expand(shape)
                mask_loss = self.mask_loss(model.head(mixed(moved.detach(), reference, mask)), targets, mask)
                mask_optimizer.zero_grad()
                mask_loss.backward()  # type: ignore[no-untyped-call]
                mask_optimizer.step()
        return network.eval(), boxed(raw).detach().expand(shape)


@final
class FeatureRE(FeatureInversion, Detector):
    """Inverts a trigger in feature space for each class: a generator G and a feature mask m.

    Features of generated images are pasted over clean ones where the mask is, ``m g(G(x)) + (1 - m) g(x_ref)``, and
    must lead to class t. Minimised, by turns in G and in m: the likeness of mean g(G(x)) to the class's own mean
    features; the change of the pixels, the spread of m g(G(x)) over images and |m|_1, each only while above its bound;
    and the cross-entropy towards t, while fewer than 90 % of the batch reach it.

    The value of a class is ``likeness - success + relative excess over the bounds``, on held-out images; the lowest
    below -0.75 accuses. Needs no BatchNorm. Slow: a generator for each class. All-to-one only.

    Source: Wang et al., "Rethinking the Reverse-engineering of Trojan Triggers", NeurIPS 2022, Section 3; bounds as in
    BAN, Appendix B.3, where the published ones did not find BadNets.

    Deviates:
        - 40 + 60 steps of 16 images for each class, instead of 100 + 400 epochs, on a smaller U-Net that starts near
          the identity: a reduced schedule. ``warm_up=200, steps=800, batch_size=256, width=32, depth=4`` is the effort
          of BAN's comparison.
        - The bound on the pixels is in [0, 1] units (0.2 for images scaled to unit variance).
        - The weights follow the violation of the last step, not of the last epoch; the value is read once at the end,
          on images that played no part, not as the best epoch on the training images.
        - The step on m takes the features of the pass before G's step, instead of a pass of its own. The spread divides
          by the number of images, not by one less. Images are not augmented, and G normalises over groups of channels
          instead of over the batch.
    """

    name: ClassVar[str] = "feature-re"
    title: ClassVar[str] = "a class that a few shared features lead to"
    needs: ClassVar[str] = "clean images; a GPU for its schedule"
    misses: ClassVar[str] = "every backdoor that it was tried on here, at its reduced schedule"

    mask_by_channel: ClassVar[bool] = False

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes through the audited network that :meth:`search` is expected to take."""
        half = images // 2
        return self.planned_inversion(num_classes, half, half)

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Invert each class in turn, and hold the lowest value against the threshold."""
        triggers = self.recover(
            model, samples.search, samples.held_out, range(samples.num_classes), generator=generator, meter=meter
        )
        scores = torch.tensor([trigger.score for trigger in triggers], dtype=torch.float64)
        target = int(scores.argmax())
        evidence = Evidence(
            reading=Reading.ALL_TO_ONE,
            measures="success of the inverted features, less their likeness to the class and the excess of bounds",
            score=round(float(scores[target]), 6),
            threshold=self.threshold,
            fired=float(scores[target]) > self.threshold,
            target=target,
            per_class=samples.per_class(scores),
            note=f"the inverted features move {triggers[target].success:.0%} of held-out images",
        )
        ranked = scores.argsort(descending=True, stable=True)[:2].tolist()
        shown = (triggers[label] for label in ranked if triggers[label].pictures)
        return Found([evidence], tuple(self._shown(trigger, evidence) for trigger in shown))

    def _shown(self, trigger: FeatureTrigger, evidence: Evidence) -> RecoveredTrigger:
        facts = TriggerFacts(
            target=trigger.label,
            accused=evidence.fired and trigger.label == evidence.target,
            what="trigger generator",
            size=round(trigger.change, 6),
            size_of="mean squared change of a pixel in [0, 1]",
            success=round(trigger.success, 4),
        )
        return RecoveredTrigger(self.name, facts, trigger.pictures)
