"""Before anything is judged: does the network do its job on these images, and if not, why not?

A verdict on a network that misreads its input means nothing, so clean accuracy is held against a floor first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.results import CleanAccuracy
from banaudit.shapes import Images, Labels

MIN_FLOOR = 0.20
"""The floor never falls below this accuracy, however many classes there are."""

MAX_FLOOR = 0.60
"""Nor does it rise above this one: five times chance is more than all images for four classes or fewer."""

PERMUTED_ACCURACY = 0.60
"""Accuracy after renaming the labels from which on the class order is called wrong ..."""

PERMUTED_GAIN = 2.0
"""... if it is at least this many times the accuracy as labelled."""

ONE_CLASS_SHARE = 0.90
"""From this share of all answers on, one class is said to be the only answer."""

NO_ANSWER = -1
"""Stands for the prediction where a logit is not finite; it equals no label."""


def default_floor(classes: int) -> float:
    """Clean accuracy below which a verdict is inconclusive: five times chance, held between 20 % and 60 %.

    Args:
        classes: Number of classes K.

    Returns:
        In [0.2, 0.6]: 0.6 for up to eight classes, 0.5 for ten, 0.2 from 25 on.
    """
    return min(max(5 / classes, MIN_FLOOR), MAX_FLOOR)


def predictions(
    model: SplitModel,
    images: Images,
    *,
    batch_size: int = 128,
    meter: Meter | None = None,
    what: str = "clean accuracy",
) -> Labels:
    """Predicted labels, with the model in evaluation mode; its mode is as before afterwards.

    Args:
        model: Images in [0, 1] to logits.
        images: [N, C, H, W]; moved to the model's device batch by batch.
        batch_size: Images in a forward pass.
        meter: Books the passes; none: nobody counts.
        what: What the meter is told.

    Returns:
        [N] int64 on the CPU; :data:`NO_ANSWER` where a logit is not finite.
    """
    device = model.mean.device
    predicted: list[Tensor] = []
    with _evaluation_mode(model), torch.inference_mode():
        for batch in torch.split(images, batch_size):
            if meter is not None:
                meter.spend(what, forward=len(batch))
            logits = model(batch.to(device))
            predicted.append(torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), NO_ANSWER).cpu())
    return torch.cat(predicted)


def clean_accuracy(
    model: SplitModel, clean: CleanData, floor: float | None = None, meter: Meter | None = None
) -> CleanAccuracy:
    """Measure clean accuracy, and look for a wrong class order if it is below the floor.

    Args:
        model: Images in [0, 1] to logits.
        clean: N images with labels.
        floor: Accuracy below which a verdict is inconclusive; none: :func:`default_floor`.
        meter: Books the passes.

    Returns:
        The record for the report.

    Raises:
        UnsupportedModelError: The network has another number of classes than the data.
    """
    return judge_predictions(predictions(model, clean.images, meter=meter), clean, floor)


def judge_predictions(predicted: Labels, clean: CleanData, floor: float | None = None) -> CleanAccuracy:
    """Clean accuracy of predictions that are already there.

    Below the floor, the renaming of labels that would fit best is searched on half of each class's images and its
    accuracy measured on the other half, so that many classes with few images cannot fit by chance.

    Args:
        predicted: [N] labels, :data:`NO_ANSWER` where there is none.
        clean: The N images' labels and the K class names.
        floor: Accuracy below which a verdict is inconclusive; none: :func:`default_floor`.

    Returns:
        The record for the report; with a permutation, over the labels that have images, only where it is convincing.

    Raises:
        UnsupportedModelError: A prediction is not one of the K classes.
    """
    classes = clean.num_classes
    if int(predicted.max()) >= classes:
        raise UnsupportedModelError(
            f"the network predicts class {int(predicted.max())}, the data have {classes} classes; "
            "check that images and network belong together"
        )
    labels = clean.labels.cpu()
    accuracy = (predicted == labels).double().mean().item()
    floor = default_floor(classes) if floor is None else floor
    permutation: dict[int, int] | None = None
    permuted_accuracy: float | None = None
    if accuracy < floor:
        fitted, held_out = _alternate(labels, classes)
        renamed = best_permutation(labels[fitted], predicted[fitted], classes)
        share = (renamed[labels[held_out]] == predicted[held_out]).double().mean().item() if len(held_out) else 0.0
        if share >= max(PERMUTED_ACCURACY, PERMUTED_GAIN * accuracy):
            renamed = best_permutation(labels, predicted, classes)
            permutation = {label: int(renamed[label]) for label in sorted(set(labels.tolist()))}
            permuted_accuracy = share
    return CleanAccuracy(
        accuracy=accuracy,
        images=len(clean),
        floor=floor,
        label_permutation=permutation,
        permuted_accuracy=permuted_accuracy,
    )


def likely_cause(found: CleanAccuracy, predicted: Labels, class_names: tuple[str, ...]) -> str:
    """Why clean accuracy is low, as far as the predictions tell, and what to do about it.

    Args:
        found: An accuracy below its floor.
        predicted: [N] predictions it was computed from.
        class_names: K names.

    Returns:
        One line.
    """
    if found.label_permutation is not None:
        moved = {label: to for label, to in found.label_permutation.items() if label != to}
        pairs = ", ".join(f"{label} {class_names[label]} -> {to}" for label, to in list(moved.items())[:12])
        more = f" and {len(moved) - 12} more" if len(moved) > 12 else ""
        return (
            f"the class order looks wrong: with {pairs}{more} the accuracy is {found.permuted_accuracy:.0%}; "
            "give the network's order in classes.txt"
        )
    answers = torch.bincount(predicted[predicted != NO_ANSWER], minlength=len(class_names))
    if answers.sum() < len(predicted) / 2:
        return "most outputs are not finite numbers: the weights or the preprocessing are broken"
    top = int(answers.argmax())
    if answers[top] >= ONE_CLASS_SHARE * len(predicted):
        return (
            f"{int(answers[top]) / len(predicted):.0%} of all answers are {top} {class_names[top]}: the preprocessing "
            "looks wrong (--preset, --mean, --std, --size), or the network was never trained on such images"
        )
    if found.accuracy < 2 / len(class_names):
        return (
            "the answers are near chance and no renaming of the classes helps: other images than the network was "
            "trained on, or wrong preprocessing (--preset, --mean, --std, --size)"
        )
    return (
        "better than chance, but low: the preprocessing may be wrong (--preset, --mean, --std, --size), the images "
        "differ from the training images (crop, compression), or the network is weak"
    )


def best_permutation(labels: Labels, predicted: Labels, classes: int) -> Tensor:
    """The renaming of labels under which most predictions are right.

    Args:
        labels: [N] in 0..K-1.
        predicted: [N] in 0..K-1; :data:`NO_ANSWER` is left out.
        classes: Number of classes K.

    Returns:
        [K] a permutation: label -> predicted label. Labels without images keep their own place where it is free.
    """
    answered = predicted != NO_ANSWER
    counts = torch.bincount(labels[answered] * classes + predicted[answered], minlength=classes**2)
    gains = counts.view(classes, classes).double()
    gains += 0.5 / classes * torch.eye(classes, dtype=torch.float64)  # breaks ties, weighs less than one image in all
    return torch.from_numpy(_assign(-gains.numpy()))


def _assign(costs: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Column of each row so that the summed cost is least: shortest augmenting paths, O(K^3), one row a time.

    Source: Jonker and Volgenant, Computing 38, 1987; rows enter one by one, and the potentials of rows and columns keep
    every reduced cost at or above zero.
    """
    size = len(costs)
    row_potential, column_potential = np.zeros(size), np.zeros(size)
    row_of = np.full(size, -1)
    for new_row in range(size):
        distance = np.full(size, np.inf)
        came_from = np.full(size, -1)
        done = np.zeros(size, dtype=bool)
        row, column, reached = new_row, -1, 0.0
        while row >= 0:
            through = reached + costs[row] - row_potential[row] - column_potential
            shorter = ~done & (through < distance)
            distance[shorter] = through[shorter]
            came_from[shorter] = column
            column = int(np.argmin(np.where(done, np.inf, distance)))
            reached = float(distance[column])
            done[column] = True
            row = int(row_of[column])
        behind = done.copy()
        behind[column] = False  # the free column at the end of the path: its potential stays
        row_potential[row_of[behind]] += reached - distance[behind]
        row_potential[new_row] += reached
        column_potential[behind] -= reached - distance[behind]
        while column >= 0:  # shift the assignment along the path, back to the new row
            previous = int(came_from[column])
            row_of[column] = row_of[previous] if previous >= 0 else new_row
            column = previous
    return np.argsort(row_of)


def _alternate(labels: Labels, classes: int) -> tuple[Tensor, Tensor]:
    """Positions of every other image of each class, and of the rest."""
    members = [(labels == label).nonzero().flatten() for label in range(classes)]
    return torch.cat([index[::2] for index in members]), torch.cat([index[1::2] for index in members])


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
