"""The later part of a network, from an inner layer to the logits, found in any architecture by looking.

A layer is a cut when the images reach the logits through its output alone: with that output replaced, the logits have
no gradient for the image left. Blocks of residual networks are cuts, the convolutions inside them are not. Nothing is
asked of the architecture but to be made of modules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

from banaudit.architectures import OutputSplit
from banaudit.architectures.base import SplitModel
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.shapes import Images, Logits

HEAD = ""
"""Instead of a layer's name: the tail is the head, from the features on."""

PROBES = 2
"""Images, or embeddings, that a layer is tried with; two tell a batch from a single one."""


@final
@dataclass(frozen=True)
class Tail:
    """What a model makes of the output of one of its layers.

    The layers before it run, and what they compute is thrown away. One image is enough for them, which costs next to
    nothing beside a batch, unless the network holds its outputs against the number of images.

    Args:
        model: Frozen, in eval mode.
        layer: Dotted name of the layer whose output is given; :data:`HEAD` for the features.
        depth: Share of the layers with weights that lie before its output, 0 to 1.
        shape: Of one embedding, without the batch dimension.
        non_negative: Whether the layer's outputs are never negative on the probe images, as behind a ReLU.
        image: [1, C, H, W], any.
        repeated: Whether the image has to be repeated for each embedding.
    """

    model: SplitModel
    layer: str
    depth: float
    shape: torch.Size
    non_negative: bool
    image: Images
    repeated: bool = False

    def __call__(self, embeddings: Tensor) -> Logits:
        """Logits [B, K] of embeddings [B, ...], with gradients for them."""
        if self.layer == HEAD:
            return self.model.head(embeddings)
        images = self.image.expand(len(embeddings), -1, -1, -1) if self.repeated else self.image
        return _run(self.model, self.layer, embeddings, images)


def find_tail(model: SplitModel, images: Images, depth: float, meter: Meter) -> Tail:
    """The tail behind the cut that is nearest to a depth; behind the features where no layer is a cut.

    Args:
        model: A private copy, frozen and in eval mode.
        images: Probes [B, C, H, W], B at least 2; any images.
        depth: Wanted share of the layers with weights before the cut, 0 to 1.
        meter: Is told of every pass.

    Raises:
        UnsupportedModelError: There is nothing behind the only split that the model has.
    """
    outputs, total = _outputs(model, images, meter)
    # What no layer with weights follows is the answer, or all but it.
    outputs = [output for output in outputs if output.passed < total]
    # Of layers equally deep the last one: behind normalisation, activation and pooling.
    nearest = sorted(range(len(outputs)), key=lambda index: (abs(outputs[index].passed / total - depth), -index))
    for index in nearest:
        found = outputs[index]
        tail = _tail(model, found.layer, found.passed / total, found.value, images)
        if (cut := _cut(tail, found.value[:PROBES], meter)) is not None:
            return cut
    if isinstance(model.network, OutputSplit):
        raise UnsupportedModelError(
            "this method needs a layer through which alone the images reach the logits, and the network has none"
        )
    meter.spend("looking for a cut", forward=len(images))
    with torch.no_grad():
        return _tail(model, HEAD, 1.0, model.features(images), images)


@dataclass(frozen=True)
class _Output:
    """What a layer returned; ``passed`` layers with weights had run by then."""

    layer: str
    passed: int
    value: Tensor


def _tail(model: SplitModel, layer: str, depth: float, value: Tensor, images: Images) -> Tail:
    return Tail(
        model=model,
        layer=layer,
        depth=depth,
        shape=value.shape[1:],
        non_negative=bool((value >= 0).all()),
        image=images[:1],
    )


def _outputs(model: SplitModel, images: Images, meter: Meter) -> tuple[list[_Output], int]:
    """Tensors that layers returned on one pass, in order, and the number of layers with weights that ran.

    Layers that run more than once are left out: their output is no one place.
    """
    outputs: list[_Output] = []
    ran: list[str] = []
    weighted = 0

    def record(name: str, module: nn.Module, value: object) -> None:
        nonlocal weighted
        ran.append(name)
        weighted += any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1 and len(value) == len(images):
            outputs.append(_Output(name, weighted, value.clone()))  # the next layer may work in place

    handles = [
        module.register_forward_hook(lambda module, _inputs, value, name=name: record(name, module, value))
        for name, module in model.network.named_modules(prefix="network")
        if module is not model.network
    ]
    try:
        meter.spend("looking for a cut", forward=len(images))
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [output for output in outputs if ran.count(output.layer) == 1], weighted


def _cut(tail: Tail, outputs: Tensor, meter: Meter) -> Tail | None:
    """The tail, if the logits depend on its layer's output and on nothing else of the image."""
    for repeated in (False, True):
        image = tail.image.clone().requires_grad_()
        embeddings = outputs.clone().requires_grad_()
        tried = replace(tail, image=image, repeated=repeated)
        meter.spend("looking for a cut", forward=len(outputs), backward=len(outputs))
        try:
            logits = tried(embeddings)
        except (RuntimeError, ValueError, TypeError, IndexError, UnsupportedModelError):
            continue  # what follows was built for the batch of the images
        if len(logits) != len(outputs) or not logits.requires_grad:
            continue
        of_image, of_embeddings = torch.autograd.grad(logits.sum(), (image, embeddings), allow_unused=True)
        if of_image is None and of_embeddings is not None:
            return replace(tail, repeated=repeated)
        return None
    return None


def _run(model: SplitModel, layer: str, embeddings: Tensor, images: Images) -> Logits:
    """Logits with a layer's output replaced."""
    # A copy: a layer that works in place may not change what is optimised.
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, _value: embeddings.clone())
    try:
        logits: Logits = model(images)
    finally:
        handle.remove()
    return logits
