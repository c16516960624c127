"""FeatureRE: for each class, a generator whose images share a few features that lead to the class."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors.base import Detector, Samples, draw
from banaudit.detectors.inversion import (
    ADAM_BETAS,
    boxed,
    class_mean,
    features_of,
    freeze,
    likeness,
    mixed,
    spread,
    violation,
)
from banaudit.detectors.unet import UNet, largest_depth
from banaudit.meter import Meter
from banaudit.neurons import fast_precision
from banaudit.results import Evidence, Reading
from banaudit.shapes import Features

WARM_UP_WEIGHT = 100.0
"""Weight of the pixels' change during the warm-up, while it is above its bound."""

LIKENESS_WEIGHT = 5.0
"""Weight of the likeness to the class's own features."""

BOUND_WEIGHT = 10.0
"""Weight of what is above its bound."""


@final
class FeatureRE(Detector):
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
    """

    name: ClassVar[str] = "feature-re"
    title: ClassVar[str] = "a class that a few shared features lead to"
    needs: ClassVar[str] = "clean images; a GPU for its schedule"
    misses: ClassVar[str] = "not measured here"

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

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes through the audited network that :meth:`score` is expected to take."""
        half = images // 2
        known = min(self.search_images, half) + min(self.held_out_images, half)
        each = (self.warm_up + self.steps) * self.batch_size + min(self.held_out_images, half)
        return known + num_classes * each

    def score(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> list[Evidence]:
        """Invert each class in turn, and read its value from held-out images."""
        freeze(model)
        search = draw(samples.search, self.search_images, generator)
        held_out = draw(samples.held_out, self.held_out_images, generator)
        features = features_of(model, search, meter, batch_size=128)
        reference = features_of(model, held_out, meter, batch_size=128)
        values, successes = [], []
        for label in range(samples.num_classes):
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
                values.append(self.value(likeness(moved, mean), success, F.mse_loss(generated, images), moved, mask))
                successes.append(float(success))
        scores = -torch.stack(values).double().cpu().nan_to_num(nan=torch.inf, posinf=1e6)
        target = int(scores.argmax())
        return [
            Evidence(
                reading=Reading.ALL_TO_ONE,
                measures="success of the inverted features, less their likeness to the class and the excess of bounds",
                score=round(float(scores[target]), 6),
                threshold=self.threshold,
                fired=float(scores[target]) > self.threshold,
                target=target,
                per_class=samples.per_class(scores),
                note=f"the inverted features move {successes[target]:.0%} of held-out images",
            )
        ]

    def value(self, like: Tensor, success: Tensor, pixels: Tensor, moved: Features, mask: Tensor) -> Tensor:
        """Likeness minus success plus the relative excess over the bounds: low is suspicious."""
        excess = (
            violation(pixels, self.pixel_bound)
            + violation(spread(moved, mask), self.spread_bound)
            + violation(mask.mean(), self.mask_bound)
            + (1 - success / self.success).clamp(min=0)
        )
        return like - success + excess

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
        short = (1 - success / self.success).clamp(min=0)
        violations = torch.stack(
            (violation(spread_now, self.spread_bound), violation(pixels, self.pixel_bound), short)
        ).detach()
        over = (violations > 0).float()
        loss = LIKENESS_WEIGHT * like.clamp(min=0) + (1 + before[2]) * over[2] * F.cross_entropy(logits, targets)
        bounded = (1 + before[0]) * over[0] * spread_now + (1 + before[1]) * over[1] * pixels
        return loss + BOUND_WEIGHT * bounded, violations

    def mask_loss(self, logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """What the mask minimises: the cross-entropy, and its norm |m|_1 while above the bound."""
        over = (mask.mean() > self.mask_bound).float()
        return F.cross_entropy(logits, targets) + over * mask.sum()

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
        raw = torch.ones(features.shape[1:], device=device).requires_grad_()
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
                mask = boxed(raw.detach())
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
                mask = boxed(raw)
                mask_loss = self.mask_loss(model.head(mixed(moved.detach(), reference, mask)), targets, mask)
                mask_optimizer.zero_grad()
                mask_loss.backward()  # type: ignore[no-untyped-call]
                mask_optimizer.step()
        return network.eval(), boxed(raw).detach()
