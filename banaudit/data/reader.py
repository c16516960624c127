"""From a folder of clean images to an :class:`ImageSet`: find, label, draw, read, check."""

from __future__ import annotations

import hashlib
import heapq
import os
import random
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from banaudit.data.images import MAX_FILE_BYTES, ImageSet, Picture, Unreadable, decode_picture
from banaudit.data.labels import ClassMap, map_classes
from banaudit.data.layouts import LabelledFile, Listing, list_files
from banaudit.errors import DataError, UsageError
from banaudit.meter import Meter
from banaudit.results import DataFacts

MIN_IMAGES = 20
"""With fewer readable images nothing can be estimated: an accuracy would be known to within 22 points at best."""

_BATCH = 256  # files read between two looks at what is still needed


@dataclass(frozen=True)
class _Read:
    """A file that was read: its label, its picture, and the hash of its bytes."""

    file: LabelledFile
    label: int
    picture: Picture
    digest: bytes


def read_clean_folder(
    path: Path,
    *,
    classes: int | None,
    limit: int | None,
    seed: int,
    class_map: Path | None = None,
    meter: Meter | None = None,
) -> ImageSet:
    """Read clean, labelled images.

    Layouts: one sub-folder a class, with the images in it or in an ``images`` folder of its own; a CSV of file and
    label (the CSV itself, or a folder that holds one); files named ``class_3_example_7.png``. A folder with a single
    split inside (``test/``) is read as that split. How categories become labels is described in
    :mod:`banaudit.data.labels`.

    Images are drawn at random, as evenly over the classes as their files allow. A file that is corrupt, truncated, or
    no image is counted, named, and replaced by another of its class.

    Args:
        path: The folder, or a CSV.
        classes: Number of classes K of the network; none: as many as the data need.
        limit: Largest number of images to use; none: all.
        seed: Of the drawing.
        class_map: ``classes.txt`` or ``classes.json`` to use; none: one beside the images, if there is one.
        meter: Keeps the time limit while files are read.

    Returns:
        The images, at least :data:`MIN_IMAGES` of at least two classes. :meth:`ImageSet.shortfall` tells whether that
        is enough for a verdict.

    Raises:
        DataError: The folder, its labels or its images cannot be used; one line that says what to do.
        UsageError: ``limit`` is below :data:`MIN_IMAGES`.
        TimeLimitReached: The meter's time limit has passed.
    """
    if limit is not None and limit < MIN_IMAGES:
        raise UsageError(f"at most {limit} clean images were asked for; at least {MIN_IMAGES} are needed")
    listing = list_files(path)
    class_of = map_classes(listing, classes, class_map, beside=path if path.is_dir() else path.parent)
    most = len(listing.files) if limit is None else limit
    read, unreadable = _draw(listing.files, class_of.labels, most, seed, meter)
    unreadable += [Unreadable(_printable(name), "a link that leads nowhere") for name in listing.broken]
    _check_enough(path, read, unreadable)
    return ImageSet(
        paths=tuple(item.file.path for item in read),
        labels=tuple(item.label for item in read),
        class_names=tuple(_printable(name) for name in class_of.names),
        facts=_facts(path, listing, class_of, read, unreadable),
        unreadable=tuple(unreadable),
        pictures=tuple(item.picture for item in read),
    )


def _draw(
    files: tuple[LabelledFile, ...], labels: dict[str, int], limit: int, seed: int, meter: Meter | None
) -> tuple[list[_Read], list[Unreadable]]:
    """Read up to ``limit`` files, always next from the class that has the fewest so far."""
    rng = random.Random(seed)
    queues: dict[int, list[LabelledFile]] = {}
    for file in files:
        queues.setdefault(labels[file.category], []).append(file)
    for label in sorted(queues):
        rng.shuffle(queues[label])
    order = sorted(queues)
    rng.shuffle(order)  # decides who gets one more where the limit does not divide evenly

    read: list[_Read] = []
    unreadable: list[Unreadable] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # Pillow remarks on odd metadata, which is no concern here; a bomb it only warns of is refused.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        while len(read) < limit and any(queues.values()):
            if meter is not None:
                meter.spend("reading images", forward=0)
            have = Counter(item.label for item in read)
            heap = [(have[label], place, label) for place, label in enumerate(order) if queues[label]]
            heapq.heapify(heap)
            batch: list[LabelledFile] = []
            while heap and len(batch) < min(_BATCH, limit - len(read)):
                count, place, label = heapq.heappop(heap)
                batch.append(queues[label].pop())
                if queues[label]:
                    heapq.heappush(heap, (count + 1, place, label))
            for file, result in zip(batch, pool.map(_read_file, batch), strict=True):
                if isinstance(result, str):
                    unreadable.append(Unreadable(_printable(file.name), result))
                else:
                    read.append(_Read(file, labels[file.category], *result))
    return read, unreadable


def _read_file(file: LabelledFile) -> tuple[Picture, bytes] | str:
    """The picture and the hash of its bytes, or one line that says why not."""
    try:
        if not file.path.is_file():  # also keeps away from pipes, which would block
            return "no such file"
        if file.path.stat().st_size > MAX_FILE_BYTES:
            return f"larger than {MAX_FILE_BYTES:,} bytes"
        content = file.path.read_bytes()
        return decode_picture(content), hashlib.sha256(content).digest()
    except UnidentifiedImageError:
        return "not an image"
    except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
        return " ".join(f"{type(error).__name__}: {error}".split())


def _check_enough(path: Path, read: list[_Read], unreadable: list[Unreadable]) -> None:
    first = (
        f"; {len(unreadable)} unreadable, e.g. {unreadable[0].name!r} ({unreadable[0].reason})" if unreadable else ""
    )
    if len(read) < MIN_IMAGES:
        raise DataError(f"{path}: {len(read)} readable images, at least {MIN_IMAGES} are needed{first}")
    if len({item.label for item in read}) < 2:
        raise DataError(f"{path}: all images are of one class, at least two classes are needed{first}")


def _facts(
    path: Path, listing: Listing, class_of: ClassMap, read: list[_Read], unreadable: list[Unreadable]
) -> DataFacts:
    counts = Counter(item.label for item in read)
    digest = hashlib.sha256()
    for item in sorted(read, key=lambda item: item.file.name):
        # Fixed lengths but for the name, which cannot hold a zero byte: no two sets give the same stream.
        digest.update(os.fsencode(item.file.name) + b"\0" + item.label.to_bytes(4, "big") + item.digest)
    return DataFacts(
        path=_printable(str(path)),
        layout=listing.layout,
        found=len(listing.files) + len(listing.broken),
        unreadable=len(unreadable),
        used=len(read),
        class_mapping={_printable(category): label for category, label in class_of.labels.items()},
        mapping_source=class_of.source,
        per_class_min=min(counts.values()),
        per_class_max=max(counts.values()),
        missing_classes=tuple(label for label in range(len(class_of.names)) if label not in counts),
        sha256=digest.hexdigest(),
    )


def _printable(name: str) -> str:
    """A file name that is no Unicode cannot be written to a report as it is."""
    return name.encode("utf-8", "replace").decode("utf-8")
