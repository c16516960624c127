"""What every renderer lays out: a stamp, then sections of rows, bars, pictures. Texts are raw: renderers escape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto


class Tone(Enum):
    """How a text should strike the reader."""

    PLAIN = auto()
    FAINT = auto()
    GOOD = auto()
    WARNING = auto()
    ALARM = auto()


@dataclass(frozen=True)
class Row:
    """A label and what there is to say about it.

    Args:
        label: A word or a name; empty: the row continues the one above.
        texts: One paragraph each.
        tone: Of the texts.
    """

    label: str
    texts: tuple[str, ...]
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class Bar:
    """A labelled length.

    Args:
        label: What it belongs to.
        share: Length, 0 to 1.
        caption: The number in words.
        marker: Where to draw a mark on the scale, 0 to 1.
        tone: Of bar and caption.
    """

    label: str
    share: float
    caption: str
    marker: float | None = None
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True)
class Chart:
    """Bars below each other.

    Args:
        bars: From top to bottom.
        title: What the lengths are.
        mark: What the marks on the bars are.
        footnote: E.g. how many bars are left out.
    """

    bars: tuple[Bar, ...]
    title: str
    mark: str = ""
    footnote: str = ""


@dataclass(frozen=True)
class Picture:
    """An image file.

    Args:
        caption: What it is, in a word.
        path: Where it is.
    """

    caption: str
    path: str


@dataclass(frozen=True)
class Gallery:
    """Pictures beside each other.

    Args:
        title: What they show.
        pictures: From left to right, at least one.
    """

    title: str
    pictures: tuple[Picture, ...]


Block = Row | Chart | Gallery
"""What a section is made of."""


@dataclass(frozen=True)
class Section:
    """A part of a document.

    Args:
        title: Empty for the part right below the stamp.
        blocks: From top to bottom.
    """

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A record in words.

    Args:
        stamp: The one word to remember, e.g. the verdict.
        subtitle: What it is about.
        tone: Of the stamp.
        sections: From top to bottom.
    """

    stamp: str
    subtitle: str
    tone: Tone
    sections: tuple[Section, ...]


def position(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, held between 0 and 1; not a number counts as ``low``."""
    if math.isnan(value) or high <= low:
        return 0.0
    if math.isinf(value):
        return float(value > 0)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def span(*values: float) -> tuple[float, float]:
    """Ends of a scale that starts at zero or below and holds every finite value."""
    finite = [value for value in values if math.isfinite(value)]
    return min([0.0, *finite]), max([0.0, *finite])


def percent(share: float) -> str:
    """A share in per cent, e.g. ``94.5 %``."""
    return f"{100 * share:.1f} %"
