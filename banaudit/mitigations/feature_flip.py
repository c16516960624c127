"""FeatureRE's repair: the channels that carry the recovered feature-space trigger are flipped, in the weights."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.architectures.linear_calls import has_plain_weight, linear_calls
from banaudit.detectors.base import SEARCH_SHARE
from banaudit.detectors.feature_re import FeatureInversion, FeatureTrigger
from banaudit.errors import DataError, UnsupportedModelError
from banaudit.mitigations.base import RepairJob, TargetedMitigation
from banaudit.shapes import Features, Weights
from banaudit.training import Tuned, private_copy, try_candidates

TRIED = 3
"""How many repairs :func:`gentlest_first` offers."""

PROBE_IMAGES = 32
"""Images on which a head is checked to be one that channels can be scaled in."""


def gentlest_first(mask: Tensor) -> list[tuple[str, Tensor]]:
    """What is tried with a mask [D] in (0, 1): in words, and the factors [D] of the channels.

    The second is the published one. A short search leaves a mask whose largest entry is far below 1, and a channel
    with an entry below a half is damped by it, not flipped; the third divides the mask by that entry.
    """
    return [
        ("zeroed", 1 - mask),
        ("flipped", 1 - 2 * mask),
        ("flipped in full", 1 - 2 * mask / mask.max().clamp(min=torch.finfo(mask.dtype).tiny)),
    ]


def scale_channels(model: SplitModel, features: Features, factors: Tensor) -> Weights:
    """Weights under which head(g) is what head(factors g) is now: columns of the head's first linear layer, scaled.

    Args:
        model: In eval mode.
        features: Of a few images, [B, D] or [B, D, H', W']: on them is tested that the head keeps channels apart.
        factors: One for each of the D channels of the features.

    Returns:
        The entry of the state dict that changes.

    Raises:
        UnsupportedModelError: No linear layer comes first in the head, or it does not see the channels one by one.
    """
    with torch.no_grad():
        spread = factors.view(-1, *(1 for _ in features.shape[2:]))
        layer, seen = _first_linear(model, features)
        _, scaled = _first_linear(model, spread * features)
        each, left_over = divmod(seen.shape[1], len(factors))
        columns = factors.repeat_interleave(each)
        if left_over or not torch.allclose(scaled, seen * columns, rtol=1e-3, atol=1e-5 * float(seen.abs().max())):
            raise UnsupportedModelError(
                "the channels of the features cannot be flipped in the weights: between them and the linear layer the "
                "network mixes or rectifies them; use another method"
            )
        return {f"{layer}.weight": model.state_dict()[f"{layer}.weight"] * columns}


def _first_linear(model: SplitModel, features: Features) -> tuple[str, Tensor]:
    """Name of the first linear layer that the head calls, and its input [B, ...]."""
    calls = [
        call
        for call in linear_calls(model, lambda: model.head(features))
        if has_plain_weight(model.get_submodule(call.name))
    ]
    if not calls:
        raise UnsupportedModelError("this method needs a linear layer behind the features; the network has none there")
    return calls[0].name, calls[0].inputs


@final
class FeatureFlip(FeatureInversion, TargetedMitigation):
    """Inverts a trigger in feature space, and turns against it the channels that it is made of.

    With the mask m of the recovered trigger the features become (1 - 2 m) g(x), for all images; the head is left to
    what it makes of them. A factor for each channel of the features is one for the columns of the linear layer behind
    them, so the repaired network is the same network with other weights there, and costs nothing more to run.

    A class is inverted as :class:`~banaudit.detectors.feature_re.FeatureRE` does it; its settings and its score are
    the detector's. If no class is named, the one of the highest score is taken; if that is not above the threshold, no
    trigger is recognised and nothing is changed. All-to-one only. Few images and no BatchNorm are needed.

    Source:
        Wang et al., "Rethinking the Reverse-engineering of Trojan Triggers", NeurIPS 2022, Section 3 (mitigation).
        Xu et al., "BAN", NeurIPS 2024, Table 3, report that it leaves BadNets and Bpp as they are.
    Deviates:
        - The mask has one entry for each channel. The published one has one for each position too, which no weight of
          a network that pools its features can hold: it is applied by code at inference.
        - Three repairs are tried: (1 - m) g(x), the published (1 - 2 m) g(x), and the same with the mask divided by its
          largest entry. The last one within the budget of clean accuracy is kept.
        - The schedule is the detector's reduced one.
    """

    name: ClassVar[str] = "feature-flip"
    title: ClassVar[str] = "flipping of the features that an inverted trigger is made of (FeatureRE)"
    needs: ClassVar[str] = "few clean images; a backdoor that is there, all to one"
    trains_against: ClassVar[frozenset[str]] = frozenset({"feature-re"})
    trains: ClassVar[bool] = False
    mask_by_channel: ClassVar[bool] = True

    def check(self, model: SplitModel) -> None:
        """There must be a linear layer; whether it is the right one, only the features show."""
        if not any(has_plain_weight(module) for module in model.modules()):
            raise UnsupportedModelError(
                "this method needs a linear layer with plain weights behind the features, and the network has none"
            )

    def planned_images(self, training: int, selection: int) -> int:
        """One class at least is inverted; the model as it was and all candidates are judged."""
        del training
        half = selection // 2
        return self.planned_inversion(1, half, half) + min(PROBE_IMAGES, selection) + (TRIED + 1) * selection

    def repair(self, job: RepairJob) -> Tuned:
        """Invert, recognise, flip.

        Raises:
            UnsupportedModelError: No trigger is recognised, or its channels cannot be flipped in the weights.
            UsageError: The target is not a class of the network.
        """
        self.require_target(job.selection.num_classes)
        trigger = self.recognise(job)
        mask = trigger.mask.reshape(len(trigger.mask), -1)[:, 0]
        probe = job.selection.images[:PROBE_IMAGES]
        job.meter.spend("features of clean images", forward=len(probe))
        with torch.no_grad():
            features = job.model.features(probe)
        candidates = [
            (f"features of class {trigger.label} {what}", scale_channels(job.model, features, factors))
            for what, factors in gentlest_first(mask)
        ]
        return try_candidates(job.model, candidates, job.selection, max_drop=job.max_drop, meter=job.meter)

    def recognise(self, job: RepairJob) -> FeatureTrigger:
        """The trigger of the target, or the one of the highest score.

        Raises:
            UnsupportedModelError: No score is above the threshold.
            DataError: Too few images.
        """
        generator = torch.Generator().manual_seed(job.seed)
        search, held_out = job.selection.split(SEARCH_SHARE, generator)
        if not len(search) or not len(held_out):
            raise DataError(f"this method needs two images of some class, found {len(job.selection)} images in all")
        labels = range(job.selection.num_classes) if self.target is None else (self.target,)
        # How many classes there are, planned_images could not know.
        job.meter.planned_images += self.planned_inversion(len(labels), len(search), len(held_out)) - (
            self.planned_inversion(1, len(search), len(held_out))
        )
        model = private_copy(job.model)
        triggers = self.recover(model, search, held_out, labels, generator=generator, meter=job.meter)
        best = max(triggers, key=lambda trigger: trigger.score)
        if self.target is None and not best.score > self.threshold:
            raise UnsupportedModelError(
                f"no trigger was recognised in the features: class {best.label} scores highest with {best.score:.3g}, "
                f"not above {self.threshold:.3g}; use another method, or name the class with --set {self.name}.target"
            )
        return best
