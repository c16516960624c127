"""TABOR: Neural Cleanse with regularisers that ask for a trigger like those attackers use."""

from __future__ import annotations

from typing import ClassVar, final

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.inversion import PatchInversion, Triggers
from banaudit.meter import Meter
from banaudit.precision import fast_precision


def size(parts: Tensor) -> Tensor:
    """R1 of maps [T, C, H, W]: sum of absolute values plus sum of squares, [T]."""
    flat = parts.flatten(1)
    return flat.abs().sum(1) + flat.square().sum(1)


def roughness(parts: Tensor) -> Tensor:
    """R2 of maps [T, C, H, W]: sum of squared differences between neighbours, down and across, [T]."""
    return parts.diff(dim=2).square().flatten(1).sum(1) + parts.diff(dim=3).square().flatten(1).sum(1)


@final
class Tabor(PatchInversion):
    """Neural Cleanse's search with penalties on scattered, oversized and overlaying triggers.

    The penalty of a class t with mask m and pattern p, where q = (1 - m) p is the pattern outside the mask::

        1e-6 R1(m) + 1e-5 R1(q) + 1e-7 R2(m) + 1e-8 R2(q) + 1e-2 CE(f(m p), t)

    R1 is the L1 norm plus the squared L2 norm, R2 the sum of squared neighbour differences. The last term asks that
    the trigger alone, on black, is taken for the class. Reads and misses what Neural Cleanse does.

    Source: Guo et al., "TABOR: A Highly Accurate Approach to Inspecting and Restoring Trojan Backdoors in AI Systems",
    ICDM 2020 (arXiv 1908.01763), Section 4; weights as in the TrojanZoo implementation that BAN compares with.

    Deviates:
        - The paper's term on the image with the trigger's place blanked, CE(f((1 - m) x), y), has weight zero in that
          implementation and is left out.
        - The L1 cost of the mask stays fixed there, at 1e-3 a pixel (``cost_growth=1``); here as well. Schedule,
          batching, the choice among masks and the rule are Neural Cleanse's of this package.
    """

    name: ClassVar[str] = "tabor"
    title: ClassVar[str] = "a class that a much smaller, compact patch reaches than any other"
    needs: ClassVar[str] = "clean images"
    misses: ClassVar[str] = "warping, some adaptive triggers, all-to-all and source-specific backdoors"
    penalty_passes: ClassVar[int] = 1

    cost_growth: float = Field(default=1.0, ge=1)
    """Factor on the cost after a successful step; 1: the fixed cost of the original."""
    mask_size: NonNegativeFloat = 1e-6
    """Weight of R1 of the mask."""
    pattern_size: NonNegativeFloat = 1e-5
    """Weight of R1 of the pattern outside the mask."""
    mask_roughness: NonNegativeFloat = 1e-7
    """Weight of R2 of the mask."""
    pattern_roughness: NonNegativeFloat = 1e-8
    """Weight of R2 of the pattern outside the mask."""
    trigger_alone: NonNegativeFloat = 1e-2
    """Weight of the cross-entropy of the trigger on black."""

    def penalty(self, model: SplitModel, triggers: Triggers, meter: Meter) -> Tensor:
        """The five regularisers of each class, [T]."""
        outside = (1 - triggers.masks) * triggers.patterns
        alone = triggers.masks * triggers.patterns
        meter.spend("trigger inversion", forward=len(alone), backward=len(alone))
        with fast_precision(alone.device):
            logits = model(alone).float()
        return (
            self.mask_size * size(triggers.masks)
            + self.pattern_size * size(outside)
            + self.mask_roughness * roughness(triggers.masks)
            + self.pattern_roughness * roughness(outside)
            + self.trigger_alone * F.cross_entropy(logits, triggers.labels, reduction="none")
        )
