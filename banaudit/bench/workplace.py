"""Where and how a benchmark command works: what does not change what it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from banaudit.audit import pick_device
from banaudit.bench.datasets import default_cache

Progress = Callable[[str], None]
"""Told in words what is being done."""


@dataclass(frozen=True)
class Workplace:
    """Data, cache, device and processes of a benchmark command.

    Args:
        root: Folder of the data sets; not needed once they are decoded into the cache.
        cache: Where data, victims and repaired weights are kept.
        device: ``auto``, ``cpu`` or ``cuda``.
        fresh: Make again what was made with the same settings.
        jobs: Processes that share the work; with several, the progress has to be picklable.
        progress: Told of each part of the work.
    """

    root: Path | None = None
    cache: Path = field(default_factory=default_cache)
    device: str = "auto"
    fresh: bool = False
    jobs: int = 1
    progress: Progress | None = None

    @property
    def where(self) -> torch.device:
        """The device to compute on."""
        return pick_device(self.device)

    def tell(self, text: str) -> None:
        """A word of progress to whoever listens."""
        if self.progress is not None:
            self.progress(text)
