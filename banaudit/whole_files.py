"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, whatever happens in between.

    Args:
        path: Where to; an existing file is replaced.
        content: All of it.

    Raises:
        OSError: It cannot be written; the old file is as it was, and nothing else is left behind.
    """
    temporary = _beside(path)
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def try_writing(path: Path) -> None:
    """Find out whether :func:`write_whole` could write there, leaving nothing behind.

    Raises:
        OSError: It could not.
    """
    temporary = _beside(path)
    with temporary.open("xb"):
        pass
    temporary.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
