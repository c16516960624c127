"""Options that every command on a checkpoint and clean images takes, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from banaudit.cli.streams import ScreenFormat

DATA, MODEL, METHODS, OUTPUT = "Clean images", "Model", "Methods", "Output"

MAX_SEED = 2**32 - 1
"""Repairs multiply a seed by some hundred thousand, and torch takes none beyond 64 bits."""
MAX_SIZE = 4096
"""Larger than any classifier's input; a few hundred images of this side take as much memory as most machines have."""

ModelPath = Annotated[Path, typer.Argument(help="Checkpoint: torch or safetensors. None of its code is run.")]
DataPath = Annotated[
    Path,
    typer.Option(
        "--data", "-d", help="Clean images: a folder by class, a CSV, or class_3_example_7.png.", rich_help_panel=DATA
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="Architecture: a name, or FILE.py:FACTORY (code you trust) that makes a torch.nn.Module.",
        rich_help_panel=MODEL,
    ),
]
StateKey = Annotated[
    str | None, typer.Option(help="Where in the file the weights are, if in several places.", rich_help_panel=MODEL)
]
Classes = Annotated[
    Path | None, typer.Option(help="classes.txt or .json: names in the network's order.", rich_help_panel=DATA)
]
Preset = Annotated[
    str | None, typer.Option(help="Normalisation by name, e.g. cifar10, imagenet, none.", rich_help_panel=DATA)
]
Mean = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Mean of each channel, in [0, 1].", rich_help_panel=DATA)
]
Std = Annotated[
    str | None, typer.Option(metavar="R,G,B", help="Standard deviation of each channel.", rich_help_panel=DATA)
]
Size = Annotated[
    int | None, typer.Option(min=1, max=MAX_SIZE, help="Side of the network's input in pixels.", rich_help_panel=DATA)
]
MaxImages = Annotated[int, typer.Option(min=1, help="Images used at most, evenly by class.", rich_help_panel=DATA)]
AccuracyFloor = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Clean accuracy below which the verdict is inconclusive; else five times chance, from 0.2 to 0.6.",
        rich_help_panel=METHODS,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.KEY=VALUE", help="Change a method's setting; repeatable.", rich_help_panel=METHODS
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Same seed, same report.", rich_help_panel=METHODS)]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.", rich_help_panel=METHODS)]
Format = Annotated[ScreenFormat, typer.Option("--format", help="Format on standard output.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.", rich_help_panel=OUTPUT)]
