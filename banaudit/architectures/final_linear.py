"""Any classifier in the form that detectors meet: split at its last linear layer, or, failing that, at its output.

Nothing is asked of the module but to be a classifier: which layer produced the answer is observed on a probe batch.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from banaudit.architectures.base import WrappedNetwork
from banaudit.architectures.linear_calls import linear_calls
from banaudit.architectures.outputs import OutputKind, class_scores, first_class_scores, output_kind
from banaudit.errors import UnsupportedModelError
from banaudit.shapes import Features, Logits


@final
class FinalLinearSplit(WrappedNetwork):
    """The features are the input [B, D] of the linear layer that produces the logits; the head is that layer.

    What the module does after that layer (softmax, packing into a tuple) is left out: the split's forward always gives
    logits. :meth:`find` names the layer.

    Args:
        module: The whole classifier.
        linear: Dotted name of its last linear layer.
    """

    def __init__(self, module: nn.Module, linear: str) -> None:
        super().__init__(module)
        self.linear = linear

    @classmethod
    def find(cls, module: nn.Module, inputs: Tensor, classes: int | None = None) -> FinalLinearSplit:
        """Find the layer on a probe batch.

        Args:
            module: The whole classifier, in eval mode.
            inputs: Probe batch [B, C, H, W], B at least 2, as the module expects it.
            classes: Number of classes K, where known: tells the class scores from other [B, ...] outputs.

        Returns:
            The split.

        Raises:
            UnsupportedModelError: No linear layer's output is the network's, up to softmax or log-softmax.
        """
        returned: list[object] = []
        with torch.no_grad():
            calls = linear_calls(module, lambda: returned.append(module(inputs)))
        outputs = returned[0]
        scores = [tensor for _, tensor in class_scores(outputs, len(inputs), classes)]
        names = [call.name for call in calls]
        for call in reversed(calls):
            # A layer that is called more than once has no one input to be the features.
            if names.count(call.name) == 1 and any(_comes_from(tensor, call.output) for tensor in scores):
                return cls(module, call.name)
        raise UnsupportedModelError(
            f"{type(module).__name__}: expected a linear layer whose output is the network's, found none among the "
            f"{len(calls)} that were called; use the network whole (OutputSplit)"
        )

    def features(self, inputs: Tensor) -> Features:
        """Input [B, D] of the last linear layer."""
        captured: list[Tensor] = []
        handle = self._layer().register_forward_pre_hook(lambda _layer, arguments: captured.append(arguments[0]))
        try:
            self.module(inputs)
        finally:
            handle.remove()
        return captured[0]

    def head(self, features: Features) -> Logits:
        """Logits [B, K] of features."""
        logits: Logits = self._layer()(features)
        return logits

    def _layer(self) -> nn.Module:
        return self.module.get_submodule(self.linear)


@final
class OutputSplit(WrappedNetwork):
    """A classifier without a last linear layer: the features are its logits [B, K], the head is the identity.

    Clean accuracy and every method that needs logits only work; a method that masks features sees K of them. Where the
    module returns probabilities, the logits are their logarithm, which is right up to a constant for each image.

    Args:
        module: The whole classifier.
        kind: What its forward returns.
        classes: Number of classes K.
    """

    def __init__(self, module: nn.Module, kind: OutputKind, classes: int) -> None:
        super().__init__(module)
        self.kind = kind
        self.classes = classes

    @classmethod
    def find(cls, module: nn.Module, inputs: Tensor, classes: int | None = None) -> OutputSplit:
        """See on a probe batch what the module returns; arguments as for :meth:`FinalLinearSplit.find`.

        Raises:
            UnsupportedModelError: The output holds no float tensor [B, K].
        """
        with torch.no_grad():
            _, scores = first_class_scores(module(inputs), len(inputs), classes)
        return cls(module, output_kind(scores), scores.shape[1])

    def features(self, inputs: Tensor) -> Features:
        """Logits [B, K]."""
        _, scores = first_class_scores(self.module(inputs), len(inputs), self.classes)
        if self.kind == "probabilities":
            return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
        return scores

    def head(self, features: Features) -> Logits:
        """The features themselves."""
        return features


def split_module(module: nn.Module, inputs: Tensor, classes: int | None = None) -> FinalLinearSplit | OutputSplit:
    """Split any classifier at its last linear layer where it has one, else at its output.

    Args:
        module: The whole classifier, in eval mode.
        inputs: Probe batch [B, C, H, W], B at least 2, as the module expects it.
        classes: Number of classes K, where known.

    Raises:
        UnsupportedModelError: The output holds no float tensor [B, K].
    """
    try:
        return FinalLinearSplit.find(module, inputs, classes)
    except UnsupportedModelError:
        return OutputSplit.find(module, inputs, classes)


def _comes_from(scores: Tensor, logits: Tensor) -> bool:
    """Whether class scores are these logits, or their softmax or log-softmax."""
    if logits.shape != scores.shape:
        return False
    return any(
        torch.allclose(scores, candidate, rtol=1e-4, atol=1e-6, equal_nan=True)
        for candidate in (logits, logits.softmax(1), logits.log_softmax(1))
    )
