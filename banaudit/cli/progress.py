"""A progress bar with the time left, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from banaudit.meter import Listener
from banaudit.reports.escaping import printable

WHAT_LENGTH = 36
"""Characters of what is being done."""


@contextmanager
def progress_bar(*, wanted: bool) -> Iterator[Listener | None]:
    """A listener that draws a bar while the context lasts; none where nobody would see it.

    Args:
        wanted: Whether the user wants one; it also needs standard error to be a terminal.
    """
    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("elapsed", style="dim"),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("reading", total=1.0)

        def listen(what: str, share: float) -> None:
            progress.update(task, description=printable(what, WHAT_LENGTH), completed=share)

        yield listen
