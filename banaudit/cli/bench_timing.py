"""``banaudit bench timing``: what every method, or every repair, takes, and how that grows with the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from banaudit.cli.bench_options import RESULTS, Device, Seed, Verbose, tell
from banaudit.cli.streams import write_stdout
from banaudit.errors import UsageError


def timing(
    *,
    architecture: Annotated[str, typer.Option("--arch", help="Network, as the benchmark names it.")] = "resnet18",
    width: Annotated[int, typer.Option(min=1, help="Channels of the first stage; 64 is the full network.")] = 64,
    images: Annotated[int, typer.Option(min=50, help="Clean images.")] = 500,
    repairs: Annotated[bool, typer.Option("--repairs", help="Time repairs instead of scans.")] = False,
    classes: Annotated[str, typer.Option(metavar="K,K", help="Numbers of classes, a model for each.")] = "10,43,200",
    budget: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="A method that takes longer from its first pass on is stopped, the rest computed.",
        ),
    ] = 600.0,
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option(help="Results file; replaced. [default: timing.json, timing-repairs.json]")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Time the default scan and every method, or every repair, on the same models for several numbers of classes."""
    del verbose  # read by main, which prints the traceback
    counts = _parse_counts(classes)
    from banaudit.bench.tables import render
    from banaudit.bench.timing import TimedOn, time_methods, time_repairs

    path = output or RESULTS / ("timing-repairs.json" if repairs else "timing.json")
    on = TimedOn(architecture, width, images, counts, budget, device, seed)
    (time_repairs if repairs else time_methods)(path, on, progress=tell)
    write_stdout(render(path))


def _parse_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 2 or len(set(counts)) < len(counts):
        raise UsageError(f"--classes {text}: expected different numbers from 2 on, e.g. --classes 10,43,200")
    return counts
