"""What a network returns: logits, probabilities or log-probabilities, bare or inside a tuple, the same twice or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from banaudit.architectures.base import WrappedNetwork
from banaudit.errors import UnsupportedModelError

OutputKind = Literal["logits", "probabilities", "log-probabilities"]

SUM_TOLERANCE = 1e-3
"""How far from 1 a row of probabilities may sum in float32 and still be one."""


@dataclass(frozen=True)
class Outputs:
    """What a network's forward returns.

    Args:
        kind: Logits, probabilities or log-probabilities.
        note: What was taken from a tuple or mapping, and whether two calls disagreed; empty where nothing is to say.
        classes: Number of classes K.
        deterministic: Whether the same images gave the same output twice, in eval mode.
    """

    kind: OutputKind
    note: str
    classes: int
    deterministic: bool


def recognise_outputs(network: nn.Module, inputs: Tensor, classes: int | None = None) -> Outputs:
    """Look at what a network returns for a probe batch; its mode and the global random state stay as they are.

    Args:
        network: Any classifier. Of a network wrapped to be split, the wrapped module's own forward is looked at.
        inputs: Probe batch [B, C, H, W], B at least 2, as the network expects it.
        classes: Number of classes K, where known: tells the class scores from other [B, ...] outputs.

    Returns:
        Kind, note and determinism.

    Raises:
        UnsupportedModelError: The output holds no float tensor [B, K].
    """
    module = network.module if isinstance(network, WrappedNetwork) else network
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(inputs)):
            where, scores = first_class_scores(module(inputs), len(inputs), classes)
            _, again = first_class_scores(module(inputs), len(inputs), classes)
    finally:
        for part, training in modes.items():
            part.training = training
    deterministic = torch.allclose(scores, again, rtol=1e-4, atol=1e-5, equal_nan=True)
    notes = [f"the forward returns more than the class scores: {where} was taken"] if where else []
    if not deterministic:
        notes.append("the same images gave two different outputs in eval mode")
    return Outputs(output_kind(scores), "; ".join(notes), scores.shape[1], deterministic)


def output_kind(scores: Tensor) -> OutputKind:
    """Whether class scores [B, K] are logits, probabilities (rows sum to 1) or their logarithms."""
    scores = scores.detach().double()
    ones = torch.ones(len(scores), dtype=scores.dtype, device=scores.device)
    if bool((scores >= 0).all()) and torch.allclose(scores.sum(1), ones, atol=SUM_TOLERANCE):
        return "probabilities"
    if bool((scores <= 0).all()) and torch.allclose(scores.exp().sum(1), ones, atol=SUM_TOLERANCE):
        return "log-probabilities"
    return "logits"


def class_scores(outputs: Any, batch: int, classes: int | None = None) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a network's output that can be class scores: float, [B, K], K at least 2.

    Args:
        outputs: What the forward returned: a tensor, or tuples, lists and mappings of such.
        batch: Number of images B.
        classes: Number of classes K, where known.

    Yields:
        Where the tensor was, in words (empty for a bare tensor), and the tensor.
    """
    if isinstance(outputs, Tensor):
        fits = outputs.ndim == 2 and outputs.is_floating_point() and len(outputs) == batch
        if fits and outputs.shape[1] > 1 and classes in (None, outputs.shape[1]):
            yield "", outputs
        return
    parts: list[tuple[str, Any]] = []
    if isinstance(outputs, Mapping):
        # A mapping that names its logits leaves no doubt.
        names = sorted(outputs, key=lambda name: name != "logits")
        parts = [(f"entry {name!r}", outputs[name]) for name in names]
    elif isinstance(outputs, list | tuple):
        parts = [(f"element {index} of {len(outputs)}", part) for index, part in enumerate(outputs)]
    for where, part in parts:
        for inner, tensor in class_scores(part, batch, classes):
            yield f"{inner} of {where}" if inner else where, tensor


def first_class_scores(outputs: Any, batch: int, classes: int | None = None) -> tuple[str, Tensor]:
    """The first of :func:`class_scores`.

    Raises:
        UnsupportedModelError: There is none.
    """
    found = next(class_scores(outputs, batch, classes), None)
    if found is None:
        wanted = "K" if classes is None else str(classes)
        if isinstance(outputs, Tensor) and outputs.shape == (batch, 1):
            raise UnsupportedModelError(
                f"the network's output is a single score for each image, {list(outputs.shape)}; this tool judges "
                "classifiers with a score for each of two or more classes"
            )
        what = f"a tensor {list(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise UnsupportedModelError(
            f"the network's output should hold class scores [{batch}, {wanted}] for {batch} images, found {what}; "
            "is it an image classifier?"
        )
    return found


def _cuda_devices(inputs: Tensor) -> list[torch.device]:
    return [inputs.device] if inputs.device.type == "cuda" else []
