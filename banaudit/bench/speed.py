"""The authors' procedure, pass by pass, timed beside the whole default scan on the same model, images and device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

from banaudit.architectures.base import SplitModel
from banaudit.audit import judge, pick_device
from banaudit.bench.cost import MethodCost, PeakCost, clock, device_name, measured, memory_note, peak, reset_peak
from banaudit.bench.economies import Economy, counted_economies, timed_economies
from banaudit.bench.synthetic import MODEL_NOTE, synthetic_model
from banaudit.data import CleanData
from banaudit.detectors import Detector, default_detectors
from banaudit.errors import UsageError
from banaudit.neurons import batch_norms
from banaudit.results import Record, Verdict
from banaudit.shapes import Images, Labels

BATCH = 128
MASK_ITERATIONS = 400
"""20 epochs of 20 batches."""
NOISE_STARTS = 20
"""Batches on which the noise is searched anew; only the last one's noise is used."""
NOISE_STEPS = 30
EPS = 0.3
MASK_LEARNING_RATE = 0.01
MASK_WEIGHT = 0.75


class PlainSide(PeakCost):
    """The authors' procedure."""

    extrapolated: bool = Field(description="Whether only a share of the passes was timed and the rest computed.")
    timed_share: float = Field(description="Share of the forward-and-backward passes that was timed.")
    timed_seconds: float
    timed_forward_images: int


class SpeedResult(Record):
    """What ``banaudit bench speed`` found."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["speed"] = "speed"
    network: str
    model_note: str
    classes: int
    images: int
    device: str
    threads: int
    torch_version: str
    memory_note: str
    plain: PlainSide
    scan: PeakCost
    ratio: float = Field(description="Seconds of the plain procedure for each second of the default scan.")
    verdict: Verdict
    methods: tuple[MethodCost, ...]
    economies: tuple[Economy, ...] = Field(description="What each economy of the scan brings.")


@dataclass(frozen=True)
class PlainTimes:
    """What the plain procedure took.

    Args:
        seconds: Of the whole procedure; computed where only a share was run.
        timed_seconds: That really passed.
        timed_share: Share of the forward-and-backward passes that was run.
        timed_forward_images: Images really passed forward.
        forward_images: Of the whole procedure.
        backward_images: Of the whole procedure.
        histogram: [K] predictions of the last evaluation, as the authors print them.
    """

    seconds: float
    timed_seconds: float
    timed_share: float
    timed_forward_images: int
    forward_images: int
    backward_images: int
    histogram: Tensor


def plain_released(
    model: SplitModel,
    clean: CleanData,
    *,
    share: float = 1.0,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> PlainTimes:
    """BAN as its authors run it, pass by pass: the model is changed.

    400 iterations for the mask, each forward and backward through the whole network though only the mask moves; then 20
    times new noise and 30 sign steps, each with the gradients of all parameters, in training mode; then two evaluations
    of all images. Batches of 128 drawn with replacement.

    Args:
        model: Images in [0, 1] to logits; with BatchNorm.
        clean: Images with labels, on the model's device.
        share: Share of the forward-and-backward passes to run, in (0, 1]; the time of the rest is computed.
        seed: Of everything drawn.
        progress: Told of each phase.

    Source:
        Xu et al., "BAN", NeurIPS 2024, and the authors' published code with the settings of its README.
    """
    if not 0 < share <= 1:
        raise UsageError(f"--plain-share {share}: expected a share above 0 and at most 1")
    device = clean.images.device
    generator = torch.Generator().manual_seed(seed)
    model.train().requires_grad_(True)
    mask_iterations, steps = max(1, round(share * MASK_ITERATIONS)), max(1, round(share * NOISE_STARTS * NOISE_STEPS))

    def batch() -> tuple[Images, Labels]:
        index = torch.randint(len(clean), (BATCH,), generator=generator).to(device)
        return clean.images[index], clean.labels[index]

    _mask_iterations(model, batch, 1, generator)  # what the first pass sets up is not charged to the few that are timed
    started = clock(device)
    mask = _mask_iterations(model, batch, mask_iterations, generator)
    mask_seconds = clock(device) - started
    if progress is not None:
        progress(f"plain procedure: {mask_iterations} iterations for the mask in {mask_seconds:.0f} s")
    started = clock(device)
    noise = _noise_steps(model, batch, steps, generator)
    noise_seconds = clock(device) - started
    if progress is not None:
        progress(f"plain procedure: {steps} steps for the noise in {noise_seconds:.0f} s")
    started = clock(device)
    with torch.no_grad():
        for name, perturbed in _perturbed(model, noise).items():
            model.get_parameter(name).copy_(perturbed)
    _histogram(model, clean, torch.zeros_like(mask))
    histogram = _histogram(model, clean, mask)
    evaluation_seconds = clock(device) - started
    searched = BATCH * (MASK_ITERATIONS + NOISE_STARTS * NOISE_STEPS)
    return PlainTimes(
        seconds=mask_seconds * MASK_ITERATIONS / mask_iterations
        + noise_seconds * NOISE_STARTS * NOISE_STEPS / steps
        + evaluation_seconds,
        timed_seconds=mask_seconds + noise_seconds + evaluation_seconds,
        timed_share=(mask_iterations + steps) * BATCH / searched,
        timed_forward_images=(mask_iterations + steps) * BATCH + 2 * len(clean),
        forward_images=searched + 2 * len(clean),
        backward_images=searched,
        histogram=histogram,
    )


Batch = Callable[[], tuple[Images, Labels]]


def _mask_iterations(model: SplitModel, batch: Batch, count: int, generator: torch.Generator) -> Tensor:
    images, _ = batch()
    with torch.no_grad():
        shape = model.features(images[:2]).shape[1:]
    mask = torch.rand(shape, generator=generator).to(images.device).requires_grad_()
    optimizer = torch.optim.Adam([mask], lr=MASK_LEARNING_RATE)
    for _ in range(count):
        images, labels = batch()
        mask.data.clamp_(0, 1)
        features = model.features(images)
        norm = mask.abs().sum()
        loss = (
            F.cross_entropy(model.head(features * mask), labels)
            - F.cross_entropy(model.head(features * (1 - mask)), labels)
            + MASK_WEIGHT * norm / norm.detach()
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return mask.detach()


def _noise_steps(model: SplitModel, batch: Batch, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Noise of each BatchNorm parameter by name after ``count`` steps, drawn anew after every thirty."""
    images, labels = batch()
    noise: dict[str, Tensor] = {}
    for step in range(count):
        if step % NOISE_STEPS == 0:
            images, labels = batch()
            noise = {
                f"{name}.{kind}": ((2 * torch.rand(module.num_features, generator=generator) - 1) * EPS)
                .to(images.device)
                .requires_grad_()
                for name, module in batch_norms(model).items()
                for kind in ("weight", "bias")
            }
        model.zero_grad()
        for tensor in noise.values():
            tensor.grad = None
        loss = F.cross_entropy(functional_call(model, _perturbed(model, noise), (images,)), labels)
        torch.autograd.backward(loss)
        with torch.no_grad():
            for tensor in noise.values():
                assert tensor.grad is not None
                tensor.add_(tensor.grad.sign(), alpha=EPS / NOISE_STEPS)
    return {name: tensor.detach() for name, tensor in noise.items()}


def _perturbed(model: SplitModel, noise: dict[str, Tensor]) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name] * (1 + tensor) for name, tensor in noise.items()}


def _histogram(model: SplitModel, clean: CleanData, mask: Tensor) -> Tensor:
    """Predictions with the negative of a mask, [K]."""
    model.eval()
    with torch.no_grad():
        predicted = [
            model.head(model.features(images) * (1 - mask)).argmax(dim=1) for images in torch.split(clean.images, BATCH)
        ]
    return torch.bincount(torch.cat(predicted), minlength=clean.num_classes).cpu()


def compare(
    *,
    architecture: str = "resnet18",
    width: int = 64,
    images: int = 500,
    classes: int = 10,
    device: str = "auto",
    plain_share: float = 1.0,
    detectors: Sequence[Detector] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> SpeedResult:
    """Time the default scan and the authors' procedure, one after the other, on one model.

    The model is a network of the given size after a few steps on images that differ by colour: what is timed depends on
    the network's size, not on what it knows, but for the searches that stop early, which on real models may run longer
    or shorter.

    Args:
        architecture: A key of :data:`banaudit.bench.networks.NETWORKS`.
        width: Channels of its first stage; 64 is the full ResNet-18.
        images: Clean images.
        classes: Number of classes K.
        device: ``auto``, ``cpu`` or ``cuda``.
        plain_share: Share of the plain procedure's passes to run; the time of the rest is computed.
        detectors: Methods of the scan; none: the default ones.
        seed: Of weights, images and searches.
        progress: Told of each part.

    Raises:
        UsageError: The model learned too little for a scan to run.
    """
    where = pick_device(device)
    model, clean = synthetic_model(architecture, width, images, classes, where, seed)
    if progress is not None:
        progress("model ready; default scan")
    report, scan = measured(lambda meter: judge(model, clean, detectors=detectors, seed=seed, meter=meter), where)
    if not report.findings:
        raise UsageError(
            f"--width {width} --classes {classes}: {report.reason}; the scan did not run: take another size"
        )
    if progress is not None:
        progress(f"default scan: {scan.seconds:.0f} s; what each economy brings")
    economies = timed_economies(model, clean) + counted_economies(
        tuple(detectors) if detectors is not None else default_detectors(), images
    )
    if progress is not None:
        progress("plain procedure")
    reset_peak(where)
    times = plain_released(model, clean, share=plain_share, seed=seed, progress=progress)
    return SpeedResult(
        network=f"{architecture} of width {width}",
        model_note=MODEL_NOTE,
        classes=classes,
        images=len(clean),
        device=device_name(where),
        threads=torch.get_num_threads(),
        torch_version=str(torch.__version__),
        memory_note=memory_note(where),
        plain=PlainSide(
            seconds=round(times.seconds, 3),
            forward_images=times.forward_images,
            backward_images=times.backward_images,
            peak_bytes=peak(where),
            extrapolated=plain_share < 1,
            timed_share=round(times.timed_share, 5),
            timed_seconds=round(times.timed_seconds, 3),
            timed_forward_images=times.timed_forward_images,
        ),
        scan=scan,
        ratio=round(times.seconds / scan.seconds, 2),
        verdict=report.verdict,
        methods=tuple(MethodCost.of(finding) for finding in report.findings),
        economies=economies,
    )
