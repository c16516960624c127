"""Robust outlier tests, exact intervals and ranking measures, used wherever a number is judged."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

MAD_TO_STD = 1.4826
"""1 / Phi^-1(3/4): makes the median absolute deviation of normal values their standard deviation."""

SPREAD_FLOOR = 0.25
"""Least spread of log norms (or log margins) that is believed of the untargeted classes: their usual one. Nine values
often look closer together than they are, and the index of a clean network then exceeds any bound."""

_BISECTIONS = 60  # halves [0, 1] down to the last bit of a double


def median(values: Tensor) -> Tensor:
    """Median over the last dimension; the mean of the two middle values where their count is even.

    ``torch.median`` takes the lower of the two, which shifts every outlier test with an even number of classes.

    Args:
        values: [..., n] floating point, n at least 1.

    Returns:
        [...] of the same type.
    """
    ranked = values.sort(dim=-1).values
    count = values.shape[-1]
    return (ranked[..., (count - 1) // 2] + ranked[..., count // 2]) / 2


def mad(values: Tensor) -> Tensor:
    """Median absolute deviation over the last dimension, scaled to the standard deviation of normal values.

    Args:
        values: [..., n] floating point, n at least 1.

    Returns:
        [...] of the same type.
    """
    return MAD_TO_STD * median((values - median(values).unsqueeze(-1)).abs())


def median_margin(logits: Tensor) -> float:
    """Median over images of the best class's lead over the second; the lower of two middle ones, as torch has it.

    Args:
        logits: [B, K], K at least 2.
    """
    best = logits.topk(2, dim=1).values
    return float((best[:, 0] - best[:, 1]).median())


def outlier_scores(logs: Tensor, compared: Tensor) -> Tensor:
    """How far each value lies above the median of the others, in robust standard deviations, [K].

    The value itself is left out of the median and of the spread, so that one outlier among few values does not widen
    the ruler it is measured with.

    Args:
        logs: [K] float64, on a log scale: differences are ratios.
        compared: [T] positions of the values that make up the others; at least two.
    """
    scores = torch.zeros_like(logs)
    for position in range(len(logs)):
        others = logs[compared[compared != position]]
        scores[position] = (logs[position] - median(others)) / mad(others).clamp(min=SPREAD_FLOOR)
    return scores


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion.

    It is never shorter than its confidence promises, also for 0 or all successes.

    Args:
        successes: Number of successes, 0 to ``trials``.
        trials: Number of independent trials, at least 1.
        confidence: Probability, in (0, 1), with which the interval holds the true proportion.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: The counts or the confidence are not as above.

    Source:
        Clopper and Pearson, Biometrika 26, 1934.
    """
    if not 0 <= successes <= trials or trials < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected 0 <= successes <= trials and 0 < confidence < 1, got {successes}/{trials}")
    tail = (1 - confidence) / 2
    return _lower_end(successes, trials, tail), 1 - _lower_end(trials - successes, trials, tail)


def _lower_end(successes: int, trials: int, tail: float) -> float:
    """The proportion at which so many successes or more have the probability ``tail``."""
    if successes == 0:
        return 0.0
    counts = torch.arange(successes, trials + 1, dtype=torch.float64)
    ways = math.lgamma(trials + 1) - torch.lgamma(counts + 1) - torch.lgamma(trials - counts + 1)  # log of n over k
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        log_probabilities = ways + counts * math.log(middle) + (trials - counts) * math.log1p(-middle)
        if log_probabilities.exp().sum().item() < tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def auroc(positives: Tensor, negatives: Tensor) -> float:
    """Probability that a positive scores above a negative, ties counted half: the area under the ROC curve.

    Args:
        positives: [n] scores of what should score high.
        negatives: [m] scores of what should score low.

    Returns:
        In [0, 1]; 0.5 is chance.

    Raises:
        ValueError: One of the two is empty, or a score is not a number.
    """
    if not len(positives) or not len(negatives):
        raise ValueError(f"expected scores on both sides, got {len(positives)} positives, {len(negatives)} negatives")
    if positives.isnan().any() or negatives.isnan().any():
        raise ValueError("expected numbers as scores, got NaN")
    ranked = negatives.double().sort().values
    scores = positives.double()
    below = torch.searchsorted(ranked, scores, right=False)
    not_above = torch.searchsorted(ranked, scores, right=True)
    return float((below + not_above).double().mean() / (2 * len(ranked)))


def auroc_interval(area: float, positives: int, negatives: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of an area under the ROC curve, from its value and the two counts alone.

    It holds the areas whose own standard error, by Hanley and McNeil's formula, does not rule the observed one out.
    So it keeps a width where the two groups are parted completely, as neither DeLong's variance nor a bootstrap does.

    Args:
        area: Observed area, in [0, 1].
        positives: Number n of positives, at least 1.
        negatives: Number m of negatives, at least 1.
        confidence: Probability, in (0, 1), with which the interval should hold the true area.

    Returns:
        Lower and upper end, in [0, 1].

    Raises:
        ValueError: A number is not as above.

    Source:
        Newcombe, Confidence intervals for an effect size measure based on the Mann-Whitney statistic, Part 2,
        Statistics in Medicine 25, 2006, Method 5; Hanley and McNeil, Radiology 143, 1982.
    """
    if not 0 <= area <= 1 or positives < 1 or negatives < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected 0 <= area <= 1 and counts of at least 1, got {area}, {positives} and {negatives}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    lower = _furthest_area(area, 0.0, positives, negatives, z)
    return lower, _furthest_area(area, 1.0, positives, negatives, z)


def _furthest_area(area: float, end: float, positives: int, negatives: int, z: float) -> float:
    """The area furthest from the observed one, towards ``end``, that is within z of its own standard errors of it."""
    other_pairs = (positives + negatives) / 2 - 1
    inside, outside = area, end
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        shared = (1 - middle) / (2 - middle) + middle / (1 + middle)
        variance = middle * (1 - middle) * (1 + other_pairs * shared) / (positives * negatives)
        if abs(area - middle) <= z * math.sqrt(variance):
            inside = middle
        else:
            outside = middle
    return (inside + outside) / 2
