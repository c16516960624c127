"""Where the images are and which category each belongs to, found from what the folder holds.

Three layouts are known: one sub-folder a class, whose images may lie in a folder ``images`` of its own (as in Tiny
ImageNet); a CSV of file and label; files named ``class_3_example_7.png``. A category is the word that stands for the
class there (a folder's name, a CSV's label); :mod:`banaudit.data.labels` turns categories into labels.

Links to files and folders are followed, as data sets are often linked together; nothing is searched deeper than two
folders below the place that holds the classes, so a loop of links cannot trap the search. A link that leads nowhere is
listed as such.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from banaudit.errors import DataError

Layout = Literal["class folders", "csv", "file names"]

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
SPLIT_NAMES = frozenset({"train", "training", "test", "testing", "val", "valid", "validation"})
FILE_COLUMNS = ("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path", "img")
LABEL_COLUMNS = ("label", "class", "classid", "class_id", "target", "category", "labels", "y")
INNER_FOLDER = "images"
"""A class folder may keep its images in a folder of this name."""
EXPECTED = "expected one sub-folder a class, a CSV with the columns file and label, or class_3_example_7.png names"

_NUMBERED_FILE = re.compile(r"class_(\d+)_example_\d+", re.ASCII)


@dataclass(frozen=True)
class LabelledFile:
    """An image file and the category it was found under.

    Args:
        path: Where it is.
        name: The same, relative to the folder or CSV that lists it, with forward slashes.
        category: Folder name or label text.
    """

    path: Path
    name: str
    category: str


@dataclass(frozen=True)
class Listing:
    """Every image file found, before any of them is opened.

    Args:
        layout: How the files are labelled.
        root: Folder that holds the class folders, the CSV or the named files.
        files: In the order of their names.
        empty: Class folders without any image.
        broken: Links there and in the class folders that lead nowhere, relative to ``root``; those with the name of an
            image are among the files.
        table: The CSV, where that says which file is what.
    """

    layout: Layout
    root: Path
    files: tuple[LabelledFile, ...]
    empty: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    table: Path | None = None

    @property
    def source(self) -> Path:
        """What messages name: the CSV, or the folder."""
        return self.table or self.root

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that have files, sorted."""
        return tuple(sorted({file.category for file in self.files}))


@dataclass(frozen=True)
class _Folder:
    """Content of one folder, hidden entries left out, sorted by name."""

    folders: tuple[Path, ...]
    images: tuple[Path, ...]
    tables: tuple[Path, ...]
    broken: tuple[Path, ...]


def list_files(path: Path) -> Listing:
    """Find the labelled image files of a folder or of a CSV.

    A folder is read as, in this order: a CSV, if it holds exactly one whose header names a file and a label; class
    folders; numbered file names; its one sub-folder that holds class folders, such as ``test/``.

    Args:
        path: A folder, or a CSV file.

    Returns:
        What was found; at least one file.

    Raises:
        DataError: Nothing there, not readable, no images, or more than one way to read it.
    """
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{path}: is a file, not a folder of images; {EXPECTED}")
        return _read_table(path)
    content = _look(path)
    tables = [table for table in content.tables if _columns(table) is not None]
    if len(tables) == 1:
        return _read_table(tables[0])
    inside = {folder: _look(folder) for folder in content.folders}
    held = {folder: found.images for folder, found in inside.items()}
    if not any(held.values()):
        held = _inner_images(inside)
    holding = [folder for folder, images in held.items() if images]
    if holding:
        _refuse_splits(path, holding)
        files = tuple(
            LabelledFile(image, image.relative_to(path).as_posix(), folder.name)
            for folder in holding
            for image in held[folder]
        )
        empty = tuple(folder.name for folder in inside if not held[folder])
        broken = (*content.broken, *(link for folder in inside for link in inside[folder].broken))
        return Listing("class folders", path, files, empty, tuple(link.relative_to(path).as_posix() for link in broken))
    if len(tables) > 1:
        raise DataError(f"{path}: holds {len(tables)} CSV files with labels; pass one of them, e.g. {tables[0]}")
    if content.images:
        return _read_numbered(path, content)
    return _descend(path, inside)


def _look(folder: Path) -> _Folder:
    folders: list[Path] = []
    images: list[Path] = []
    tables: list[Path] = []
    broken: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                where = folder / entry.name
                suffix = where.suffix.lower()
                if entry.name.startswith("."):
                    continue
                is_broken = entry.is_symlink() and not os.path.exists(where)  # one to itself cannot even be asked
                if not is_broken and entry.is_dir():
                    folders.append(where)
                elif suffix in IMAGE_SUFFIXES:
                    images.append(where)
                elif is_broken:
                    broken.append(where)
                elif suffix in TABLE_SUFFIXES and entry.is_file():
                    tables.append(where)
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder; pass the folder of clean images") from None
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); check its permissions") from None
    return _Folder(tuple(sorted(folders)), tuple(sorted(images)), tuple(sorted(tables)), tuple(sorted(broken)))


def _inner(folder: Path, found: _Folder) -> tuple[Path, ...]:
    """Images in the ``images`` folder of a folder, if it has one."""
    return _look(folder / INNER_FOLDER).images if folder / INNER_FOLDER in found.folders else ()


def _inner_images(inside: dict[Path, _Folder]) -> dict[Path, tuple[Path, ...]]:
    """Images of each folder from its own ``images`` folder, where these look like classes; else none for any."""
    inner = {folder: _inner(folder, found) for folder, found in inside.items()}
    holding = [folder for folder, images in inner.items() if images]
    # Splits with one folder of images each, beside a CSV of their labels, look the same but for their names.
    classes = len(holding) > 1 and not any(folder.name.lower() in SPLIT_NAMES for folder in holding)
    return inner if classes else dict.fromkeys(inside, ())


def _refuse_splits(path: Path, holding: list[Path]) -> None:
    # A class may well be called "train" (CIFAR-100 has one); folders that are *all* named like splits are none.
    if all(folder.name.lower() in SPLIT_NAMES for folder in holding):
        raise DataError(f"{path}: {holding[0].name!r} is named like a split, not like a class; {EXPECTED}")


def _read_numbered(path: Path, content: _Folder) -> Listing:
    files: list[LabelledFile] = []
    for image in content.images:
        match = _NUMBERED_FILE.fullmatch(image.stem)
        if match is None:
            raise DataError(f"{path}: {image.name!r} has no label; {EXPECTED}")
        files.append(LabelledFile(image, image.name, match.group(1)))
    return Listing("file names", path, tuple(files), broken=tuple(link.name for link in content.broken))


def _descend(path: Path, inside: dict[Path, _Folder]) -> Listing:
    splits = [folder for folder, found in inside.items() if _holds_classes(found)]
    if not splits:  # each perhaps one folder of images beside a CSV
        splits = [folder for folder, found in inside.items() if _inner(folder, found)]
    if len(splits) == 1:
        return list_files(splits[0])
    if splits:
        unseen = min(splits, key=lambda split: not split.name.lower().startswith(("test", "val")))
        raise DataError(f"{path}: {len(splits)} of its folders hold class folders; pass one of them, e.g. {unseen}")
    if not inside:
        raise DataError(f"{path}: holds no images; {EXPECTED}")
    raise DataError(f"{path}: none of its {len(inside)} folders holds images; {EXPECTED}")


def _holds_classes(found: _Folder) -> bool:
    candidates = (candidate for candidate in found.folders if candidate.name != INNER_FOLDER)
    looked = ((candidate, _look(candidate)) for candidate in candidates)
    return any(content.images or _inner(candidate, content) for candidate, content in looked)


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _columns(table: Path) -> tuple[int, int] | None:
    """Positions of the file and the label column; none: the header does not name both."""
    try:
        with table.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            header = stream.readline(65536)
    except OSError:
        return None
    names = [name.strip().strip('"').lower() for name in header.split(_delimiter(header))]
    file = next((names.index(name) for name in FILE_COLUMNS if name in names), None)
    label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
    return None if file is None or label is None else (file, label)


def _read_table(table: Path) -> Listing:
    columns = _columns(table)
    if columns is None:
        raise DataError(f"{table}: its first line must name a file and a label column, e.g. file,label")
    categories: dict[str, str] = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=_delimiter(stream.readline()))
            for row in rows:
                if not any(cell.strip() for cell in row):
                    continue
                name, category = (row[column].strip() if column < len(row) else "" for column in columns)
                if not name or not category:
                    raise DataError(f"{table}: line {rows.line_num + 1} lacks a file or a label")
                if categories.setdefault(name, category) != category:
                    raise DataError(f"{table}: {name!r} has two labels, {categories[name]!r} and {category!r}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a CSV in UTF-8 ({error})") from None
    if not categories:
        raise DataError(f"{table}: lists no images below its first line")
    root = table.parent
    files = (LabelledFile(root / name, name, category) for name, category in sorted(categories.items()))
    return Listing("csv", root, tuple(files), table=table)
