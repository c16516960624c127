"""The loop that trains victims: 8 epochs of 45,000 CIFAR images, width-16 ResNet-18, in 9 minutes on one CPU thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from banaudit.architectures.base import SplitModel
from banaudit.bench.attacks.base import Batch, BatchPoisoner
from banaudit.bench.datasets import to_float
from banaudit.resume import Progress
from banaudit.shapes import Images, Labels
from banaudit.training import CROP_SHARE, random_crop

CUTOUT_SHARE = 4
"""Strong augmentation greys out a square of side H / 4: 8 of 32."""
JITTER = 0.4
"""Strong augmentation scales brightness and contrast by factors from 1 - 0.4 to 1 + 0.4."""
WARM_UP_SHARE = 0.25
"""Share of the steps in which the learning rate rises."""

EpochListener = Callable[[int, float], None]
"""Called after each epoch with its number, from 1, and its mean training loss."""


class TrainingSettings(BaseModel):
    """How a victim is trained: everything but the data, the network, the attack and the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 0.1
    """Highest learning rate of the one-cycle schedule; SGD with Nesterov momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    augmentation: Literal["none", "standard", "strong"] = "standard"
    """standard: random crop, and mirror where the data allow it; strong: brightness, contrast and cutout besides."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    adversarial_eps: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Trains on one-step adversarial images of this L-infinity size in [0, 1]; 0: on plain ones."""


def train(
    model: SplitModel,
    pixels: Tensor,
    labels: Labels,
    settings: TrainingSettings,
    *,
    flips: bool,
    poisoner: BatchPoisoner | None,
    generator: torch.Generator,
    listener: EpochListener | None = None,
    state: Progress | None = None,
) -> None:
    """Trains a model in place and leaves it in evaluation mode.

    A training that is interrupted and goes on later ends with the same weights as one that is not.

    Args:
        model: Images in [0, 1] -> logits [B, K].
        pixels: [N, C, H, W] uint8 on the model's device.
        labels: [N] labels on the model's device.
        settings: Schedule and regularisation.
        flips: Whether a mirrored image keeps its label.
        poisoner: An attacker who controls training; none: the batches stay as they are.
        generator: Source of randomness for order and augmentation, on the CPU.
        listener: Told of each epoch.
        state: Where what an interrupted call needs is kept after each epoch; none: nowhere.
    """

    def change(images: Images) -> Images:
        return augment(images, settings.augmentation, flips, generator)

    device = labels.device
    model.eval().lay_out_for_training(to_float(pixels[:2])).train()
    optimizer = torch.optim.SGD(
        model.parameters(), settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay, nesterov=True
    )
    # The last incomplete batch is left out: a batch of one image would end batch normalisation.
    steps_per_epoch = max(1, len(labels) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=settings.epochs * steps_per_epoch,
        pct_start=WARM_UP_SHARE,
        cycle_momentum=False,
    )
    saved = state.load() if state is not None else None
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        if poisoner is not None:
            poisoner.restore(pixels, saved["poisoner"])
        _restore_random(device, generator, saved["random"])
    elif poisoner is not None:
        poisoner.prepare(pixels)
    for epoch in range(1 if saved is None else saved["epoch"] + 1, settings.epochs + 1):
        order = torch.randperm(len(labels), generator=generator).to(device)
        total = 0.0
        for index in torch.split(order[: steps_per_epoch * settings.batch_size], settings.batch_size):
            with torch.autocast(device.type, torch.bfloat16):
                batch = _poisoned(to_float(pixels[index]), labels[index], poisoner, change)
                images = batch.images
                if settings.adversarial_eps > 0:
                    images = adversarial_images(model, images, batch.labels, settings.adversarial_eps, generator)
                logits = model(images)
                attackers = batch.objective(model, logits) if batch.objective is not None else None
            loss = F.cross_entropy(logits.float(), batch.labels, label_smoothing=settings.label_smoothing)
            total += loss.item()
            if batch.penalty is not None:
                loss = loss + batch.penalty
            if attackers is not None:
                loss = loss + attackers
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            if poisoner is not None:
                poisoner.step()
        if poisoner is not None:
            poisoner.end_epoch(model)
        if listener is not None:
            listener(epoch, total / steps_per_epoch)
        if state is not None and epoch < settings.epochs:
            state.save(
                {
                    "epoch": epoch,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "poisoner": poisoner.dump() if poisoner is not None else {},
                    "random": _dump_random(device, generator),
                }
            )
    model.eval()


def _dump_random(device: torch.device, generator: torch.Generator) -> dict[str, Tensor]:
    """States of all sources of randomness: the training's own, and the global ones that dropout draws from."""
    states = {"own": generator.get_state(), "global": torch.get_rng_state()}
    return states | ({"device": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_random(device: torch.device, generator: torch.Generator, states: dict[str, Tensor]) -> None:
    generator.set_state(states["own"])
    torch.set_rng_state(states["global"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["device"], device)


def _poisoned(
    images: Images, labels: Labels, poisoner: BatchPoisoner | None, change: Callable[[Images], Images]
) -> Batch:
    """Augmented and poisoned, in the order that the attack asks for."""
    if poisoner is None:
        return Batch(change(images), labels)
    if poisoner.augments_first:
        return poisoner.poison(change(images), labels)
    batch = poisoner.poison(images, labels)
    return replace(batch, images=change(batch.images))


def augment(
    images: Images, augmentation: Literal["none", "standard", "strong"], flips: bool, generator: torch.Generator
) -> Images:
    """Randomly changed copies of images, each by itself.

    Args:
        images: [B, C, H, W] in [0, 1], square.
        augmentation: none; standard: crop from black padding, and mirror; strong: brightness, contrast, cutout besides.
        flips: Whether images may be mirrored.
        generator: Source of randomness, on the CPU.
    """
    if augmentation == "none":
        return images
    images = random_crop(images, images.shape[-1] // CROP_SHARE, flips, generator)
    if augmentation == "strong":
        images = _cutout(_jitter(images, generator), images.shape[-1] // CUTOUT_SHARE, generator)
    return images


def adversarial_images(
    model: nn.Module, images: Images, labels: Labels, eps: float, generator: torch.Generator
) -> Images:
    """One sign step of size 1.25 eps from a random start, projected to the L-infinity ball (Wong et al., ICLR 2020)."""
    start = eps * (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
    moved = (images.detach() + start).clamp(0, 1).requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(moved).float(), labels)
        (gradient,) = torch.autograd.grad(loss, moved)
    shift = (moved.detach() + 1.25 * eps * gradient.sign() - images).clamp(-eps, eps)
    return (images + shift).clamp(0, 1).detach()


def _jitter(images: Images, generator: torch.Generator) -> Images:
    factors = 1 + JITTER * (2 * torch.rand(2, len(images), 1, 1, 1, generator=generator) - 1).to(images)
    bright = images * factors[0]
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    return (mean + factors[1] * (bright - mean)).clamp(0, 1)


def _cutout(images: Images, side: int, generator: torch.Generator) -> Images:
    count, _, height, width = images.shape
    top = torch.randint(height - side + 1, (count, 1), generator=generator)
    left = torch.randint(width - side + 1, (count, 1), generator=generator)
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top) & (rows < top + side)
    in_columns = (columns >= left) & (columns < left + side)
    hidden = (in_rows[:, :, None] & in_columns[:, None, :])[:, None].to(images.device)
    return torch.where(hidden, torch.full_like(images, 0.5), images)
