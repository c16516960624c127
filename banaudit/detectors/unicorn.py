"""UNICORN: for each class, a pair of generators between whose images a small patch leads to the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor
from torch.func import functional_call

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors.base import Detector, Found, Samples, freeze
from banaudit.detectors.feature_inversion import (
    BOUND_WEIGHT,
    bounded_loss,
    class_mean,
    features_of,
    likeness,
    mixed,
    shortfall,
    spread,
    violation,
)
from banaudit.detectors.inversion import ADAM_BETAS, MASK_START, Triggers, boxed, field_size, images_of_other_classes
from banaudit.detectors.unet import UNet, largest_depth
from banaudit.meter import Meter
from banaudit.precision import fast_precision
from banaudit.results import Evidence, Reading, TriggerFacts
from banaudit.shapes import Features, Images, Labels
from banaudit.triggers import RecoveredTrigger, change_pictures

IDENTITY_WEIGHT = 200.0
"""Weight of the mean squared error of Q(P(x)) against x (official code)."""

LIKENESS_FLOOR = 0.5
"""Likeness to the class's own features below which the patch is not pushed further from them (official code)."""

SSIM_WINDOW = 11
"""Pixels across the window of SSIM, at most; an odd number."""

SSIM_SIGMA = 1.5
"""Standard deviation of the window of SSIM, in pixels."""

SSIM_CONSTANTS = (0.01**2, 0.03**2)
"""What keeps the quotients of SSIM finite, for pixels in [0, 1]."""

LOWEST_SCORE = -1e6
"""Stands for scores that are not finite, and for anything below."""


def ssim(images: Images, others: Images) -> Tensor:
    """Structural similarity of pairs of images, [B]: 1 where they are the same, lower the less they look alike.

    Args:
        images: [B, C, H, W] in [0, 1].
        others: The same shape.

    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004, Eq. 13; the
    mean over channels and all windows that lie within the image.
    """
    channels = images.shape[1]
    size = min(SSIM_WINDOW, *images.shape[2:])
    size -= 1 - size % 2
    offsets = torch.arange(size, device=images.device) - size // 2
    line = torch.exp(-0.5 * (offsets / SSIM_SIGMA).square())
    line = (line / line.sum()).expand(5 * channels, 1, 1, size)
    maps = torch.cat((images, others, images.square(), others.square(), images * others), dim=1)
    maps = F.conv2d(maps, line, groups=5 * channels)
    maps = F.conv2d(maps, line.transpose(2, 3), groups=5 * channels)
    mean, other_mean, square, other_square, product = torch.split(maps, channels, dim=1)
    variance, other_variance = square - mean.square(), other_square - other_mean.square()
    first, second = SSIM_CONSTANTS
    likeness_of_means = (2 * mean * other_mean + first) / (mean.square() + other_mean.square() + first)
    rest = (2 * (product - mean * other_mean) + second) / (variance + other_variance + second)
    return (likeness_of_means * rest).flatten(1).mean(1)


@dataclass(frozen=True)
class Inversions:
    """What is searched for each of T target classes; tensors only, the first dimension is the class.

    Args:
        labels: [T] the classes.
        encoders: Weights of the generator P into the space of the trigger, each [T, ...].
        decoders: Weights of the generator Q back to images, each [T, ...].
        raw_masks: [T, C, H, W] input mask, before its box.
        raw_patterns: [T, C, H, W] pattern, before its box.
        raw_feature_masks: [T, D, ...] feature mask, before its box.
    """

    labels: Labels
    encoders: dict[str, Tensor]
    decoders: dict[str, Tensor]
    raw_masks: Tensor
    raw_patterns: Tensor
    raw_feature_masks: Tensor

    @classmethod
    def start(cls, num_classes: int, encoder: UNet, decoder: UNet, image: Tensor, feature: Tensor) -> Self:
        """The same start for every class, so that they differ in their target alone.

        Args:
            num_classes: K.
            encoder: P as it starts.
            decoder: Q as it starts.
            image: Any one, [C, H, W].
            feature: Of any image, [D, ...].
        """

        def for_each(tensor: Tensor) -> Tensor:
            return tensor.detach().expand(num_classes, *tensor.shape).clone()

        return cls(
            labels=torch.arange(num_classes, device=image.device),
            encoders={name: for_each(weight) for name, weight in encoder.named_parameters()},
            decoders={name: for_each(weight) for name, weight in decoder.named_parameters()},
            raw_masks=for_each(torch.full_like(image, MASK_START)),
            raw_patterns=for_each(torch.zeros_like(image)),
            raw_feature_masks=for_each(torch.ones_like(feature)),
        )

    @staticmethod
    def combined(parts: Sequence[Inversions], combine: Callable[[list[Tensor]], Tensor]) -> Inversions:
        """One made of several: ``combine`` is given each tensor of all of them, without gradients."""

        def together(*tensors: Tensor) -> Tensor:
            return combine([tensor.detach() for tensor in tensors])

        return Inversions(
            labels=together(*(part.labels for part in parts)),
            encoders={name: together(*(part.encoders[name] for part in parts)) for name in parts[0].encoders},
            decoders={name: together(*(part.decoders[name] for part in parts)) for name in parts[0].decoders},
            raw_masks=together(*(part.raw_masks for part in parts)),
            raw_patterns=together(*(part.raw_patterns for part in parts)),
            raw_feature_masks=together(*(part.raw_feature_masks for part in parts)),
        )

    def take(self, positions: Tensor) -> Inversions:
        """Some of the classes: copies, without gradients."""
        return self.combined([self], lambda tensors: tensors[0][positions])

    def where(self, chosen: Tensor, other: Inversions) -> Inversions:
        """The classes that are chosen, [T] booleans, and those of another search for the same classes otherwise."""

        def mix(tensors: list[Tensor]) -> Tensor:
            mine, others = tensors
            return torch.where(chosen.view(-1, *(1 for _ in mine.shape[1:])), mine, others)

        return self.combined([self, other], mix)

    def triggers(self) -> Triggers:
        """Input mask and pattern of each class."""
        return Triggers(self.labels, boxed(self.raw_masks), boxed(self.raw_patterns))


def generated_by(network: UNet, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Images [T, B, C, H, W] through one generator for each class, all classes at once.

    Args:
        network: Lends its layers; its own weights are not used.
        weights: Each [T, ...].
        images: [T, B, C, H, W].
    """

    def one(of_class: dict[str, Tensor], its_images: Tensor) -> Tensor:
        result: Tensor = functional_call(network, of_class, (its_images,))
        return result

    with fast_precision(images.device):
        return torch.vmap(one)(weights, images).float()


def _by_class(flat: Tensor, like: Tensor) -> Tensor:
    """[T B, ...] as [T, B, ...], with T and B those of another."""
    return flat.view(*like.shape[:2], *flat.shape[1:])


def latent(model: SplitModel, images: Tensor) -> Features:
    """Features [T, B, D, ...] of images [T, B, C, H, W], in one pass."""
    flat = images.flatten(0, 1)
    with fast_precision(images.device):
        return _by_class(model.features(flat).float(), images)


def logits_of(model: SplitModel, features: Features) -> Tensor:
    """Logits [T, B, K] of features [T, B, D, ...]."""
    return _by_class(model.head(features.flatten(0, 1)), features)


def entropies(logits: Tensor, labels: Labels) -> Tensor:
    """Mean cross-entropy of logits [T, B, K] towards one label for each of T classes, [T]."""
    targets = labels[:, None].expand(logits.shape[:2])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)


@dataclass(frozen=True)
class Batch:
    """Images of one round, B for each of T classes.

    Args:
        labels: [T] the classes.
        images: [T, B, C, H, W], none of its class.
        reference: Clean features to paste into: those of the same images in another order, [T, B, D, ...].
        means: Mean features of each class itself, [T, D, ...].
    """

    labels: Labels
    images: Tensor
    reference: Features
    means: Features


@dataclass(frozen=True)
class Look:
    """What one pass shows of T triggers.

    Args:
        logits: Of the mixed features, [T, B, K].
        like: Likeness to the classes' own features, [T].
        change: Mean of 1 - SSIM, [T].
        spread: Of the masked features, [T].
        value: Success without mixing, less the relative excess over the bounds, [T].
        moved: Features of the generated images, [T, B, D, ...].
    """

    logits: Tensor
    like: Tensor
    change: Tensor
    spread: Tensor
    value: Tensor
    moved: Features


def shares(masks: Tensor) -> Tensor:
    """Norm of each mask [T, ...] in [0, 1] as a share of its entries, [T]."""
    return masks.flatten(1).mean(1)


@final
class Unicorn(Detector):
    """Inverts a trigger for each class in a space of its own: generators P and Q, Q nearly the inverse of P.

    Between them sits a patch, ``x' = Q((1 - m) P(x) + m p)``, that can become a patch, a blend, a filter or a warp of
    the image. As in FeatureRE a feature mask M mixes its features with clean ones, ``M g(x') + (1 - M) g(x_ref)``, and
    these must lead to class t. Minimised, by turns:

        - in P, Q, m and p: the likeness of mean g(x') to the class's own mean features; the change of the image,
          1 - SSIM(x', x), the spread of M g(x') over images, and |m|_1, each only while above its bound; the
          cross-entropy towards t, while fewer than 90 % of the batch reach it; and 200 (Q(P(x)) - x)^2;
        - in M: the cross-entropy, and |M|_1 while above its bound.

    The score of a class is the share of held-out images of other classes that x' moves to it, without mixing, less the
    relative excess over the bounds; above 0.9 it accuses. No class is compared with another. Needs no BatchNorm. The
    default takes about 8,000 passes forward and 7,000 backward for 10 classes, and twice that through the generators.
    All-to-one only.

    Source: Wang et al., "UNICORN: A Unified Backdoor Trigger Inversion Framework", ICLR 2023; weights as in the
    official code; bounds as in BAN, Appendix B.3, which reports that the defaults (``spread_bound=1, ssim_bound=0.15,
    mask_bound=0.15``) accuse every network; with its own, 6 of 20 clean ResNet-18 still were accused (Table 1).

    Deviates:
        - The rule is ours: the official code inverts one given target and prints its success. Here every class is
          inverted, and what exceeds a bound is taken off the success: at full success, bounds may be exceeded by a
          tenth, all together.
        - 80 rounds of 16 images, instead of 1,000 epochs over 1 % of the data, on smaller U-Nets: a reduced schedule.
          ``steps=80, rung=80, warm_up=1000, trigger_steps=11, batch_size=256, width=32, depth=4`` is the effort of
          BAN's comparison (40 epochs on 500 images); ``steps=2000, rung=2000`` with the rest of these the original's.
        - P and Q start near the identity by construction; the original trains them for 500 epochs to be inverse
          (``warm_up``). They give images in (0, 1), so P(x) needs no scaling by its extremes, and they have no
          BatchNorm, which the original switches between its modes.
        - The first step on m and p in each round shares its pass with the step on P and Q (the original takes one and
          then ten, at other passes), and the steps on M use features of the last of these passes.
        - The raw input mask starts at -1, just under its bound, not at 1, where it hides the image for many rounds.
        - Half of the classes are dropped, by the same score on search images, every 20 rounds until three are left;
          Adam then starts anew. A class keeps the state of its best round, on search images; the original's last
          state depends on which side of a bound it just is.
        - The weights follow the violation of the last step, not of the last epoch. The spread divides by the number of
          images, not by one less.
    """

    name: ClassVar[str] = "unicorn"
    title: ClassVar[str] = "a class that a small patch leads to in a space that generators find for it"
    needs: ClassVar[str] = "clean images; a GPU for its schedule"
    misses: ClassVar[str] = "all-to-all backdoors; at its reduced schedule most others too"
    warns: ClassVar[str] = "clean networks, often (3 in 10 as published)"

    steps: PositiveInt = 80
    """Rounds, each a step on the generators and some on the trigger and on the feature mask, for the classes that stay
    to the end."""
    trigger_steps: PositiveInt = 1
    """Steps on input mask and pattern in a round; each passes through the network."""
    mask_steps: PositiveInt = 10
    """Steps on the feature mask in a round; they pass through the head alone."""
    batch_size: int = Field(default=16, ge=2)
    """Images of a round, for each class."""
    warm_up: NonNegativeInt = 0
    """Steps that train Q(P(x)) to return x before all else; they do not pass through the network."""
    learning_rate: PositiveFloat = 1e-3
    """Step size of Adam on the generators."""
    trigger_rate: PositiveFloat = 0.1
    """Step size of Adam on the raw (boxed) input mask and pattern."""
    mask_rate: PositiveFloat = 0.1
    """Step size of Adam on the raw (boxed) feature mask."""
    width: PositiveInt = 8
    """Channels of the generators' first level."""
    depth: PositiveInt = 3
    """Halvings in the generators."""
    rung: PositiveInt = 20
    """Rounds after which the half of the classes that the search goes worst for is dropped."""
    finalists: PositiveInt = 3
    """Classes that are searched to the end."""
    together: PositiveInt = 16
    """Classes in one pass, at most: memory grows with them."""
    search_images: PositiveInt = 500
    """Images, at most, that are searched on."""
    held_out_images: PositiveInt = 100
    """Images, from those kept out of the search, that the score is read from."""
    likeness_weight: PositiveFloat = 1.0
    """Weight of the likeness to the class's own features."""
    ssim_bound: PositiveFloat = 0.1
    """Largest loss of structural similarity, 1 - SSIM, between an image and the one with the trigger."""
    spread_bound: PositiveFloat = 0.5
    """Largest spread of the masked features over images."""
    mask_bound: float = Field(default=0.01, gt=0, le=1)
    """Largest norm of the feature mask, as a share of the features."""
    input_bound: float = Field(default=0.15, gt=0, le=1)
    """Largest norm of the input mask, as a share of the pixels."""
    success: float = Field(default=0.9, gt=0, le=1)
    """Share of the batch from which on the cross-entropy is left alone."""
    threshold: float = Field(default=0.9, gt=0, lt=1)
    """Success less the relative excess over the bounds above which a class is accused."""

    def stages(self, num_classes: int) -> list[tuple[int, int]]:
        """Rounds and classes of each part of the search, between which the field is cut."""
        stages: list[tuple[int, int]] = []
        for step in range(0, self.steps, self.rung):
            rounds = min(self.rung, self.steps - step)
            size = field_size(step, num_classes, finalists=self.finalists, rung=self.rung)
            if stages and stages[-1][1] == size:
                rounds += stages.pop()[0]
            stages.append((rounds, size))
        return stages

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes through the audited network that :meth:`search` is expected to take."""
        half = images // 2
        rounds = sum(rounds * size for rounds, size in self.stages(num_classes))
        known = min(self.search_images, half) + num_classes * min(self.held_out_images, half)
        return known + rounds * self.trigger_steps * self.batch_size

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Invert a trigger for each class, and read its score from held-out images."""
        freeze(model)
        clean = samples.search.draw(self.search_images, generator)
        held_out = samples.held_out.draw(self.held_out_images, generator)
        channels, depth = clean.images.shape[1], largest_depth(clean.images, self.depth)
        encoder, decoder = (UNet(channels, width=self.width, depth=depth).to(clean.images.device) for _ in range(2))
        found = self.invert(model, encoder, decoder, clean, generator, meter)
        classes = [
            found.take(position)
            for position in torch.arange(samples.num_classes, device=held_out.labels.device)[:, None]
        ]
        readings = torch.stack([self.read(model, encoder, one, held_out, meter) for one in classes]).double().cpu()
        scores, successes, changes = readings.unbind(1)
        target = int(scores.argmax())
        passed = int((scores > self.threshold).sum())
        note = f"its trigger moves {successes[target]:.0%} of held-out images"
        if passed > 1:
            note += f"; {passed} classes pass, so the bounds may be too wide for this network"
        evidence = Evidence(
            reading=Reading.ALL_TO_ONE,
            measures="success of the inverted trigger, less the relative excess over its bounds",
            score=round(float(scores[target]), 6),
            threshold=self.threshold,
            fired=passed > 0,
            target=target,
            per_class=samples.per_class(scores),
            note=note,
        )
        facts = TriggerFacts(
            target=target,
            accused=evidence.fired,
            what="trigger between two generators",
            size=round(float(changes[target]), 6),
            size_of="1 - SSIM of images with and without it",
            success=round(float(successes[target]), 4),
        )
        example = samples.example(target)
        with torch.no_grad():
            triggered = self.with_trigger(encoder, classes[target], example[None, None])[0, 0]
        return Found([evidence], (RecoveredTrigger(self.name, facts, change_pictures(example, triggered)),))

    def read(self, model: SplitModel, network: UNet, inversion: Inversions, clean: CleanData, meter: Meter) -> Tensor:
        """Score, success, and change of the images (1 - SSIM) of one class, [3], on images that are not of it.

        The feature mask plays no part in the success: features are not mixed.

        Args:
            model: Frozen.
            network: Lends its layers to P and Q.
            inversion: Of one class.
            clean: Images to read from.
            meter: Is told of every pass.
        """
        label = inversion.labels[0]
        images = clean.images[clean.labels != label]
        if not len(images):
            return torch.tensor([LOWEST_SCORE, 0.0, 0.0], device=images.device)
        meter.spend("inverted trigger on held-out images", forward=len(images))
        with torch.no_grad():
            generated = self.with_trigger(network, inversion, images[None])[0]
            moved = model.features(generated)
            success = (model.head(moved).argmax(1) == label).float().mean()
            change = 1 - ssim(generated, images).mean()
            mask = boxed(inversion.raw_feature_masks[0])
            score = self.value(
                success,
                change=change,
                spread_now=spread(moved, mask),
                feature_share=mask.mean(),
                input_share=inversion.triggers().masks.mean(),
            )
        return torch.stack((score, success, change))

    def value(
        self, success: Tensor, *, change: Tensor, spread_now: Tensor, feature_share: Tensor, input_share: Tensor
    ) -> Tensor:
        """Success less the relative excess over the bounds: high is suspicious. For one class, or [T].

        Args:
            success: Share of images that the trigger moves to the class.
            change: Mean of 1 - SSIM.
            spread_now: Of the masked features.
            feature_share: Norm of the feature mask as a share of the features.
            input_share: Norm of the input mask as a share of the pixels.
        """
        excess = (
            violation(change, self.ssim_bound)
            + violation(spread_now, self.spread_bound)
            + violation(feature_share, self.mask_bound)
            + violation(input_share, self.input_bound)
        )
        return (success - excess).nan_to_num(nan=LOWEST_SCORE).clamp(min=LOWEST_SCORE)

    def with_trigger(self, network: UNet, inversions: Inversions, images: Tensor) -> Tensor:
        """Q((1 - m) P(x) + m p): [T, B, C, H, W] for images of the same shape."""
        stamped = inversions.triggers().stamp(generated_by(network, inversions.encoders, images))
        return generated_by(network, inversions.decoders, stamped)

    def generator_loss(self, now: Look, labels: Labels, before: Tensor, *, floor: float) -> tuple[Tensor, Tensor]:
        """What the generators and the trigger have in common.

        Args:
            now: What was measured at this step.
            labels: [T] the target classes.
            before: [3, T] violations of the last step: spread, change, success.
            floor: Likeness below which it does not count.

        Returns:
            Losses [T], and the violations of this step [3, T].
        """
        success = (now.logits.argmax(2) == labels[:, None]).float().mean(1)
        violations = torch.stack(
            (
                violation(now.spread, self.spread_bound),
                violation(now.change, self.ssim_bound),
                shortfall(success, self.success),
            )
        ).detach()
        bounded = torch.stack((now.spread, now.change))
        loss = bounded_loss(entropies(now.logits, labels), bounded, violations, before)
        return self.likeness_weight * torch.where(now.like < floor, 0.0, now.like) + loss, violations

    def mask_loss(self, logits: Tensor, labels: Labels, masks: Tensor) -> Tensor:
        """What each feature mask minimises, [T]: the cross-entropy, and its norm |m|_1 while above the bound.

        Args:
            logits: Of the mixed features, [T, B, K].
            labels: [T] the target classes.
            masks: [T, D, ...].
        """
        return entropies(logits, labels) + (shares(masks) > self.mask_bound) * masks.flatten(1).sum(1)

    def size_penalty(self, triggers: Triggers) -> Tensor:
        """Ten times the norm of each input mask while above its bound, [T]."""
        too_large = shares(triggers.masks.detach()) > self.input_bound
        return BOUND_WEIGHT * too_large * triggers.norms()

    def invert(
        self,
        model: SplitModel,
        encoder: UNet,
        decoder: UNet,
        clean: CleanData,
        generator: torch.Generator,
        meter: Meter,
    ) -> Inversions:
        """The inversions of all K classes, in the order of their labels; dropped ones as they were when dropped.

        Args:
            model: Frozen.
            encoder: P as it starts; trained during the warm-up.
            decoder: Q, likewise.
            clean: Images to search on.
            generator: On the CPU.
            meter: Is told of every pass.

        Raises:
            DataError: All images are of one class.
            TimeLimitReached: From the meter.
        """
        features = features_of(model, clean, meter, batch_size=128)
        self.warm(encoder, decoder, clean.images, generator)
        field = Inversions.start(clean.num_classes, encoder, decoder, clean.images[0], features[0])
        values = torch.zeros_like(field.labels, dtype=torch.float)
        dropped: list[Inversions] = []
        for rounds, size in self.stages(clean.num_classes):
            order = values.argsort(descending=True, stable=True)
            dropped.append(field.take(order[size:]))
            parts = [
                self.improve(
                    model, encoder, field.take(part), clean, features, rounds=rounds, generator=generator, meter=meter
                )
                for part in torch.split(order[:size].sort().values, self.together)
            ]
            field = Inversions.combined([part for part, _ in parts], torch.cat)
            values = torch.cat([value for _, value in parts])
        everything = Inversions.combined([*dropped, field], torch.cat)
        return everything.take(everything.labels.argsort())

    def warm(self, encoder: UNet, decoder: UNet, images: Images, generator: torch.Generator) -> None:
        """Train P and Q to give images back, without the audited network: once, for all classes."""
        optimizer = torch.optim.Adam(
            [*encoder.parameters(), *decoder.parameters()], lr=self.learning_rate, betas=ADAM_BETAS
        )
        for _ in range(self.warm_up):
            chosen = torch.randperm(len(images), generator=generator)[: self.batch_size].to(images.device)
            with fast_precision(images.device):
                back = decoder(encoder(images[chosen])).float()
            optimizer.zero_grad()
            F.mse_loss(back, images[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def improve(
        self,
        model: SplitModel,
        network: UNet,
        field: Inversions,
        clean: CleanData,
        features: Features,
        *,
        rounds: int,
        generator: torch.Generator,
        meter: Meter,
    ) -> tuple[Inversions, Tensor]:
        """Some rounds for T classes at once.

        The sum of the classes' losses has, for each class, the gradient of its own, and Adam keeps entries apart: the
        classes do not touch each other.

        Args:
            model: Frozen.
            network: Lends its layers to P and Q.
            field: Of the T classes; changed in place.
            clean: Images to search on.
            features: Their features.
            rounds: How many.
            generator: On the CPU.
            meter: Is told of every pass.

        Returns:
            Each class as it was in its best round, and the :meth:`value` of that round [T], on its search images.

        Raises:
            DataError: All images are of one class.
            TimeLimitReached: From the meter.
        """
        labels, device = field.labels, clean.images.device
        weights, available = images_of_other_classes(clean)
        weights = weights[labels.cpu()]
        means = torch.stack([class_mean(features, clean.labels, label) for label in labels.tolist()])
        of_generators = _adam([*field.encoders.values(), *field.decoders.values()], self.learning_rate)
        of_trigger = _adam([field.raw_masks, field.raw_patterns], self.trigger_rate)
        of_mask = _adam([field.raw_feature_masks], self.mask_rate)
        before = torch.zeros(3, len(labels), device=device)
        best, best_value = field, torch.full((len(labels),), -torch.inf, device=device)
        for _ in range(rounds):
            chosen = torch.multinomial(weights, min(self.batch_size, available), generator=generator)
            shuffled = chosen[:, torch.randperm(chosen.shape[1], generator=generator)]
            batch = Batch(labels, clean.images[chosen.to(device)], features[shuffled.to(device)], means)
            mask = boxed(field.raw_feature_masks.detach())
            meter.spend("trigger inversion", forward=chosen.numel(), backward=chosen.numel())
            trigger = field.triggers()
            seen = generated_by(network, field.encoders, batch.images)
            # With the trigger and without it, in one pass through Q.
            both = generated_by(network, field.decoders, torch.cat((trigger.stamp(seen), seen), dim=1))
            generated, back = both.chunk(2, dim=1)
            now = self.look(model, batch, generated, trigger, mask)
            better = now.value >= best_value
            best, best_value = field.where(better, best), torch.where(better, now.value, best_value)
            loss, before = self.generator_loss(now, labels, before, floor=0.0)
            identity = (back - batch.images).square().flatten(1).mean(1)
            _descend(loss + IDENTITY_WEIGHT * identity + self.size_penalty(trigger), of_generators, of_trigger)
            if self.trigger_steps > 1:
                with torch.no_grad():
                    seen = generated_by(network, field.encoders, batch.images)
            fixed = {name: weight.detach() for name, weight in field.decoders.items()}
            for _ in range(self.trigger_steps - 1):
                trigger = field.triggers()
                meter.spend("trigger inversion", forward=chosen.numel(), backward=chosen.numel())
                generated = generated_by(network, fixed, trigger.stamp(seen))
                now = self.look(model, batch, generated, trigger, mask)
                loss, before = self.generator_loss(now, labels, before, floor=LIKENESS_FLOOR)
                _descend(loss + self.size_penalty(trigger), of_trigger)
            moved = now.moved.detach()
            for _ in range(self.mask_steps):
                mask = boxed(field.raw_feature_masks)
                logits = logits_of(model, mixed(moved, batch.reference, mask[:, None]))
                _descend(self.mask_loss(logits, labels, mask), of_mask)
        return best.take(torch.arange(len(labels), device=device)), best_value

    def look(self, model: SplitModel, batch: Batch, generated: Tensor, trigger: Triggers, mask: Tensor) -> Look:
        """All that is measured of generated images in one pass through the network.

        Args:
            model: Frozen.
            batch: What they were generated from.
            generated: [T, B, C, H, W].
            trigger: Input masks and patterns of the classes.
            mask: Feature masks, [T, D, ...].
        """
        moved = latent(model, generated)
        similar = ssim(generated.flatten(0, 1), batch.images.flatten(0, 1)).view(generated.shape[:2])
        change, spread_now = 1 - similar.mean(1), torch.vmap(spread)(moved, mask)
        with torch.no_grad():
            success = (logits_of(model, moved).argmax(2) == batch.labels[:, None]).float().mean(1)
            value = self.value(
                success,
                change=change,
                spread_now=spread_now,
                feature_share=shares(mask),
                input_share=shares(trigger.masks),
            )
        return Look(
            logits=logits_of(model, mixed(moved, batch.reference, mask[:, None])),
            like=torch.vmap(likeness)(moved, batch.means),
            change=change,
            spread=spread_now,
            value=value,
            moved=moved,
        )


def _adam(tensors: list[Tensor], learning_rate: float) -> torch.optim.Adam:
    return torch.optim.Adam([tensor.requires_grad_() for tensor in tensors], lr=learning_rate, betas=ADAM_BETAS)


def _descend(losses: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """One step down the losses [T] of classes that share no entry of what is optimised."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    losses.sum().backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
