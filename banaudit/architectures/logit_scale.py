"""The constant that a model's logits are multiplied by, moved into its last layer while weights are trained."""

from __future__ import annotations

import torch

from banaudit.architectures.base import SplitModel
from banaudit.architectures.linear_calls import has_plain_weight, linear_calls
from banaudit.shapes import Images


class FoldedScale:
    """Takes ``logit_scale`` into the weights of the final linear layer, and out again after training.

    A layer scaled by c behind which the logits are multiplied by 1 / c answers as before, but a gradient step changes
    it 1 / c^2 times as much, relative to its size: what a maker could choose so that every fine-tuning ruins the
    network. Where the logits come from no linear layer with plain weights, the scale stays where it is.

    Args:
        model: A private copy in eval mode; changed.
        images: [B, C, H, W]; two of them show which layer the logits come from.
    """

    def __init__(self, model: SplitModel, images: Images) -> None:
        self._scale = model.logit_scale
        self._name = None if self._scale == 1 else _final_linear(model, images[:2])
        if self._name is not None:
            _multiply(model, self._name, self._scale)
            model.logit_scale = 1.0

    def take_out(self, model: SplitModel) -> None:
        """Be the layer and the constant again that the model came with, with the same logits as now.

        Args:
            model: The same model, trained meanwhile.
        """
        if self._name is not None:
            _multiply(model, self._name, 1 / self._scale)
            model.logit_scale = self._scale


def _multiply(model: SplitModel, name: str, factor: float) -> None:
    with torch.no_grad():
        for parameter in model.get_submodule(name).parameters():
            parameter.mul_(factor)


def _final_linear(model: SplitModel, images: Images) -> str | None:
    """Name of the linear layer whose output is the network's, if its weights are plain ones."""
    with torch.no_grad():
        features = model.features(images)
        logits = model.network.head(features)
        calls = linear_calls(model, lambda: model.network.head(features))
    names = [call.name for call in calls]
    return next(
        (
            call.name
            for call in reversed(calls)
            if names.count(call.name) == 1
            and has_plain_weight(model.get_submodule(call.name))
            and torch.equal(call.output, logits)
        ),
        None,
    )
