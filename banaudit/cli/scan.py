"""``banaudit scan``: from a checkpoint and clean images to a verdict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from banaudit.cli.options import choose_detectors, parse_numbers, parse_settings
from banaudit.cli.progress import progress_bar
from banaudit.cli.streams import ScreenFormat, deliver, parse_outputs
from banaudit.errors import UnsafeCheckpointError
from banaudit.reports.escaping import printable
from banaudit.results import EXIT_CODES, ExitCode, Inspection, Report

DATA, MODEL, METHODS, OUTPUT = "Clean images", "Model", "Methods", "Output"


def scan(
    model: Annotated[Path, typer.Argument(help="Checkpoint: torch or safetensors. None of its code is run.")],
    *,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            "-d",
            help="Clean images: a folder by class, a CSV, or class_3_example_7.png.",
            rich_help_panel=DATA,
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(help="Architecture: a name, or FILE.py:FACTORY (code you trust).", rich_help_panel=MODEL),
    ] = None,
    state_key: Annotated[
        str | None, typer.Option(help="Where in the file the weights are, if in several places.", rich_help_panel=MODEL)
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="classes.txt or .json: names in the network's order.", rich_help_panel=DATA)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Normalisation by name, e.g. cifar10, imagenet, none.", rich_help_panel=DATA)
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Mean of each channel, in [0, 1].", rich_help_panel=DATA)
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Standard deviation of each channel.", rich_help_panel=DATA)
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the network's input in pixels.", rich_help_panel=DATA)
    ] = None,
    max_images: Annotated[
        int, typer.Option(min=1, help="Images used at most, evenly by class.", rich_help_panel=DATA)
    ] = 1000,
    accuracy_floor: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Clean accuracy below which the verdict is inconclusive.", rich_help_panel=METHODS
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="A,B", help="Methods to run instead of the default.", rich_help_panel=METHODS)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A.KEY=VALUE", help="Change a method's setting; repeatable.", rich_help_panel=METHODS
        ),
    ] = None,
    released: Annotated[
        bool, typer.Option("--released", help="Run BAN alone, as its authors released it.", rich_help_panel=METHODS)
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same report.", rich_help_panel=METHODS)] = 0,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.", rich_help_panel=METHODS)
    ] = "auto",
    time_limit: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="End as inconclusive after this time.", rich_help_panel=METHODS),
    ] = None,
    format_: Annotated[
        ScreenFormat, typer.Option("--format", help="Format on standard output.", rich_help_panel=OUTPUT)
    ] = "text",
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT=PATH",
            help="Also write text, json or markdown to a file; repeatable.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit 0 whatever the verdict; 2 on errors.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no messages.", rich_help_panel=OUTPUT)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the traceback of an error.", rich_help_panel=OUTPUT)
    ] = False,
    no_progress: Annotated[
        bool, typer.Option("--no-progress", help="No progress bar.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Judge a checkpoint: backdoored, no evidence, or inconclusive.

    Exit codes: 0 no evidence, 1 backdoored or unsafe to load, 2 usage or error, 3 inconclusive.
    """
    del verbose  # read by main, which prints the traceback
    outputs = parse_outputs(output or (), (model, data))
    changes = parse_settings(settings or ())
    means, stds = parse_numbers("--mean", mean), parse_numbers("--std", std)
    record: Report | Inspection
    with progress_bar(wanted=not (quiet or no_progress)) as listener:
        from banaudit import audit

        try:
            report = audit.scan(
                model,
                data,
                detectors=choose_detectors(method, changes, released=released),
                arch=arch,
                state_key=state_key,
                class_map=classes,
                preset=preset,
                mean=means,
                std=stds,
                size=size,
                max_images=max_images,
                accuracy_floor=accuracy_floor,
                seed=seed,
                device=device,
                time_limit=time_limit,
                listener=listener,
            )
            record, code, unsafe = report, EXIT_CODES[report.verdict], ""
        except UnsafeCheckpointError as refusal:
            # A finding of its own: reported in every format, and counted as one by the exit code.
            record, code, unsafe = audit.inspect(model), ExitCode.BACKDOORED_OR_UNSAFE, str(refusal)
    if unsafe:
        print(f"banaudit: {printable(unsafe)}", file=sys.stderr)
    deliver(record, format_, outputs)
    if not quiet:
        for written in outputs:
            print(f"banaudit: wrote {written.format} to {printable(str(written.path))}", file=sys.stderr)
    raise typer.Exit(0 if exit_zero else code)
