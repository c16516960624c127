"""What a computation took: seconds, image passes, peak memory."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import torch

from banaudit.meter import Meter
from banaudit.results import Finding, Record, Verdict

Result = TypeVar("Result")

CLEAR_REFS = Path("/proc/self/clear_refs")
"""Linux: to write 5 there makes the peak of the resident set start again, from what is held now."""


class Cost(Record):
    """Seconds and image passes."""

    seconds: float
    forward_images: int
    backward_images: int


class PeakCost(Cost):
    """Seconds, image passes and the most memory that was held meanwhile (:func:`memory_note` says of what)."""

    peak_bytes: int


class MethodCost(Cost):
    """What one method said and took."""

    method: str
    verdict: Verdict
    reason: str

    @classmethod
    def of(cls, finding: Finding) -> Self:
        """The cost that a finding tells of."""
        return cls(
            method=finding.method,
            verdict=finding.verdict,
            reason=finding.reason,
            seconds=finding.seconds,
            forward_images=finding.forward_images,
            backward_images=finding.backward_images,
        )


def measured(work: Callable[[Meter], Result], device: torch.device) -> tuple[Result, PeakCost]:
    """Run something and say what it took.

    Args:
        work: Is given a meter that it has to tell of its passes.
        device: Where it computes.

    Returns:
        What ``work`` returned, and its cost.
    """
    reset_peak(device)
    started = clock(device)
    meter = Meter()
    result = work(meter)
    cost = PeakCost(
        seconds=round(clock(device) - started, 3),
        forward_images=meter.forward_images,
        backward_images=meter.backward_images,
        peak_bytes=peak(device),
    )
    return result, cost


def clock(device: torch.device) -> float:
    """Seconds since some moment, once all work that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def reset_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _can_reset():
        CLEAR_REFS.write_text("5", encoding="ascii")


def _can_reset() -> bool:
    return os.access(CLEAR_REFS, os.W_OK)


def peak(device: torch.device) -> int:
    """Bytes held at the peak since :func:`reset_peak`, or since the process began where that is not possible."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_note(device: torch.device) -> str:
    """What the peak is the peak of, in words."""
    if device.type == "cuda":
        return "the most that torch held on the device"
    if _can_reset():
        return "the process's resident set at its peak during each part, libraries included"
    return "the process's resident set at its peak since its start"


def device_name(device: torch.device) -> str:
    """The device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
