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
    show_results,
    tell,
    workplace,
    write_output,
)


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
    write_output(path, draw_figure(kind, results))
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

    results = run_noise(
        choose_recipes(split, limit, only),
        output,
        split=split,
        images=max_images,
        seed=seed,
        workplace=workplace(data, cache, device, fresh=fresh),
    )
    show_results(output, split, results.entries)
