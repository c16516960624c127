"""t-SNE: points in many dimensions laid out in two so that near ones stay near. Exact, for a few hundred points."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 400
EARLY_STEPS = 100
"""Steps of gradient descent, and the first of them, in which attraction is exaggerated."""
EXAGGERATION = 4.0
LEARNING_RATE = 50.0
FIRST_MOMENTUM, LAST_MOMENTUM = 0.5, 0.8

_BISECTIONS = 50


def tsne(points: Tensor, *, perplexity: float = 20.0) -> Tensor:
    """Positions in the plane; nothing is random, as the first two principal components are the start.

    Args:
        points: [N, D], N at least 4.
        perplexity: Effective number of neighbours of a point; at most (N - 1) / 3 is used.

    Returns:
        [N, 2] float64, centred.

    Source:
        van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 9, 2008, Algorithm 1.
    """
    points = points.double().cpu()
    points = points - points.mean(dim=0)
    neighbours = _neighbour_probabilities(torch.cdist(points, points).square(), min(perplexity, (len(points) - 1) / 3))
    positions = _principal_plane(points)
    positions = positions * (1e-4 / positions[:, 0].std().clamp_min(1e-12))
    velocity = torch.zeros_like(positions)
    itself = torch.eye(len(points), dtype=torch.bool)
    for step in range(STEPS):
        early = step < EARLY_STEPS
        kernel = (1 / (1 + torch.cdist(positions, positions).square())).masked_fill(itself, 0.0)
        pull = (EXAGGERATION if early else 1.0) * neighbours - kernel / kernel.sum()
        weights = pull * kernel
        gradient = 4 * (weights.sum(dim=1, keepdim=True) * positions - weights @ positions)
        velocity = (FIRST_MOMENTUM if early else LAST_MOMENTUM) * velocity - LEARNING_RATE * gradient
        positions = positions + velocity
        positions = positions - positions.mean(dim=0)
    return positions


def _neighbour_probabilities(distances: Tensor, perplexity: float) -> Tensor:
    """Symmetric joint probabilities [N, N]: every point's Gaussian is as wide as the perplexity asks."""
    count = len(distances)
    itself = torch.eye(count, dtype=torch.bool)
    scaled = distances / distances[~itself].mean().clamp_min(1e-300)
    wanted = torch.tensor(perplexity, dtype=torch.float64).log()
    low, high = torch.full((count, 1), -10.0, dtype=torch.float64), torch.full((count, 1), 15.0, dtype=torch.float64)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        logs = (-scaled * middle.exp()).masked_fill(itself, -torch.inf).log_softmax(dim=1)
        entropy = -(logs.exp() * logs.masked_fill(itself, 0.0)).sum(dim=1, keepdim=True)
        too_wide = entropy > wanted
        low, high = torch.where(too_wide, middle, low), torch.where(too_wide, high, middle)
    shares = (-scaled * ((low + high) / 2).exp()).masked_fill(itself, -torch.inf).softmax(dim=1)
    return (shares + shares.T) / (2 * count)


def _principal_plane(points: Tensor) -> Tensor:
    """The first two principal components [N, 2], each with the sign that makes its largest entry positive."""
    left, values, _ = torch.linalg.svd(points, full_matrices=False)
    plane = left[:, :2] * values[:2]
    largest = plane.gather(0, plane.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -plane, plane)
