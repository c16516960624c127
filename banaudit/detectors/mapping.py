"""All-to-all backdoors: one perturbation that carries each class to a class of its own.

A search with an unknown map.  While a perturbation grows, each source class c is pulled towards class j with a weight
w[c, j] that is large where the images of c are already near j.  The weights are kept doubly stochastic (each class is
left once and reached once) by Sinkhorn's iteration,

    w = sinkhorn(margin / temperature),   margin[c, j] = mean of z_j - z_c over the images of c,  w[c, c] = 0,

and each step descends the mean over c of -sum_j w[c, j] mean log p_j.  Without the balance every search ends in one
class that a universal perturbation reaches anyway.  The temperature falls along the path, so that the map is soft at
first and nearly a permutation at the end.  The cost does not grow with the number of classes.

The score is the share of held-out images that end in the class that the map gives their own. Most clean models have no
perturbation that permutes their classes; one that is easily steered has many, the next map nearly as good as the first,
where a backdoor's own is alone. So the search can be asked for another map than those that were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from banaudit.data import passes
from banaudit.detectors.base import Samples
from banaudit.detectors.targeted_paths import PATH_BATCH, Perturbation
from banaudit.precision import full_precision, wants_full_precision
from banaudit.shapes import Images, Labels, Logits

FIRST_TEMPERATURE = 1.0
LAST_TEMPERATURE = 0.1
"""In units of the standard deviation of the margins at the moment."""

SINKHORN_ITERATIONS = 20

BARRED = -1e9
"""Score of a pair of classes that the map may not have."""


@dataclass(frozen=True)
class Mapping:
    """What a mapping search found.

    Args:
        score: Share of held-out images classified as the class that the map gives their own.
        null: The same for a random perturbation of the same size.
        targets: Source label -> target label.
        per_source: [K] the share for each source class; 0 without images.
    """

    score: float
    null: float
    targets: dict[int, int]
    per_source: Tensor


def sinkhorn(scores: Tensor, barred: Tensor | None = None) -> Tensor:
    """Doubly stochastic weights [K, K] with an empty diagonal, the larger the score the larger the weight.

    Args:
        scores: [K, K] in units of the temperature; entries on the diagonal are ignored.
        barred: [K, K] true where there must be next to no weight; none: nowhere else.

    Source:
        Sinkhorn and Knopp, 1967; Mena et al., Learning Latent Permutations with Gumbel-Sinkhorn Networks, ICLR 2018.
    """
    empty = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    logs = scores.masked_fill(empty if barred is None else empty | barred, BARRED)
    for _ in range(SINKHORN_ITERATIONS):
        logs = logs - logs.logsumexp(dim=1, keepdim=True)
        logs = logs - logs.logsumexp(dim=0, keepdim=True)
    return (logs - logs.logsumexp(dim=1, keepdim=True)).exp()


def pair_margins(logits: Logits, labels: Labels, classes: int) -> Tensor:
    """Mean of z_j - z_c over the images of class c, [K, K]; zero rows for classes without images."""
    gaps = logits - logits.gather(1, labels[:, None])
    sums = torch.zeros(classes, classes, device=logits.device).index_add(0, labels, gaps)
    return sums / torch.bincount(labels, minlength=classes)[:, None].clamp_min(1)


def _logits(perturbation: Perturbation, images: Images, variable: Tensor, what: str) -> Logits:
    """Logits that lead back to the perturbation; of large images in several passes, each computed again on the way."""
    parts = passes(images)
    if len(parts) == 1:
        return perturbation.logits(images, variable, what)
    wanted = wants_full_precision()

    def compute(part: Images, at: Tensor) -> Logits:
        with full_precision(wanted):  # the second time it may be in a thread of the backward pass
            return perturbation.logits(part, at, what)

    return torch.cat([checkpoint(compute, part, variable, use_reentrant=False) for part in parts])


def search_mapping(
    perturbation: Perturbation,
    samples: Samples,
    *,
    steps: int,
    search_images: int,
    read_images: int,
    generator: torch.Generator,
    what: str,
    other_than: Sequence[Mapping] = (),
) -> Mapping:
    """Search one perturbation for a one-to-one source -> target map and read it on held-out images.

    Args:
        perturbation: What is perturbed.
        samples: Clean images of at least three classes: two can only be exchanged.
        steps: Steps of the search.
        search_images: Images that each step descends on; large ones in several passes, each with its own statistics.
        read_images: Held-out images of the reading.
        generator: Source of randomness.
        what: For the progress bar.
        other_than: Maps that it may have no pair in common with; fewer than the classes by two at least.
    """
    classes = samples.num_classes
    search = samples.search.draw(search_images, generator)
    held_out = samples.held_out.draw(read_images, generator)
    itself = torch.eye(classes, dtype=torch.bool, device=search.labels.device)
    barred = torch.zeros_like(itself)
    for source, target in (pair for found in other_than for pair in found.targets.items()):
        barred[source, target] = True
    current = perturbation.zero()
    weights = itself.float()
    for step in range(1, steps + 1):
        variable = current.detach().requires_grad_(True)
        logits = _logits(perturbation, search.images, variable, what)
        margins = pair_margins(logits.detach(), search.labels, classes)
        spread = margins[~itself].std().clamp_min(1e-3)
        temperature = FIRST_TEMPERATURE * (LAST_TEMPERATURE / FIRST_TEMPERATURE) ** ((step - 1) / max(1, steps - 1))
        weights = sinkhorn(margins / (spread * temperature), barred)
        loss = -(weights[search.labels] * logits.log_softmax(dim=1)).sum(dim=1).mean()
        (gradient,) = torch.autograd.grad(loss, variable)
        current = perturbation.descend(variable.detach(), gradient, step)
    targets = weights.argmax(dim=1)
    # What a class without images is matched with is what the others left.
    present = set(search.labels.tolist()) & set(held_out.labels.tolist())

    def arrived(at: Tensor) -> Tensor:
        with torch.no_grad():
            logits = torch.cat(
                [perturbation.logits(batch, at, what) for batch in torch.split(held_out.images, PATH_BATCH)]
            )
        return (logits.argmax(dim=1) == targets[held_out.labels]).float()

    reached = arrived(current)
    counts = torch.bincount(held_out.labels, minlength=classes).clamp_min(1)
    per_source = torch.zeros(classes, device=reached.device).index_add(0, held_out.labels, reached) / counts
    return Mapping(
        score=float(reached.mean()),
        null=float(arrived(perturbation.random(steps, generator)).mean()),
        targets={source: target for source, target in enumerate(targets.tolist()) if source in present},
        per_source=per_source.cpu(),
    )
