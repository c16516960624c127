"""What every attack is: settings, a drawn trigger, a pure function that applies it, and its part in training.

An attack is its settings; what is drawn or learned (a blend pattern, a warp, a generator's weights) is a dictionary of
tensors beside them, so that the trigger can be stored with the victim and its success measured again later. There are
two families, and an attack may be of both: *data poisoning* changes part of the training set before training, *training
control* changes batches and the model while it trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from banaudit.bench.attacks.labelling import Labelling
from banaudit.shapes import Images, Labels, Logits, Weights

Shape = tuple[int, int, int]
"""Channels C, height H, width W of one image."""


class Attack(BaseModel, ABC):
    """An attack: frozen settings with the paper's values as defaults, and what they do to images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def draw(self, shape: Shape, generator: torch.Generator) -> Weights:
        """Draws the trigger before training.

        Args:
            shape: C, H, W of the images.
            generator: Source of randomness, on the CPU.

        Returns:
            The tensors that, with the settings, are the trigger.
        """

    @abstractmethod
    def apply(self, images: Images, tensors: Weights, generator: torch.Generator) -> Images:
        """Puts the trigger on images as at test time.

        Args:
            images: [B, C, H, W] float in [0, 1]; not changed.
            tensors: What :meth:`draw` returned or training made of it.
            generator: Source of randomness, on the CPU, for triggers that draw at test time.

        Returns:
            Triggered images [B, C, H, W] in [0, 1].
        """


@dataclass(frozen=True)
class TrainingSet:
    """What a poisoner of data sees.

    Args:
        pixels: [N, C, H, W] uint8, the training images.
        labels: [N] true labels.
        labelling: Which label the attacker wants for which class.
        num_classes: Number of classes K.
        surrogate: Gives a clean model of the attacker's own, images in [0, 1] -> logits [B, K], in evaluation mode; it
            is trained at the first call, so only attacks that need one pay for it.
    """

    pixels: Tensor
    labels: Labels
    labelling: Labelling
    num_classes: int
    surrogate: Callable[[], nn.Module]

    @property
    def wanted(self) -> Labels:
        """[N] labels wanted for the images when triggered; the true one where the attack leaves the class alone."""
        return self.labelling.target_of(self.labels, self.num_classes)

    @property
    def eligible(self) -> Tensor:
        """[N] bool: images whose wanted label is not their own."""
        return self.wanted != self.labels


@dataclass(frozen=True)
class Poison:
    """What data poisoning does to the training set.

    Args:
        index: [P] positions of the images that are replaced.
        images: [P, C, H, W] float in [0, 1], the images that replace them.
        labels: [P] their labels.
        learned: Tensors of the trigger that were found while poisoning; they replace drawn ones of the same name.
    """

    index: Tensor
    images: Images
    labels: Labels
    learned: Weights = field(default_factory=dict)


class DataPoisoning(Attack, ABC):
    """An attacker who gives away part of the training set."""

    @abstractmethod
    def poison(self, data: TrainingSet, tensors: Weights, generator: torch.Generator) -> Poison:
        """Chooses and changes training images.

        Args:
            data: The training set, not changed.
            tensors: What :meth:`draw` returned.
            generator: Source of randomness, on the CPU.
        """


@dataclass(frozen=True)
class Batch:
    """A training batch after the attacker had it.

    Args:
        images: [B, C, H, W] in [0, 1]; may carry a gradient to a learned trigger.
        labels: [B] labels to train on.
        penalty: Scalar added to the classifier's loss for a learned trigger; none: nothing is added.
        objective: Gives, from the classifier in training and its logits [B, K] of this batch, a scalar that is added to
            its loss; none: nothing is added.
    """

    images: Images
    labels: Labels
    penalty: Tensor | None = None
    objective: Callable[[nn.Module, Logits], Tensor] | None = None


class BatchPoisoner(ABC):
    """The attacker's part in each training step; where a subclass says nothing, the attacker does nothing.

    Args:
        tensors: The trigger as :meth:`Attack.draw` returned it, on the training device.
    """

    augments_first: ClassVar[bool] = True
    """Whether the augmentation comes before the trigger (else after it)."""

    def __init__(self, tensors: Weights) -> None:
        self._tensors = tensors

    @abstractmethod
    def poison(self, images: Images, labels: Labels) -> Batch:
        """Puts the trigger on part of a batch of images in [0, 1]."""

    def prepare(self, pixels: Tensor) -> None:  # noqa: B027 (a hook)
        """Learns what the trigger needs before the classifier trains, from the training images [N, C, H, W] uint8."""

    def step(self) -> None:  # noqa: B027 (a hook)
        """Updates a learned trigger after the gradient of the loss was computed."""

    def end_epoch(self, model: nn.Module) -> None:  # noqa: B027 (a hook)
        """Changes the model in place after an epoch."""

    def tensors(self) -> Weights:
        """The trigger as it is now."""
        return self._tensors

    def dump(self) -> dict[str, Any]:
        """What :meth:`restore` needs after an epoch, for an interrupted training."""
        return {}

    def restore(self, pixels: Tensor, state: dict[str, Any]) -> None:  # noqa: B027 (a hook)
        """Go on from what :meth:`dump` gave, in place of :meth:`prepare`.

        Args:
            pixels: As for :meth:`prepare`.
            state: On the CPU.
        """


class TrainingControl(Attack, ABC):
    """An attacker who trains the model and so changes every batch."""

    @abstractmethod
    def poisoner(
        self, tensors: Weights, labelling: Labelling, num_classes: int, generator: torch.Generator
    ) -> BatchPoisoner:
        """The attacker's part in training.

        Args:
            tensors: What :meth:`draw` returned, on the training device.
            labelling: Which label is wanted for which class.
            num_classes: Number of classes K.
            generator: Source of randomness, on the CPU.
        """


def choose(candidates: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """A random share of the positions where ``candidates`` is true.

    Args:
        candidates: [N] bool.
        rate: Share of the candidates in [0, 1]; rounded, at least one where there is any.
        generator: Source of randomness, on the CPU.

    Returns:
        [P] positions in random order.
    """
    positions = candidates.nonzero().flatten()
    count = min(len(positions), max(1, round(rate * len(positions))))
    return positions[torch.randperm(len(positions), generator=generator)[:count]]


def choose_covers(count: int, poisoned: Tensor, rate: float, generator: torch.Generator) -> Tensor:
    """Positions of covers: images that get the trigger and keep their label.

    Args:
        count: Number of training images N.
        poisoned: [P] positions that are taken already.
        rate: Share of N in [0, 1]; rounded, zero gives none.
        generator: Source of randomness, on the CPU.
    """
    free = torch.ones(count, dtype=torch.bool)
    free[poisoned] = False
    positions = free.nonzero().flatten()
    return positions[torch.randperm(len(positions), generator=generator)[: round(rate * count)]]
