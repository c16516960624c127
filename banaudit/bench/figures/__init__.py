"""Figures as SVG text, drawn from results files: ROC curves, and the paper's Figures 1 to 3 from our own victims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from banaudit.bench.figures.noise import mask_losses_figure, masked_accuracy_figure, noise_figure
from banaudit.bench.figures.roc import roc_figure
from banaudit.bench.noise import NoiseResults
from banaudit.bench.results_files import from_file
from banaudit.bench.runner import BenchmarkResults

__all__ = ["FIGURES", "FigureKind", "draw_figure"]

FigureKind = Literal["roc", "noise", "masked-accuracy", "mask-losses"]


FIGURES: dict[FigureKind, Callable[[Path], str]] = {
    "roc": from_file(BenchmarkResults, roc_figure),
    "noise": from_file(NoiseResults, noise_figure),
    "masked-accuracy": from_file(NoiseResults, masked_accuracy_figure),
    "mask-losses": from_file(NoiseResults, mask_losses_figure),
}
"""Kind of figure -> how it is drawn from a results file."""


def draw_figure(kind: FigureKind, path: Path) -> str:
    """A figure as SVG text.

    Args:
        kind: ``roc`` from a benchmark's results file; ``noise``, ``masked-accuracy`` and ``mask-losses`` (the paper's
            Figures 1, 2 and 3) from one of victims under noise.
        path: Results file.

    Raises:
        UsageError: There is no such file, it holds something else, or too little for the figure.
    """
    return FIGURES[kind](path)
