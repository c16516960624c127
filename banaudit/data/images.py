"""Image files read once, kept at their own size, and made into tensors of any size afterwards."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile

from banaudit.data.clean import CleanData
from banaudit.results import DataFacts

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Formats that Pillow decodes by itself; others (EPS, for one) would start a foreign program."""

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is not opened."""

MAX_SOURCE_PIXELS = 64_000_000
"""An image that claims to be larger is not decoded: a few kilobytes can unfold to gigabytes."""

MAX_KEPT_PIXELS = 640 * 640
"""A larger image is reduced to this area when it is read, so that a thousand photographs take about a gigabyte."""

MIN_PER_CLASS = 2
"""Images of a class with which a method can search with one and read from another."""

MIN_FOR_VERDICT = 50
"""Fewer images than this (or than :data:`MIN_PER_CLASS` a class) are too few for a verdict."""

_TWO_BYTES = re.compile(r";16[BLN]")
"""In Pillow's name for how pixels lie in a file: two bytes a channel, of which it keeps the higher."""


@dataclass(frozen=True)
class Unreadable:
    """A file that could not be used.

    Args:
        name: Relative to the folder of images.
        reason: One line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """A decoded image file.

    Args:
        image: Mode ``L`` or ``RGB``, at most :data:`MAX_KEPT_PIXELS` large.
        size: Width and height in the file, pixels.
    """

    image: Image.Image
    size: tuple[int, int]


@dataclass(frozen=True)
class ImageSet:
    """Clean images as they are in their files, with labels.

    They stand in the order in which they were drawn, one of each class in turn, so that the first few are as balanced
    as the whole.

    Args:
        paths: N files.
        labels: N labels in 0..K-1.
        class_names: K names; the position is the label.
        facts: What a report says of the images.
        unreadable: Files that were drawn and could not be used, and links that lead nowhere.
        pictures: N decoded files.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    facts: DataFacts
    unreadable: tuple[Unreadable, ...]
    pictures: tuple[Picture, ...] = field(repr=False)

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.paths)

    @property
    def num_classes(self) -> int:
        """Number of classes K of the network, whether or not each has images."""
        return len(self.class_names)

    @property
    def own_size(self) -> int | None:
        """Side in pixels, where every file is a square of the same size."""
        sizes = {picture.size for picture in self.pictures}
        width, height = next(iter(sizes))
        return width if len(sizes) == 1 and width == height else None

    @property
    def typical_size(self) -> int:
        """Median of the shorter sides in pixels."""
        return sorted(min(picture.size) for picture in self.pictures)[len(self) // 2]

    def shortfall(self) -> str | None:
        """Why these images are too few for a verdict, in one line; none: they are enough."""
        needed = max(MIN_FOR_VERDICT, MIN_PER_CLASS * self.num_classes)
        if len(self) < needed:
            return (
                f"{len(self)} clean images for {self.num_classes} classes; a verdict needs at least {needed} "
                "(--max-images sets how many are read at most)"
            )
        if self.facts.per_class_min < MIN_PER_CLASS:
            return "a class has a single clean image; a verdict needs two of each class that is there"
        return None

    def decode(self, size: int, channels: int, count: int | None = None) -> CleanData:
        """Tensors of one size.

        Every image is resized to ``size`` x ``size`` (bilinear, antialiased), whatever its aspect ratio; nothing is
        cropped. Grey is repeated for three channels, colour weighted to luminance (ITU-R 601) for one.

        Args:
            size: Side in pixels.
            channels: 1 or 3.
            count: Only the first so many images; none: all.

        Returns:
            Images [N, channels, size, size] in [0, 1] and labels.

        Raises:
            ValueError: ``size`` or ``channels`` is not as above.
        """
        if channels not in {1, 3} or size < 1:
            raise ValueError(f"expected 1 or 3 channels and a positive size, got {channels} and {size}")
        chosen = self.pictures[:count]
        pixels = np.empty((len(chosen), size, size, channels), dtype=np.uint8)
        for row, picture in zip(pixels, chosen, strict=True):
            image = picture.image.convert("L" if channels == 1 else "RGB")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            row[:] = np.asarray(image).reshape(size, size, channels)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
        return CleanData(images, torch.tensor(self.labels[:count]), self.class_names)


def decode_picture(content: bytes) -> Picture:
    """Decode a file's bytes.

    Transparency is dropped and the EXIF orientation ignored, as the usual training loaders do.

    Args:
        content: The whole file.

    Returns:
        The picture.

    Raises:
        Exception: Whatever Pillow raises on a broken file.
        ValueError: Too many pixels, or pixels that are not 8 or 16 bit or of unknown scale.
    """
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    width, height = size = image.size
    if width * height > MAX_SOURCE_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_SOURCE_PIXELS:,}")
    scale = math.sqrt(MAX_KEPT_PIXELS / (width * height))
    kept = (max(1, int(width * scale)), max(1, int(height * scale))) if scale < 1 else size
    if kept != size:
        image.draft(None, kept)  # a JPEG is decoded at a half, a quarter or an eighth where that is large enough
    eight_bit = _to_eight_bit(image)
    return Picture(eight_bit if eight_bit.size == kept else eight_bit.resize(kept, Image.Resampling.BILINEAR), size)


def _to_eight_bit(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; expected 8 or 16 bits")
    is_integer = image.mode == "I" or image.mode.startswith("I;16")
    is_deep = is_integer or any(_TWO_BYTES.search(str(tile.args)) for tile in image.tile)
    eight_bit = (
        _higher_byte(image) if is_integer else image.convert("L" if image.mode in {"1", "L", "LA", "La"} else "RGB")
    )
    if is_deep and eight_bit.getbbox() is None:
        # Numbers of 8 bits in a wider type, as arrays are often saved, would all be read as black.
        raise ValueError("scale unknown: pixels of more than 8 bits, of which none is above 255; save it with 8 bits")
    return eight_bit


def _higher_byte(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 0xFFFF:
        raise ValueError(f"its pixels are from {lowest} to {highest}; expected 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))
