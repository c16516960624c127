"""``banaudit scan``: from a checkpoint and clean images to a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from banaudit.cli import subject
from banaudit.cli.messages import say
from banaudit.cli.options import choose_detectors, input_files, make_subject, parse_settings
from banaudit.cli.pictures import check_folder, keep_pictures
from banaudit.cli.progress import progress_bar
from banaudit.cli.streams import deliver, parse_outputs, reports_alone
from banaudit.errors import UnsafeCheckpointError, UsageError
from banaudit.results import EXIT_CODES, ExitCode, Inspection, Report

if TYPE_CHECKING:
    from banaudit.triggers import RecoveredTrigger


def scan(
    model: subject.ModelPath,
    *,
    data: subject.DataPath,
    arch: subject.Arch = None,
    state_key: subject.StateKey = None,
    classes: subject.Classes = None,
    preset: subject.Preset = None,
    mean: subject.Mean = None,
    std: subject.Std = None,
    size: subject.Size = None,
    max_images: subject.MaxImages = 1000,
    accuracy_floor: subject.AccuracyFloor = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Methods instead of the default; also default, all.",
            rich_help_panel=subject.METHODS,
        ),
    ] = None,
    settings: subject.Settings = None,
    released: Annotated[
        bool,
        typer.Option("--released", help="Run BAN alone, as its authors released it.", rich_help_panel=subject.METHODS),
    ] = False,
    seed: subject.Seed = 0,
    device: subject.Device = "auto",
    time_limit: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="SECONDS", help="End as inconclusive after this time.", rich_help_panel=subject.METHODS
        ),
    ] = None,
    format_: subject.Format = "text",
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT=PATH",
            help="Also write text, json or markdown to a file; repeatable.",
            rich_help_panel=subject.OUTPUT,
        ),
    ] = None,
    triggers: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep recovered triggers there as PNG files; new or empty.",
            rich_help_panel=subject.OUTPUT,
        ),
    ] = None,
    exit_zero: Annotated[
        bool,
        typer.Option("--exit-zero", help="Exit 0 whatever the verdict; 2 on errors.", rich_help_panel=subject.OUTPUT),
    ] = False,
    quiet: subject.Quiet = False,
    verbose: subject.Verbose = False,
    no_progress: subject.NoProgress = False,
) -> None:
    """Judge a checkpoint: backdoored, no evidence, or inconclusive.

    Exit codes: 0 no evidence, 1 backdoored or unsafe to load, 2 usage or error, 3 inconclusive.
    """
    del verbose  # read by main, which prints the traceback
    outputs = parse_outputs(output or (), input_files(model, data, classes=classes, arch=arch))
    if triggers is not None:
        check_folder(triggers, [written.path for written in outputs], data)
    changes = parse_settings(settings or ())
    found: list[RecoveredTrigger] = []
    record: Report | Inspection
    with progress_bar(wanted=not (quiet or no_progress)) as listener, reports_alone():
        suspect = make_subject(
            model,
            data,
            arch=arch,
            state_key=state_key,
            classes=classes,
            preset=preset,
            mean=mean,
            std=std,
            size=size,
            max_images=max_images,
            accuracy_floor=accuracy_floor,
        )
        from banaudit import audit

        try:
            report = audit.scan(
                suspect,
                detectors=choose_detectors(method, changes, released=released),
                seed=seed,
                device=device,
                time_limit=time_limit,
                listener=listener,
                triggers=None if triggers is None else found.append,
            )
            record, code, unsafe = report, EXIT_CODES[report.verdict], ""
        except UnsafeCheckpointError as refusal:
            # A finding of its own: reported in every format, and counted as one by the exit code.
            record, code, unsafe = audit.inspect(model), ExitCode.BACKDOORED_OR_UNSAFE, str(refusal)
    if unsafe:
        say(unsafe)
    refused: UsageError | None = None
    if triggers is not None and found and isinstance(record, Report):
        try:
            record = keep_pictures(record, found, triggers)
        except UsageError as problem:  # the verdict must not be lost with its pictures
            refused = problem
    deliver(record, format_, outputs)
    if refused is not None:
        raise refused
    if not quiet:
        for written in outputs:
            say(f"wrote {written.format} to {written.path}")
        if triggers is not None:
            say(f"wrote pictures to {triggers}" if found else "no trigger was recovered, so no picture")
    raise typer.Exit(0 if exit_zero else code)
