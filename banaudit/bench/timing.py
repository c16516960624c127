"""Seconds, passes and peak memory of scans and repairs, method by method, on one model for each number of classes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field

from banaudit.architectures.base import SplitModel
from banaudit.audit import judge, pick_device
from banaudit.bench.cost import PeakCost, device_name, measured, memory_note
from banaudit.bench.released import RELEASED_BAN
from banaudit.bench.results_files import write_results
from banaudit.bench.synthetic import MODEL_NOTE, synthetic_model
from banaudit.data import CleanData
from banaudit.detectors import DETECTORS, Detector
from banaudit.detectors.ban import BAN
from banaudit.errors import BanauditError, TimeLimitReached, UsageError
from banaudit.meter import Meter
from banaudit.mitigations import MITIGATIONS, Mitigation, TargetedMitigation
from banaudit.preflight import clean_accuracy
from banaudit.results import Finding, Record, Report, Verdict

Result = TypeVar("Result")

CLASSES = (10, 43, 200)
"""Numbers of classes of CIFAR-10, GTSRB and ImageNet200, on which the paper times detectors."""

BUDGET = 600.0
"""Seconds from its first pass after which a method is stopped and its cost computed from the share that it has done."""

DEFAULT_SCAN = "default scan"
"""Stands for a method: the whole scan with the default ones."""


class TimedEntry(PeakCost):
    """What something took, or would have taken, on one model; passes and seconds are those of the whole."""

    method: str
    classes: int
    timed_share: float = Field(description="Share of the planned forward passes that was timed; 1: all.")
    timed_seconds: float
    stopped: bool = Field(
        default=False, description="Whether it was stopped before its end, all planned passes or not."
    )

    @property
    def whole(self) -> bool:
        """Whether it ran to its end, so that nothing is computed."""
        return self.timed_share == 1 and not self.stopped

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return False

    @property
    def seconds_in_words(self) -> str:
        """Seconds, and whether they were measured or computed."""
        if self.failed:
            return f"{self.seconds:,.1f} until it failed"
        if self.whole:
            return f"{self.seconds:,.1f}"
        # What was stopped after all that it had planned would have taken longer, nobody knows how much.
        if self.timed_share == 1:
            return f"at least {self.seconds:,.0f}"
        return f"{self.seconds:,.0f} computed ({self.timed_share:.1%})"


class TimingEntry(TimedEntry):
    """One method."""

    verdict: Verdict
    reason: str


class RepairTimingEntry(TimedEntry):
    """One repair."""

    problem: str = Field(default="", description="Why it ended with an error, if it did.")

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return bool(self.problem)


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
    repairs: tuple[RepairTimingEntry, ...] = ()


@dataclass(frozen=True)
class TimedOn:
    """The models that something is timed on, and for how long.

    Args:
        architecture: A key of :data:`banaudit.bench.networks.NETWORKS`.
        width: Channels of its first stage; 64 is the full ResNet-18.
        images: Clean images.
        classes: Numbers of classes K, a model for each.
        budget: Seconds for each method or repair on each model, from its first pass.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: Of weights, images, searches and repairs.
    """

    architecture: str = "resnet18"
    width: int = 64
    images: int = 500
    classes: Sequence[int] = CLASSES
    budget: float = BUDGET
    device: str = "auto"
    seed: int = 0


_Job = Callable[[SplitModel, CleanData], TimingEntry | RepairTimingEntry]
"""Times one thing on a model."""


def every_detector() -> dict[str, Detector]:
    """All registered methods as they are by default, by name, and BAN as its authors released it."""
    return {name: method() for name, method in DETECTORS.items()} | {RELEASED_BAN: BAN.released()}


def time_methods(
    path: Path,
    on: TimedOn,
    *,
    detectors: Mapping[str, Detector] | None = None,
    scan: Sequence[Detector] | None = None,
    progress: Callable[[str], None] | None = None,
) -> TimingResults:
    """Time the default scan and every method by itself, one after the other, on one model for each number of classes.

    The default scan always runs to its end. A method that is not done after its budget is stopped; its passes are then
    the planned ones, and its seconds those since its first pass, divided by the share of the planned passes that it
    did, and those before (training reference networks), which count against no budget.

    Args:
        path: Results file; replaced, and whole after every method.
        on: Models and budget.
        detectors: Methods by the name they are listed under; none: :func:`every_detector`.
        scan: Methods of the default scan; none: the default ones.
        progress: Told of each part.

    Raises:
        UsageError: A model learned too little for a scan to run, or a budget ends before a method's first batch.
    """
    detectors = every_detector() if detectors is None else detectors
    jobs: list[_Job] = [functools.partial(_time_scan, scan, seed=on.seed)]
    for name, detector in detectors.items():
        jobs.append(functools.partial(_time_method, name, detector, budget=on.budget, seed=on.seed))
    return _time_all(path, on, jobs, progress)


def time_repairs(
    path: Path,
    on: TimedOn,
    *,
    mitigations: Sequence[Mitigation] | None = None,
    progress: Callable[[str], None] | None = None,
) -> TimingResults:
    """Time every repair like the methods of :func:`time_methods`, without a scan of what it leaves.

    The plan of ``ban-distillation`` is that of the strengths which it had begun when it ended or was stopped. A repair
    that needs a target is told one.

    Args:
        path: Results file; replaced, and whole after every repair.
        on: Models and budget.
        mitigations: To time; none: every one, with its defaults.
        progress: Told of each part.

    Raises:
        UsageError: As there.
    """
    chosen = [kind() for kind in MITIGATIONS.values()] if mitigations is None else mitigations
    jobs = [functools.partial(_time_repair, mitigation, budget=on.budget, seed=on.seed) for mitigation in chosen]
    return _time_all(path, on, jobs, progress)


def _time_all(path: Path, on: TimedOn, jobs: Sequence[_Job], progress: Callable[[str], None] | None) -> TimingResults:
    where = pick_device(on.device)
    results = TimingResults(
        network=f"{on.architecture} of width {on.width}",
        model_note=MODEL_NOTE,
        images=on.images,
        device=device_name(where),
        threads=torch.get_num_threads(),
        torch_version=str(torch.__version__),
        memory_note=memory_note(where),
        budget=on.budget,
        seed=on.seed,
    )
    for count in on.classes:
        model, clean = synthetic_model(on.architecture, on.width, on.images, count, where, on.seed)
        accuracy = clean_accuracy(model, clean)  # the first passes besides, which set things up and are not timed
        if accuracy.accuracy < accuracy.floor:
            raise UsageError(
                f"--width {on.width} --classes {count}: clean accuracy is {accuracy.accuracy:.0%} after the few "
                f"training steps, expected at least {accuracy.floor:.0%}; take another size"
            )
        results = results.model_copy(update={"accuracy": {**results.accuracy, count: round(accuracy.accuracy, 4)}})
        for job in jobs:
            entry = job(model, clean)
            if isinstance(entry, TimingEntry):
                results = results.model_copy(update={"entries": (*results.entries, entry)})
            else:
                results = results.model_copy(update={"repairs": (*results.repairs, entry)})
            write_results(path, results)
            if progress is not None:
                why = f": {entry.problem}" if isinstance(entry, RepairTimingEntry) and entry.problem else ""
                progress(f"{count} classes: seconds of {entry.method}: {entry.seconds_in_words}{why}")
    return results


def _time_scan(scan: Sequence[Detector] | None, model: SplitModel, clean: CleanData, *, seed: int) -> TimingEntry:
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
    name: str, detector: Detector, model: SplitModel, clean: CleanData, *, budget: float, seed: int
) -> TimingEntry:
    def work(meter: Meter) -> Finding:
        return detector(model, clean, seed=seed, meter=meter)

    finding, timed = _within_budget(
        name, work, lambda _: detector.planned_images(clean.num_classes, len(clean)), budget, clean.images.device
    )
    return TimingEntry(
        method=name,
        classes=clean.num_classes,
        verdict=finding.verdict,
        reason=finding.reason,
        **timed,
    )


def _time_repair(
    mitigation: Mitigation, model: SplitModel, clean: CleanData, *, budget: float, seed: int
) -> RepairTimingEntry:
    aimed = mitigation.aimed_at(0) if isinstance(mitigation, TargetedMitigation) else mitigation

    def work(meter: Meter) -> str:
        try:
            aimed(model, clean, seed=seed, meter=meter)
        except TimeLimitReached:
            return ""
        except BanauditError as problem:
            return str(problem)
        return ""

    problem, timed = _within_budget(
        mitigation.name,
        work,
        lambda meter: meter.planned_images,
        budget,
        clean.images.device,
        begun=lambda meter: meter.backward_images > 0,  # those that only read the images first tell little of the rest
    )
    return RepairTimingEntry(
        method=mitigation.name,
        classes=clean.num_classes,
        problem=problem,
        **timed,
    )


def _within_budget(
    name: str,
    work: Callable[[Meter], Result],
    plan: Callable[[Meter], int],
    budget: float,
    device: torch.device,
    *,
    begun: Callable[[Meter], bool] = lambda meter: meter.forward_images > 0,
) -> tuple[Result, dict[str, Any]]:
    """What ``work`` returned, and the fields of a :class:`TimedEntry` but for what was timed.

    Args:
        name: Of what is timed.
        work: What is timed.
        plan: Forward passes that it would make.
        budget: Seconds from when it has begun.
        device: That it computes on.
        begun: Whether it has: what came before counts as it is, and the rest is computed from what follows.
    """
    booked, meters, first = [(0, 0), (0, 0)], [], (0, 0)

    def watched(meter: Meter) -> Result:
        def note(what: str, share: float) -> None:
            nonlocal first
            del what, share
            if meter.time_limit is None and begun(meter):
                first = booked[-1]
                meter.time_limit = time.monotonic() - meter.started + budget
            booked.append((meter.forward_images, meter.backward_images))

        meter.listener = note
        meters.append(meter)
        return work(meter)

    result, cost = measured(watched, device)
    (meter,) = meters
    if not meter.stopped or meter.time_limit is None:
        return result, {"timed_share": 1.0, "timed_seconds": cost.seconds, **cost.model_dump()}
    before = meter.time_limit - budget  # what came first, such as training reference networks
    forward, backward = booked[-2]  # the last batch was booked, but not computed
    if forward <= first[0]:
        raise UsageError(f"--budget {budget:g}: {name} did not finish its first batch; give more seconds")
    planned = max(forward, plan(meter))
    share = (forward - first[0]) / (planned - first[0])
    whole = cost.model_copy(
        update={
            "seconds": round(before + (cost.seconds - before) / share, 3),
            "forward_images": planned,
            "backward_images": first[1] + round((backward - first[1]) / share),
        }
    )
    timed = {"timed_share": round(share, 5), "timed_seconds": cost.seconds, "stopped": True}
    return result, {**timed, **whole.model_dump()}
