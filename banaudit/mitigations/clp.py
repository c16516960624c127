"""CLP: channels that amplify far more than the others of their layer are pruned (Zheng et al., ECCV 2022)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from banaudit.architectures.base import SplitModel
from banaudit.errors import UnsupportedModelError
from banaudit.mitigations.base import Mitigation, RepairJob
from banaudit.neurons import BATCH_NORMS, batch_norms, require_batch_norm
from banaudit.shapes import Images, Weights
from banaudit.training import Tuned, try_candidates


def normalised_convolutions(model: SplitModel, image: Images) -> dict[str, nn.Conv2d]:
    """Names of the BatchNorm layers whose input is what a convolution gave, each with that convolution.

    Names and order of the modules do not show which layer feeds which, least of all with shortcuts and pre-activation;
    so the pairs are read from a forward pass. A layer counts only if it was called once, on a convolution's output that
    nothing has changed since.

    Args:
        model: In eval mode.
        image: [1, C, H, W].
    """
    # The outputs are kept, so that no later tensor can be taken for one of them.
    made: list[tuple[Tensor, int, nn.Conv2d]] = []
    calls: dict[str, list[nn.Conv2d | None]] = {}

    def after_convolution(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        made.append((output, output._version, layer))

    def before_norm(name: str, given: Tensor) -> None:
        sources = [layer for output, version, layer in made if output is given and given._version == version]
        calls.setdefault(name, []).append(sources[-1] if sources else None)

    handles = [
        layer.register_forward_hook(after_convolution) for layer in model.modules() if isinstance(layer, nn.Conv2d)
    ]
    handles += [
        layer.register_forward_pre_hook(lambda _layer, inputs, name=name: before_norm(name, inputs[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, BATCH_NORMS)
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[0] for name, found in calls.items() if len(found) == 1 and found[0] is not None}


def channel_bounds(convolution: nn.Conv2d, scale: Tensor) -> Tensor:
    """Upper bound [C_out] of each channel's Lipschitz constant: sigma_max(reshape(W_k, C_in x k^2)) |scale_k|.

    Args:
        convolution: Weight [C_out, C_in, k, k]; a depthwise one has C_in = 1.
        scale: [C_out], what the BatchNorm behind it multiplies by: gamma / sqrt(variance + eps).
    """
    kernels = convolution.weight.detach().float().flatten(2)
    norms: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    return norms * scale.abs()


@final
class CLP(Mitigation):
    """Prunes channels by their weights alone: those whose Lipschitz bound stands out within their layer.

    The bound of channel k is sigma_k = sigma_max(W_k) |gamma_k| / sqrt(variance_k + eps), with W_k its kernel as a
    matrix C_in x k^2 and gamma_k, variance_k those of the BatchNorm that follows. Where it exceeds the mean of the
    layer by more than u standard deviations, gamma_k and beta_k become zero. A trigger, being a small change of the
    input, needs channels that amplify. No image takes part, other than to see whether the accuracy survives.

    It fits networks in which BatchNorm follows each convolution: ResNet, VGG, MobileNetV2 and their like. In
    pre-activation networks (PreActResNet, WideResNet, DenseNet) only the BatchNorm layers within a block follow a
    convolution; those that see a sum or a concatenation of branches have no one kernel and are left alone, and the
    method is weaker for it. The record says how many layers were looked at. A network without any such layer is
    refused.

    Source:
        Zheng, Tang, Li and Liu, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022; u = 3 is the
        authors' default.
    Deviates:
        From the authors' code: the pairs of convolution and BatchNorm are those of a forward pass instead of the order
        of the modules, which pairs wrongly in pre-activation networks; eps is under the root, as the layer has it.
    """

    name: ClassVar[str] = "clp"
    title: ClassVar[str] = "pruning of the channels that amplify most (CLP)"
    needs: ClassVar[str] = "convolutions followed by BatchNorm; images only to measure the accuracy"
    trains: ClassVar[bool] = False

    u: PositiveFloat = 3.0
    """Standard deviations above the layer's mean from which on a channel is pruned; lower prunes more."""

    def check(self, model: SplitModel) -> None:
        """The network must have BatchNorm; whether it follows convolutions, only a forward pass shows."""
        require_batch_norm(model)

    def planned_images(self, training: int, selection: int) -> int:
        """An image to see what feeds what; the model as it was and the pruned one are judged."""
        del training
        return 1 + 2 * selection

    def repair(self, job: RepairJob) -> Tuned:
        """Prune, and measure what it costs.

        Raises:
            UnsupportedModelError: No BatchNorm follows a convolution, or no channel stands out.
        """
        job.meter.spend("which layer feeds which", forward=1)
        norms, pairs = batch_norms(job.model), normalised_convolutions(job.model, job.selection.images[:1])
        changes: Weights = {}
        looked_at, channels, pruned, furthest = 0, 0, 0, float("-inf")
        for name, layer in norms.items():
            # The spread of a single channel is undefined, and so is the scale without stored statistics.
            if name not in pairs or layer.running_var is None or layer.num_features == 1:
                continue
            scale = layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
            bounds = channel_bounds(pairs[name], scale)
            outlying = (bounds - bounds.mean()) > self.u * bounds.std()
            looked_at, channels, pruned = looked_at + 1, channels + len(bounds), pruned + int(outlying.sum())
            furthest = max(furthest, float((bounds - bounds.mean()).max() / bounds.std().clamp(min=1e-12)))
            if outlying.any():
                changes[f"{name}.weight"] = layer.weight.detach().masked_fill(outlying, 0.0)
                changes[f"{name}.bias"] = layer.bias.detach().masked_fill(outlying, 0.0)
        if not looked_at and pairs:
            raise UnsupportedModelError(
                "this method needs BatchNorm layers with stored statistics and several channels behind the "
                "convolutions; the network has none; use another method"
            )
        if not looked_at:
            raise UnsupportedModelError(
                "this method needs BatchNorm that follows a convolution; in this network every BatchNorm layer sees "
                "something else, as in pre-activation networks; use another method"
            )
        if not pruned:
            raise UnsupportedModelError(
                f"no channel stands out: none is more than u = {self.u:g} standard deviations above its layer's mean "
                f"(at most {furthest:.2f}), so there is nothing to prune; lower --set {self.name}.u, or use another "
                "method"
            )
        what = (
            f"u = {self.u:g}: {pruned} of {channels} channels pruned, looking at {looked_at} of {len(norms)} BatchNorm "
            "layers"
        )
        return try_candidates(job.model, [(what, changes)], job.selection, max_drop=job.max_drop, meter=job.meter)
