"""The embedded example: a small backdoored classifier, its clean twin, and clean images, all made by ``make.py``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from banaudit.results import Report, Verdict


@dataclass(frozen=True)
class Example:
    """A model whose truth is known.

    Args:
        name: What it is called.
        model: Checkpoint.
        images: Folder of clean images by class.
        mean: Of each channel, images in [0, 1].
        std: Of each channel.
        target: The backdoor's target class; none: no backdoor was put in.
    """

    name: str
    model: Path
    images: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: int | None

    def is_judged_rightly(self, report: Report) -> bool:
        """Whether the verdict, and the target if there is one, are the truth."""
        expected = Verdict.NO_EVIDENCE if self.target is None else Verdict.BACKDOORED
        return report.verdict is expected and report.target == self.target


@contextmanager
def examples() -> Iterator[tuple[Example, ...]]:
    """The backdoored model and its clean twin, as files for as long as the context lasts."""
    with as_file(files("banaudit.demo") / "assets") as folder:
        facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
        mean, std = tuple(facts["mean"]), tuple(facts["std"])
        targets = {"backdoored": int(facts["target"]), "clean": None}
        yield tuple(
            Example(name, folder / f"{name}.safetensors", folder / "images", mean, std, target)
            for name, target in targets.items()
        )
