"""Neuron noise and feature masks: the machinery that every method of the BAN family shares.

Source: Xu et al., "BAN: Detecting Backdoors Activated by Adversarial Neuron Noise", NeurIPS 2024, Eq. 3-6.

In a network with BatchNorm a neuron is a channel of a BatchNorm layer: multiplying the layer's scale gamma and shift
beta by (1 + delta) and (1 + xi) scales the neuron's weight and bias as Eq. 3 asks, since convolution and normalisation
before it are linear in the weight.  The final linear layer is never perturbed (the authors' code does not either).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from banaudit.architectures.base import SplitModel
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.precision import fast_precision
from banaudit.shapes import Features, Images, Labels, Logits

Statistics = Literal["batch", "running"]
"""Which mean and variance BatchNorm uses under noise: those of the batch at hand, or those stored in training."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def batch_norms(model: nn.Module) -> dict[str, BatchNorm]:
    """BatchNorm layers with a scale and a shift, by qualified name, in the order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, BATCH_NORMS) and module.weight is not None and module.bias is not None
    }


def require_batch_norm(model: nn.Module) -> None:
    """Refuse a model that neuron noise on BatchNorm cannot judge.

    Raises:
        UnsupportedModelError: The model has no BatchNorm layer with scale and shift.
    """
    if not batch_norms(model):
        raise UnsupportedModelError("this method needs BatchNorm, and the network has none")


Form = Literal["relative", "additive"]
"""How noise enters; :class:`NoisyModel` has the formulas."""


def _perturb(scale: Tensor, shift: Tensor, noise: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Scales [P] and shifts [P] under noise [2, P]."""
    moved = shift * (1 + noise[1]) if form == "relative" else shift + noise[1] * scale.abs()
    return scale * (1 + noise[0]), moved


class NoisyModel:
    """A model whose BatchNorm neurons can be perturbed without touching its parameters.

    Noise is one tensor [2, P]: ``noise[0]`` is delta (scales), ``noise[1]`` is xi (shifts), for the P neurons of all
    BatchNorm layers in order.  Two forms:

    * ``relative`` (BAN, Eq. 3): gamma (1 + delta), beta (1 + xi).
    * ``additive`` (ours): gamma (1 + delta), beta + xi |gamma|.  A backdoor's channel may have a shift near zero, which
      relative noise cannot move; |gamma| is the channel's own unit.

    Args:
        model: A private copy; its mode and requires_grad flags are changed, its parameters are not.
        form: ``relative`` or ``additive``.
        statistics: ``batch`` or ``running``.
        momentum: Share of each batch's statistics that enters the stored ones in ``batch`` mode; 0 leaves them alone.
        meter: Counts the passes.

    Raises:
        UnsupportedModelError: The model has no BatchNorm.
    """

    def __init__(
        self,
        model: SplitModel,
        *,
        form: Form,
        statistics: Statistics = "batch",
        momentum: float = 0.0,
        meter: Meter | None = None,
    ) -> None:
        require_batch_norm(model)
        self._model = model.eval().requires_grad_(False)
        self._form = form
        self._meter = meter if meter is not None else Meter()
        self._names: list[str] = []
        self._sizes: list[int] = []
        scales: list[Tensor] = []
        shifts: list[Tensor] = []
        for name, module in batch_norms(model).items():
            self._names.append(name)
            self._sizes.append(module.num_features)
            scales.append(module.weight.detach())
            shifts.append(module.bias.detach())
            if statistics == "batch":
                module.training = True
                module.momentum = momentum
        self._scale = torch.cat(scales)
        self._shift = torch.cat(shifts)

    @property
    def neurons(self) -> int:
        """Number of neurons P."""
        return len(self._scale)

    @property
    def device(self) -> torch.device:
        """Where the noise has to live."""
        return self._scale.device

    def use_running_statistics(self) -> None:
        """From now on normalise with the stored statistics, drifted as they may be."""
        self._model.eval()

    def no_noise(self) -> Tensor:
        """The zero noise [2, P]."""
        return torch.zeros(2, self.neurons, device=self.device)

    def random_noise(self, eps: float, generator: torch.Generator) -> Tensor:
        """Noise [2, P] uniform in [-eps, eps]; ``generator`` lives on the CPU."""
        return (torch.rand(2, self.neurons, generator=generator) * 2 - 1).mul(eps).to(self.device)

    def random_signs(self, eps: float, generator: torch.Generator) -> Tensor:
        """Noise [2, P] of full size and random sign: what a search of the same radius is held against."""
        return torch.randint(0, 2, (2, self.neurons), generator=generator).mul(2).sub(1).mul(eps).to(self.device)

    def _parameters(self, noise: Tensor) -> dict[str, Tensor]:
        scale, shift = _perturb(self._scale, self._shift, noise, self._form)
        parameters: dict[str, Tensor] = {}
        parts = zip(self._names, torch.split(scale, self._sizes), torch.split(shift, self._sizes), strict=True)
        for name, weight, bias in parts:
            parameters[f"{name}.weight"] = weight
            parameters[f"{name}.bias"] = bias
        return parameters

    def logits(self, images: Images, noise: Tensor, *, what: str = "neuron noise") -> Logits:
        """Logits [B, K], float32, of the network under noise [2, P]."""
        return self._run(images, noise, what, "logits")

    def features(self, images: Images, noise: Tensor, *, what: str = "neuron noise") -> Features:
        """Latent features g(x; noise), float32 (Eq. 6)."""
        return self._run(images, noise, what, "features")

    def _run(self, images: Images, noise: Tensor, what: str, output: Literal["logits", "features"]) -> Tensor:
        gradient = noise.requires_grad
        self._meter.spend(what, forward=len(images), backward=len(images) if gradient else 0)
        with fast_precision(self.device), torch.set_grad_enabled(gradient):
            module = _FeaturesOnly(self._model) if output == "features" else self._model
            prefix = "model." if output == "features" else ""
            parameters = {prefix + name: value for name, value in self._parameters(noise).items()}
            result: Tensor = functional_call(module, parameters, (images,))
        return result.float()

    def ascend(self, images: Images, labels: Labels, noise: Tensor, *, step: float, radius: float, what: str) -> Tensor:
        """One sign-gradient step up the cross-entropy towards ``labels``, clipped to ``radius`` (Eq. 4).

        Args:
            images: [B, C, H, W].
            labels: [B].
            noise: [2, P].
            step: Size of the step; negative: a step down.
            radius: Largest absolute value of any entry after the step.
            what: For the meter.

        Returns:
            The new noise [2, P].
        """
        noise = noise.detach().requires_grad_(True)
        loss = F.cross_entropy(self.logits(images, noise, what=what), labels)
        (gradient,) = torch.autograd.grad(loss, noise)
        return (noise.detach() + step * gradient.sign()).clamp_(-radius, radius)


def count_neurons(model: nn.Module) -> int:
    """Number P of neurons that noise can reach: channels of all BatchNorm layers."""
    return sum(module.num_features for module in batch_norms(model).values())


def train_under_noise(model: nn.Module, images: Images, noise: Tensor, *, form: Form) -> Logits:
    """Logits [B, K] under noise, with gradients for the weights as well as for the noise.

    BatchNorm normalises with the statistics of the batch and leaves the stored ones as they are: what the noise does
    to them must not stay in the model.

    Args:
        model: In the mode it is trained in; afterwards as before.
        images: [B, C, H, W].
        noise: [2, P] as in :class:`NoisyModel`.
        form: How the noise enters.
    """
    layers = batch_norms(model)
    sizes = [module.num_features for module in layers.values()]
    parameters: dict[str, Tensor] = {}
    for (name, module), part in zip(layers.items(), torch.split(noise, sizes, dim=1), strict=True):
        parameters[f"{name}.weight"], parameters[f"{name}.bias"] = _perturb(module.weight, module.bias, part, form)
    # Those without a scale and a shift get no noise, but would take its traces into their statistics all the same.
    normalising = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    before = [(module, module.training, module.track_running_stats) for module in normalising]
    try:
        for module in normalising:
            module.training, module.track_running_stats = True, False
        logits: Tensor = functional_call(model, parameters, (images,))
    finally:
        for module, training, tracking in before:
            module.training, module.track_running_stats = training, tracking
    return logits


def worst_noise(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    eps: float,
    steps: int,
    clip: bool,
    form: Form,
    generator: torch.Generator,
    around: Tensor | None = None,
) -> Tensor:
    """Noise [2, P] that raises the cross-entropy of a batch, by sign-gradient ascent (Eq. 4); for training against it.

    Each step is one pass of :func:`train_under_noise`, forward and backward.

    Args:
        model: In the mode it is trained in; afterwards as before.
        images: [B, C, H, W].
        labels: [B].
        eps: The random start is uniform in [-eps, eps].
        steps: Of the ascent, each of eps / steps.
        clip: Keep the noise within eps; else start and steps add up to 2 eps.
        form: How the noise enters.
        generator: Source of randomness, on the CPU.
        around: Noise [2, P] that this one comes on top of; none: zero.
    """
    noise = (torch.rand(2, count_neurons(model), generator=generator) * 2 - 1).mul(eps).to(images.device)
    radius = eps if clip else 2 * eps
    for _ in range(steps):
        noise.requires_grad_(True)
        logits = train_under_noise(model, images, noise if around is None else around + noise, form=form)
        # Only the noise's gradient is asked for: none is added to the weights'.
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels), noise)
        noise = (noise.detach() + eps / steps * gradient.sign()).clamp_(-radius, radius)
    return noise


class _FeaturesOnly(nn.Module):
    """A model seen up to its features, so that ``functional_call`` can reach them."""

    def __init__(self, model: SplitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Features:
        return self.model.features(images)


def decoupling_loss(model: SplitModel, features: Features, labels: Labels, mask: Tensor, weight: float) -> Tensor:
    """CE(h(m g), y) - CE(h((1 - m) g), y) + weight |m| / sg(|m|): Eq. 5 of BAN, with BTI-DBF's own loss at weight 0.

    The norm is divided by its own detached value, so that the term's gradient is weight / |m|_1 in every entry,
    whatever the number of features.

    Args:
        model: Only its head is used.
        features: [B, D] or [B, D, H', W'].
        labels: [B].
        mask: Shaped like one image's features, in [0, 1].
        weight: lambda_1.
    """
    kept = F.cross_entropy(model.head(mask * features), labels)
    removed = F.cross_entropy(model.head((1 - mask) * features), labels)
    norm = mask.abs().sum()
    return kept - removed + weight * norm / norm.detach().clamp(min=1e-12)


def initial_mask(features: Features, generator: torch.Generator) -> Tensor:
    """A feature mask with entries uniform in [0, 1], of the shape of one sample's features."""
    return torch.rand(features.shape[1:], generator=generator).to(features.device)


def fit_feature_mask(
    model: SplitModel,
    features: Features,
    labels: Labels,
    *,
    steps: int,
    learning_rate: float,
    mask_weight: float,
    batch_size: int,
    clamp_late: bool,
    generator: torch.Generator,
) -> Tensor:
    """Mask that parts benign from backdoor features (Eq. 5).

    min_m CE(f_L(g(x) m), y) - CE(f_L(g(x) (1 - m)), y) + lambda_1 |m| over m in [0, 1], by Adam.  The penalty is
    divided by its own value, as in the authors' code: taken literally, lambda_1 times the norm of thousands of entries
    would outweigh both cross-entropies a thousandfold.  The features do not depend on the mask: computed once.

    Args:
        model: Its head is f_L.
        features: [N, ...] of clean images, without noise.
        labels: [N].
        steps: Steps of Adam.
        learning_rate: Of Adam.
        mask_weight: lambda_1.
        batch_size: Samples of a step, drawn with replacement.
        clamp_late: Clamp before the gradient is taken instead of after the step, as the authors' code does; the mask
            then ends up to one step outside [0, 1].
        generator: Source of randomness.

    Returns:
        The mask, of the shape of one sample's features.
    """
    mask = initial_mask(features, generator).requires_grad_(True)
    optimizer = torch.optim.Adam([mask], lr=learning_rate)
    for _ in range(steps):
        chosen = torch.randint(len(features), (batch_size,), generator=generator).to(features.device)
        batch, targets = features[chosen], labels[chosen]
        loss = decoupling_loss(model, batch, targets, mask, mask_weight)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clamp_late:
            mask.data.clamp_(0, 1)
        optimizer.step()
        if not clamp_late:
            mask.data.clamp_(0, 1)
    return mask.detach()
