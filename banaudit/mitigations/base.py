"""What every mitigation shares: settings in the constructor, a model and clean data in the call, a repaired copy out.

The base owns the protocol (private copy of the model, isolated random state, images that choose what is kept); a
mitigation's file owns the paper. :class:`FineTuningMitigation` is the base of those that are a loss for the one
fine-tuning loop.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.architectures.logit_scale import FoldedScale
from banaudit.data import CleanData
from banaudit.errors import BanauditError, DataError, TimeLimitReached, UsageError
from banaudit.meter import Meter
from banaudit.method import Method
from banaudit.precision import full_precision
from banaudit.randomness import isolated_random
from banaudit.results import RepairEpoch, UnlearnedChange
from banaudit.resume import Progress, identify
from banaudit.shapes import Images, Labels
from banaudit.training import (
    UNCHANGED,
    Augmentation,
    Companion,
    Objective,
    Schedule,
    Tuned,
    choose_augmentation,
    fine_tune,
    private_copy,
)

SELECTION_SHARE = 0.1
"""Share of the images that choose what is kept instead of being trained on."""

MAX_DROP = 0.02
"""Clean accuracy that a repair may cost unless the user says otherwise."""


@dataclass(frozen=True)
class RepairJob:
    """What a mitigation gets to work with.

    Args:
        model: A private copy in eval mode whose weights can be trained; may be changed.
        training: Images to train on; none where the mitigation does not train.
        selection: Images that choose what is kept; disjoint from ``training``.
        augmentation: Random changes that suit the training images.
        max_drop: Accuracy on ``selection`` that the kept state may have lost.
        seed: Of everything that is drawn.
        meter: Must be told of every pass.
        progress: Where the state of an interrupted repair is kept.
    """

    model: SplitModel
    training: CleanData
    selection: CleanData
    augmentation: Augmentation
    max_drop: float
    seed: int
    meter: Meter
    progress: Progress


@dataclass(frozen=True)
class Repaired:
    """A repaired model and how it came about.

    Args:
        model: The repaired copy, in eval mode, on the original's device.
        epochs: What each epoch gave, or each of what else was tried.
        kept_epoch: The one whose weights these are, from 1.
        within_budget: Whether it costs no more accuracy than allowed, on the images that chose it.
        accuracy_before: On these images, before the repair.
        augmentation: Random changes of the training images.
        training_images: How many images were trained on.
        selection_images: How many chose what is kept.
        forward_images: Images passed forward.
        backward_images: Images passed backward.
        seconds: Duration, with that of the calls that were interrupted.
        earlier_seconds: That of the interrupted calls.
        attempts: What was tried as a whole, a line each, where that was more than one thing.
        unlearned: Changes of pixels that stood out on the network as it came, and were trained against.
    """

    model: SplitModel
    epochs: tuple[RepairEpoch, ...]
    kept_epoch: int
    within_budget: bool
    accuracy_before: float
    augmentation: Augmentation
    training_images: int
    selection_images: int
    forward_images: int
    backward_images: int
    seconds: float
    earlier_seconds: float
    attempts: tuple[str, ...] = ()
    unlearned: tuple[UnlearnedChange, ...] = ()


class Mitigation(Method, ABC):
    """A mitigation is its hyperparameters and one method.

    Subclasses are final, declare each hyperparameter once as a field with a default, and implement :meth:`repair`,
    :meth:`planned_images` and :meth:`check`.
    """

    trains: ClassVar[bool] = True
    """Whether it optimises anything on images; if not, all images choose what is kept, and none is augmented."""
    trains_against: ClassVar[frozenset[str]] = frozenset()
    """Detectors whose search is part of the repair: that these find nothing afterwards says little."""

    @abstractmethod
    def check(self, model: SplitModel) -> None:
        """Refuse a model that this mitigation cannot repair.

        Raises:
            UnsupportedModelError: It cannot.
        """

    @abstractmethod
    def repair(self, job: RepairJob) -> Tuned:
        """Change the model, and choose by the selection images what is kept of it.

        Args:
            job: Model, images and everything else; its model need not end with the kept weights.

        Returns:
            The kept weights, and one record for each epoch or for whatever else was tried.

        Raises:
            UnsupportedModelError: This mitigation does not fit the model, which only its activations show.
            BanauditError: The training diverged.
            UsageError: The state cannot be written.
            TimeLimitReached: From the meter.
        """

    @abstractmethod
    def planned_images(self, training: int, selection: int) -> int:
        """Forward passes that :meth:`repair` is expected to take, for the progress bar.

        Args:
            training: Number of images to train on.
            selection: Number of images that choose.
        """

    @final
    def __call__(
        self,
        model: SplitModel,
        clean: CleanData,
        *,
        max_drop: float = MAX_DROP,
        flips: bool | None = None,
        seed: int = 0,
        meter: Meter | None = None,
        state: Path | None = None,
    ) -> Repaired:
        """Repair a copy of a model.

        Neither the model (parameters, buffers, mode, ``requires_grad``) nor any global random state is changed.

        Args:
            model: Normalisation inside; on the device to compute on.
            clean: Clean images with labels, on the same device; a tenth of them, or all where nothing is trained,
                chooses what is kept.
            max_drop: Accuracy that what is kept may cost on these.
            flips: Whether training images are mirrored; none: found out on the model.
            seed: Same seed, model, images and device: same repair.
            meter: Counts passes, tells progress, keeps the time limit.
            state: File in which an interrupted repair leaves its state and from which it goes on; it stays there unless
                the repair cannot succeed.

        Raises:
            UnsupportedModelError: This mitigation does not fit the model.
            DataError: Too few images.
            BanauditError: The training diverged.
            TimeLimitReached: From the meter.
        """
        self.check(model)
        meter = meter if meter is not None else Meter()
        started = time.monotonic()
        spent = meter.forward_images, meter.backward_images
        with isolated_random(clean.images.device, seed):
            training, selection = self._part(clean, seed)
            private = private_copy(model)
            scale = FoldedScale(private, clean.images)
            augmentation = choose_augmentation(private, clean, flips=flips, meter=meter) if self.trains else UNCHANGED
            run = {**self.settings(), "name": self.name, "seed": seed, "max_drop": max_drop, "how": str(augmentation)}
            meter.planned_images = meter.forward_images + self.planned_images(len(training), len(selection))
            progress = Progress(state, identify(private, clean, run), meter)
            job = RepairJob(
                model=private,
                training=training,
                selection=selection,
                augmentation=augmentation,
                max_drop=max_drop,
                seed=seed,
                meter=meter,
                progress=progress,
            )
            try:
                with full_precision(model.full_precision):  # some invert triggers, which rounds
                    tuned = self.repair(job)
            except (UsageError, TimeLimitReached):
                raise
            except BanauditError:  # to go on would only lead here again
                progress.discard()
                raise
        private.load_state_dict(tuned.state)
        scale.take_out(private)
        return Repaired(
            model=private.eval().requires_grad_(False),
            epochs=tuned.epochs,
            kept_epoch=tuned.kept_epoch,
            within_budget=tuned.within_budget,
            accuracy_before=tuned.accuracy_before,
            augmentation=augmentation,
            training_images=len(training),
            selection_images=len(selection),
            forward_images=meter.forward_images - spent[0],
            backward_images=meter.backward_images - spent[1],
            seconds=round(progress.earlier_seconds + time.monotonic() - started, 3),
            earlier_seconds=round(progress.earlier_seconds, 3),
            attempts=tuned.attempts,
            unlearned=tuned.unlearned,
        )

    @final
    def _part(self, clean: CleanData, seed: int) -> tuple[CleanData, CleanData]:
        """Images to train on, and images that choose."""
        if not self.trains:
            if len(clean) < 1:
                raise DataError("a repair needs at least one image, found none")
            return clean.subset(torch.arange(0, device=clean.labels.device)), clean
        training, selection = clean.split(1 - SELECTION_SHARE, torch.Generator().manual_seed(seed))
        if len(training) < 2 or len(selection) < 1:
            raise DataError(f"a repair needs at least two images of some class, found {len(clean)} images in all")
        return training, selection


class TargetedMitigation(Mitigation, ABC):
    """A mitigation that repairs one backdoor, which leads to one class."""

    target: NonNegativeInt | None = None
    """Class that the trigger leads to; none: the one that the scan before the repair accuses, or else inferred."""

    @final
    def aimed_at(self, label: int) -> Self:
        """The same mitigation for a trigger that leads to this class, unless a class is named already."""
        return self if self.target is not None else self.model_copy(update={"target": label})

    @final
    def require_target(self, num_classes: int) -> None:
        """Refuse a target that is no class of the network; none is fine.

        Raises:
            UsageError: There is no such class.
        """
        if self.target is not None and self.target >= num_classes:
            raise UsageError(
                f"--set {self.name}.target={self.target}: expected a label from 0 to {num_classes - 1}, as the network "
                f"has {num_classes} classes; leave it out to have it inferred"
            )


class SGDMitigation(Mitigation, ABC):
    """A mitigation that trains all weights in the fine-tuning loop, and the schedule of SGD."""

    epochs: PositiveInt = 25
    """Passes over the training images."""
    batch_size: PositiveInt = 128
    """Images in a step."""
    learning_rate: PositiveFloat = 0.005
    """Of SGD, at the start."""
    anneal: bool = False
    """Let the learning rate fall to zero as half a cosine; BAN's is constant."""
    momentum: NonNegativeFloat = 0.9
    """Of SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    """Of SGD."""

    @final
    def tune(
        self,
        job: RepairJob,
        objective: Objective,
        *,
        passes: tuple[int, int],
        companion: Companion | None = None,
        name: str = "",
    ) -> Tuned:
        """Fine-tune on an objective, and keep an epoch.

        Args:
            job: Model, images and everything else.
            objective: Loss of a batch.
            passes: Passes forward and backward that it takes for an image.
            companion: What it makes anew between epochs, if anything.
            name: Of the run, before each epoch, for whoever watches.
        """
        return fine_tune(
            job.model,
            job.training,
            job.selection,
            objective,
            Schedule(
                epochs=self.epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                anneal=self.anneal,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
            ),
            augmentation=job.augmentation,
            max_drop=job.max_drop,
            seed=job.seed,
            meter=job.meter,
            passes=passes,
            progress=job.progress,
            companion=companion,
            name=name,
        )

    @final
    def planned_tuning(self, training: int, selection: int, *, forward: int) -> int:
        """Forward passes of :meth:`tune`: every epoch trains and is judged, and the model is judged before.

        Args:
            training: Number of images to train on.
            selection: Number of images that choose.
            forward: Passes forward that the objective takes for an image.
        """
        return self.epochs * (forward * training + selection) + selection


class FineTuningMitigation(SGDMitigation, ABC):
    """A mitigation that is a loss for the fine-tuning loop.

    Subclasses are final and implement :meth:`loss`, :meth:`passes` and :meth:`check`.
    """

    @abstractmethod
    def loss(self, model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
        """Loss of a batch, a scalar with gradients for the weights.

        Args:
            model: In train mode.
            images: [B, C, H, W], augmented.
            labels: [B].
            generator: The only source of randomness; lives on the CPU.
        """

    @abstractmethod
    def passes(self) -> tuple[int, int]:
        """Passes forward and backward that :meth:`loss` takes for an image, its own backward pass included."""

    @final
    def repair(self, job: RepairJob) -> Tuned:
        """Fine-tune on :meth:`loss`, and keep an epoch."""
        return self.tune(job, self.loss, passes=self.passes())

    @final
    def planned_images(self, training: int, selection: int) -> int:
        """Those of the fine-tuning."""
        return self.planned_tuning(training, selection, forward=self.passes()[0])
