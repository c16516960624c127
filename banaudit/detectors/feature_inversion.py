"""Inversion in feature space: the features of a trigger and of clean images mixed by a mask, and what bounds them.

What FeatureRE and UNICORN share; of it BTI-DBF takes the features alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, batches
from banaudit.meter import Meter
from banaudit.shapes import Features, Labels

BOUND_WEIGHT = 10.0
"""Weight of a value above its bound against the cross-entropy, in feature space."""


def mixed(features: Features, reference: Features, mask: Tensor) -> Features:
    """Trigger features where the mask is, clean ones elsewhere: m g(x') + (1 - m) g(x).

    Args:
        features: Of images with a trigger, [B, D] or [B, D, H', W'].
        reference: Of clean images, the same shape.
        mask: Shaped like one image's features, in [0, 1].
    """
    return mask * features + (1 - mask) * reference


def spread(features: Features, mask: Tensor) -> Tensor:
    """How much the masked features differ from image to image: sum of std(m g) over the batch, by |m|_1."""
    return (mask * features).std(0, correction=0).sum() / mask.sum().clamp(min=1e-6)


def likeness(features: Features, mean: Features) -> Tensor:
    """Cosine between the mean of a batch's features and the mean features of the target class."""
    return F.cosine_similarity(features.mean(0).flatten(), mean.flatten(), dim=0)


def violation(value: Tensor, bound: float) -> Tensor:
    """Relative excess of a value over its bound; 0 within it."""
    return (value / bound - 1).clamp(min=0)


def shortfall(success: Tensor, least: float) -> Tensor:
    """Relative lack of success below what is asked for; 0 from there on."""
    return (1 - success / least).clamp(min=0)


def bounded_loss(entropy: Tensor, bounded: Tensor, violations: Tensor, before: Tensor) -> Tensor:
    """(1 + w_2) CE + 10 ((1 + w_0) v_0 + (1 + w_1) v_1), each term only while its bound is violated.

    The weights w are the violations of the last step, so that what was violated worst is mended first.

    Args:
        entropy: Cross-entropy CE towards the target class; [T] for T classes, or a scalar.
        bounded: [2, ...] the values v: spread of the masked features, change of the pixels.
        violations: [3, ...] of spread, pixels and success at this step.
        before: [3, ...] the same at the last one.
    """
    weights = ((1 + before) * (violations > 0)).detach()
    return weights[2] * entropy + BOUND_WEIGHT * (weights[:2] * bounded).sum(0)


def features_of(model: SplitModel, clean: CleanData, meter: Meter, *, batch_size: int) -> Features:
    """Latent features of all images, without gradient, in full precision."""
    parts = []
    with torch.no_grad():
        for images, _ in batches(clean.images, clean.labels, batch_size):
            meter.spend("features of clean images", forward=len(images))
            parts.append(model.features(images))
    return torch.cat(parts)


def class_mean(features: Features, labels: Labels, label: int) -> Features:
    """Mean features of one class; zero where it has no images."""
    members = features[labels == label]
    return members.mean(0) if len(members) else torch.zeros_like(features[0])
