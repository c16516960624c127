"""``banaudit bench study``: the same victims under several conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from banaudit.cli.bench_options import (
    RESULTS,
    Cache,
    Device,
    Fresh,
    Images,
    Jobs,
    Only,
    Root,
    Seed,
    Split,
    Verbose,
    choose_recipes,
    show_results,
    workplace,
)


def study(
    name: Annotated[
        Literal["seeds", "images", "recompressed", "trained-on", "released"],
        typer.Argument(metavar="STUDY", help="seeds, images, recompressed, trained-on or released."),
    ],
    *,
    split: Split,
    data: Root = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many trained victims, evenly from attacks and kinds of clean models.")
    ] = None,
    only: Only = None,
    max_images: Images = 1000,
    seed: Seed = 0,
    cache: Cache = None,
    device: Device = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results file; else docs/benchmark/study-STUDY.json.")
    ] = None,
    fresh: Fresh = False,
    jobs: Jobs = 1,
    verbose: Verbose = False,
) -> None:
    """Scan the same victims under several conditions, and show how verdicts and readings move."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.studies import run_study

    path = output if output is not None else RESULTS / f"study-{name}.json"
    results = run_study(
        name,
        choose_recipes(split, only=only),
        path,
        split=split,
        limit=limit,
        images=max_images,
        seed=seed,
        workplace=workplace(data, cache, device, fresh=fresh, jobs=jobs),
    )
    show_results(path, split, results.entries)
