"""From categories (folder names, label texts) to the network's labels.

The order of a network's outputs is written nowhere in its checkpoint, so a guess is made only where it is safe:

1. ``classes.txt`` (one name a line, the position is the label) or ``classes.json`` (a list, ``{name: label}`` or
   ``{label: name}``), given or beside the images;
2. by number, when every category is an integer (``00007`` is 7);
3. in sorted order, as the usual folder readers do, when there are exactly as many categories as classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from banaudit.data.layouts import Listing
from banaudit.errors import DataError

CLASS_FILES = ("classes.txt", "classes.json")

MAX_DIGITS = 9
"""A label with more is none: no network has a billion classes, and Python refuses to read numbers of thousands."""


@dataclass(frozen=True)
class ClassMap:
    """The labels of the categories.

    Args:
        labels: Category -> label in 0..K-1.
        names: K names; the position is the label.
        source: How the mapping was decided, in words.
    """

    labels: dict[str, int]
    names: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class _ClassFile:
    path: Path
    labels: dict[str, int]


def map_classes(listing: Listing, classes: int | None, class_map: Path | None, beside: Path) -> ClassMap:
    """Decide the label of every category.

    Args:
        listing: The files found.
        classes: Number of classes K of the network; none: as many as the categories need.
        class_map: A file of class names; none: looked for beside the images.
        beside: Folder that the user named; searched for a class file after the listing's own.

    Returns:
        The labels, all in 0..K-1.

    Raises:
        DataError: A label is out of range, or the mapping would be a guess.
    """
    file = _read_class_file(class_map, classes) if class_map else _find_class_file((listing.root, beside), classes)
    categories = listing.categories
    if file is not None and all(category in file.labels for category in categories):
        labels, source = {category: file.labels[category] for category in categories}, file.path.name
    elif all(category.isascii() and category.isdigit() for category in categories):
        labels, source = {category: _number(listing.source, category) for category in categories}, "by number"
    elif file is not None:
        stranger = next(category for category in categories if category not in file.labels)
        raise DataError(f"{file.path}: does not name {stranger!r}, a class found in {listing.source}; add it")
    else:
        labels, source = _sorted_order(listing, classes), "sorted order"
    count = classes or max((*labels.values(), *(file.labels.values() if file else ()))) + 1
    _check_range(listing, labels, count)
    return ClassMap(labels, _names(labels, file, count), source)


def _number(path: Path, digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise DataError(
            f"{path}: {digits[:MAX_DIGITS]}... has {len(digits)} digits, a label has at most {MAX_DIGITS}; "
            f"if it is a name, write {CLASS_FILES[0]} with the names, one a line, in the network's order"
        )
    return int(digits)


def _sorted_order(listing: Listing, classes: int | None) -> dict[str, int]:
    # A class of the network may have an empty folder: it keeps its place only if that makes the count right.
    with_files = listing.categories
    empty = (name for name in listing.empty if not name.startswith((".", "_")))  # __MACOSX, .ipynb_checkpoints
    with_empty = tuple(sorted({*with_files, *empty}))
    for candidates in (with_files, with_empty):
        if classes in (None, len(candidates)):
            return {category: label for label, category in enumerate(candidates)}
    raise DataError(
        f"{listing.source}: {len(with_files)} classes found, the network has {classes}; sorted order would be a guess: "
        f"write {listing.root / CLASS_FILES[0]} with the {classes} names, one a line, in the network's order"
    )


def _check_range(listing: Listing, labels: dict[str, int], count: int) -> None:
    wrong = sorted(category for category, label in labels.items() if not 0 <= label < count)
    if not wrong:
        return
    example = next(file.name for file in listing.files if file.category == wrong[0])
    from_one = set(labels.values()) == set(range(1, count + 1))
    advice = "number the classes from 0" if from_one else "check that images and network belong together"
    raise DataError(
        f"{listing.source}: {example!r} has label {labels[wrong[0]]}, the network's {count} classes are "
        f"0 to {count - 1}; {advice}"
    )


def _names(labels: dict[str, int], file: _ClassFile | None, count: int) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for source in (file.labels if file else {}, labels):
        for name, label in source.items():
            names.setdefault(label, name)
    return tuple(names.get(label, str(label)) for label in range(count))


def _find_class_file(folders: tuple[Path, Path], classes: int | None) -> _ClassFile | None:
    for folder in folders:
        found = [folder / name for name in CLASS_FILES if (folder / name).is_file()]
        if len(found) > 1:
            raise DataError(f"{folder}: holds both {' and '.join(CLASS_FILES)}; keep one of them")
        if found:
            return _read_class_file(found[0], classes)
    return None


def _read_class_file(path: Path, classes: int | None) -> _ClassFile:
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except OSError as error:
        raise DataError(f"{path}: the class names cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not the class names that its suffix promises ({error})") from None
    labels = _as_labels(path, content)
    if not labels:
        raise DataError(f"{path}: names no class")
    if isinstance(content, list) and classes is not None and len(labels) != classes:
        raise DataError(f"{path}: names {len(labels)} classes, the network has {classes}")
    limit = classes if classes is not None else max(labels.values()) + 1
    for name, label in labels.items():
        if not 0 <= label < limit:
            raise DataError(f"{path}: {name!r} has label {label}, the network's {limit} classes are 0 to {limit - 1}")
    return _ClassFile(path, labels)


def _as_labels(path: Path, content: object) -> dict[str, int]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        names = [name.strip() for name in content if name.strip()]
        _refuse_doubles(path, names)
        return {name: label for label, name in enumerate(names)}
    if isinstance(content, dict):
        if all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
            return dict(content)
        if all(isinstance(value, str) and key.isascii() and key.isdigit() for key, value in content.items()):
            _refuse_doubles(path, list(content.values()))
            return {name: _number(path, label) for label, name in content.items()}
    raise DataError(f"{path}: expected a list of names, {{name: label}} or {{label: name}}")


def _refuse_doubles(path: Path, names: list[str]) -> None:
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: names {double!r} twice")
