"""BAN: backdoors activated by adversarial neuron noise (Xu et al., NeurIPS 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self, final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors.base import MAPPING_AGREEMENT, Detector, Found, Samples, agreement_of, restarts_agree
from banaudit.meter import Meter
from banaudit.neurons import NoisyModel, Statistics, fit_feature_mask
from banaudit.results import Evidence, Reading
from banaudit.shapes import Features, Images, Labels

READ_BATCH = 256
"""Images in one forward pass of a reading."""

WARM_UP_BATCHES = 2
"""Noise searches that ``released`` runs before the last one; after 60 passes at momentum 0.1 nothing older is left in
the running statistics, so the 17 others of the authors' code would change nothing."""

FEWEST_MISTAKES = 0.1
"""Share of the images that must be mistaken before the mistakes' shares count in full: of one mistake all falls in one
class, on any network."""

NEGATIVE_MASK, MASK_BY_CLASS = "negative mask", "mask by class"
NOISE_ALONE = "noise alone"
"""Label of the reading of the mistakes under noise, without the mask."""


@dataclass(frozen=True)
class _Restart:
    """What one restart read from the held-out images.

    Args:
        masked: [K, K] share of class k's images (row) sent to class j by the negative mask under noise (Eq. 6).
        null: The same mask under random noise as large as the search may go.
        errors: [K] share of the mistakes under noise alone that fall in each class.
        errors_null: The same under random noise.
    """

    masked: Tensor
    null: Tensor
    errors: Tensor
    errors_null: Tensor


@final
class BAN(Detector):
    """Scores how strongly the mistakes of a noisy, masked network pile up in one class.

    1. Neuron noise (Eq. 3-4): gamma (1 + delta), beta (1 + xi) with |delta|, |xi| <= eps that maximise the clean
       images' cross-entropy; sign-gradient ascent from a random start.
    2. Feature mask (Eq. 5) on the latent feature of the network without noise.
    3. Verdict (Eq. 6): predictions f_L(g(x; noise) (1 - m)) on held-out images.  All-to-one: the largest share of
       other-class images sent to one class.  All-to-all: class by class, the share that goes to its favourite.

    The noise alone (Section 3.3, Figure 1) is a reading of its own: the share of its mistakes that fall in one class,
    where fewer mistakes than a tenth of the images count as a tenth.

    Source:
        Xu, Liu, Koffas, Yu and Picek, "BAN", NeurIPS 2024, Eq. 3-6 and Appendix B.4.
    Deviates:
        Held-out images read what the search images found; the noise is clipped to eps; one noise for all search images
        instead of one a batch of which all but the last are thrown away; restarts must agree; and Eq. 6 over all images
        fires only above 0.8 (theirs: 0.5) and if it clears the same reading under *random* noise by ``null_margin``:
        the mask is trained to be wrong as loudly as it can, and on clean networks too that is cheapest in one class,
        without any noise.  Class by class, the favourites must differ from each other, which no clean network's do.
        :meth:`released` is the authors' procedure.
    """

    name: ClassVar[str] = "ban"
    title: ClassVar[str] = "mistakes under neuron noise and a feature mask pile up in one class (BAN)"
    needs: ClassVar[str] = "BatchNorm, clean images"
    misses: ClassVar[str] = (
        "all-to-all backdoors; others whose mistakes under noise alone do not pile up in one class (those of the mask "
        "do so on clean models too, and seldom count)"
    )

    eps: PositiveFloat = 0.3
    """Largest relative change of a neuron's weight and bias. The paper: 0.3 at 32 pixels, 0.2 at 64, 0.1 at 224."""
    noise_steps: PositiveInt = 30
    """Steps of the ascent, each of eps / noise_steps."""
    noise_images: PositiveInt = 96
    """Search images the noise is found on."""
    clip: bool = True
    """Keep the noise within eps. The authors' code does not: random start and steps then add up to 2 eps."""
    statistics: Statistics = "batch"
    """Statistics that BatchNorm uses under noise."""
    drift: bool = False
    """Let running statistics drift through all passes and read with them, as the authors' code does."""
    mask_steps: PositiveInt = 400
    """Steps of Adam on the mask (the paper: 20 epochs of 20 batches)."""
    mask_learning_rate: PositiveFloat = 0.01
    """Step size of Adam on the mask."""
    mask_weight: NonNegativeFloat = 0.75
    """lambda_1, the weight of the mask's size."""
    mask_batch: PositiveInt = 128
    """Samples of a step on the mask."""
    clamp_late: bool = False
    """Clamp the mask before its gradient is taken instead of after the step, as the authors' code does."""
    search_images: PositiveInt = 250
    """Images the mask is fitted on."""
    read_images: PositiveInt = 200
    """Held-out images of a reading."""
    restarts: PositiveInt = 2
    """Independent noises and masks, at most; all must name the same class."""
    share_threshold: PositiveFloat = 0.8
    """Share in one class above which Eq. 6 fires. The authors' own rule, given by them in public, is 0.5; clean
    networks had up to 0.70, all else met, and of the backdoored ones of development none is found by it."""
    errors_threshold: PositiveFloat = 0.85
    """Share of the mistakes under noise alone that must fall in one class."""
    null_margin: NonNegativeFloat | None = 0.2
    """How far the share of Eq. 6 over all images must lie above the same share under random noise; none: anywhere."""
    distinct_threshold: PositiveFloat = 0.65
    """Share of the classes' favourites that must differ from each other for an all-to-all backdoor."""

    @classmethod
    def released(cls) -> Self:
        """What the authors' published code does inside the method, slips included, with their rule.

        Unclipped noise found on one batch of 128 images, running statistics that drift through all passes and are then
        used for the reading, a mask that is clamped before its gradient, one restart, no
        random noise to compare with; only the one reading that they have can fire.  Not reproduced: faults of data,
        normalisation, shapes and loading, and reading on images that the search has used.
        """
        return cls(
            noise_images=128,
            clip=False,
            drift=True,
            clamp_late=True,
            restarts=1,
            search_images=500,
            read_images=5000,
            share_threshold=0.5,
            errors_threshold=1.0,
            null_margin=None,
            distinct_threshold=1.0,
        )

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes of each restart: noise, features, the read images with that noise and with a random one."""
        del num_classes
        half = images // 2
        noise = self.noise_steps * min(self.noise_images, half) * (1 + WARM_UP_BATCHES * self.drift)
        return self.restarts * (noise + min(self.search_images, half) + 2 * min(self.read_images, half))

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Noise, mask and readings for each restart.

        A reading has to fire after every restart, with what all of them gave so far: once none does, there are no
        further ones.
        """
        restarts: list[_Restart] = []
        evidence: list[Evidence] = []
        for number in range(self.restarts):
            what = f"{self.name}, restart {number + 1} of {self.restarts}"
            restarts.append(self._restart(model, samples, generator, meter, what))
            evidence = [
                self._all_to_one(samples, restarts),
                self._all_to_all(restarts),
                self._noise_alone(samples, restarts),
            ]
            if not any(item.fired for item in evidence):
                break
        return Found(evidence)

    @property
    def radius(self) -> float:
        """Largest absolute value of an entry of the noise: unclipped, random start and steps add up to 2 eps."""
        return self.eps if self.clip else 2 * self.eps

    def _restart(
        self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter, what: str
    ) -> _Restart:
        momentum = 0.1 if self.drift else 0.0
        noisy = NoisyModel(model, form="relative", statistics=self.statistics, momentum=momentum, meter=meter)
        search = samples.search.draw(self.search_images, generator)
        held_out = samples.held_out.draw(self.read_images, generator)
        features = noisy_features(noisy, search.images, noisy.no_noise(), what)
        mask = self.fit_mask(model, features, search.labels, generator)
        for _ in range(1 + WARM_UP_BATCHES * self.drift):
            noise = self.search_noise(noisy, samples.search, generator, what)
        if self.drift:
            noisy.use_running_statistics()
        found = noisy_features(noisy, held_out.images, noise, what)
        random = noisy_features(noisy, held_out.images, noisy.random_signs(self.radius, generator), what)
        return _Restart(
            masked=_confusion(model, found * (1 - mask), held_out.labels, samples.num_classes),
            null=_confusion(model, random * (1 - mask), held_out.labels, samples.num_classes),
            errors=_error_shares(model, found, held_out.labels, samples.num_classes),
            errors_null=_error_shares(model, random, held_out.labels, samples.num_classes),
        )

    def fit_mask(self, model: SplitModel, features: Features, labels: Labels, generator: torch.Generator) -> Tensor:
        """The feature mask (Eq. 5), of the shape of one sample's features.

        Args:
            model: Its head is f_L.
            features: [N, ...] of clean images, without noise.
            labels: [N].
            generator: On the CPU.
        """
        return fit_feature_mask(
            model,
            features,
            labels,
            steps=self.mask_steps,
            learning_rate=self.mask_learning_rate,
            mask_weight=self.mask_weight,
            batch_size=self.mask_batch,
            clamp_late=self.clamp_late,
            generator=generator,
        )

    def search_noise(self, noisy: NoisyModel, search: CleanData, generator: torch.Generator, what: str) -> Tensor:
        """Noise [2, P] that raises the cross-entropy of a batch (Eq. 4).

        Args:
            noisy: The model.
            search: Images that the batch is drawn from.
            generator: On the CPU.
            what: For the meter.
        """
        batch = search.draw(self.noise_images, generator)
        noise = noisy.random_noise(self.eps, generator)
        for _ in range(self.noise_steps):
            step = self.eps / self.noise_steps
            noise = noisy.ascend(batch.images, batch.labels, noise, step=step, radius=self.radius, what=what)
        return noise

    def _all_to_one(self, samples: Samples, restarts: list[_Restart]) -> Evidence:
        shares = torch.stack([_into_each_class(item.masked) for item in restarts])
        nulls = torch.stack([_into_each_class(item.null) for item in restarts])
        return self._one_class(
            samples,
            shares,
            nulls,
            threshold=self.share_threshold,
            null_margin=self.null_margin,
            label=NEGATIVE_MASK,
            measures=(
                "share of other-class images that the negative mask under noise sends to one class (Eq. 6); "
                "null: random noise"
            ),
        )

    def _noise_alone(self, samples: Samples, restarts: list[_Restart]) -> Evidence:
        return self._one_class(
            samples,
            torch.stack([item.errors for item in restarts]),
            torch.stack([item.errors_null for item in restarts]),
            threshold=self.errors_threshold,
            null_margin=None,
            label=NOISE_ALONE,
            measures="share of the mistakes under noise alone that fall in one class; null: random noise",
        )

    def _one_class(
        self,
        samples: Samples,
        shares: Tensor,
        nulls: Tensor,
        *,
        threshold: float,
        null_margin: float | None,
        label: str,
        measures: str,
    ) -> Evidence:
        """Evidence from [R, K] shares and what random noise gives: the weakest restart counts."""
        values, labels = shares.max(dim=1)
        weakest = int(values.argmin())
        target = int(labels[weakest])
        agreement = agreement_of(labels.tolist(), target)
        null = float(nulls[:, target].max())
        score = float(values[weakest])
        return Evidence(
            reading=Reading.ALL_TO_ONE,
            label=label,
            measures=measures,
            score=score,
            threshold=threshold,
            fired=(
                score > threshold and restarts_agree(agreement) and (null_margin is None or score - null >= null_margin)
            ),
            null=null,
            target=target,
            per_class=samples.per_class(shares.mean(dim=0)),
            restarts=tuple(values.tolist()),
            agreement=agreement,
        )

    def _all_to_all(self, restarts: list[_Restart]) -> Evidence:
        favourites = [_favourites(item.masked) for item in restarts]
        weakest = min(favourites, key=_mean_share)
        score = _mean_share(weakest)
        common = [
            all(other.get(source, (0.0, target))[1] == target for other in favourites)
            for source, (_, target) in weakest.items()
        ]
        agreement = sum(common) / len(common) if len(restarts) > 1 else None
        mapping = {source: target for source, (share, target) in weakest.items() if share > 0}
        distinct = len(set(mapping.values())) / len(weakest)
        return Evidence(
            reading=Reading.ALL_TO_ALL,
            label=MASK_BY_CLASS,
            measures=(
                "mean over classes of the share sent to the class's favourite wrong class (Eq. 6); null: random noise"
            ),
            score=score,
            threshold=self.share_threshold,
            fired=(
                score > self.share_threshold
                and distinct > self.distinct_threshold
                and (agreement is None or agreement >= MAPPING_AGREEMENT)
                and len(weakest) > 2
            ),
            null=max(_mean_share(_favourites(item.null)) for item in restarts),
            mapping=mapping,
            restarts=tuple(_mean_share(item) for item in favourites),
            agreement=agreement,
            note=f"{distinct:.0%} of the favourites differ from each other",
        )


def noisy_features(noisy: NoisyModel, images: Images, noise: Tensor, what: str) -> Features:
    """Features [N, ...] of images [N, C, H, W] under noise [2, P], a batch at a time; ``what`` is for the meter."""
    # Parts of one size: BatchNorm under batch statistics would see a small remainder otherwise, or a single image.
    parts = torch.tensor_split(images, -(-len(images) // READ_BATCH))
    return torch.cat([noisy.features(part, noise, what=what) for part in parts])


def _confusion(model: SplitModel, features: Features, labels: Labels, classes: int) -> Tensor:
    """Share of class k's samples (row) that the head sends to class j, [K, K]; zero rows for absent classes."""
    with torch.no_grad():
        predicted = model.head(features).argmax(dim=1)
    counts = torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes).float()
    return (counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).cpu()


def _off_diagonal(confusion: Tensor) -> Tensor:
    return confusion.masked_fill(torch.eye(len(confusion), dtype=torch.bool), 0.0)


def _into_each_class(confusion: Tensor) -> Tensor:
    """Mean over the other classes of the share that goes to each class, [K]."""
    present = (confusion.sum(dim=1) > 0).float()
    others = present.sum() - present
    return _off_diagonal(confusion).sum(dim=0) / others.clamp_min(1)


def _favourites(confusion: Tensor) -> dict[int, tuple[float, int]]:
    """Class -> the largest share that goes to one wrong class, and that class; for the classes with samples."""
    present = (confusion.sum(dim=1) > 0).nonzero().flatten()
    shares, targets = _off_diagonal(confusion)[present].max(dim=1)
    return dict(zip(present.tolist(), zip(shares.tolist(), targets.tolist(), strict=True), strict=True))


def _mean_share(favourites: dict[int, tuple[float, int]]) -> float:
    return sum(share for share, _ in favourites.values()) / len(favourites)


def _error_shares(model: SplitModel, features: Features, labels: Labels, classes: int) -> Tensor:
    """Share of the mistakes that fall in each class, [K]; of at least :data:`FEWEST_MISTAKES` of all samples."""
    with torch.no_grad():
        predicted = model.head(features).argmax(dim=1)
    wrong = torch.bincount(predicted[predicted != labels], minlength=classes).float()
    return (wrong / wrong.sum().clamp_min(FEWEST_MISTAKES * len(labels))).cpu()
