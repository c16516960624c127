"""The one fine-tuning loop, and the one rule by which a repair chooses among the states that it went through.

The state that is kept is the last one whose accuracy, on images set aside for that choice, is within the budget: clean
accuracy cannot see a backdoor, so among the affordable epochs the one that had the most time to remove it is taken,
and among the affordable prunings, offered from the smallest on, the one that removes the most.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.errors import DivergedError
from banaudit.meter import Meter
from banaudit.preflight import predictions
from banaudit.randomness import seed_global
from banaudit.results import RepairEpoch, UnlearnedChange
from banaudit.resume import Progress
from banaudit.shapes import Images, Labels, Weights

CROP_SHARE = 8
"""Random crops shift an image by up to H / 8 pixels: 4 of 32, the field's habit on CIFAR."""

MIRROR_COST = 0.05
"""Accuracy that mirrored images may cost before mirroring is taken to change what an image shows."""

MIRROR_IMAGES = 500
"""Images on which that is measured."""

EPOCH_SEEDS = 100_003
"""Distance between the random numbers of two seeds: more than any run has epochs."""

Objective = Callable[[SplitModel, Images, Labels, torch.Generator], Tensor]
"""Loss of a batch, a scalar with gradients for the weights; random numbers come from the generator, on the CPU."""


class Companion(Protocol):
    """What an objective uses and makes anew from the weights now and then, such as an inverted trigger."""

    def before_epoch(self, epoch: int, model: SplitModel) -> None:
        """Change where this epoch, from 1, asks for it; the model must stay as it is."""

    def dump(self) -> dict[str, Any]:
        """Everything that :meth:`restore` needs to go on after an interruption: tensors, numbers and texts."""

    def restore(self, state: dict[str, Any]) -> None:
        """Be again as when :meth:`dump` gave this."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast weights are trained, with SGD.

    Args:
        epochs: Passes over the training images.
        batch_size: Images in a step, about: the images are cut into equal parts.
        learning_rate: Of SGD, at the start.
        anneal: Whether it falls to zero over the run, as half a cosine; else it is constant.
        momentum: Of SGD.
        weight_decay: Of SGD.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    anneal: bool
    momentum: float
    weight_decay: float

    def rate(self, done: float) -> float:
        """Learning rate when a share of the run, 0 to 1, is done."""
        return self.learning_rate * (0.5 + 0.5 * math.cos(math.pi * done) if self.anneal else 1.0)


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images that leave the label true.

    Args:
        margin: Largest shift in pixels; what is shifted in is black.
        flips: Whether images are mirrored at random.
    """

    margin: int
    flips: bool

    def __call__(self, images: Images, generator: torch.Generator) -> Images:
        """Changed copies of images [B, C, H, W], each by itself."""
        return random_crop(images, self.margin, self.flips, generator)

    def __str__(self) -> str:
        """The same in words, for a report."""
        shifts = f"random shifts by up to {self.margin} pixels" if self.margin else ""
        return ", ".join(filter(None, (shifts, "random mirroring" if self.flips else ""))) or "none"


UNCHANGED = Augmentation(margin=0, flips=False)
"""Images as they are."""


@dataclass(frozen=True)
class Tuned:
    """What a repair led to.

    Args:
        state: State dict of the kept model, on the CPU.
        epochs: All epochs that ran, or whatever else was tried in their place.
        kept_epoch: Number of the one that is kept, from 1.
        within_budget: Whether it is within the budget; if none is, the most accurate one is kept.
        accuracy_before: On the selection images, before the repair.
        attempts: What was tried as a whole, a line each, where that was more than one thing.
        unlearned: Changes of pixels that stood out on the network as it came, and were trained against.
    """

    state: Weights
    epochs: tuple[RepairEpoch, ...]
    kept_epoch: int
    within_budget: bool
    accuracy_before: float
    attempts: tuple[str, ...] = ()
    unlearned: tuple[UnlearnedChange, ...] = ()


class Choice:
    """Keeps one of the states that a model goes through: the last within the budget, else the most accurate.

    Args:
        before: Accuracy on the selection images before the repair.
        max_drop: Accuracy on them that the kept state may have lost, or one image if that is more.
        images: How many selection images there are.
    """

    def __init__(self, before: float, max_drop: float, images: int) -> None:
        self._before = before
        # On few images one more mistake is chance. The small number is for shares that are no exact fractions.
        self._lowest = before - max(max_drop, 1 / images) - 1e-9
        self._kept: Weights = {}
        self._kept_epoch = 0
        self._within = False
        self.epochs: list[RepairEpoch] = []
        """What was offered so far."""

    def offer(self, model: SplitModel, epoch: RepairEpoch) -> None:
        """The model as it is now, and what is known of it."""
        affordable = epoch.accuracy >= self._lowest
        best = max((item.accuracy for item in self.epochs), default=-1.0)
        if affordable or (not self._within and epoch.accuracy > best):
            self._kept = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self._kept_epoch, self._within = epoch.epoch, affordable
        self.epochs.append(epoch)

    def dump(self) -> dict[str, Any]:
        """Everything that :meth:`restored` needs, for :class:`Progress`."""
        return {
            "before": self._before,
            "epochs": [item.model_dump_json() for item in self.epochs],
            "kept": self._kept,
            "kept_epoch": self._kept_epoch,
            "within": self._within,
        }

    @classmethod
    def restored(cls, state: dict[str, Any], max_drop: float, images: int) -> Self:
        """Go on from what :meth:`dump` gave, in an earlier call."""
        choice = cls(state["before"], max_drop, images)
        epochs = (RepairEpoch.model_validate_json(text) for text in state["epochs"])
        choice.epochs = [item.model_copy(update={"earlier": True}) for item in epochs]
        choice._kept, choice._kept_epoch, choice._within = state["kept"], state["kept_epoch"], state["within"]
        return choice

    def tuned(self) -> Tuned:
        """The choice; at least one state must have been offered."""
        return Tuned(self._kept, tuple(self.epochs), self._kept_epoch, self._within, self._before)


def try_candidates(
    model: SplitModel,
    candidates: Iterable[tuple[str, Weights]],
    selection: CleanData,
    *,
    max_drop: float,
    meter: Meter,
) -> Tuned:
    """Put changed entries into a model, one candidate after the other, and keep one by :class:`Choice`.

    Args:
        model: A private copy; changed.
        candidates: What each is, in a few words, and the entries of the state dict that it replaces; the gentlest
            first. Entries that a candidate does not name are as they were at the start.
        selection: Images that choose.
        max_drop: Accuracy on them that the kept candidate may cost.
        meter: Books a pass of ``selection`` for the model as it was and for each candidate.

    Raises:
        TimeLimitReached: From the meter.
    """
    original = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    choice = Choice(accuracy(model, selection, meter, "held-out accuracy"), max_drop, len(selection))
    for number, (what, changes) in enumerate(candidates, start=1):
        started = time.monotonic()
        model.load_state_dict({**original, **changes})
        found = accuracy(model, selection, meter, what)
        seconds = time.monotonic() - started
        choice.offer(model, RepairEpoch(epoch=number, what=what, accuracy=found, seconds=seconds))
    return choice.tuned()


def random_crop(images: Images, margin: int, flips: bool, generator: torch.Generator) -> Images:
    """Each image cut at a random place out of itself with a black margin, and mirrored half of the time.

    Args:
        images: [B, C, H, W] in [0, 1].
        margin: Pixels on every side.
        flips: Whether to mirror.
        generator: Source of randomness, on the CPU.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (margin,) * 4)
    top = torch.randint(2 * margin + 1, (count, 1), generator=generator)
    left = torch.randint(2 * margin + 1, (count, 1), generator=generator)
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if flips:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    batch = torch.arange(count)[:, None, None].to(images.device)
    # Advanced indices around a slice put the channels last: [B, H, W, C].
    cropped = padded[batch, :, rows[:, :, None].to(images.device), columns[:, None, :].to(images.device)]
    return cropped.permute(0, 3, 1, 2)


def choose_augmentation(model: SplitModel, data: CleanData, *, flips: bool | None, meter: Meter) -> Augmentation:
    """Augmentation that suits the images: they are mirrored only where the model itself takes no offence.

    Digits and traffic signs mean something else when mirrored. Nobody says what the images show, but the model knows:
    its accuracy on mirrored images falls where mirroring matters.

    Args:
        model: Images in [0, 1] to logits.
        data: Clean images.
        flips: Whether to mirror; none: find out.
        meter: Books the passes.
    """
    if flips is None:
        some = data.subset(data.in_turn(torch.Generator().manual_seed(0))[:MIRROR_IMAGES])  # of all classes alike
        images, labels = some.images, some.labels.cpu()
        plain, mirrored = (
            float((predictions(model, part, meter=meter, what="augmentation") == labels).double().mean())
            for part in (images, images.flip(3))
        )
        flips = mirrored >= plain - MIRROR_COST
    return Augmentation(data.images.shape[-1] // CROP_SHARE, flips)


def fine_tune(
    model: SplitModel,
    training: CleanData,
    selection: CleanData,
    objective: Objective,
    schedule: Schedule,
    *,
    augmentation: Augmentation,
    max_drop: float,
    seed: int,
    meter: Meter,
    passes: tuple[int, int],
    progress: Progress,
    companion: Companion | None = None,
    name: str = "",
) -> Tuned:
    """Train all weights of a model in place and keep one epoch.

    Weights that are exactly zero at the start stay zero, so that a pruned network stays pruned. A run that is
    interrupted and goes on later ends with the same weights as one that is not, and books the same passes.

    Args:
        model: A private copy; changed, and left in eval mode.
        training: Images that are trained on.
        selection: Images that choose the epoch.
        objective: Loss of a batch.
        schedule: Epochs and optimiser.
        augmentation: Random changes of the training images.
        max_drop: Accuracy on ``selection`` that the kept epoch may have lost, or one image if that is more.
        seed: Of order, augmentation and whatever the objective draws.
        meter: Books the passes, tells progress, keeps the time limit.
        passes: Passes forward and backward that the objective takes for an image.
        progress: Where the state is kept.
        companion: What the objective makes anew between epochs, if anything.
        name: Of the run, before each epoch, for whoever watches.

    Returns:
        The kept weights and how it went.

    Raises:
        DivergedError: The loss is not finite any more.
        UsageError: The state cannot be written.
        TimeLimitReached: From the meter; the state stays.
    """
    run = _Run(
        model.eval().lay_out_for_training(training.images),
        objective=objective,
        schedule=schedule,
        augmentation=augmentation,
        seed=seed,
        meter=meter,
        passes=passes,
    )
    state = progress.load()
    if state is None:
        choice = Choice(accuracy(model, selection, meter, "held-out accuracy"), max_drop, len(selection))
    else:
        choice = Choice.restored(state["choice"], max_drop, len(selection))
        if len(choice.epochs) < schedule.epochs:
            model.load_state_dict(state["model"])
            run.optimizer.load_state_dict(state["optimizer"])
            if companion is not None:
                companion.restore(state["companion"])
    for epoch in range(len(choice.epochs) + 1, schedule.epochs + 1):
        started = time.monotonic()
        told = f"{name}epoch {epoch}/{schedule.epochs}"
        told += f", acc {choice.epochs[-1].accuracy:.1%}" if choice.epochs else ""
        if companion is not None:
            companion.before_epoch(epoch, model)
        loss = run.epoch(epoch, training, told)
        found = accuracy(model, selection, meter, told)
        seconds = time.monotonic() - started
        choice.offer(model, RepairEpoch(epoch=epoch, loss=loss, accuracy=found, seconds=seconds))
        state = {"choice": choice.dump()}
        if epoch < schedule.epochs:  # of a run that is over, the choice says all
            state["model"], state["optimizer"] = model.state_dict(), run.optimizer.state_dict()
            state["companion"] = companion.dump() if companion is not None else None
        progress.save(state)
    tuned = choice.tuned()
    model.load_state_dict(tuned.state)
    model.eval()
    return tuned


class _Run:
    """Model, optimiser and settings of a run; :meth:`epoch` is one pass over the images."""

    def __init__(
        self,
        model: SplitModel,
        *,
        objective: Objective,
        schedule: Schedule,
        augmentation: Augmentation,
        seed: int,
        meter: Meter,
        passes: tuple[int, int],
    ) -> None:
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=schedule.learning_rate,
            momentum=schedule.momentum,
            weight_decay=schedule.weight_decay,
        )
        self._model = model
        self._objective = objective
        self._schedule = schedule
        self._augmentation = augmentation
        self._seed = seed
        self._meter = meter
        self._passes = passes
        self._pruned = _pruned(model)

    def epoch(self, number: int, training: CleanData, told: str) -> float:
        """Train on each image once; the mean loss of the batches."""
        # Each epoch draws from numbers of its own: one that is repeated after an interruption is the same epoch.
        seed = self._seed * EPOCH_SEEDS + number
        generator = torch.Generator().manual_seed(seed)
        seed_global(seed, training.images.device)
        self._model.train()
        order = torch.randperm(len(training), generator=generator).to(training.labels.device)
        # No batch of a single image: BatchNorm has no spread there.
        steps = max(1, min(math.ceil(len(training) / self._schedule.batch_size), len(training) // 2))
        total = 0.0
        for step, chosen in enumerate(torch.tensor_split(order, steps), start=1):
            forward, backward = (count * len(chosen) for count in self._passes)
            running = f", loss {total / (step - 1):.3f}" if step > 1 else ""
            self._meter.spend(told + running, forward=forward, backward=backward)
            for group in self.optimizer.param_groups:
                group["lr"] = self._schedule.rate((number - 1 + (step - 1) / steps) / self._schedule.epochs)
            images = self._augmentation(training.images[chosen], generator)
            loss = self._objective(self._model, images, training.labels[chosen], generator)
            if not bool(loss.isfinite()):
                raise DivergedError(
                    f"the repair diverged in epoch {number} (loss {loss.item()}); "
                    f"lower the learning rate, which is {self._schedule.learning_rate:g}"
                )
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            with torch.no_grad():
                for parameter, alive in self._pruned:
                    parameter.mul_(alive)
            total += loss.item()
        return total / steps


def _pruned(model: SplitModel) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters with pruned entries, and 1 where an entry is alive; shifts may be zero without being pruned."""
    return [
        (parameter, (parameter.detach() != 0).to(parameter.dtype))
        for name, parameter in model.named_parameters()
        if not name.endswith("bias") and bool((parameter.detach() == 0).any())
    ]


def accuracy(model: SplitModel, data: CleanData, meter: Meter, what: str) -> float:
    """Share of the images that the model classifies as labelled, in evaluation mode; books the passes as ``what``."""
    predicted = predictions(model, data.images, meter=meter, what=what)
    return float((predicted == data.labels.cpu()).double().mean())


def private_copy(model: SplitModel) -> SplitModel:
    """A copy in eval mode whose weights can be trained; the model itself stays as it is."""
    return copy.deepcopy(model).eval().requires_grad_(True)
