"""Named data sets for the benchmark: folders or zip files of images -> uint8 tensors, decoded once and cached.

A data set is found below a root that the user gives, as ``<root>/<folder>/<split>/<class>/<file>`` or as the same tree
in ``<root>/<folder>.zip``. Classes are numbered in the sorted order of their names. Nothing is downloaded.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from banaudit.data import CleanData
from banaudit.errors import DataError
from banaudit.shapes import Images, Labels
from banaudit.whole_files import write_whole

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"})

POOL_SHARE = 0.1
"""Share of the training images that no victim is trained on: the defender's pool (BAN, Section 4.1: 90 % train)."""

SPLIT_SEED = 0
"""One split for all victims of a data set, so that one pool of clean images serves them all."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about a data set that training needs.

    Args:
        name: What recipes call it.
        folder: Name of the folder, or of the zip file without its suffix, below the root.
        held_out: Name of the split that measures accuracy and attack success.
        size: Height and width in pixels after resizing.
        channels: 1 (grey) or 3 (RGB).
        num_classes: Number of classes K.
        mean: Mean of each channel, images in [0, 1].
        std: Standard deviation of each channel, images in [0, 1].
        flips: Whether a mirrored image keeps its label.
    """

    name: str
    folder: str
    held_out: str
    size: int
    channels: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flips: bool


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="cifar10",
            folder="cifar10",
            held_out="test",
            size=32,
            channels=3,
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            flips=True,
        ),
        DatasetSpec(
            name="gtsrb32",
            folder="gtsrb32",
            held_out="test",
            size=32,
            channels=3,
            num_classes=43,
            mean=(0.3403, 0.3121, 0.3214),
            std=(0.2724, 0.2608, 0.2669),
            flips=False,
        ),
        DatasetSpec(
            name="mnist",
            folder="mnist",
            held_out="test",
            size=28,
            channels=1,
            num_classes=10,
            mean=(0.1307,),
            std=(0.3081,),
            flips=False,
        ),
        DatasetSpec(
            name="imagenette64",
            folder="imagenette160",
            held_out="val",
            size=64,
            channels=3,
            num_classes=10,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            flips=True,
        ),
        DatasetSpec(
            name="imagenette160",
            folder="imagenette160",
            held_out="val",
            size=160,
            channels=3,
            num_classes=10,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            flips=True,
        ),
        DatasetSpec(
            name="tiny-imagenet-32",
            folder="tiny-imagenet-32",
            held_out="val",
            size=32,
            channels=3,
            num_classes=200,
            mean=_IMAGENET_MEAN,
            std=_IMAGENET_STD,
            flips=True,
        ),
    )
}


@dataclass(frozen=True)
class PixelData:
    """Images as they are stored, to be made float a batch at a time.

    Args:
        pixels: [N, C, H, W] uint8 in 0..255, channels last in memory.
        labels: [N] int64 in 0..K-1.
        class_names: K names; the position is the label.
    """

    pixels: Tensor
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of samples N."""
        return len(self.labels)

    def subset(self, index: Tensor) -> PixelData:
        """The samples at these positions, in this order."""
        return PixelData(self.pixels[index], self.labels[index], self.class_names)

    def clean(self) -> CleanData:
        """The same samples as float images in [0, 1]."""
        return CleanData(to_float(self.pixels), self.labels, self.class_names)


def to_float(pixels: Tensor) -> Images:
    """Pixels 0..255 as float images in [0, 1]."""
    return pixels.float().div_(255)


def to_pixels(images: Images) -> Tensor:
    """Float images in [0, 1] as pixels 0..255, rounded to the nearest."""
    return images.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def default_cache() -> Path:
    """Folder for decoded data and trained victims: ``$BANAUDIT_CACHE``, else ``~/.cache/banaudit``."""
    given = os.environ.get("BANAUDIT_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "banaudit"


def dataset_spec(name: str) -> DatasetSpec:
    """The data set of this name.

    Raises:
        DataError: No data set has this name.
    """
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is not known: choose one of {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def load_split(name: str, split: str, *, root: Path | None = None, cache: Path | None = None) -> PixelData:
    """One split of a data set; decoded at the first call, read from the cache at later ones.

    Args:
        name: Name of the data set, a key of ``DATASETS``.
        split: Name of the split's folder, e.g. ``train``.
        root: Folder that holds the data sets as folders or zip files; not needed once the split is cached.
        cache: Where decoded splits are kept; none: :func:`default_cache`.

    Raises:
        DataError: The data set is unknown, not below the root, or not what its specification says.
    """
    spec = dataset_spec(name)
    folder = (cache or default_cache()) / "datasets"
    stored = folder / f"{spec.name}-{split}.npz"
    if not stored.exists():
        if root is None:
            raise DataError(
                f"{name} {split} is not in the cache {folder}: say where the data are, as a folder or a zip file"
            )
        decoded = _decode(spec, split, root)
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez(content, pixels=decoded[0], labels=decoded[1], names=np.array(decoded[2]))
        write_whole(stored, content.getvalue())
    with np.load(stored, allow_pickle=False) as arrays:
        pixels, labels, names = arrays["pixels"], arrays["labels"], tuple(str(n) for n in arrays["names"])
    return PixelData(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels), names)


def attacker_and_pool(data: PixelData) -> tuple[Tensor, Tensor]:
    """Positions of the training images: those that victims are trained on, and the defender's pool.

    Returns:
        [0.9 N] and [0.1 N] positions, disjoint, sorted, the same at every call for the same N.
    """
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(SPLIT_SEED))
    cut = len(data) - round(POOL_SHARE * len(data))
    return order[:cut].sort().values, order[cut:].sort().values


def _decode(spec: DatasetSpec, split: str, root: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Every image of a split: [N, H, W, C] uint8, [N] int64, the K class names."""
    files = sorted(_files(spec, split, root), key=lambda item: (item[0], item[1]))
    names = sorted({class_name for class_name, _, _ in files})
    if len(names) != spec.num_classes:
        raise DataError(
            f"{root / spec.folder}, split {split}: expected {spec.num_classes} class folders, "
            f"found {len(names)}; check the root"
        )
    label_of = {name: label for label, name in enumerate(names)}
    pixels = np.empty((len(files), spec.size, spec.size, spec.channels), dtype=np.uint8)
    archive = _archive(spec, root)
    try:
        for row, (_, _, path) in enumerate(files):
            encoded = archive.read(path) if archive else Path(path).read_bytes()
            with Image.open(io.BytesIO(encoded)) as image:
                converted = image.convert("RGB" if spec.channels == 3 else "L")
            if converted.size != (spec.size, spec.size):
                converted = converted.resize((spec.size, spec.size), Image.Resampling.BILINEAR, reducing_gap=3.0)
            pixels[row] = np.asarray(converted).reshape(spec.size, spec.size, spec.channels)
    finally:
        if archive:
            archive.close()
    labels = np.array([label_of[class_name] for class_name, _, _ in files], dtype=np.int64)
    return pixels, labels, names


def _archive(spec: DatasetSpec, root: Path) -> zipfile.ZipFile | None:
    return None if (root / spec.folder).is_dir() else zipfile.ZipFile(root / f"{spec.folder}.zip")


def _files(spec: DatasetSpec, split: str, root: Path) -> Iterator[tuple[str, str, str]]:
    """Class name, file name and path of every image of a split; the path is one inside the zip file if it is one."""
    folder, archive = root / spec.folder / split, root / f"{spec.folder}.zip"
    if folder.is_dir():
        for path in folder.glob("*/*"):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield path.parent.name, path.name, str(path)
    elif archive.is_file():
        with zipfile.ZipFile(archive) as opened:
            members = opened.namelist()
        for member in members:
            parts = member.split("/")
            if len(parts) == 3 and parts[0] == split and Path(member).suffix.lower() in IMAGE_SUFFIXES:
                yield parts[1], parts[2], member
    else:
        raise DataError(f"{spec.name}: neither the folder {folder} nor the file {archive} exists; check the root")
