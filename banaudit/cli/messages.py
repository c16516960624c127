"""Messages to the user: everything that goes to standard error, but for the progress bar.

They accompany the work and are not its result: that nobody reads them changes neither the work nor the exit code.
"""

from __future__ import annotations

import contextlib
import sys

from banaudit.reports.escaping import printable


def say(text: str) -> None:
    """A message on a line of its own, harmless whatever the names in it."""
    write_stderr(f"banaudit: {printable(text)}\n")


def write_stderr(text: str) -> None:
    """Write to standard error, if it takes anything."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
