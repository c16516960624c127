"""Before anything is judged: does the network do its job on these images, and if not, why not?

A verdict on a network that misreads its input means nothing, so clean accuracy is held against a floor first.
"""

from __future__ import annotations

import math
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
from banaudit.shapes import Images, Labels, Logits

MIN_FLOOR = 0.20
"""The floor never falls below this accuracy, however many classes there are."""

MAX_FLOOR = 0.60
"""Nor does it rise above this one: five times chance is more than all images for four classes or fewer."""

PERMUTED_ACCURACY = 0.60
"""Accuracy after renaming the labels from which on the class order is called wrong ..."""

PERMUTED_GAIN = 2.0
"""... if it is at least this many times the accuracy as labelled; both are asked of all classes or of some of them."""

PERMUTED_ERRORS = 3.0
"""Where some classes alone look exchanged, they must gain this many standard errors: nine images at the least."""

ONE_CLASS_SHARE = 0.90
"""From this share of all answers on, one class is said to be the only answer."""

UNEVEN = 0.05
"""From this difference on, accuracy over all images and accuracy averaged over the classes are both told."""

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


def answers_of(logits: Logits) -> Labels:
    """The label of the largest of each row of logits [B, K]; :data:`NO_ANSWER` where one is not finite."""
    return torch.where(logits.isfinite().all(dim=1), logits.argmax(dim=1), NO_ANSWER)


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
            predicted.append(answers_of(logits).cpu())
    return torch.cat(predicted)


def clean_accuracy(
    model: SplitModel, clean: CleanData, floor: float | None = None, meter: Meter | None = None
) -> CleanAccuracy:
    """Measure clean accuracy, and look for a wrong class order.

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
    order = _other_order(labels, predicted, classes)
    return CleanAccuracy(
        accuracy=_share(predicted == labels),
        balanced_accuracy=_balanced_accuracy(labels, predicted),
        images=len(clean),
        unanswered=int((predicted == NO_ANSWER).sum()),
        floor=default_floor(classes) if floor is None else floor,
        one_answer=_one_answer(labels, predicted),
        label_permutation=order[0] if order is not None else None,
        permuted_accuracy=order[1] if order is not None else None,
    )


def misreading(found: CleanAccuracy, class_names: tuple[str, ...], predicted: Labels | None = None) -> str:
    """Why these images say nothing about this network, nor may it be trained on them.

    A wrong class order, or one answer to everything, is a reason however low the floor was set.

    Args:
        found: The clean accuracy.
        class_names: K names.
        predicted: [N] predictions it was computed from, if they are at hand: they tell more of the cause.

    Returns:
        One line; empty where the network reads the images as it should.
    """
    if found.accuracy < found.floor:
        told = f"clean accuracy {found.accuracy:.1%} is below the floor of {found.floor:.0%}"
    elif found.averaged < found.floor:
        told = (
            f"clean accuracy averaged over the classes, {found.averaged:.1%}, is below the floor of {found.floor:.0%} "
            f"({found.accuracy:.1%} of all images)"
        )
    else:
        return _recorded_cause(found, class_names)
    cause = _recorded_cause(found, class_names) if predicted is None else likely_cause(found, predicted, class_names)
    return f"{told}: {cause}" if cause else told


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
        return _recorded_cause(found, class_names)
    answers = torch.bincount(predicted[predicted != NO_ANSWER], minlength=len(class_names))
    if answers.sum() < len(predicted) / 2:
        return "most outputs are not finite numbers: the weights or the preprocessing are broken"
    top = int(answers.argmax())
    if answers[top] >= ONE_CLASS_SHARE * len(predicted):
        return (
            f"{int(answers[top]) / len(predicted):.0%} of all answers are {_told(top, class_names)}: the preprocessing "
            "looks wrong (--preset, --mean, --std, --size), or the network was never trained on such images"
        )
    if min(found.accuracy, found.averaged) < 2 / len(class_names):
        return (
            "the answers are near chance, and no renaming of the classes helps under this preprocessing: other images "
            "than the network was trained on, or wrong preprocessing (--preset, --mean, --std, --size)"
        )
    return (
        "better than chance, but low: the preprocessing may be wrong (--preset, --mean, --std, --size), the images "
        "differ from the training images (crop, compression), or the network is weak"
    )


def _recorded_cause(found: CleanAccuracy, class_names: tuple[str, ...]) -> str:
    """What the record alone tells of a cause; empty: nothing."""
    if found.label_permutation is not None:
        moved = [(label, to) for label, to in found.label_permutation.items() if label != to]
        pairs = ", ".join(
            f"images of {_told(label, class_names)} are answered {_told(to, class_names)}" for label, to in moved[:12]
        )
        more = f", and {len(moved) - 12} more" if len(moved) > 12 else ""
        return (
            f"the class order looks wrong: {pairs}{more}; in the network's order the accuracy is "
            f"{found.permuted_accuracy:.1%} instead of {found.accuracy:.1%}; name that order with --classes"
        )
    if found.one_answer is not None:
        return (
            f"nearly all answers are {_told(found.one_answer, class_names)}, whatever the images show: the "
            "preprocessing looks wrong, or the network was never trained on such images"
        )
    return ""


def _told(label: int, class_names: tuple[str, ...]) -> str:
    """A class by number and name; the number alone where that is its name."""
    name = class_names[label]
    return str(label) if name == str(label) else f"{label} {name!r}"


def _share(right: Tensor) -> float:
    """Share of true entries."""
    return right.double().mean().item()


def _balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """Mean over the classes that have images of the share of each that is classified as labelled."""
    images = torch.bincount(labels)
    right = torch.bincount(labels[predicted == labels], minlength=len(images))
    present = images > 0
    return (right[present].double() / images[present]).mean().item()


def _one_answer(labels: Labels, predicted: Labels) -> int | None:
    """The class that nearly all answers are although the images are not."""
    answers = predicted[predicted != NO_ANSWER]
    if not len(answers):
        return None
    top = int(torch.bincount(answers).argmax())
    share = _share(predicted == top)
    return top if share >= ONE_CLASS_SHARE and _share(labels == top) < ONE_CLASS_SHARE * share else None


def _other_order(labels: Labels, predicted: Labels, classes: int) -> tuple[dict[int, int], float] | None:
    """The class order that the answers speak of, if it is another than the labels', and the accuracy with it.

    Either all labels look mixed up, or some of them exchanged among themselves. What is found on half of each class's
    images must hold on the other half, so that many classes with few images cannot fit by chance.

    Returns:
        Label -> predicted label, over the labels that have images, and the accuracy after that renaming.
    """
    halves = _alternate(labels)
    if not len(halves[1]):
        return None
    first, second = (best_permutation(labels[half], predicted[half], classes) for half in halves)
    there = sorted(set(labels.tolist()))
    held_out = _share(first[labels[halves[1]]] == predicted[halves[1]])
    if held_out >= max(PERMUTED_ACCURACY, PERMUTED_GAIN * _share(predicted == labels)):
        renamed = best_permutation(labels, predicted, classes)
        return {label: int(renamed[label]) for label in there}, held_out
    renamed = _exchanged(first, second, labels, predicted)
    accuracy = _share(renamed[labels] == predicted)
    # Among many mistakes some look like an exchange; only of a network that does its job otherwise is it one.
    if renamed.equal(torch.arange(classes)) or accuracy < default_floor(classes):
        return None
    return {label: int(renamed[label]) for label in there}, accuracy


def _exchanged(first: Tensor, second: Tensor, labels: Labels, predicted: Labels) -> Tensor:
    """Those cycles of a permutation that cannot be confusion, the labels outside them kept.

    Of a pair that a weak network confuses, each class still is its own likeliest answer, or one class takes the images
    of both. So in a cycle no class may be answered rightly more often than renamed, and the images of all its classes
    together must answer to the new names: most of them, more often than to the old ones, and by more than chance.

    Args:
        first: [K] label -> predicted label, as one half of the images has it.
        second: The same by the other half, which has to agree.
        labels: [N] of both halves.
        predicted: [N].
    """
    classes = len(first)
    images = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[predicted == labels], minlength=classes)
    renamed_right = torch.bincount(labels[predicted == first[labels]], minlength=classes)
    kept = torch.arange(classes)
    for cycle in _cycles(first):
        seen = cycle[images[cycle] > 0]
        before, after = int(right[seen].sum()), int(renamed_right[seen].sum())
        if (
            first[seen].equal(second[seen])
            and bool((renamed_right[seen] >= right[seen]).all())
            and after >= max(PERMUTED_ACCURACY * int(images[seen].sum()), PERMUTED_GAIN * before)
            and after - before >= PERMUTED_ERRORS * math.sqrt(after + before) > 0
        ):
            kept[cycle] = first[cycle]
    return kept


def _cycles(permutation: Tensor) -> list[Tensor]:
    """The cycles of a permutation that move something, as positions."""
    to = permutation.tolist()
    seen: set[int] = set()
    cycles: list[Tensor] = []
    for start, end in enumerate(to):
        if start == end or start in seen:
            continue
        cycle = [start]
        while to[cycle[-1]] != start:
            cycle.append(to[cycle[-1]])
        seen.update(cycle)
        cycles.append(torch.tensor(cycle))
    return cycles


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
    labels, predicted = labels[answered], predicted[answered]
    # Rows and columns are what occurs: a table of K x K would be gigabytes for a file that claims many classes.
    rows = _distinct(labels)
    columns = _distinct(torch.cat([labels, predicted]))
    places = torch.searchsorted(rows, labels) * len(columns) + torch.searchsorted(columns, predicted)
    gains = torch.bincount(places, minlength=len(rows) * len(columns)).view(len(rows), len(columns)).double()
    # An own place breaks ties and weighs less than one image in all.
    gains[torch.arange(len(rows)), torch.searchsorted(columns, rows)] += 0.5 / classes
    permutation = torch.arange(classes)
    permutation[rows] = columns[torch.from_numpy(_assign(-gains.numpy()))]
    return _completed(permutation, rows)


def _completed(permutation: Tensor, rows: Tensor) -> Tensor:
    """A permutation of which only these rows are settled; others keep their own place, or get one that is left."""
    classes = len(permutation)
    taken = torch.zeros(classes, dtype=torch.bool)
    taken[permutation[rows]] = True
    settled = torch.zeros(classes, dtype=torch.bool)
    settled[rows] = True
    displaced = taken & ~settled
    permutation[displaced] = (~taken & settled).nonzero().flatten()
    return permutation


def _assign(costs: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Column of each row so that the summed cost is least: shortest augmenting paths, O(R^2 C), one row a time.

    There may be more columns C than rows R, not fewer.

    Source: Jonker and Volgenant, Computing 38, 1987; rows enter one by one, and the potentials of rows and columns keep
    every reduced cost at or above zero.
    """
    rows, columns = costs.shape
    row_potential, column_potential = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    for new_row in range(rows):
        distance = np.full(columns, np.inf)
        came_from = np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
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
    assigned = np.flatnonzero(row_of >= 0)
    return assigned[np.argsort(row_of[assigned])]


def _distinct(labels: Labels) -> Labels:
    """Each label that occurs once, in rising order."""
    return torch.bincount(labels).nonzero().flatten()


def _alternate(labels: Labels) -> tuple[Tensor, Tensor]:
    """Positions of every other image of each class, and of the rest."""
    members = [(labels == label).nonzero().flatten() for label in _distinct(labels)]
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
