"""The paper's Figures 1 to 3, redrawn from victims measured under neuron noise and feature mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from banaudit.bench.figures.svg import Panel, colour, figure
from banaudit.bench.noise import NoiseLevel, NoiseResults, VictimNoise
from banaudit.errors import UsageError

TARGET, OTHER, MISTAKEN = "#08306b", "#c6dbef", "#d55e00"
"""Points predicted as the target class, rightly predicted ones, and other mistakes."""

CLEAN = "#7f7f7f"
"""Victims without a backdoor, of whatever kind."""

PERCENT = tuple((tenths / 10, f"{tenths * 10} %") for tenths in range(0, 11, 2))


def noise_figure(results: NoiseResults) -> str:
    """Figure 1: features and predictions under growing noise, a backdoored victim above its clean twin.

    Below them, for every victim: accuracy, and the share of other-class images that end in one class (the target of an
    all-to-one victim, else the class that most mistakes go to).

    Args:
        results: With at least one victim.

    Raises:
        UsageError: There is none.
    """
    _require(results.entries)
    pictured = sorted(
        (entry for entry in results.entries if entry.layouts), key=lambda entry: entry.truth.backdoored, reverse=True
    )
    target = next((entry.truth.target for entry in pictured if entry.truth.target is not None), None)
    rows = [_layout_row(entry, target) for entry in pictured]
    strokes = _strokes(results.entries)
    lines = [
        _lines("accuracy under noise", "accuracy", results.entries, strokes, lambda level: level.accuracy),
        _lines(
            "predictions that pile up in one class",
            "share of other-class images",
            results.entries,
            strokes,
            lambda level: level.top_share if level.target_share is None else level.target_share,
        ),
    ]
    points = [
        (TARGET, f"point: predicted as class {target}, the backdoor's target"),
        (OTHER, "point: predicted as labelled"),
        (MISTAKEN, "point: another mistake"),
    ]
    return figure(
        [*rows, lines],
        [*(points if rows else []), *((stroke, name) for name, stroke in strokes.items())],
        title=f"Neuron noise, {results.split} split (after the paper's Figure 1)",
        note="Features are laid out by t-SNE, each panel anew. BatchNorm normalises with the statistics of the batch.",
    )


def masked_accuracy_figure(results: NoiseResults) -> str:
    """Figure 2: accuracy under noise, alone (blue) and through the negative mask (red), a pair of dots for each victim.

    Args:
        results: With at least one victim.

    Raises:
        UsageError: There is none.
    """
    _require(results.entries)
    groups = _groups(results.entries)
    panel = Panel(
        title=f"accuracy under noise of eps {results.eps}",
        x_label="",
        y_label="accuracy",
        x_range=(0, len(groups)),
        y_range=(0, 1),
        x_ticks=[(number + 0.5, str(number + 1)) for number in range(len(groups))],
        y_ticks=PERCENT,
        width=max(320, 60 * len(groups)),
    )
    for number, group in enumerate(groups.values()):
        for place, entry in enumerate(group, start=1):
            x = number + place / (len(group) + 1)
            panel.line([(x, entry.noisy_accuracy), (x, entry.masked_accuracy)], "#cccccc", width=1)
            panel.dot((x, entry.noisy_accuracy), colour(0))
            panel.dot((x, entry.masked_accuracy), colour(1))
    return figure(
        [[panel]],
        [
            (colour(0), "noise alone"),
            (colour(1), "noise and the negative mask (Eq. 6)"),
            *(("", f"{number}: {name}") for number, name in enumerate(groups, start=1)),
        ],
        title=f"Noise with and without the mask, {results.split} split (after the paper's Figure 2)",
    )


def mask_losses_figure(results: NoiseResults) -> str:
    """Figure 3: cross-entropy through the mask and through its negative, mean and standard deviation of each group.

    Args:
        results: With at least one victim.

    Raises:
        UsageError: There is none.
    """
    _require(results.entries)
    groups = _groups(results.entries)
    most = max(max(entry.kept_loss, entry.removed_loss) for entry in results.entries)
    top = 1.15 * max(most, 0.1)
    decade = 10 ** math.floor(math.log10(top))
    step = decade if top > 4 * decade else decade / 2
    panel = Panel(
        title="cross-entropy on clean images, no noise",
        x_label="",
        y_label="cross-entropy",
        x_range=(0, len(groups)),
        y_range=(0, top),
        x_ticks=[(number + 0.5, str(number + 1)) for number in range(len(groups))],
        y_ticks=[(step * count, f"{step * count:g}") for count in range(int(top / step) + 1)],
        width=max(320, 60 * len(groups)),
    )
    for number, group in enumerate(groups.values()):
        for place, losses in (
            (0.32, [entry.kept_loss for entry in group]),
            (0.68, [entry.removed_loss for entry in group]),
        ):
            mean, spread = _mean_and_spread(losses)
            panel.bar(number + place, 0.3, mean, colour(0) if place < 0.5 else colour(1))
            panel.whisker(number + place, max(0.0, mean - spread), min(top, mean + spread))
    return figure(
        [[panel]],
        [
            (colour(0), "through the mask: benign features"),
            (colour(1), "through its negative: what the mask leaves out"),
            *(
                ("", f"{number}: {name} (victims: {len(group)})")
                for number, (name, group) in enumerate(groups.items(), 1)
            ),
        ],
        title=f"What the feature mask parts, {results.split} split (after the paper's Figure 3)",
        note="Whiskers: one standard deviation over the victims of a group; none for a single one.",
    )


def _require(entries: Sequence[VictimNoise]) -> None:
    if not entries:
        raise UsageError("these results hold no victim; train some, then run banaudit bench noise again")


def _group_of(entry: VictimNoise) -> str:
    return entry.stratum if entry.truth.backdoored else "clean"


def _groups(entries: Sequence[VictimNoise]) -> dict[str, list[VictimNoise]]:
    """Entries by attack, clean ones of every kind first."""
    grouped: dict[str, list[VictimNoise]] = {}
    for entry in sorted(entries, key=lambda item: (item.truth.backdoored, _group_of(item))):
        grouped.setdefault(_group_of(entry), []).append(entry)
    return grouped


def _strokes(entries: Sequence[VictimNoise]) -> dict[str, str]:
    """Colour of each group."""
    backdoored = [name for name, group in _groups(entries).items() if group[0].truth.backdoored]
    return {"clean": CLEAN} | {name: colour(number) for number, name in enumerate(backdoored)}


def _lines(
    title: str,
    y_label: str,
    entries: Sequence[VictimNoise],
    strokes: dict[str, str],
    value_of: Callable[[NoiseLevel], float],
) -> Panel:
    """A line for each victim over the size of the noise."""
    sizes = sorted({level.eps for entry in entries for level in entry.levels})
    panel = Panel(
        title=title,
        x_label="eps, largest relative change of a neuron",
        y_label=y_label,
        x_range=(sizes[0], sizes[-1]),
        y_range=(0, 1),
        x_ticks=[(size, f"{size:g}") for size in sizes],
        y_ticks=PERCENT,
    )
    for entry in entries:
        points = [(level.eps, value_of(level)) for level in entry.levels]
        panel.line(points, strokes[_group_of(entry)], width=1.5)
    return panel


def _layout_row(entry: VictimNoise, target: int | None) -> list[Panel]:
    """One victim's features at each size of the noise, the target's points on top."""
    panels = []
    for layout in entry.layouts:
        panel = Panel(
            title=f"{_group_of(entry)}, eps {layout.eps:g}",
            x_label=f"{sum(item == target for item in layout.predicted)} of {len(layout.points)} in class {target}",
            y_label="",
            x_range=(-1.05, 1.05),
            y_range=(-1.05, 1.05),
            width=200,
            height=200,
        )
        points = sorted(zip(layout.points, layout.labels, layout.predicted, strict=True), key=lambda p: p[2] == target)
        for point, label, predicted in points:
            fill = TARGET if predicted == target else OTHER if predicted == label else MISTAKEN
            panel.dot(point, fill, radius=2.5, opacity=0.9)
        panels.append(panel)
    return panels


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); the latter 0 for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0
