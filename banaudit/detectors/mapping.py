"""All-to-all backdoors: one perturbation that carries each class to a class of its own.

A search with one unknown map.  While a perturbation grows, each source class c pulls towards the classes j in proportion
to how much they have gained on it so far,

    w[c, j] = softmax_j(gain[c, j] / temperature),   gain[c, j] = mean margin (z_j - z_c) now - the same at the start,

and each step descends the mean over c of -sum_j w[c, j] mean log p_j.  Counting gains, not margins, keeps the search from
settling on natural neighbours (cat and dog), which are near before anything is perturbed.  The temperature falls along
the path, so that the map is soft at first and nearly hard at the end.  The cost does not grow with the number of classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from banaudit.detectors.base import Samples, draw
from banaudit.detectors.targeted_paths import PATH_BATCH, Perturbation
from banaudit.shapes import Labels, Logits
from banaudit.statistics import median

FIRST_TEMPERATURE = 1.0
LAST_TEMPERATURE = 0.1
"""In units of the mean gain at the moment."""


@dataclass(frozen=True)
class Mapping:
    """What a mapping search found.

    Args:
        score: Mean over source classes of the lead of the favourite target over the second, in units of the median
            distance an image has to go at the start.
        targets: Source label -> favourite target label, for the classes with held-out images.
        leads: [K] the lead of each source class; NaN without images.
    """

    score: float
    targets: dict[int, int]
    leads: Tensor

    @property
    def distinct(self) -> float:
        """Share of different targets among the sources: 1 for a permutation, 1/K for all-to-one."""
        return len(set(self.targets.values())) / max(1, len(self.targets))


def _pair_margins(logits: Logits, labels: Labels, classes: int) -> Tensor:
    """Mean of z_j - z_c over the images of class c, [K, K]; NaN rows for classes without images."""
    gaps = logits - logits.gather(1, labels[:, None])
    sums = torch.zeros(classes, classes, device=logits.device).index_add(0, labels, gaps)
    counts = torch.bincount(labels, minlength=classes)[:, None]
    return torch.where(counts > 0, sums / counts.clamp_min(1), torch.nan)


def search_mapping(
    perturbation: Perturbation,
    samples: Samples,
    *,
    steps: int,
    search_images: int,
    read_images: int,
    generator: torch.Generator,
    what: str,
) -> Mapping:
    """Search one perturbation for a consistent source -> target map and read it on held-out images.

    Args:
        perturbation: What is perturbed.
        samples: Clean images.
        steps: Steps of the search.
        search_images: Images that each step descends on.
        read_images: Held-out images of the reading.
        generator: Source of randomness.
        what: For the progress bar.
    """
    classes = samples.num_classes
    search = draw(samples.search, search_images, generator)
    held_out = draw(samples.held_out, read_images, generator)
    current = perturbation.zero()
    start: Tensor | None = None
    itself = torch.eye(classes, dtype=torch.bool, device=search.labels.device)
    for step in range(1, steps + 1):
        variable = current.detach().requires_grad_(True)
        logits = perturbation.logits(search.images, variable, what)
        now = _pair_margins(logits.detach(), search.labels, classes)
        start = now if start is None else start
        gain = now - start
        scale = gain[~itself].nanmean().abs().clamp_min(1e-3)
        share = (step - 1) / max(1, steps - 1)
        temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** share
        pull = (gain / (scale * temperature)).masked_fill(itself, -torch.inf).nan_to_num(0.0, neginf=-torch.inf)
        weights = pull.softmax(dim=1)[search.labels]
        loss = -(weights * logits.log_softmax(dim=1)).sum(dim=1).mean()
        (gradient,) = torch.autograd.grad(loss, variable)
        current = perturbation.descend(variable.detach(), gradient, step)
    return _read_mapping(perturbation, held_out.images, held_out.labels, current, classes, what)


def _read_mapping(
    perturbation: Perturbation, images: Tensor, labels: Labels, found: Tensor, classes: int, what: str
) -> Mapping:
    def margins(at: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat([perturbation.logits(batch, at, what) for batch in images.split(PATH_BATCH)])
        return _pair_margins(logits, labels, classes)

    start = margins(perturbation.zero())
    gain = margins(found) - start
    itself = torch.eye(classes, dtype=torch.bool, device=gain.device)
    present = [label for label in range(classes) if not bool(gain[label].isnan().any())]
    ranked = gain.masked_fill(itself, -torch.inf)[present].sort(dim=1, descending=True)
    distance = median(start.masked_fill(itself, torch.nan)[present].nanmedian(dim=1).values.abs())
    leads = torch.full((classes,), torch.nan)
    leads[present] = ((ranked.values[:, 0] - ranked.values[:, 1]) / distance.clamp_min(1e-6)).cpu()
    return Mapping(
        score=float(leads[present].mean()),
        targets={source: int(ranked.indices[row, 0]) for row, source in enumerate(present)},
        leads=leads,
    )
