"""A small network trained on the clean images alone: how near classes are to each other where nobody planted anything.

Some classes are alike by nature (a 9 and a 4), and a network that is asked which class is easily reached from which
will name these. What a network that saw nothing but the clean images finds alike is no backdoor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData, batches
from banaudit.detectors.base import classes_below
from banaudit.detectors.targeted_paths import by_source_and_target
from banaudit.meter import Meter
from banaudit.shapes import Features, Images, Labels, Logits

SIDE = 32
"""Pixels of a side that larger images are averaged down to, so that the cost does not depend on them."""

WIDTHS = (32, 64)
"""Channels of the two convolutions."""

EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 30, 64, 1e-3, 1e-3
"""Of Adam."""

REPEATS = 2
"""Networks for each part of the images; one by itself finds other classes alike than the next."""

DROPOUT, NOISE, SHIFT = 0.3, 0.1, 2
"""What keeps few images from being learnt by heart: features dropped, noise on pixels in [0, 1], pixels of a shift."""

READ_BATCH = 256

LEAST_IMAGES, LEAST_EACH = 500, 10
"""Clean images of all classes together, and of each class, with which the references know what is natural; to a class
that they saw nothing of, any leaning looks planted."""

LEAST_KNOWN = 3.0
"""Share of the unseen images of a class, on average and in units of chance, that references must know. Those of ten
classes of photographs are not far above it."""

SLOPES = 2000
"""Pairs of classes, at most, that a line is fitted to; they are drawn where there are more."""


def natural_closeness(one: CleanData, other: CleanData, generator: torch.Generator, meter: Meter) -> Tensor:
    """Mean margin towards each class (row) of the images of each class (column), [K, K]; NaN on the diagonal.

    Networks trained on one part of the images read the other, and the other way round; the mean of all counts.

    Args:
        one: Clean images.
        other: Disjoint ones, of the same classes.
        generator: Source of randomness, on the CPU.
        meter: Keeps the time limit; no pass through the audited network is made.
    """
    return on_unseen(one, other, generator, meter, by_source_and_target)[0]


def on_unseen(
    one: CleanData,
    other: CleanData,
    generator: torch.Generator,
    meter: Meter,
    read: Callable[[Logits, Labels], Tensor],
) -> tuple[Tensor, float]:
    """Mean over the references of what is read from their logits on the images that they have not seen.

    Args:
        one: Clean images.
        other: Disjoint ones, of the same classes.
        generator: Source of randomness, on the CPU.
        meter: Keeps the time limit; no pass through the audited network is made.
        read: Of logits [B, K] and labels [B], both on the CPU.

    Returns:
        What is read, and the share of these images that they know, as the mean over the classes, since a network that
        only ever names a frequent one knows nothing: near 1 / K they learnt nothing.
    """
    found: list[Tensor] = []
    known: list[float] = []
    for network, unseen in references(one, other, generator, meter):
        logits, labels = logits_of(network, unseen), unseen.labels.cpu()
        found.append(read(logits, labels))
        known.append(known_share(logits, labels))
    return torch.stack(found).mean(0), sum(known) / len(known)


def logits_of(network: Callable[[Images], Logits], data: CleanData) -> Logits:
    """[N, K] of a reference, on the CPU."""
    with torch.no_grad():
        return torch.cat([network(images) for images, _ in batches(data.images, data.labels, READ_BATCH)]).cpu()


def known_share(logits: Logits, labels: Labels) -> float:
    """Share of the images that are classified as labelled, as the mean over the classes that have any.

    Args:
        logits: [N, K], on the CPU.
        labels: [N].
    """
    right = logits.argmax(dim=1) == labels
    shares = [float(right[labels == label].double().mean()) for label in sorted(set(labels.tolist()))]
    return sum(shares) / len(shares)


def know_enough(known: float, num_classes: int) -> bool:
    """Whether references know enough to tell what is natural.

    Args:
        known: Mean over them of :func:`known_share`, of images that they have not seen.
        num_classes: K.
    """
    return known >= LEAST_KNOWN / num_classes


def few_images(images: Sequence[int]) -> str:
    """Why references trained on so few images would not know what is natural; empty: they are enough.

    Args:
        images: Clean images of each class.
    """
    if sum(images) < LEAST_IMAGES:
        return f"there are {sum(images)} clean images, {LEAST_IMAGES} are needed"
    scarce = classes_below(images, LEAST_EACH)
    return f"of {scarce} there are fewer than {LEAST_EACH} clean images" if scarce else ""


def references(
    one: CleanData, other: CleanData, generator: torch.Generator, meter: Meter
) -> Iterator[tuple[SplitModel, CleanData]]:
    """Networks trained on one of two parts of the clean images, each with the part that it has not seen.

    Args:
        one: Clean images.
        other: Disjoint ones, of the same classes.
        generator: Source of randomness, on the CPU.
        meter: Keeps the time limit; no pass through the audited network is made.
    """
    for seen, unseen in ((one, other), (other, one)) * REPEATS:
        channels = seen.images.shape[1]
        network = _train(_small(seen.images), seen.labels, seen.num_classes, generator, meter)
        yield SplitModel(network, (0.0,) * channels, (1.0,) * channels).to(seen.images.device).eval(), unseen


def beyond(values: Tensor, natural: Tensor, generator: torch.Generator) -> Tensor:
    """What is left of the values of classes, or pairs of classes, once a line through the natural ones is taken off.

    The line is Theil's and Sen's (its slope the median of the slopes between any two pairs), which a few pairs that
    stand out do not bend.

    Args:
        values: [K] or [K, K]; NaN where there is none.
        natural: The same of the references.
        generator: Draws the pairs where there are more than :data:`SLOPES`.
    """
    known = (~values.isnan() & ~natural.isnan()).flatten().nonzero().flatten()
    fitted = known[torch.randperm(len(known), generator=generator)[:SLOPES]]
    x, y = natural.flatten()[fitted], values.flatten()[fitted]
    one, other = torch.triu_indices(len(x), len(x), 1)
    run = x[other] - x[one]
    apart = run != 0
    slopes = ((y[other] - y[one]) / run)[apart]
    slope = slopes.median() if len(slopes) else x.new_zeros(())
    return values - slope * natural - (y - slope * x).median()


def lead_by_all(values: Tensor) -> tuple[float, int]:
    """How far one value is ahead of all others by every ruler, by the least of them, and its position.

    Args:
        values: [V, n] by each ruler; NaN where there is none.

    Returns:
        A lead of 0 where the rulers put different values first; the position is then the first by the last ruler.
    """
    first = values.nan_to_num(-torch.inf).topk(2, dim=1)
    position = int(first.indices[-1, 0])
    if len(set(first.indices[:, 0].tolist())) > 1:
        return 0.0, position
    return float((first.values[:, 0] - first.values[:, 1]).min()), position


class _Reference(SplitNetwork):
    """Two convolutions and a linear layer, for images of any size.

    Args:
        like: [N, C, H, W] images as :func:`_small` makes them.
        classes: K.
    """

    def __init__(self, like: Images, classes: int) -> None:
        super().__init__()
        first, second = WIDTHS
        self.body = nn.Sequential(
            *(nn.Conv2d(like.shape[1], first, 5, 2, 2), nn.BatchNorm2d(first), nn.ReLU()),
            *(nn.Conv2d(first, second, 5, 2, 2), nn.BatchNorm2d(second), nn.ReLU()),
            *(nn.Dropout(DROPOUT), nn.Flatten()),
        ).to(like.device)
        with torch.no_grad():
            width = self.body.eval()(like[:1]).shape[1]
        self.classifier = nn.Linear(width, classes).to(like.device)

    def features(self, inputs: Tensor) -> Features:
        features: Features = self.body(_small(inputs))
        return features

    def head(self, features: Features) -> Logits:
        logits: Logits = self.classifier(features)
        return logits


def _small(images: Images) -> Images:
    return F.adaptive_avg_pool2d(images, (min(images.shape[2], SIDE), min(images.shape[3], SIDE)))


def _train(images: Images, labels: Labels, classes: int, generator: torch.Generator, meter: Meter) -> SplitNetwork:
    """The network; its first weights and what it drops come from the global random state, which is a private one."""
    network = _Reference(images, classes).train()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for _ in range(EPOCHS):
        meter.spend("a reference trained on the clean images", forward=0)
        for index in torch.split(torch.randperm(len(labels), generator=generator).to(images.device), BATCH):
            if len(index) < 2:
                continue  # one image alone has no batch statistics
            down, right = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
            shown = torch.roll(images[index] + NOISE * torch.randn_like(images[index]), (down, right), (2, 3))
            loss = F.cross_entropy(network(shown), labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()
