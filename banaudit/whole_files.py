"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

NAME_BYTES = 200
"""Of a name that something is added to."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, whatever happens in between.

    Args:
        path: Where to; an existing file is replaced.
        content: All of it.

    Raises:
        OSError: It cannot be written; the old file is as it was, and nothing else is left behind.
    """
    write_together(((path, content),))


def write_together(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write files that belong together: each of them whole, and all of them or none.

    Args:
        files: Where to, and all of the content; existing files are replaced and keep their permissions, links stay
            links. Of all but the last a copy is kept meanwhile, so a large file should be the last.

    Raises:
        OSError: One cannot be written; the old files are as they were, and nothing else is left behind.
    """
    paths = [Path(os.path.realpath(path)) for path, _ in files]  # links stay links
    temporaries = [_beside(path) for path in paths]
    kept: dict[Path, Path] = {}
    begun: list[Path] = []
    try:
        for temporary, (_, content) in zip(temporaries, files, strict=True):
            with temporary.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            if path.exists():
                shutil.copymode(path, temporary)
        for path in paths[:-1]:
            if path.exists():
                kept[path] = _beside(path)
                shutil.copy2(path, kept[path])
        for temporary, path in zip(temporaries, paths, strict=True):
            begun.append(path)
            temporary.replace(path)
    except BaseException:
        if temporaries[-1].exists():  # once the last is in its place, all are
            _undo(begun[: len(paths) - 1], kept)
        raise
    finally:
        for leftover in (*temporaries, *kept.values()):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)


def try_writing(path: Path) -> None:
    """Find out whether :func:`write_whole` could write there, leaving nothing behind.

    Raises:
        OSError: It could not.
    """
    temporary = _beside(Path(os.path.realpath(path)))
    with temporary.open("xb"):
        pass
    temporary.unlink()


def shortened(name: str) -> str:
    """A file's name cut so that some more characters fit into the 255 bytes that file systems allow."""
    return os.fsdecode(os.fsencode(name)[:NAME_BYTES])


def is_same_file(path: Path, other: Path) -> bool:
    """Whether two names are of one file, or would be if there were one, whatever links lead there."""
    if os.path.realpath(path) == os.path.realpath(other):
        return True
    try:
        return path.exists() and other.exists() and path.samefile(other)
    except OSError:  # too long a name for any file
        return False


def _undo(begun: Sequence[Path], kept: dict[Path, Path]) -> None:
    for path in begun:
        with contextlib.suppress(OSError):
            if path in kept:
                kept[path].replace(path)
            else:
                path.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    # By chance, not by the process's number: in a container that is the same at each run, and what a killed run left
    # behind would be in the way of all later ones.
    return path.with_name(f".{shortened(path.name)}.{secrets.token_hex(8)}.part")
