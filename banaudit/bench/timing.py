"""Seconds, passes and peak memory of every method and of the default scan, on one model for each number of classes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from banaudit.architectures.base import SplitModel
from banaudit.audit import judge, pick_device
from banaudit.bench.cost import PeakCost, device_name, measured, memory_note
from banaudit.bench.published_timing import RELEASED_BAN
from banaudit.bench.results_files import write_results
from banaudit.bench.synthetic import MODEL_NOTE, synthetic_model
from banaudit.data import CleanData
from banaudit.detectors import DETECTORS, Detector
from banaudit.detectors.ban import BAN
from banaudit.errors import UsageError
from banaudit.meter import Meter
from banaudit.preflight import clean_accuracy
from banaudit.results import Finding, Record, Report, Verdict

CLASSES = (10, 43, 200)
"""Numbers of classes of CIFAR-10, GTSRB and ImageNet200, on which the paper times detectors."""

BUDGET = 600.0
"""Seconds from its first pass after which a method is stopped and its cost computed from the share that it has done."""

DEFAULT_SCAN = "default scan"
"""Stands for a method: the whole scan with the default ones."""


class TimingEntry(PeakCost):
    """What one method took, or would have taken, on one model; passes and seconds are those of the whole."""

    method: str
    classes: int
    verdict: Verdict
    reason: str
    timed_share: float = Field(description="Share of the planned forward passes that was timed; 1: it ran to its end.")
    timed_seconds: float


class TimingResults(Record):
    """What ``banaudit bench timing`` found."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["timing"] = "timing"
    network: str
    model_note: str
    images: int
    device: str
    threads: int
    torch_version: str
    memory_note: str
    budget: float = Field(description="Seconds from its first pass after which a method is stopped.")
    seed: int
    accuracy: dict[int, float] = Field(default_factory=dict, description="Clean accuracy by number of classes.")
    entries: tuple[TimingEntry, ...] = ()


def every_detector() -> dict[str, Detector]:
    """All registered methods as they are by default, by name, and BAN as its authors released it."""
    return {name: method() for name, method in DETECTORS.items()} | {RELEASED_BAN: BAN.released()}


def time_methods(
    path: Path,
    *,
    architecture: str = "resnet18",
    width: int = 64,
    images: int = 500,
    classes: Sequence[int] = CLASSES,
    budget: float = BUDGET,
    device: str = "auto",
    detectors: Mapping[str, Detector] | None = None,
    scan: Sequence[Detector] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> TimingResults:
    """Time the default scan and every method by itself, one after the other, on one model for each number of classes.

    The default scan always runs to its end. A method that is not done after its budget is stopped; its passes are then
    the planned ones, and its seconds those since its first pass, divided by the share of the planned passes that it
    did, and those before (training reference networks), which count against no budget.

    Args:
        path: Results file; replaced, and whole after every method.
        architecture: A key of :data:`banaudit.bench.networks.NETWORKS`.
        width: Channels of its first stage; 64 is the full ResNet-18.
        images: Clean images.
        classes: Numbers of classes K, a model for each.
        budget: Seconds for each method on each model, from its first pass.
        device: ``auto``, ``cpu`` or ``cuda``.
        detectors: Methods by the name they are listed under; none: :func:`every_detector`.
        scan: Methods of the default scan; none: the default ones.
        seed: Of weights, images and searches.
        progress: Told of each part.

    Raises:
        UsageError: A model learned too little for a scan to run, or a budget ends before a method's first batch.
    """
    where = pick_device(device)
    detectors = every_detector() if detectors is None else detectors
    results = TimingResults(
        network=f"{architecture} of width {width}",
        model_note=MODEL_NOTE,
        images=images,
        device=device_name(where),
        threads=torch.get_num_threads(),
        torch_version=str(torch.__version__),
        memory_note=memory_note(where),
        budget=budget,
        seed=seed,
    )
    for count in classes:
        model, clean = synthetic_model(architecture, width, images, count, where, seed)
        accuracy = clean_accuracy(model, clean)  # the first passes besides, which set things up and are not timed
        if accuracy.accuracy < accuracy.floor:
            raise UsageError(
                f"--width {width} --classes {count}: clean accuracy is {accuracy.accuracy:.0%} after the few training "
                f"steps, expected at least {accuracy.floor:.0%}; take another size"
            )
        results = results.model_copy(update={"accuracy": {**results.accuracy, count: round(accuracy.accuracy, 4)}})
        names: list[str] = [DEFAULT_SCAN, *detectors]
        for name in names:
            entry = (
                _time_scan(scan, model, clean, seed)
                if name == DEFAULT_SCAN
                else _time_method(name, detectors[name], model, clean, budget, seed)
            )
            results = results.model_copy(update={"entries": (*results.entries, entry)})
            write_results(path, results)
            if progress is not None:
                share = "" if entry.timed_share == 1 else f", computed from {entry.timed_share:.1%} of it"
                progress(f"{count} classes: {name}: {entry.seconds:.1f} s{share}")
    return results


def _time_scan(scan: Sequence[Detector] | None, model: SplitModel, clean: CleanData, seed: int) -> TimingEntry:
    def work(meter: Meter) -> Report:
        return judge(model, clean, detectors=scan, seed=seed, meter=meter)

    report, cost = measured(work, clean.images.device)
    return TimingEntry(
        method=DEFAULT_SCAN,
        classes=clean.num_classes,
        verdict=report.verdict,
        reason=report.reason,
        timed_share=1.0,
        timed_seconds=cost.seconds,
        **cost.model_dump(),
    )


def _time_method(
    name: str, detector: Detector, model: SplitModel, clean: CleanData, budget: float, seed: int
) -> TimingEntry:
    booked = [(0, 0), (0, 0)]

    def work(meter: Meter) -> tuple[Finding, float | None]:
        def note(what: str, share: float) -> None:
            del what, share
            if meter.time_limit is None and meter.forward_images:
                meter.time_limit = time.monotonic() - meter.started + budget
            booked.append((meter.forward_images, meter.backward_images))

        meter.listener = note
        found = detector(model, clean, seed=seed, meter=meter)
        return found, meter.time_limit if meter.stopped else None

    (finding, stopped_at), cost = measured(work, clean.images.device)
    share = 1.0
    timed_seconds = cost.seconds
    if stopped_at is not None:
        before = stopped_at - budget  # the first pass, after what is no pass, such as training reference networks
        forward, backward = booked[-2]  # the last batch was booked, but not computed
        if forward == 0:
            raise UsageError(f"--budget {budget:g}: {name} did not finish its first batch; give more seconds")
        planned = max(forward, detector.planned_images(clean.num_classes, len(clean)))
        share = forward / planned
        cost = cost.model_copy(
            update={
                "seconds": round(before + (timed_seconds - before) / share, 3),
                "forward_images": planned,
                "backward_images": round(backward / share),
            }
        )
    return TimingEntry(
        method=name,
        classes=clean.num_classes,
        verdict=finding.verdict,
        reason=finding.reason,
        timed_share=round(share, 5),
        timed_seconds=timed_seconds,
        **cost.model_dump(),
    )
