"""Which linear layers a network calls on its way to an answer, observed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class LinearCall:
    """One call of a linear layer.

    Args:
        name: Dotted name of the layer.
        inputs: What it was given, [B, ...].
        output: What it returned, a copy.
    """

    name: str
    inputs: Tensor
    output: Tensor


def linear_calls(module: nn.Module, run: Callable[[], object]) -> list[LinearCall]:
    """The calls of a module's linear layers while something runs, in their order.

    Args:
        module: Whose layers are watched.
        run: What calls them.
    """
    calls: list[LinearCall] = []

    def record(name: str, inputs: Tensor, output: Tensor) -> None:
        calls.append(LinearCall(name, inputs, output.detach().clone()))

    handles = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: record(name, inputs[0], output))
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def has_plain_weight(layer: nn.Module) -> bool:
    """Whether it is a linear layer whose weight is not computed from others, as with weight or spectral norm."""
    return isinstance(layer, nn.Linear) and "weight" in dict(layer.named_parameters())
