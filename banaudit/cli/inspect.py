"""``banaudit inspect``: what is in a file, running nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from banaudit.cli.streams import ScreenFormat, deliver
from banaudit.results import ExitCode, Inspection


def inspect(
    model: Annotated[Path, typer.Argument(help="The file. None of its code is run.")],
    state_key: Annotated[
        str | None, typer.Option(help="Where in the file the weights are, if in several places.")
    ] = None,
    format_: Annotated[ScreenFormat, typer.Option("--format", help="Format on standard output.")] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """Show what is in a checkpoint: format, keys, architecture, classes, unsafe globals.

    Exit codes: 0 it can be loaded, 1 it is unsafe to load, 2 it cannot be loaded.
    """
    del verbose  # read by main, which prints the traceback
    from banaudit import audit

    inspection = audit.inspect(model, state_key=state_key)
    deliver(inspection, format_)
    raise typer.Exit(_code(inspection))


def _code(inspection: Inspection) -> int:
    if inspection.loadable:
        return ExitCode.NO_EVIDENCE
    return ExitCode.BACKDOORED_OR_UNSAFE if inspection.unsafe else ExitCode.ERROR
