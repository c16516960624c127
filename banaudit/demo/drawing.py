"""Draws the demo's images: ten shapes of any colour, size, place and angle, on cluttered and noisy ground.

Nothing but the outline tells the class: colours, textures, ground and clutter are drawn independently of it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("arrow", "circle", "crescent", "cross", "heart", "hexagon", "ring", "square", "star", "triangle")
"""In sorted order, so that label i is the i-th folder."""
SIZE = 32
"""Side of an image in pixels."""
SUPERSAMPLING = 4
"""Shapes are drawn this many times larger and averaged down, for smooth edges."""
RADIUS = (0.24, 0.40)
"""Range of a shape's radius, as a share of the image's side."""
MIN_CONTRAST = 0.22
"""Smallest distance between the mean colours of shape and ground, in units of the RGB cube's side."""
NOISE = (0.01, 0.07)
"""Range of the standard deviation of the pixel noise, images in [0, 1]."""

Points = list[tuple[float, float]]

_CORNERS = {"triangle": 3, "square": 4, "hexagon": 6}
_ARM, _TIP = 0.3, 0.95
_POLYGONS: dict[str, Points] = {
    "arrow": [(1.0, 0.0), (0.1, 0.75), (0.1, 0.28), (-0.95, 0.28), (-0.95, -0.28), (0.1, -0.28), (0.1, -0.75)],
    "cross": [
        *((_ARM, _TIP), (_ARM, _ARM), (_TIP, _ARM), (_TIP, -_ARM), (_ARM, -_ARM), (_ARM, -_TIP)),
        *((-_ARM, -_TIP), (-_ARM, -_ARM), (-_TIP, -_ARM), (-_TIP, _ARM), (-_ARM, _ARM), (-_ARM, _TIP)),
    ],
}


def draw_image(label: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One image of a class.

    Args:
        label: 0..9, an index into ``CLASSES``.
        random: Source of everything that varies.

    Returns:
        Pixels [32, 32, 3].
    """
    side = SIZE * SUPERSAMPLING
    ground, shape = _colours(random)
    canvas = Image.fromarray(_texture(ground, side, random))
    _clutter(canvas, ground, random)
    mask = Image.new("L", (side, side), 0)
    radius = side * random.uniform(*RADIUS)
    centre = side / 2 + random.uniform(-1, 1, 2) * (side / 2 - radius) * 0.9
    _stamp(ImageDraw.Draw(mask), CLASSES[label], centre, radius, random.uniform(0, 2 * math.pi))
    canvas.paste(Image.fromarray(_texture(shape, side, random)), mask=mask)
    pixels = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float64) / 255
    pixels += random.normal(0, random.uniform(*NOISE), pixels.shape)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def draw_images(per_class: int, random: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels, ``per_class`` of each class, class by class.

    Returns:
        Pixels [N, 32, 32, 3] and labels [N].
    """
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    return np.stack([draw_image(int(label), random) for label in labels]), labels


def _colours(random: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    while True:
        ground, shape = random.uniform(0.05, 0.95, (2, 3))
        if np.linalg.norm(ground - shape) >= MIN_CONTRAST:
            return ground, shape


def _texture(colour: NDArray[np.float64], side: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """A wave of random direction and length around a colour, [side, side, 3]."""
    rows, columns = np.mgrid[0:side, 0:side] / side
    angle, phase = random.uniform(0, 2 * math.pi, 2)
    frequency = random.uniform(0.2, 6)
    wave = np.sin(2 * math.pi * frequency * (rows * math.sin(angle) + columns * math.cos(angle)) + phase)
    amplitude = random.uniform(0, 0.16) * random.uniform(0.3, 1, 3)
    pixels: NDArray[np.uint8] = ((colour + wave[..., None] * amplitude).clip(0, 1) * 255).astype(np.uint8)
    return pixels


def _clutter(canvas: Image.Image, ground: NDArray[np.float64], random: np.random.Generator) -> None:
    """Strokes and spots behind the shape, of colours not far from the ground's."""
    pen = ImageDraw.Draw(canvas)
    side = canvas.width
    for _ in range(random.integers(2, 7)):
        colour = tuple(int(value) for value in (ground + random.uniform(-0.25, 0.25, 3)).clip(0, 1) * 255)
        x, y, u, v = random.uniform(0, side, 4)
        if random.random() < 0.6:
            pen.line((x, y, u, v), fill=colour, width=int(random.integers(2, 9)))
        else:
            radius = random.uniform(0.03, 0.12) * side
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _stamp(pen: ImageDraw.ImageDraw, name: str, centre: NDArray[np.float64], radius: float, angle: float) -> None:
    """The outline of a class, filled, onto a mask."""
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    match name:
        case "circle":
            pen.ellipse(box, fill=255)
        case "ring":
            pen.ellipse(box, fill=255)
            inner = 0.55 * radius
            pen.ellipse((x - inner, y - inner, x + inner, y + inner), fill=0)
        case "crescent":
            pen.ellipse(box, fill=255)
            u, v = x + 0.5 * radius * math.cos(angle), y + 0.5 * radius * math.sin(angle)
            bite = 0.8 * radius
            pen.ellipse((u - bite, v - bite, u + bite, v + bite), fill=0)
        case _:
            outline = np.array(_outline(name)) * radius
            turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
            pen.polygon([(float(u), float(v)) for u, v in outline @ turn + centre], fill=255)


def _outline(name: str) -> Points:
    """Corners of a shape around the origin, within the unit circle."""
    if name in _CORNERS:
        return _regular(_CORNERS[name])
    if name == "star":
        outer, inner = _regular(5), _regular(5, radius=0.4, turn=math.pi / 5)
        return [corner for pair in zip(outer, inner, strict=True) for corner in pair]
    if name == "heart":
        steps = np.linspace(0, 2 * math.pi, 40, endpoint=False)
        across = 16 * np.sin(steps) ** 3
        along = 13 * np.cos(steps) - 5 * np.cos(2 * steps) - 2 * np.cos(3 * steps) - np.cos(4 * steps)
        return [(float(u) / 17, float(v) / 17) for u, v in zip(across, along, strict=True)]
    return _POLYGONS[name]


def _regular(corners: int, *, radius: float = 1.0, turn: float = 0.0) -> Points:
    """A regular polygon."""
    angles = [2 * math.pi * i / corners + turn for i in range(corners)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]
