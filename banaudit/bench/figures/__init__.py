"""Figures as SVG text, drawn from results files: ROC curves, and the paper's Figures 1 to 3 from our own victims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from banaudit.bench.figures.noise import mask_losses_figure, masked_accuracy_figure, noise_figure
from banaudit.bench.figures.roc import roc_figure
from banaudit.bench.noise import NoiseResults
from banaudit.bench.runner import AnyResults, BenchmarkResults, read_results
from banaudit.errors import UsageError

__all__ = ["FIGURES", "FigureKind", "draw_figure"]

FigureKind = Literal["roc", "noise", "masked-accuracy", "mask-losses"]


def _drawer(kind: type[AnyResults], draw: Callable[[AnyResults], str]) -> Callable[[Path], str]:
    def read_and_draw(path: Path) -> str:
        results = read_results(path, kind)
        if results is None:
            raise UsageError(f"{path}: there is no such file; another bench command makes it")
        return draw(results)

    return read_and_draw


FIGURES: dict[FigureKind, Callable[[Path], str]] = {
    "roc": _drawer(BenchmarkResults, roc_figure),
    "noise": _drawer(NoiseResults, noise_figure),
    "masked-accuracy": _drawer(NoiseResults, masked_accuracy_figure),
    "mask-losses": _drawer(NoiseResults, mask_losses_figure),
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
