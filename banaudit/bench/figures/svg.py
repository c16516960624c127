"""Plots as SVG text: panels with axes, lines, dots, bars and a legend. Nothing is loaded and nothing is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a900", "#6a3d9a")
"""Okabe and Ito's palette, told apart by colour-blind readers too, and three more."""

FONT = 12
"""Size of the text, pixels."""

LEFT, TOP, BOTTOM, RIGHT = 56, 30, 46, 12
"""Room around the plotted area of a panel for its title, ticks and the names of its axes, pixels."""

LEGEND_LINE = 18
"""Height of a line of the legend, pixels."""

Point = tuple[float, float]


def colour(number: int) -> str:
    """The colour of the series of this number; they repeat after the last."""
    return COLOURS[number % len(COLOURS)]


@dataclass
class Panel:
    """One pair of axes, linear, with what is drawn between them.

    Args:
        title: Above the plotted area.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        x_range: Values at its left and right end.
        y_range: Values at its lower and upper end.
        x_ticks: Marks as (value, text); none: no axis is drawn there.
        y_ticks: The same for the vertical axis.
        width: Of the plotted area, pixels.
        height: Of the plotted area, pixels.
    """

    title: str
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]] = ()
    y_ticks: Sequence[tuple[float, str]] = ()
    width: int = 320
    height: int = 320
    _shapes: list[str] = field(default_factory=list, init=False)

    def line(self, points: Iterable[Point], stroke: str, *, dashes: str = "", width: float = 2.0) -> None:
        """A line through the points."""
        path = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._shapes.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashed}/>')

    def dot(self, point: Point, fill: str, *, radius: float = 3.0, opacity: float = 1.0) -> None:
        """A filled circle."""
        self._shapes.append(
            f'<circle cx="{self._x(point[0]):.1f}" cy="{self._y(point[1]):.1f}" r="{radius}" fill="{fill}" '
            f'fill-opacity="{opacity}"/>'
        )

    def bar(self, centre: float, width: float, value: float, fill: str) -> None:
        """A bar from zero to a value; its width is in units of the horizontal axis."""
        left, right = self._x(centre - width / 2), self._x(centre + width / 2)
        upper, lower = sorted((self._y(value), self._y(0.0)))
        self._shapes.append(
            f'<rect x="{left:.1f}" y="{upper:.1f}" width="{right - left:.1f}" height="{lower - upper:.1f}" '
            f'fill="{fill}"/>'
        )

    def whisker(self, centre: float, low: float, high: float) -> None:
        """A thin vertical line from low to high."""
        self.line([(centre, low), (centre, high)], "#333333", width=1.2)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height with the room around, pixels."""
        return LEFT + self.width + RIGHT, TOP + self.height + BOTTOM

    def at(self, left: int, top: int) -> str:
        """The panel as an SVG group whose upper left corner is there."""
        bottom, right = TOP + self.height, LEFT + self.width
        parts = [
            f'<g transform="translate({left},{top})">',
            f'<rect x="{LEFT}" y="{TOP}" width="{self.width}" height="{self.height}" fill="none" stroke="#999999"/>',
            _text(LEFT + self.width / 2, TOP - 10, self.title, weight="bold"),
            _text(LEFT + self.width / 2, bottom + 38, self.x_label),
            _text(14, TOP + self.height / 2, self.y_label, turned=True),
        ]
        for value, name in self.x_ticks:
            x = self._x(value)
            parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 4}" stroke="#999999"/>')
            parts.append(_text(x, bottom + 18, name))
        for value, name in self.y_ticks:
            y = self._y(value)
            parts.append(f'<line x1="{LEFT - 4}" y1="{y:.1f}" x2="{LEFT}" y2="{y:.1f}" stroke="#999999"/>')
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#eeeeee"/>')
            parts.append(_text(LEFT - 8, y + 4, name, anchor="end"))
        return "\n".join([*parts, *self._shapes, "</g>"])

    def _x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + self.width * (value - low) / (high - low)

    def _y(self, value: float) -> float:
        low, high = self.y_range
        return TOP + self.height * (1 - (value - low) / (high - low))


def figure(panels: Sequence[Sequence[Panel]], legend: Sequence[tuple[str, str]], *, title: str, note: str = "") -> str:
    """A whole SVG file: rows of panels, then the legend and a note below them.

    Args:
        panels: Rows of panels.
        legend: Colour and words of each entry; without a colour, words alone.
        title: For readers that show no pictures, and above the panels.
        note: A line below the legend.
    """
    parts, top, width = [], 28, 0
    for row in panels:
        left = 0
        for panel in row:
            parts.append(panel.at(left, top))
            left += panel.size[0]
        width = max(width, left)
        top += max((panel.size[1] for panel in row), default=0)
    top += 8
    for stroke, words in legend:
        if stroke:
            parts.append(
                f'<line x1="{LEFT}" y1="{top}" x2="{LEFT + 24}" y2="{top}" stroke="{stroke}" stroke-width="4"/>'
            )
        parts.append(_text(LEFT + 32, top + 4, words, anchor="start"))
        top += LEGEND_LINE
    if note:
        parts.append(_text(LEFT, top + 6, note, anchor="start"))
        top += LEGEND_LINE
    longest = max((len(words) for _, words in legend), default=0)
    width = max(width, LEFT + 40 + round(0.6 * FONT * max(longest, len(note))), round(0.65 * FONT * len(title)))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + 8}" '
            f'viewBox="0 0 {width} {top + 8}" font-family="sans-serif" font-size="{FONT}" role="img">',
            f"<title>{escape(title)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            _text(width / 2, 18, title, weight="bold"),
            *parts,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, *, anchor: str = "middle", weight: str = "", turned: bool = False) -> str:
    if not words:
        return ""
    bold = f' font-weight="{weight}"' if weight else ""
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{bold}{turn} fill="#222222">{escape(words)}</text>'
