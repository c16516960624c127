"""BTI-DBF: part the features into benign and others, then train a generator that moves images along the others."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, batches
from banaudit.detectors.base import Detector, Found, Samples, freeze
from banaudit.detectors.feature_inversion import features_of
from banaudit.detectors.unet import UNet, largest_depth
from banaudit.meter import Meter
from banaudit.neurons import decoupling_loss
from banaudit.precision import fast_precision
from banaudit.results import Evidence, Reading, TriggerFacts
from banaudit.shapes import Features, Images, Labels
from banaudit.triggers import RecoveredTrigger, change_pictures

BENIGN_WEIGHT = 0.01
"""Weight of the benign features' change in the generator's loss (official code)."""


def generator_loss(
    images: Images, generated: Images, features: Features, moved: Features, mask: Tensor, *, bound: float, most: float
) -> Tensor:
    """What the generator minimises.

    While it is too far from the image: the distance to it. Else the change of the benign features, lightly, against
    the change of the others.

    Args:
        images: [B, C, H, W].
        generated: The generator's output for them.
        features: g(images).
        moved: g(generated).
        mask: Of the benign features.
        bound: Largest mean squared change of a pixel.
        most: Largest mean squared change of the benign features.
    """
    pixels = F.mse_loss(generated, images)
    benign = F.mse_loss(mask * moved, mask * features)
    others = F.mse_loss((1 - mask) * moved, (1 - mask) * features)
    too_far = (pixels > bound) | (benign > most)
    return torch.where(too_far, pixels, BENIGN_WEIGHT * benign - others)


class DecoupledFeatures(Detector, ABC):
    """Both BTI-DBF and its repair: they differ in the penalty on the feature mask.

    1. Mask m over the latent features g(x): minimise :func:`decoupling_loss`.
    2. Generator G: minimise :func:`generator_loss`: G(x) stays near x and keeps the benign features m g(x), while the
       others (1 - m) g(x) change as much as they can.
    3. Reading: the largest share of held-out images of other classes that G sends to one class.
    """

    mask_weight: NonNegativeFloat
    """Weight of the penalty on the mask's norm (paper: lambda_1)."""
    mask_steps: PositiveInt = 400
    """Adam steps on the mask; they pass through the head alone."""
    mask_batch: PositiveInt = 128
    """Images in a step on the mask."""
    mask_rate: PositiveFloat = 0.01
    """Step size of Adam on the raw (sigmoid-boxed) mask."""
    search_images: PositiveInt = 1000
    """Images, at most, whose features are decoupled and on which the generator is trained."""
    steps: PositiveInt = 150
    """Adam steps on the generator."""
    batch_size: PositiveInt = 32
    """Images in a step on the generator."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of Adam on the generator."""
    width: PositiveInt = 16
    """Channels of the generator's first level."""
    depth: PositiveInt = 3
    """Halvings in the generator."""
    pixel_bound: PositiveFloat = 0.012
    """Largest mean squared change of a pixel in [0, 1]; 0.3 for images scaled to unit variance."""
    benign_bound: PositiveFloat = 3.0
    """Largest mean squared change of the benign features."""
    held_out_images: PositiveInt = 400
    """Images, from those kept out of the search, that the generator is tried on."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Share of the images of other classes in one class above which that class is accused."""

    @final
    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes through the audited network that :meth:`search` is expected to take."""
        del num_classes
        half = images // 2
        return min(self.search_images, half) + self.steps * self.batch_size + min(self.held_out_images, half)

    @final
    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Decouple, generate, and look where the generated images go."""
        freeze(model)
        search = samples.search.draw(self.search_images, generator)
        features = features_of(model, search, meter, batch_size=self.mask_batch)
        mask = self.fit_mask(model, features, search.labels, generator)
        network = self.fit_generator(model, search, features, mask, generator=generator, meter=meter)
        held_out = samples.held_out.draw(self.held_out_images, generator)
        shares = self.shares(model, network, held_out, meter)
        target = int(shares.argmax())
        score = float(shares[target])
        evidence = Evidence(
            reading=Reading.ALL_TO_ONE,
            measures="share of generated images of other classes that the network takes for one class",
            score=round(score, 6),
            threshold=self.threshold,
            fired=score > self.threshold,
            target=target,
            per_class=samples.per_class(shares),
            note=f"the feature mask keeps {float(mask.mean()):.0%} of the features as benign",
        )
        with torch.no_grad():
            clean, images = samples.example(target), held_out.images[: self.mask_batch]
            facts = TriggerFacts(
                target=target,
                accused=evidence.fired,
                what="trigger generator",
                size=round(float(F.mse_loss(network(images), images)), 6),
                size_of="mean squared change of a pixel in [0, 1]",
                success=round(score, 4),
            )
            pictures = change_pictures(clean, network(clean[None])[0])
        return Found([evidence], (RecoveredTrigger(self.name, facts, pictures),))

    @final
    def fit_mask(self, model: SplitModel, features: Features, labels: Labels, generator: torch.Generator) -> Tensor:
        """The mask of the benign features, shaped like one image's features, in (0, 1)."""
        raw = torch.randn(features.shape[1:], generator=generator).to(features.device).requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=self.mask_rate)
        for _ in range(self.mask_steps):
            chosen = torch.randint(len(labels), (min(self.mask_batch, len(labels)),), generator=generator)
            chosen = chosen.to(features.device)
            loss = decoupling_loss(model, features[chosen], labels[chosen], torch.sigmoid(raw), self.mask_weight)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return torch.sigmoid(raw).detach()

    @final
    def make_generator(self, images: Images) -> UNet:
        """An untrained generator for such images [B, C, H, W]; its weights come from the global random state."""
        network = UNet(images.shape[1], width=self.width, depth=largest_depth(images, self.depth))
        return network.to(images.device)

    @final
    def fit_generator(
        self,
        model: SplitModel,
        search: CleanData,
        features: Features,
        mask: Tensor,
        *,
        generator: torch.Generator,
        meter: Meter,
        target: int | None = None,
    ) -> UNet:
        """The trained generator.

        Args:
            model: Frozen.
            search: Images to train on.
            features: Their features.
            mask: Of the benign features.
            generator: On the CPU.
            meter: Is told of every pass.
            target: Class that generated images must reach too, by cross-entropy; none: wherever they go.
        """
        device = search.images.device
        network = self.make_generator(search.images)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for _ in range(self.steps):
            chosen = torch.randperm(len(search), generator=generator)[: self.batch_size].to(device)
            images = search.images[chosen]
            meter.spend("trigger generator", forward=len(images), backward=len(images))
            with fast_precision(device):
                generated = network(images)
                moved = model.features(generated).float()
            loss = generator_loss(
                images,
                generated.float(),
                features[chosen],
                moved,
                mask,
                bound=self.pixel_bound,
                most=self.benign_bound,
            )
            if target is not None:
                loss = loss + F.cross_entropy(model.head(moved), torch.full((len(images),), target, device=device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return network.eval()

    @final
    def shares(self, model: SplitModel, network: UNet, held_out: CleanData, meter: Meter) -> Tensor:
        """Share of the generated images of other classes that goes to each class, [K], in full precision."""
        logits = []
        with torch.no_grad():
            for images, _ in batches(held_out.images, held_out.labels, self.mask_batch):
                meter.spend("generated held-out images", forward=len(images))
                logits.append(model(network(images)))
        predicted = torch.cat(logits)
        went = F.one_hot(predicted.argmax(1), predicted.shape[1]).double()
        other = 1 - F.one_hot(held_out.labels, predicted.shape[1]).double()
        return ((went * other).sum(0) / other.sum(0).clamp(min=1)).cpu()


@final
class BTIDBF(DecoupledFeatures):
    """Decouples benign features from the rest, and inverts a trigger from the rest with a generator.

    The mask's loss has no bound on its size, so that it can keep every feature; nothing is then left to invert. The
    BAN paper shows that this happens for BadNets and Blend; :class:`BTIDBFStar` repairs it. Measured here
    (``docs/benchmark/methods.md``, what the searches noted): it happens on nearly every network, clean or not.

    Source: Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features",
    ICLR 2024, Section 4; defaults of the official code.

    Deviates:
        - The generator starts near the identity by construction. The original trains it for 50 epochs to be one, on
          every network anew.
        - 150 steps of 32 images (4,800 passes) on a U-Net of width 16 and depth 3, instead of 30 epochs over 5 % of
          the training data (75,000 passes) on one of width 32 and depth 4. ``steps=600, batch_size=128, width=32,
          depth=4`` is the original's effort.
        - The audited network stays in eval mode; the original lets its BatchNorm statistics drift while the mask is
          fitted. Features are computed once.
        - Images are in [0, 1]; the original's bound of 0.3 is meant for images scaled to unit variance.
        - The original always prints a label. Here more than half of the held-out images of *other* classes must end in
          one class (the later literature's rule, without the class's own images). No noise is added to the images.
    """

    name: ClassVar[str] = "bti-dbf"
    title: ClassVar[str] = "one class that images fall into when their non-benign features are moved"
    needs: ClassVar[str] = "clean images; a GPU for its schedule"
    misses: ClassVar[str] = "nearly all backdoors: its mask calls almost all features benign, so nothing is inverted"

    mask_weight: NonNegativeFloat = 0.0
    """Weight of the penalty on the mask's norm; 0: none, as published."""


@final
class BTIDBFStar(DecoupledFeatures):
    """BTI-DBF with the feature mask of BAN: a penalty on its norm keeps it from swallowing every feature.

    Source: Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024, Section 3.4 and
    Eq. 5; the second step and its deviations are those of :class:`BTIDBF`.

    Deviates:
        - No code is published for it. The penalty is divided by its own value, as in BAN's code; a literal |m|_1
          would swamp both cross-entropies. The mask is boxed by a sigmoid, as in BTI-DBF, not clamped.
    """

    name: ClassVar[str] = "bti-dbf-star"
    title: ClassVar[str] = "BTI-DBF with BAN's bound on the feature mask"
    needs: ClassVar[str] = "clean images; a GPU for its schedule"
    misses: ClassVar[str] = "most patches and blended patterns at its reduced schedule"
    warns: ClassVar[str] = "clean networks, a quarter of those of the test"

    mask_weight: NonNegativeFloat = 0.75
    """Weight of the penalty on the mask's norm (paper: lambda_1)."""
