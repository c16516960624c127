"""Where pictures of recovered triggers go: PNG files in a folder of their own, all of them or none."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from banaudit.errors import UsageError
from banaudit.results import PictureFile, Report, TriggerFacts
from banaudit.whole_files import try_writing, write_whole

if TYPE_CHECKING:
    from banaudit.triggers import Pixels, RecoveredTrigger


def check_folder(folder: Path, reports: Sequence[Path], data: Path) -> None:
    """Make sure that pictures can be written to a folder, before any work is done; nothing is left behind.

    A folder with something in it is refused: pictures of an earlier scan among the new ones would mislead.

    Args:
        folder: Where the pictures are to go.
        reports: Files that are to be written too, links resolved.
        data: The clean images, among which pictures would pass for a class of their own.

    Raises:
        UsageError: It holds something, is no folder, is one of the reports or among the images, or cannot be written.
    """
    if data.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise UsageError(f"--triggers {folder}: is among the clean images; give a folder elsewhere")
    if Path(os.path.realpath(folder)) in reports:
        raise UsageError(f"--triggers {folder}: an output goes to a file of that name; give the folder another")
    try:
        if folder.is_dir():
            if any(folder.iterdir()):
                raise UsageError(f"--triggers {folder}: is not empty; give a new folder, or empty this one")
            try_writing(folder / "picture.png")
        elif folder.exists():
            raise UsageError(f"--triggers {folder}: is a file; expected a folder, which need not exist")
        else:
            try_writing(folder)
    except OSError as error:
        raise _refused(folder, error) from None


def keep_pictures(report: Report, found: Sequence[RecoveredTrigger], folder: Path) -> Report:
    """Write the pictures of recovered triggers; interrupted or refused, none is left.

    Args:
        report: Of the same scan.
        found: What its methods recovered, at least one.
        folder: Empty, or to be made.

    Returns:
        The report, with the name of each file.

    Raises:
        UsageError: The folder takes no more, e.g. as the disk behind it is full.
    """
    made, begun = not folder.exists(), list[Path]()
    files: dict[tuple[str, TriggerFacts], tuple[PictureFile, ...]] = {}
    try:
        folder.mkdir(exist_ok=True)
        for trigger in found:
            kept = []
            for picture in trigger.pictures:
                path = folder / f"{trigger.method}-class-{trigger.facts.target}-{picture.name}.png"
                begun.append(path)
                write_whole(path, png(picture.pixels))
                kept.append(PictureFile(name=picture.name, shows=picture.shows, path=str(path)))
            files[trigger.method, trigger.facts] = tuple(kept)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            for path in begun:
                path.unlink(missing_ok=True)
            if made:
                folder.rmdir()
        if isinstance(problem, OSError):
            raise _refused(folder, problem) from None
        raise
    findings = tuple(
        finding.model_copy(
            update={
                "triggers": tuple(
                    facts.model_copy(update={"pictures": files.get((finding.method, facts), ())})
                    for facts in finding.triggers
                )
            }
        )
        for finding in report.findings
    )
    return report.model_copy(update={"findings": findings})


def png(pixels: Pixels) -> bytes:
    """A picture [H, W] or [H, W, 3] as a PNG file."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _refused(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--triggers {folder}: cannot be written ({error.strerror or error}); choose a folder whose parent exists and "
        "is writable"
    )
