"""BTI-DBF(U): invert a trigger with a generator, and train the network to be right on what it generates."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import freeze
from banaudit.detectors.bti_dbf import BTIDBF
from banaudit.detectors.feature_inversion import features_of
from banaudit.mitigations.base import RepairJob, SGDMitigation, TargetedMitigation
from banaudit.randomness import seed_global
from banaudit.shapes import Images, Labels
from banaudit.training import EPOCH_SEEDS, Tuned

INVERSION = BTIDBF()
"""Whose defaults those of the inversion are."""


def triggered_images(count: int, share: float) -> int:
    """How many images of a batch of ``count`` are replaced by generated ones: a share, and one more."""
    return min(count, int(share * count) + 1)


def unlearning_loss(
    model: SplitModel, images: Images, changed: Images, labels: Labels, feature_weight: float
) -> Tensor:
    """CE(f(x'), y) + weight MSE(g(x), g(x')), a scalar with gradients for the weights.

    Args:
        model: In the mode it is trained in.
        images: Clean images x [B, C, H, W].
        changed: The same with some of them triggered, x'.
        labels: The true ones, [B].
        feature_weight: Weight of the distance of the features.
    """
    clean, moved = model.features(images), model.features(changed)
    return F.cross_entropy(model.head(moved), labels) + feature_weight * F.mse_loss(moved, clean)


@final
class BTIDBFUnlearning(SGDMitigation, TargetedMitigation):
    """Inverts the trigger that the network has now, unlearns it, and does so again, round by round.

    A round is, on the network as the last one left it (:class:`~banaudit.detectors.bti_dbf.BTIDBF` has the formulas):

    1. the mask m of the benign features;
    2. a generator G whose images keep the benign features and change the others. If no class is named, the class t that
       most held-out images of other classes go to after the first round's G is taken for the target. Once t is known,
       the generator minimises CE(f(G(x)), t) too;
    3. unlearning: in each batch a tenth of the images, and one more, is replaced by G(x) with the true labels,

       min_w CE(f(x'; w), y) + MSE(g(x; w), g(x'; w)).

    It takes the network to be backdoored, all to one: a wrong t stays wrong. Naming the class helps much.

    Source:
        Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features", ICLR
        2024, Section 4, BTI-DBF(U); weights and shares of the official code. ``mask_weight=0.75`` repairs the first
        step as BAN does (Xu et al., NeurIPS 2024, Section 3.4), who report that the published one leaves Blend as it
        is.
    Deviates:
        - 5 rounds of 5 epochs with SGD at BAN's rate, as every repair here that trains; there 5 rounds of 30 with Adam
          at 1e-4. ``epochs=150`` is the original's length.
        - The inversion is the detector's, with its deviations: a generator that needs no training to be the identity,
          a shorter schedule, a private copy of the network in eval mode, images in [0, 1], no noise on the images that
          the target is read from. Each round starts a fresh generator. The pixels' bound is the detector's too.
        - Images are augmented before the generator changes them. The original's early end, when the target of the
          generator changes, is left out: the clean accuracy decides which epoch is kept.
    """

    name: ClassVar[str] = "bti-dbf-unlearning"
    title: ClassVar[str] = "unlearning of a trigger that a generator inverts (BTI-DBF(U))"
    needs: ClassVar[str] = "clean images; a backdoor that is there, all to one"
    trains_against: ClassVar[frozenset[str]] = frozenset({"bti-dbf", "bti-dbf-star"})

    rounds: PositiveInt = 5
    """Inversions, spread evenly over the epochs; at most one for each."""
    triggered_share: float = Field(default=0.1, gt=0, le=1)
    """Share of a batch that is replaced by generated images, rounded down; one more is."""
    feature_weight: NonNegativeFloat = 1.0
    """Weight of the distance of the features."""
    mask_weight: NonNegativeFloat = INVERSION.mask_weight
    """Weight of the penalty on the feature mask's norm; 0: none, as published; BAN's repair of the step: 0.75."""
    mask_steps: PositiveInt = INVERSION.mask_steps
    """Adam steps on the mask in a round; they pass through the head alone."""
    search_images: PositiveInt = INVERSION.search_images
    """Images, at most, that a round inverts on."""
    generator_steps: PositiveInt = INVERSION.steps
    """Adam steps on the generator in a round."""
    generator_batch: PositiveInt = INVERSION.batch_size
    """Images in a step on the generator."""
    generator_rate: PositiveFloat = INVERSION.learning_rate
    """Step size of Adam on the generator."""
    width: PositiveInt = INVERSION.width
    """Channels of the generator's first level."""
    depth: PositiveInt = INVERSION.depth
    """Halvings in the generator."""
    pixel_bound: PositiveFloat = INVERSION.pixel_bound
    """Largest mean squared change of a pixel in [0, 1]."""

    def check(self, model: SplitModel) -> None:
        """Every network can be fine-tuned."""

    def planned_images(self, training: int, selection: int) -> int:
        """Every round inverts, every epoch trains and is judged."""
        searched = min(self.search_images, training)
        each_round = searched + self.generator_steps * min(self.generator_batch, searched)
        inferred = min(self.inversion().held_out_images, selection) if self.target is None else 0
        return (
            min(self.rounds, self.epochs) * each_round + inferred + self.planned_tuning(training, selection, forward=2)
        )

    def inversion(self) -> BTIDBF:
        """The first two steps of a round."""
        return BTIDBF(
            mask_weight=self.mask_weight,
            mask_steps=self.mask_steps,
            steps=self.generator_steps,
            batch_size=self.generator_batch,
            learning_rate=self.generator_rate,
            width=self.width,
            depth=self.depth,
            pixel_bound=self.pixel_bound,
        )

    def repair(self, job: RepairJob) -> Tuned:
        """Invert and unlearn by turns, and keep an epoch.

        Raises:
            UsageError: The target is not a class of the network.
        """
        self.require_target(job.training.num_classes)
        trigger = InvertedTrigger(self, job)

        def loss(model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
            del generator
            return unlearning_loss(model, images, trigger.stamp(images), labels, self.feature_weight)

        return self.tune(job, loss, passes=(2, 2), companion=trigger)


@final
class InvertedTrigger:
    """The generator of the current round; made anew from the network when a round begins.

    Args:
        settings: How to invert, and how often.
        job: Images, seed and meter.
    """

    def __init__(self, settings: BTIDBFUnlearning, job: RepairJob) -> None:
        self._settings = settings
        self._inversion = settings.inversion()
        self._job = job
        self.target = settings.target
        self._network = self._inversion.make_generator(job.training.images)

    def stamp(self, images: Images) -> Images:
        """Images [B, C, H, W] of which the first few are generated from themselves."""
        count = triggered_images(len(images), self._settings.triggered_share)
        with torch.no_grad():
            return torch.cat((self._network(images[:count]), images[count:]))

    def before_epoch(self, epoch: int, model: SplitModel) -> None:
        """Invert where the epoch begins a round."""
        rounds, epochs = self._settings.rounds, self._settings.epochs
        if epoch - 1 not in {epochs * number // rounds for number in range(rounds)}:
            return
        seed = self._job.seed * EPOCH_SEEDS + epoch
        # The generator's first weights come from the global state, which is a private one.
        seed_global(seed, self._job.training.images.device)
        draws = torch.Generator().manual_seed(seed)
        inversion, meter = self._inversion, self._job.meter
        frozen = freeze(copy.deepcopy(model))
        search = self._job.training.draw(self._settings.search_images, draws)
        features = features_of(frozen, search, meter, batch_size=inversion.mask_batch)
        mask = inversion.fit_mask(frozen, features, search.labels, draws)
        self._network = inversion.fit_generator(
            frozen, search, features, mask, generator=draws, meter=meter, target=self.target
        )
        if self.target is None:
            held_out = self._job.selection.draw(inversion.held_out_images, draws)
            self.target = int(inversion.shares(frozen, self._network, held_out, meter).argmax())

    def dump(self) -> dict[str, Any]:
        """Generator and target, for an interrupted repair."""
        return {"generator": self._network.state_dict(), "target": self.target}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave."""
        self._network.load_state_dict(state["generator"])
        self.target = state["target"]
