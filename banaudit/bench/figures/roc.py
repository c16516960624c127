"""The figure of ROC curves."""

from __future__ import annotations

from banaudit.bench.figures.svg import Panel, colour, figure
from banaudit.bench.roc import JOINT, Curve, curves
from banaudit.bench.runner import BenchmarkResults

SHARES = tuple((tenths / 10, f"{tenths * 10} %") for tenths in range(0, 11, 2))
"""Ticks of both axes."""

JOINT_COLOUR = "#000000"


def roc_figure(results: BenchmarkResults) -> str:
    """ROC of the joint verdict and of each reading as SVG text: against its own kind of backdoor, and against all.

    The dot is where the joint verdict stands at the thresholds in use.

    Args:
        results: With backdoored and clean victims.

    Raises:
        UsageError: One of the two is missing.
    """
    own = curves(results.entries, own_kind=True)
    every = curves(results.entries, own_kind=False)
    strokes = {curve.name: JOINT_COLOUR if curve.name == JOINT else colour(n) for n, curve in enumerate(every)}
    panels = [
        _panel("each reading against its own kind", own, strokes),
        _panel("against all backdoored victims", every, strokes),
    ]
    areas = {curve.name: _area(curve) for curve in own}
    legend = [
        (
            strokes[curve.name],
            f"{curve.name}: AUROC {areas.get(curve.name, 'without victims of')} own kind, {_area(curve)} all",
        )
        for curve in every
    ]
    return figure(
        [panels],
        legend,
        title=f"Detection against false alarms, {results.split} split",
        note="With 95 % intervals (Newcombe). The dot: the joint verdict at the thresholds in use.",
    )


def _panel(title: str, drawn: list[Curve], strokes: dict[str, str]) -> Panel:
    panel = Panel(
        title=title,
        x_label="false alarms, share of clean victims",
        y_label="detected, share of backdoored victims",
        x_range=(0, 1),
        y_range=(0, 1),
        x_ticks=SHARES,
        y_ticks=SHARES,
    )
    panel.line([(0, 0), (1, 1)], "#bbbbbb", dashes="3 3", width=1)
    # The joint verdict comes first in the list and last, on top, in the picture.
    for curve in reversed(drawn):
        joint = curve.name == JOINT
        panel.line(curve.points(), strokes[curve.name], width=3 if joint else 1.5)
        if joint:
            panel.dot(curve.at(1.0), JOINT_COLOUR, radius=5)
    return panel


def _area(curve: Curve) -> str:
    low, high = curve.interval
    return f"{curve.area:.3f} [{low:.2f}, {high:.2f}]"
