"""What each economy of a scan brings, timed on one network: the same work with it and without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.bench.cost import clock
from banaudit.data import CleanData
from banaudit.detectors import Detector, suited
from banaudit.detectors.ban import BAN
from banaudit.neurons import decoupling_loss
from banaudit.precision import fast_precision
from banaudit.results import Record
from banaudit.shapes import Images, Labels

IMAGES_OF_A_CLASS = 8
"""Images of each class in one step of a search, as Neural Cleanse takes them."""
SETTINGS = BAN()
"""Whose mask step is timed."""
MANY_CLASSES = 43
FEW_CLASSES = 10
"""Classes of GTSRB and of CIFAR-10."""
SMALLEST = 1e-9


class Economy(Record):
    """One economy: what the same work costs without it and with it, everything else equal."""

    name: str
    work: str = Field(description="What was done, and in which unit the two figures are.")
    without: float
    with_it: float

    @property
    def factor(self) -> float:
        """How many times cheaper."""
        return self.without / max(self.with_it, SMALLEST)


def timed_economies(model: SplitModel, clean: CleanData, *, repeats: int = 3) -> tuple[Economy, ...]:
    """Time the economies that act on single passes; the shortest of some repetitions counts.

    Args:
        model: Images in [0, 1] to logits, on the device to time on; stays as it is.
        clean: At least 128 images; they are only passed through.
        repeats: Repetitions of each piece of work, after one that is not timed.
    """
    device = clean.images.device
    count = IMAGES_OF_A_CLASS * clean.num_classes
    repetitions = -(-max(count, SETTINGS.mask_batch) // len(clean))
    images = clean.images.repeat(repetitions, 1, 1, 1)
    labels = clean.labels.repeat(repetitions)

    def milliseconds(work: Callable[[], object], items: int) -> float:
        work()
        seconds = []
        for _ in range(repeats):
            started = clock(device)
            work()
            seconds.append(clock(device) - started)
        return round(1000 * min(seconds) / items, 4)

    trainable = copy.deepcopy(model).eval().requires_grad_(True).lay_out(torch.contiguous_format)
    frozen = copy.deepcopy(trainable).requires_grad_(False)
    lean = copy.deepcopy(frozen).lay_out(torch.channels_last)
    search, targets = images[:count], labels[:count]
    step = "one step of a search towards a class, forward and backward, ms an image"

    def descend(subject: SplitModel, *, fast: bool, cut: int = 1) -> float:
        parts, goals = torch.tensor_split(search, cut), torch.tensor_split(targets, cut)

        def work() -> None:
            for part, goal in zip(parts, goals, strict=True):
                _input_gradient(subject, part, goal, fast=fast)

        return milliseconds(work, count)

    frozen_plain = descend(frozen, fast=False)
    frozen_fast = descend(lean, fast=True)
    batch, batch_labels = images[: SETTINGS.mask_batch], labels[: SETTINGS.mask_batch]
    with torch.no_grad():
        features = lean.features(batch)
    mask = torch.rand(features.shape[1:], generator=torch.Generator().manual_seed(0)).to(device)
    return (
        Economy(
            name="weights frozen",
            work=f"{step}, full precision",
            without=descend(trainable, fast=False),
            with_it=frozen_plain,
        ),
        Economy(
            name="channels last",
            work=f"{step}, bfloat16 where it is native",
            without=descend(frozen, fast=True),
            with_it=frozen_fast,
        ),
        Economy(
            name="bfloat16 where it is native",
            work=f"{step}, channels last",
            without=descend(lean, fast=False),
            with_it=frozen_fast,
        ),
        Economy(
            name="all classes in one batch",
            work=f"{step}; without: {clean.num_classes} batches of {IMAGES_OF_A_CLASS}",
            without=descend(lean, fast=True, cut=clean.num_classes),
            with_it=frozen_fast,
        ),
        Economy(
            name="features computed once",
            work=f"one step of the feature mask on {SETTINGS.mask_batch} images, ms",
            without=milliseconds(lambda: _mask_step(trainable, trainable.features(batch), batch_labels, mask), 1),
            with_it=milliseconds(lambda: _mask_step(lean, features, batch_labels, mask), 1),
        ),
    )


def counted_economies(detectors: tuple[Detector, ...], images: int) -> tuple[Economy, ...]:
    """The economy that acts on the number of passes: a shortlist from many classes on.

    Args:
        detectors: Of the scan.
        images: Clean images.
    """
    both = suited(suited(detectors, FEW_CLASSES), MANY_CLASSES)
    few, many = (
        sum(detector.planned_images(classes, images) for detector in both) for classes in (FEW_CLASSES, MANY_CLASSES)
    )
    return (
        Economy(
            name="a shortlist of classes",
            work=(
                f"planned forward passes of a scan of {MANY_CLASSES} classes, images; without: what {FEW_CLASSES} "
                "classes take, in proportion to the classes"
            ),
            without=round(few * MANY_CLASSES / FEW_CLASSES),
            with_it=many,
        ),
    )


def _input_gradient(model: SplitModel, images: Images, labels: Labels, *, fast: bool) -> None:
    variable = images.clone().requires_grad_(True)
    with fast_precision(images.device) if fast else nullcontext():
        logits = model(variable).float()
    torch.autograd.backward(F.cross_entropy(logits, labels))


def _mask_step(model: SplitModel, features: Tensor, labels: Labels, mask: Tensor) -> None:
    variable = mask.clone().requires_grad_(True)
    torch.autograd.backward(decoupling_loss(model, features, labels, variable, SETTINGS.mask_weight))
