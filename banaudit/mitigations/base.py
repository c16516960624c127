"""What every mitigation shares: settings in the constructor, a model and clean data in the call, a repaired copy out.

The base owns the protocol (private copy of the model, isolated random state, images that choose the epoch); a
mitigation's file owns the paper.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.errors import DataError
from banaudit.meter import Meter
from banaudit.results import RepairEpoch, Scalar
from banaudit.shapes import Images, Labels
from banaudit.training import Augmentation, Progress, Schedule, choose_augmentation, fine_tune, identify, private_copy

SELECTION_SHARE = 0.1
"""Share of the images that choose the epoch instead of being trained on."""

MAX_DROP = 0.02
"""Clean accuracy that a repair may cost unless the user says otherwise."""


@dataclass(frozen=True)
class Repaired:
    """A repaired model and how it came about.

    Args:
        model: The repaired copy, in eval mode, on the original's device.
        epochs: What each epoch gave.
        kept_epoch: The one whose weights these are, from 1.
        within_budget: Whether it costs no more accuracy than allowed, on the images that chose it.
        accuracy_before: On these images, before the repair.
        augmentation: Random changes of the training images.
        training_images: How many images were trained on.
        selection_images: How many chose the epoch.
        forward_images: Images passed forward.
        backward_images: Images passed backward.
        seconds: Duration.
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


class Mitigation(BaseModel, ABC):
    """A mitigation is its hyperparameters and the loss that it trains the weights on.

    Subclasses are final, declare each hyperparameter once as a field with a default, and implement :meth:`loss`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    """Name on the command line and in reports."""
    title: ClassVar[str]
    """One line: what it does."""

    epochs: PositiveInt = 25
    """Passes over the training images."""
    batch_size: PositiveInt = 128
    """Images in a step."""
    learning_rate: PositiveFloat = 0.005
    """Of SGD, at the start."""
    anneal: bool = False
    """Let the learning rate fall to zero as half a cosine; the paper's is constant."""
    momentum: NonNegativeFloat = 0.9
    """Of SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    """Of SGD."""

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

    @abstractmethod
    def check(self, model: SplitModel) -> None:
        """Refuse a model that this mitigation cannot repair.

        Raises:
            UnsupportedModelError: It cannot.
        """

    def settings(self) -> dict[str, Scalar]:
        """Every hyperparameter with its value, for the report."""
        return dict(self.model_dump(mode="json"))

    def with_settings(self, changes: dict[str, str]) -> Self:
        """The same mitigation with some hyperparameters read from text (``--set name.key=value``).

        Raises:
            pydantic.ValidationError: An unknown name or a value out of range.
        """
        return type(self).model_validate({**self.model_dump(), **changes})

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
            clean: Clean images with labels, on the same device; a tenth of them chooses the epoch that is kept.
            max_drop: Accuracy that the kept epoch may cost on these.
            flips: Whether training images are mirrored; none: found out on the model.
            seed: Same seed, model, images and device: same repair.
            meter: Counts passes, tells progress, keeps the time limit.
            state: File in which an interrupted repair leaves its state and from which it goes on; it stays there.

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
        device = clean.images.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            training, selection = clean.split(1 - SELECTION_SHARE, torch.Generator().manual_seed(seed))
            if len(training) < 2 or len(selection) < 1:
                raise DataError(f"a repair needs at least two images of some class, found {len(clean)} images in all")
            private = private_copy(model)
            augmentation = choose_augmentation(private, clean, flips=flips, meter=meter)
            run = {**self.settings(), "name": self.name, "seed": seed, "max_drop": max_drop, "how": str(augmentation)}
            each_epoch = self.passes()[0] * len(training) + len(selection)
            meter.planned_images = meter.forward_images + self.epochs * each_epoch + len(selection)
            tuned = fine_tune(
                private,
                training,
                selection,
                self.loss,
                Schedule(
                    epochs=self.epochs,
                    batch_size=self.batch_size,
                    learning_rate=self.learning_rate,
                    anneal=self.anneal,
                    momentum=self.momentum,
                    weight_decay=self.weight_decay,
                ),
                augmentation=augmentation,
                max_drop=max_drop,
                seed=seed,
                meter=meter,
                passes=self.passes(),
                progress=Progress(state, identify(private, clean, run)),
            )
        return Repaired(
            model=private.requires_grad_(False),
            epochs=tuned.epochs,
            kept_epoch=tuned.kept_epoch,
            within_budget=tuned.within_budget,
            accuracy_before=tuned.accuracy_before,
            augmentation=augmentation,
            training_images=len(training),
            selection_images=len(selection),
            forward_images=meter.forward_images - spent[0],
            backward_images=meter.backward_images - spent[1],
            seconds=round(time.monotonic() - started, 3),
        )
