"""What a maker can change in the weights without changing an answer, to keep searches from seeing: undone, or told.

A network's function has many parameters too many. Methods look at gradients, at batch statistics, at outputs against
each other, and in reduced precision; each of these can be led astray by another writing of the same function. Ordinary
networks pass through here as they are, so that thresholds set on them hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, passes
from banaudit.meter import Meter
from banaudit.neurons import BatchNorm, batch_norms
from banaudit.precision import fast_precision
from banaudit.statistics import median_margin

LOOK_AT = 256
"""Images that are looked at, the first ones."""

USUAL_MARGINS = (1.5, 25.0)
"""Between these lies the median margin, in logits, of the answers of ordinary networks to clean images (2 to 9 on the
benchmark's victims). The wider apart, the more of a backdoor a factor on the last layer can hide."""

SCALED_MARGIN = 6.0
"""Median margin that the logits of any other network are scaled to."""

USUAL_SHIFT = 0.9
"""Largest distance of a channel's stored mean from that of clean images, in stored deviations, that stays as it is:
above that of every victim of the benchmark, augmented and backdoored as they were in training."""

USUAL_RATIO = 4.0
"""The same for the logarithm of the variances' ratio."""

ASLEEP = 1e-3
"""Share of a layer's median variance below which a channel counts as constant; it is given the median."""

LARGE_WEIGHT = 1e4
"""Only with weights beyond this can a channel be kept so faint in between that reduced precision drops it."""

USUAL_ROUNDING = 0.05
"""Median rounding error of the logits in reduced precision, in median margins, that is borne; ordinary networks stay
well below."""

USUAL_OUTPUTS = 1000
"""Outputs, evenly spaced, whose pairs say what is usual; and rows of the table of all pairs that are held at once."""
USUAL_QUANTILE = 0.9
"""Of the spreads between two outputs, the one that counts as usual: high, as many copies would lower the median."""

TWIN_SPREAD = 0.1
"""Two outputs whose difference varies less than this share of what is usual between two outputs are near copies."""


WHAT = "looking for disguises"


@dataclass(frozen=True)
class Told:
    """What a report has to say of a network's writing.

    Args:
        caveats: What was undone.
        inconclusive: Why nothing that a search finds would count.
    """

    caveats: tuple[str, ...] = ()
    inconclusive: tuple[str, ...] = ()


def undisguise(model: SplitModel, clean: CleanData, meter: Meter) -> Told:
    """Bring a network to an ordinary writing of its function, as far as that can be.

    Args:
        model: In evaluation mode; its BatchNorm layers, ``logit_scale`` and ``full_precision`` are set in place.
        clean: Clean images.
        meter: Counts passes.
    """
    caveats, inconclusive = [], []
    if fit_statistics(model, clean, meter):
        caveats.append(
            "the statistics stored in BatchNorm layers were far from those of the images, as they are where a search "
            "is to be misled, or after pruning or training on other images; they were set to these, which changes no "
            "answer"
        )
    model.logit_scale = 1.0
    exact = logits_of(model, clean, meter)
    logits = finite_rows(exact)
    model.logit_scale = usual_scale(logits)
    if model.logit_scale != 1.0:
        caveats.append(
            f"the logits were multiplied by {model.logit_scale:.3g}: their scale is far from any ordinary network's, "
            "as if to blind a search"
        )
    model.full_precision = needs_full_precision(model, clean, model.logit_scale * exact, meter)
    if model.full_precision:
        caveats.append(
            "computed without bfloat16: rounded, the network would have been another, as it is where a search is to be "
            "misled"
        )
    twins = twin_outputs(logits)
    if twins is not None:
        inconclusive.append(
            f"the outputs {twins[0]} and {twins[1]} are near copies of each other: behind a copy of itself no class "
            "stands out"
        )
    return Told(tuple(caveats), tuple(inconclusive))


def logits_of(model: SplitModel, clean: CleanData, meter: Meter) -> Tensor:
    """Logits [N, K] of the first :data:`LOOK_AT` images, on the CPU, double.

    Args:
        model: In evaluation mode.
        clean: Clean images.
        meter: Counts passes.
    """
    images, logits = clean.images[:LOOK_AT], []
    with torch.no_grad():
        for part in passes(images):
            meter.spend(WHAT, forward=len(part))
            logits.append(model(part))
    return torch.cat(logits).double().cpu()


def usual_scale(logits: Tensor) -> float:
    """Factor for the logits that makes a network's confidence an ordinary one.

    To multiply the last layer by a constant changes no prediction, but would blind every search that weighs a
    cross-entropy: the gradients vanish, or drown everything else. Ordinary networks keep the scale they have.

    Args:
        logits: Of clean images as they are, finite, [N, K].
    """
    margin = median_margin(logits)
    low, high = USUAL_MARGINS
    return 1.0 if low <= margin <= high or not 0 < margin < float("inf") else SCALED_MARGIN / margin


def finite_rows(logits: Tensor) -> Tensor:
    """Those of the rows of logits [N, K] that are finite throughout: an image that overflows says nothing of scales."""
    return logits[logits.isfinite().all(dim=1)]


def fit_statistics(model: SplitModel, clean: CleanData, meter: Meter) -> bool:
    """Bring BatchNorm's stored statistics to those of clean images where they are far off; the function stays the same.

    In evaluation mode a layer is y = k (x - m) + b with k = w / sqrt(v + eps): m and v can be anything as long as w and
    b make up for it. Methods that normalise by the batch (neuron noise) would then judge another network.

    Args:
        model: In evaluation mode; changed in place.
        clean: Clean images.
        meter: Counts passes.

    Returns:
        Whether anything was changed.
    """
    layers = {name: layer for name, layer in batch_norms(model).items() if layer.running_var is not None}
    inputs: dict[str, list[_Moments]] = {name: [] for name in layers}
    handles = [
        layer.register_forward_pre_hook(lambda _, arguments, name=name: inputs[name].append(_Moments.of(arguments[0])))
        for name, layer in layers.items()
    ]
    try:
        logits_of(model, clean, meter)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: _pooled(parts) for name, parts in inputs.items() if sum(part.count for part in parts)}
    far = any(_is_far(layers[name], mean, variance) for name, (mean, variance) in found.items())
    if far:
        for name, (mean, variance) in found.items():
            _set_statistics(layers[name], mean, variance)
    return far


def needs_full_precision(model: SplitModel, clean: CleanData, exact: Tensor, meter: Meter) -> bool:
    """Whether reduced precision could show another network: numbers that it drops, or rounds beyond recognition.

    Args:
        model: In evaluation mode.
        clean: Clean images.
        exact: Its logits of them (:func:`logits_of`) in full precision.
        meter: Counts passes.
    """
    if any(bool((parameter.abs() > LARGE_WEIGHT).any()) for parameter in model.parameters()):
        return True
    with fast_precision(clean.images.device):
        rounded = logits_of(model, clean, meter)
    finite = exact.isfinite().all(dim=1)
    exact, rounded = exact[finite], rounded[finite]
    error = float((exact - rounded).abs().amax(dim=1).median())
    return not error <= USUAL_ROUNDING * median_margin(exact)


def twin_outputs(logits: Tensor) -> tuple[int, int] | None:
    """Two labels whose logits move together as if one were the other's copy; none where no two do.

    An output that follows another at a distance never answers, and is always its closest rival: no search for the one
    finds a class that leads.

    Args:
        logits: Of clean images, finite, [N, K].
    """
    classes = logits.shape[1]
    if classes <= 2:  # two outputs that only their difference speaks through
        return None
    centred = (logits - logits.mean(dim=0)).T
    some = centred[torch.linspace(0, classes - 1, min(classes, USUAL_OUTPUTS)).long()]
    pairs = torch.triu_indices(len(some), len(some), 1)
    usual = float(_spreads(some, some)[pairs[0], pairs[1]].quantile(USUAL_QUANTILE))
    closest, twins = math.inf, (0, 0)
    for first in range(0, classes, USUAL_OUTPUTS):  # all pairs at once of many thousand outputs fill the memory
        block = _spreads(centred[first : first + USUAL_OUTPUTS], centred)
        itself = torch.arange(len(block))
        block[itself, first + itself] = math.inf
        place = int(block.argmin())
        if float(block.view(-1)[place]) < closest:
            closest, twins = float(block.view(-1)[place]), (first + place // classes, place % classes)
    return (min(twins), max(twins)) if closest < TWIN_SPREAD * usual else None


def _spreads(rows: Tensor, columns: Tensor) -> Tensor:
    """[R, C] standard deviations of the differences of centred outputs [R, N] and [C, N]."""
    own = (rows.square().mean(dim=1)[:, None], columns.square().mean(dim=1)[None, :])
    return (own[0] + own[1] - 2 * rows @ columns.T / rows.shape[1]).clamp_min(0).sqrt()


@dataclass(frozen=True)
class _Moments:
    """Mean [C] and variance [C] of each channel of so many samples."""

    count: int
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, inputs: Tensor) -> _Moments:
        """Those of [B, C, ...], over samples that are finite."""
        inputs = inputs[inputs.flatten(1).isfinite().all(dim=1)]
        over = [0, *range(2, inputs.ndim)]
        return cls(len(inputs), inputs.mean(dim=over), inputs.var(dim=over, unbiased=False))


def _pooled(parts: list[_Moments]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all samples together; a part without any has no say."""
    parts = [part for part in parts if part.count]
    counts = torch.tensor([part.count for part in parts], dtype=parts[0].mean.dtype, device=parts[0].mean.device)
    shares = (counts / counts.sum())[:, None]
    means, variances = torch.stack([part.mean for part in parts]), torch.stack([part.variance for part in parts])
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean) ** 2)).sum(0)


def _set_statistics(layer: BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    with torch.no_grad():
        # A channel that sleeps on clean images must not lose its weight, by which noise reaches it.
        usual = variance.median()
        variance = torch.where(variance < ASLEEP * usual, usual, variance)
        factor = layer.weight / (layer.running_var + layer.eps).sqrt()
        layer.bias.add_(factor * (mean - layer.running_mean))
        layer.weight.copy_(factor * (variance + layer.eps).sqrt())
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)


def _is_far(layer: BatchNorm, mean: Tensor, variance: Tensor) -> bool:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    stored = layer.running_var + layer.eps
    shift = (mean - layer.running_mean).abs() / stored.sqrt()
    ratio = ((variance + layer.eps) / stored).log().abs()
    return bool((shift > USUAL_SHIFT).any()) or bool((ratio > USUAL_RATIO).any())
