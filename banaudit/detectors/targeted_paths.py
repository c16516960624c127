"""Paths towards each class: how far one small perturbation, common to all images, carries them to a class.

Two detectors share this: :mod:`targeted_noise` perturbs neurons, :mod:`universal_perturbation` perturbs pixels.  For
every class t a perturbation grows step by step, each step descending the cross-entropy towards t on images of the other
classes; after each step the margin towards t is read on images that played no part in the search.  A backdoor is a
shortcut: its target class runs ahead of all others.  The whole path is kept, so that no size of perturbation has to be
chosen before the model has been seen.

The ruler is the *lead*.  Let m_t(s) be the mean over source classes of the mean margin z_t - max_{k != t} z_k of
held-out images after step s.  With the two largest margins m_(1), m_(2) and the median class's m_med,

    lead(s) = (m_(1)(s) - m_(2)(s)) / max(m_med(s) - m_med(0), |m_med(0)|),

the distance between the first class and the second in units of what an ordinary class gains, or has to gain.  It is free
of the logits' scale.  The score is the largest lead along the path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from banaudit.data import CleanData
from banaudit.detectors.base import Samples, draw
from banaudit.shapes import Images, Labels, Logits
from banaudit.statistics import median

SATURATED = 0.9
"""Once this share of images reaches the median class, every class is in reach and the path has nothing more to tell."""

PATH_BATCH = 256
"""Images in one forward pass of a reading."""


class Perturbation(Protocol):
    """Something added to a model or its inputs, held in one tensor."""

    def zero(self) -> Tensor:
        """The perturbation that changes nothing."""

    def logits(self, images: Images, perturbation: Tensor, what: str) -> Logits:
        """Logits [B, K] under a perturbation; differentiable in it."""

    def descend(self, perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The perturbation after step number ``step`` (from 1) against ``gradient``."""


@dataclass(frozen=True)
class Paths:
    """What was read along the paths.

    Args:
        margins: [T, S, K] mean margin towards target t after reading s of held-out images of class k; NaN where k is
            the target itself, has no images, or the target was dropped before.
        reach: [T, S] share of held-out images of other classes that are classified as the target; NaN once dropped.
        targets: [T] the labels aimed at.
        steps: [S] number of steps taken at each reading; the first is 0.
    """

    margins: Tensor
    reach: Tensor
    targets: Tensor
    steps: tuple[int, ...]

    def by_target(self) -> Tensor:
        """Mean over source classes of the margins, [T, S]; NaN once dropped."""
        return self.margins.nanmean(dim=2)


def margins_towards(logits: Logits, target: int) -> Tensor:
    """Margin z_t - max_{k != t} z_k of each image, [B]."""
    others = logits.clone()
    others[:, target] = -torch.inf
    return logits[:, target] - others.amax(dim=1)


def _read(perturbation: Perturbation, held_out: CleanData, target: int, current: Tensor, what: str) -> tuple[Tensor, float]:
    """Mean margin towards ``target`` of each class of held-out images, [K], and the share that reaches it."""
    labels = held_out.labels
    others = (labels != target).nonzero().flatten()
    with torch.no_grad():
        margins = torch.cat(
            [
                margins_towards(perturbation.logits(images, current, what), target)
                for images in held_out.images[others].split(PATH_BATCH)
            ]
        )
    by_class = torch.full((held_out.num_classes,), torch.nan)
    for label in labels[others].unique().tolist():
        by_class[label] = margins[labels[others] == label].mean()
    return by_class, float((margins > 0).float().mean())


def follow(
    perturbation: Perturbation,
    samples: Samples,
    *,
    steps: int,
    read_every: int,
    search_images: int,
    read_images: int,
    shortlist: int,
    generator: torch.Generator,
    what: str,
) -> Paths:
    """Follow one path for each class, all classes step by step together.

    After a third of the steps only the ``shortlist`` classes with the largest margins go on, which keeps the cost of
    many classes low (the idea of K-Arm: Shen et al., ICML 2021).

    Args:
        perturbation: What is perturbed.
        samples: Clean images.
        steps: Steps on each path.
        read_every: Steps between two readings.
        search_images: Images that each step descends on.
        read_images: Held-out images that each reading takes.
        shortlist: Number of classes that are followed to the end.
        generator: Source of randomness.
        what: For the progress bar.
    """
    classes = samples.num_classes
    held_out = draw(samples.held_out, read_images, generator)
    searches = [draw(samples.search, search_images, generator, exclude=target) for target in range(classes)]
    current = [perturbation.zero() for _ in range(classes)]
    alive = list(range(classes))
    margins: list[Tensor] = []
    reach: list[Tensor] = []
    read_at: list[int] = []

    def read(step: int) -> None:
        row, reached = torch.full((classes, classes), torch.nan), torch.full((classes,), torch.nan)
        for target in alive:
            row[target], reached[target] = _read(perturbation, held_out, target, current[target], what)
        margins.append(row)
        reach.append(reached)
        read_at.append(step)

    read(0)
    for step in range(1, steps + 1):
        for target in alive:
            current[target] = _step(perturbation, searches[target], target, current[target], step, what)
        if step % read_every and step != steps:
            continue
        read(step)
        if len(alive) > shortlist and step >= steps // 3:
            order = margins[-1].nanmean(dim=1).nan_to_num(-torch.inf).argsort(descending=True)
            alive = sorted(order[:shortlist].tolist())
        if float(reach[-1].nanmedian()) >= SATURATED:
            break
    return Paths(torch.stack(margins, dim=1), torch.stack(reach, dim=1), torch.arange(classes), tuple(read_at))


def _step(perturbation: Perturbation, search: CleanData, target: int, current: Tensor, step: int, what: str) -> Tensor:
    variable = current.detach().requires_grad_(True)
    towards: Labels = torch.full_like(search.labels, target)
    loss = F.cross_entropy(perturbation.logits(search.images, variable, what), towards)
    (gradient,) = torch.autograd.grad(loss, variable)
    return perturbation.descend(variable.detach(), gradient, step)


@dataclass(frozen=True)
class Lead:
    """The largest lead along the paths.

    Args:
        score: lead at the reading where it is largest.
        target: Label of the leading class there.
        per_class: [K] distance of each class from the second largest margin in the same units; the leader's is the
            score, all others are at most 0 (the runner-up) or below; dropped classes carry the lowest value.
        reading: Index of that reading.
    """

    score: float
    target: int
    per_class: Tensor
    reading: int


def lead(paths: Paths) -> Lead:
    """Read the all-to-one score off the paths (the formula stands at the head of this file)."""
    by_target = paths.by_target()
    start = median(by_target[:, 0])
    best: Lead | None = None
    for reading in range(1, by_target.shape[1]):
        column = by_target[:, reading]
        alive = (~column.isnan()).nonzero().flatten()
        ranked = column[alive].sort(descending=True)
        # Classes that were dropped lie below those that were kept, so the same classes' start is the fair origin.
        gained = median(column[alive]) - (start if len(alive) == len(column) else median(by_target[alive, 0]))
        unit = torch.maximum(gained, start.abs()).clamp_min(1e-6)
        score = float((ranked.values[0] - ranked.values[1]) / unit)
        if best is None or score > best.score:
            relative = (column - ranked.values[1]) / unit
            relative = torch.where(relative.isnan(), relative[alive].min(), relative)
            best = Lead(score, int(alive[ranked.indices[0]]), relative, reading)
    assert best is not None, "a path has at least one step"
    return best


@dataclass(frozen=True)
class PairLead:
    """The (source, target) pair that runs furthest ahead of what its source and its target explain.

    Args:
        score: Excess of the pair over the runner-up pair of another target, in the units of :func:`lead`.
        source: Label.
        target: Label.
    """

    score: float
    source: int
    target: int


def pair_lead(paths: Paths) -> PairLead:
    """Read a source-specific backdoor: one class whose images go to one target far more easily than to any other.

    For each reading the gain in margin since the start, gain[t, k], is stripped of the target's median and of the
    source's median; a source-specific backdoor leaves one large entry.
    """
    best = PairLead(-torch.inf, 0, 0)
    start = paths.margins[:, 0]
    unit_start = median(paths.by_target()[:, 0]).abs()
    for reading in range(1, paths.margins.shape[1]):
        gain = paths.margins[:, reading] - start
        rows = gain.nanmedian(dim=1, keepdim=True).values
        residual = gain - rows
        residual = residual - residual.nanmedian(dim=0, keepdim=True).values
        unit = torch.maximum(rows.flatten().nanmedian(), unit_start).clamp_min(1e-6)
        flat = residual.nan_to_num(-torch.inf).flatten()
        top = flat.topk(2)
        target, source = divmod(int(top.indices[0]), residual.shape[1])
        score = float((top.values[0] - top.values[1]) / unit)
        if score > best.score:
            best = PairLead(score, source, target)
    return best
