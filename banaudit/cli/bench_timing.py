"""``banaudit bench timing``: what every method takes, and how that grows with the number of classes."""

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
    output: Annotated[Path, typer.Option(help="Results file; replaced.")] = RESULTS / "timing.json",
    verbose: Verbose = False,
) -> None:
    """Time the default scan and every method on the same models, for several numbers of classes."""
    del verbose  # read by main, which prints the traceback
    counts = _parse_counts(classes)
    from banaudit.bench.tables import render
    from banaudit.bench.timing import time_methods

    time_methods(
        output,
        architecture=architecture,
        width=width,
        images=images,
        classes=counts,
        budget=budget,
        device=device,
        seed=seed,
        progress=tell,
    )
    write_stdout(render(output))


def _parse_counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 2 or len(set(counts)) < len(counts):
        raise UsageError(f"--classes {text}: expected different numbers from 2 on, e.g. --classes 10,43,200")
    return counts
