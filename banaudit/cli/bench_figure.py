"""``banaudit bench figure`` and ``bench noise``: figures as SVG, and the numbers behind the paper's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from banaudit.cli.bench_options import (
    RESULTS,
    Cache,
    Device,
    Fresh,
    Limit,
    Only,
    Root,
    Seed,
    Split,
    Verbose,
    choose_recipes,
    tell,
)
from banaudit.cli.streams import write_stdout
from banaudit.errors import UsageError
from banaudit.whole_files import write_whole


def figure(
    results: Annotated[Path, typer.Argument(help="Results file of bench run (roc) or bench noise (the others).")],
    *,
    kind: Annotated[
        Literal["roc", "noise", "masked-accuracy", "mask-losses"],
        typer.Option(help="Which figure; the last three are the paper's 1, 2 and 3."),
    ] = "roc",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="SVG file; else beside the results.")] = None,
    verbose: Verbose = False,
) -> None:
    """Draw a figure from a results file."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.figures import draw_figure

    path = output if output is not None else results.with_name(f"{results.stem}-{kind}.svg")
    text = draw_figure(kind, results)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror or error})") from None
    tell(f"drawn: {path}")


def noise(
    *,
    split: Split,
    data: Root = None,
    limit: Limit = None,
    only: Only = None,
    max_images: Annotated[int, typer.Option("--max-images", min=20, help="Clean images at most.")] = 500,
    seed: Seed = 0,
    cache: Cache = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="Results file; resumed if it is there.")] = RESULTS
    / "noise.json",
    fresh: Fresh = False,
    verbose: Verbose = False,
) -> None:
    """Measure trained victims under neuron noise and feature mask, for the paper's Figures 1 to 3."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.noise import run_noise
    from banaudit.bench.tables import render

    results = run_noise(
        choose_recipes(split, limit, only),
        output,
        split=split,
        images=max_images,
        seed=seed,
        root=data,
        cache=cache,
        device=device,
        fresh=fresh,
        progress=tell,
    )
    if not results.entries:
        raise UsageError(f"split {split}: none of these victims is trained; run banaudit bench train --split {split}")
    write_stdout(render(output))
