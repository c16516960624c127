"""``banaudit purify``: from a suspect checkpoint to a repaired one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from banaudit.cli import subject
from banaudit.cli.messages import say
from banaudit.cli.options import choose_detectors, choose_mitigation, input_files, make_subject, parse_settings
from banaudit.cli.progress import progress_bar
from banaudit.cli.streams import deliver, refuse_inputs, reports_alone
from banaudit.errors import UsageError
from banaudit.results import EXIT_CODES

REPAIR = "Repair"

MAX_IMAGES = 4000
"""More than a scan uses: the paper repairs with 2,500, and a share of these plays no part in the training."""

ODD_POINTS = 0.1
"""A smaller budget than this many points was perhaps meant as a share."""


def purify(
    model: subject.ModelPath,
    *,
    data: subject.DataPath,
    out: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Where the repaired checkpoint goes.", rich_help_panel=subject.OUTPUT
        ),
    ],
    arch: subject.Arch = None,
    state_key: subject.StateKey = None,
    classes: subject.Classes = None,
    preset: subject.Preset = None,
    mean: subject.Mean = None,
    std: subject.Std = None,
    size: subject.Size = None,
    max_images: subject.MaxImages = MAX_IMAGES,
    accuracy_floor: subject.AccuracyFloor = None,
    method: Annotated[
        str,
        typer.Option(
            help="ban-distillation, ban, fine-tuning, ft-sam, anp, clp, bti-dbf-unlearning or feature-flip.",
            rich_help_panel=REPAIR,
        ),
    ] = "ban-distillation",
    scan_method: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Methods of the scans before and after, as scan's --method.",
            rich_help_panel=REPAIR,
        ),
    ] = None,
    settings: subject.Settings = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the images instead of the method's own number.", rich_help_panel=REPAIR),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0,
            max=100,
            metavar="POINTS",
            help="Clean accuracy it may cost, in points: 2 is two per cent of the images.",
            rich_help_panel=REPAIR,
        ),
    ] = 2.0,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Never mirror training images.", rich_help_panel=REPAIR)
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace OUT; repair even without evidence of a backdoor.", rich_help_panel=subject.OUTPUT
        ),
    ] = False,
    seed: subject.Seed = 0,
    device: subject.Device = "auto",
    format_: subject.Format = "text",
    quiet: subject.Quiet = False,
    verbose: subject.Verbose = False,
    no_progress: subject.NoProgress = False,
) -> None:
    """Repair a suspect checkpoint: write one of the same form, and scan it again to say what it is worth.

    Exit codes: 0 written and no evidence left, 1 still accused or it comes back (or MODEL is unsafe to load), 2 error
    or OUT exists, 3 inconclusive or too costly.
    """
    del verbose  # read by main, which prints the traceback
    mitigation = choose_mitigation(method, parse_settings(settings or ()), epochs=epochs)
    detectors = choose_detectors(scan_method, {}, option="--scan-method")
    from banaudit.checkpoints.writer import beside

    if not out.name:
        raise UsageError(f"--output {out}: is a folder; name a file in it")
    if 0 < max_drop < ODD_POINTS and not quiet:
        say(f"--max-drop {max_drop:g} is {max_drop:g} points of clean accuracy; 2 means two points")
    for path in (out, beside(out)):
        refuse_inputs(path, input_files(model, data, classes=classes, arch=arch), f"--output {out}")
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
        from banaudit.purify import purify as run

        record = run(
            suspect,
            out,
            mitigation=mitigation,
            detectors=detectors,
            max_drop=max_drop / 100,
            flips=False if no_flip else None,
            force=force,
            seed=seed,
            device=device,
            listener=listener,
        )
    deliver(record, format_)
    if not quiet:
        say(f"wrote {out} and {out.name}.json" if record.written else "wrote nothing")
    raise typer.Exit(EXIT_CODES[record.verdict])
