"""Paths towards each class: how far one small perturbation, common to all images, carries them to a class.

Two detectors share this: :mod:`targeted_noise` perturbs neurons, :mod:`universal_perturbation` perturbs pixels.  For
every class t a perturbation grows step by step, each step descending the cross-entropy towards t on images of the other
classes; in between, the margin towards t is read on images that played no part in the search.  A backdoor is a
shortcut: its target class runs ahead of all others.

How large a perturbation to compare at depends on the model (a small plain network is steered by a third of what a
ResNet needs), so the model sets it: every path stops together once the median class is *saturated*, and the classes are
compared there.  The ruler is the *lead*.  Let m_t be the mean over source classes of the mean margin
z_t - max_{k != t} z_k of the held-out images, m_(1) and m_(2) the two largest, m_med the median class's and m_med(0)
the same without perturbation:

    lead = (m_(1) - m_(2)) / max(m_med - m_med(0), |m_med(0)|),

the distance between the first class and the second in units of what an ordinary class gains, or has to gain.  It is
free of the logits' scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from banaudit.data import CleanData
from banaudit.detectors.base import Samples
from banaudit.errors import UnsupportedModelError
from banaudit.shapes import Images, Labels, Logits
from banaudit.statistics import median

SATURATED = 0.95
"""Share of images that reach the median class at which the paths stop."""

READ_EVERY = 3
"""Steps between two readings."""

GLANCE_IMAGES = 64
"""Held-out images that tell whether the median class is saturated yet; all of them are read once it is."""

LEADERS = 2
"""Classes whose perturbations are kept to be looked at."""

PATH_BATCH = 256
"""Images in one forward pass of a reading."""

SHORTLIST = 12
"""Classes followed to the end; with more, the others are dropped at the first reading (K-Arm's idea, ICML 2021)."""


class Perturbation(Protocol):
    """Something added to a model or its inputs, held in one tensor."""

    def zero(self) -> Tensor:
        """The perturbation that changes nothing."""

    def random(self, step: int, generator: torch.Generator) -> Tensor:
        """A perturbation of random direction, as large as one after ``step`` steps."""

    def logits(self, images: Images, perturbation: Tensor, what: str) -> Logits:
        """Logits [B, K] under a perturbation; differentiable in it."""

    def descend(self, perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The perturbation after step number ``step`` (from 1) against ``gradient``."""


@dataclass(frozen=True)
class Leader:
    """A class that is far ahead, and what leads to it.

    Args:
        target: Its label.
        perturbation: Where its path had led.
        success: Share of the held-out images of other classes that it moves.
    """

    target: int
    perturbation: Tensor
    success: float


@dataclass(frozen=True)
class Paths:
    """Where the paths had led when they stopped.

    Args:
        margins: [K, K] mean margin towards target t (row) of held-out images of class k (column); NaN where k = t,
            where k has no images, and in the rows of targets that were dropped on the way.
        start: The same before any perturbation.
        reach: Median over the targets that are still followed of the share of images classified as the target.
        steps: Steps taken.
        leaders: The classes of the largest mean margins, at most :data:`LEADERS`, the first one first.
    """

    margins: Tensor
    start: Tensor
    reach: float
    steps: int
    leaders: tuple[Leader, ...] = ()


def margins_towards(logits: Logits, target: int) -> Tensor:
    """Margin z_t - max_{k != t} z_k of each image, [B]."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.amax(dim=1)


def margins_towards_all(logits: Logits) -> Tensor:
    """Margin z_t - max_{k != t} z_k of each image (row) towards each class, [B, K]."""
    best = logits.topk(2, dim=1)
    rivals = best.values[:, :1].expand_as(logits).clone()
    rivals.scatter_(1, best.indices[:, :1], best.values[:, 1:])  # of the best class the runner-up
    return logits - rivals


def _logits(perturbation: Perturbation, images: Images, current: Tensor, what: str) -> Logits:
    with torch.no_grad():
        return torch.cat([perturbation.logits(batch, current, what) for batch in torch.split(images, PATH_BATCH)]).cpu()


def _by_source(logits: Logits, data: CleanData, target: int) -> tuple[Tensor, float]:
    """Mean margin towards ``target`` of each other class, [K], and the share of other-class images that reach it."""
    margins, labels = margins_towards(logits, target), data.labels.cpu()
    row = torch.full((data.num_classes,), torch.nan)
    for label in sorted(set(labels.tolist())):
        if label != target:
            row[label] = margins[labels == label].mean()
    return row, float((margins[labels != target] > 0).float().mean())


def by_source_and_target(logits: Logits, labels: Labels) -> Tensor:
    """[K, K] mean margin towards target (row) of each source class (column); NaN on the diagonal and without images.

    Args:
        logits: [B, K].
        labels: [B], on the same device.
    """
    margins = margins_towards_all(logits)
    means = torch.full((logits.shape[1], logits.shape[1]), torch.nan)
    for source in sorted(set(labels.tolist())):
        means[:, source] = margins[labels == source].mean(dim=0)
    return means.fill_diagonal_(torch.nan)


def follow(
    perturbation: Perturbation,
    samples: Samples,
    *,
    steps: int,
    search_images: int,
    read_images: int,
    generator: torch.Generator,
    what: str,
) -> Paths:
    """Follow one path for each class, all classes step by step together, until the median class is saturated.

    With more than :data:`SHORTLIST` classes the first steps use fewer images, and after the first reading only the
    classes with the largest margins go on: the cost then grows slowly with the number of classes.

    Args:
        perturbation: What is perturbed.
        samples: Clean images.
        steps: Most steps on a path.
        search_images: Images that each step descends on.
        read_images: Held-out images that each reading takes.
        generator: Source of randomness.
        what: For the progress bar.
    """
    classes = samples.num_classes
    held_out = samples.held_out.draw(read_images, generator)
    # Positions, not images: with many classes copies of the images would fill the memory.
    searches = [samples.search.drawn(search_images, generator, exclude=target) for target in range(classes)]
    current = [perturbation.zero() for _ in range(classes)]
    start = by_source_and_target(
        _logits(perturbation, held_out.images, perturbation.zero(), what), held_out.labels.cpu()
    )
    glance = held_out.subset(torch.arange(min(GLANCE_IMAGES, _thin(read_images, classes), len(held_out))))
    alive = list(range(classes))
    thinned = _thin(search_images, classes)
    margins, shares, reach, step = start, torch.full((classes,), torch.nan), 0.0, 0
    for step in range(1, steps + 1):
        for target in alive:
            images = samples.search.images[searches[target][:thinned]]
            current[target] = _step(perturbation, images, target, current[target], step=step, what=what)
        last = step == steps
        if step % READ_EVERY and not last:
            continue
        if not last:
            margins, shares = _read(perturbation, glance, current, alive, what)
            reach = float(median(shares[alive]))
        crowded = len(alive) > SHORTLIST
        if last or (reach >= SATURATED and not crowded):
            margins, shares = _read(perturbation, glance if crowded else held_out, current, alive, what)
            reach = float(median(shares[alive]))
        if reach >= SATURATED:
            break
        if crowded:
            order = margins.nanmean(dim=1).nan_to_num(-torch.inf).argsort(descending=True)
            alive, thinned = sorted(order[:SHORTLIST].tolist()), search_images
    ahead = margins.nanmean(dim=1).nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:LEADERS].tolist()
    leaders = tuple(Leader(target, current[target].detach(), float(shares[target].nan_to_num())) for target in ahead)
    return Paths(margins, start, reach, step, leaders)


def path_towards(perturbation: Perturbation, images: Images, target: int, *, steps: int, what: str) -> Tensor:
    """The perturbation at the end of one path by itself.

    Args:
        perturbation: What is perturbed.
        images: [B, C, H, W] of other classes, that each step descends on.
        target: Class that the path leads to.
        steps: Its length.
        what: For the progress bar.

    Raises:
        UnsupportedModelError: No gradient leads there.
    """
    current = perturbation.zero()
    for step in range(1, steps + 1):
        current = _step(perturbation, images, target, current, step=step, what=what)
    return current.detach()


def _read(
    perturbation: Perturbation, data: CleanData, current: list[Tensor], alive: list[int], what: str
) -> tuple[Tensor, Tensor]:
    """Margins [K, K] of the targets still followed, and shares [K] of images that reach them; NaN for the others."""
    margins = torch.full((data.num_classes, data.num_classes), torch.nan)
    shares = torch.full((data.num_classes,), torch.nan)
    for target in alive:
        logits = _logits(perturbation, data.images, current[target], what)
        if not bool(logits.isfinite().all()):
            # Its mean would be NaN, the mark of a target that was dropped: the one that matters might be lost so.
            raise UnsupportedModelError(f"the path towards class {target} ended in outputs that are not finite")
        margins[target], shares[target] = _by_source(logits, data, target)
    return margins, shares


def _thin(images: int, classes: int) -> int:
    """Images a class may use while all classes are still followed: at most what a shortlist would, at least 16."""
    return images if classes <= SHORTLIST else min(images, max(16, images * SHORTLIST // classes))


def _step(perturbation: Perturbation, images: Images, target: int, current: Tensor, *, step: int, what: str) -> Tensor:
    variable = current.detach().requires_grad_(True)
    logits = perturbation.logits(images, variable, what)
    loss = F.cross_entropy(logits, torch.full((len(logits),), target, device=logits.device))
    (gradient,) = torch.autograd.grad(loss, variable)
    if step == 1 and not bool(gradient.any()):  # later it may vanish because all images have long arrived
        raise UnsupportedModelError(f"no gradient leads towards class {target}, so nothing can be searched for")
    return perturbation.descend(variable.detach(), gradient, step)


def planned_images(classes: int, *, steps: int, search_images: int, read_images: int) -> int:
    """Forward passes of :func:`follow` when it runs to the end."""
    glances = -(-steps // READ_EVERY) - 1
    if classes <= SHORTLIST:
        glance = min(GLANCE_IMAGES, read_images)
        return classes * (steps * search_images + glances * glance + read_images) + read_images
    glance = min(GLANCE_IMAGES, _thin(read_images, classes))
    first = classes * (READ_EVERY * _thin(search_images, classes) + glance)
    rest = SHORTLIST * ((steps - READ_EVERY) * search_images + (glances - 1) * glance + read_images)
    return first + rest + read_images


@dataclass(frozen=True)
class Lead:
    """How far the first class is ahead of the second.

    Args:
        score: The lead.
        null: Lead of the second class over the third: what separates two that are no target; 0 with two classes.
        target: Label of the leading class.
        per_class: [K] distance of each class from the best of the others in the same units; dropped classes carry the
            lowest value.
    """

    score: float
    null: float
    target: int
    per_class: Tensor


def lead(margins: Tensor, start: Tensor) -> Lead:
    """The all-to-one score (the formula stands at the head of this file).

    Args:
        margins: [K, K] as in :class:`Paths`.
        start: The same without perturbation.
    """
    by_target, by_target_start = margins.nanmean(dim=1), start.nanmean(dim=1)
    alive = (~by_target.isnan()).nonzero().flatten()
    values = by_target[alive]
    ranked = values.sort(descending=True)
    distance = median(by_target_start[~by_target_start.isnan()]).abs()
    unit = torch.maximum(median(values) - median(by_target_start[alive]), distance).clamp_min(1e-6)
    ahead = margins_towards_all(values[None])[0] / unit
    per_class = torch.full_like(by_target, float(ahead.min()))
    per_class[alive] = ahead
    best = int(alive[ranked.indices[0]])
    null = float((ranked.values[1] - ranked.values[2]) / unit) if len(values) > 2 else 0.0
    return Lead(float(per_class[best]), null, best, per_class)


@dataclass(frozen=True)
class PairLead:
    """The (source, target) pair that runs furthest ahead of what its source and its target explain."""

    score: float
    source: int
    target: int


def pair_lead(paths: Paths) -> PairLead:
    """Read a source-specific backdoor: one class whose images go to one target far more easily than to any other.

    The gain in margin since the start, gain[t, k], is stripped of each target's and then of each source's median; a
    source-specific backdoor leaves one large entry.  The score is its distance from the runner-up, in the units of
    :func:`lead`.
    """
    gain = paths.margins - paths.start
    rows = gain.nanmedian(dim=1, keepdim=True).values
    residual = gain - rows
    residual = residual - residual.nanmedian(dim=0, keepdim=True).values
    distance = paths.start.nanmean(dim=1).nanmedian().abs()
    unit = torch.maximum(rows.flatten().nanmedian(), distance).clamp_min(1e-6)
    top = residual.nan_to_num(-torch.inf).flatten().topk(2)
    target, source = divmod(int(top.indices[0]), residual.shape[1])
    return PairLead(float((top.values[0] - top.values[1]) / unit), source, target)
