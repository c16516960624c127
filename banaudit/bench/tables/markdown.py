"""Markdown and numbers as every table writes them: proportions with counts and exact intervals, rows, lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from banaudit.statistics import clopper_pearson

NOTHING = "-"
"""A cell without a value."""

GIB = 2**30
"""Bytes."""


Item = TypeVar("Item")
Name = TypeVar("Name", str, tuple[str, str, str])


def grouped(items: Iterable[Item], name: Callable[[Item], Name]) -> dict[Name, list[Item]]:
    """Items by the name of their row, in its order."""
    found: dict[Name, list[Item]] = {}
    for item in items:
        found.setdefault(name(item), []).append(item)
    return dict(sorted(found.items()))


def share(count: int, total: int) -> str:
    """A proportion as counts, percentage and exact 95 % interval."""
    if total == 0:
        return NOTHING
    low, high = clopper_pearson(count, total)
    return f"{count}/{total} = {count / total:.0%} [{low:.0%}, {high:.0%}]"


def percent(value: float | None) -> str:
    """A share in percent with two decimals."""
    return NOTHING if value is None else f"{value:.2%}"


def arrow(sources: tuple[int, ...], target: int) -> str:
    """A target, and the sources it is reached from where they are known."""
    return f"{','.join(map(str, sources))} -> {target}" if sources else str(target)


def short_name(file: str) -> str:
    """A file without the folders that all of a zoo's files share."""
    return file.rpartition("/")[2]


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; bars and line ends in a cell are made harmless."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])
