"""``banaudit bench repair`` and ``banaudit bench round-trip``: what repairs are worth, and whether their files fit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from banaudit.cli import subject
from banaudit.cli.bench_options import (
    RESULTS,
    Cache,
    Device,
    Factories,
    Fresh,
    Jobs,
    Limit,
    Only,
    OnlyFiles,
    Root,
    Seed,
    Split,
    Verbose,
    Zoo,
    ZooData,
    choose_recipes,
    show_results,
    tell,
    workplace,
)
from banaudit.cli.options import choose_mitigations, parse_settings
from banaudit.cli.streams import write_stdout
from banaudit.errors import UsageError


def repair(
    *,
    split: Split,
    method: Annotated[
        str, typer.Option(help="Mitigations, with commas between them; each is held against fine-tuning.")
    ] = "ban-distillation,ban,fine-tuning",
    settings: subject.Settings = None,
    images: Annotated[
        str, typer.Option(help="Clean images: a number, or a share of the training set; or a list: 5%,2%,1%,0.5%.")
    ] = "5%",
    runs: Annotated[int, typer.Option(min=1, help="Repairs of each victim, with seeds 0, 1, ...")] = 1,
    max_drop: Annotated[
        float, typer.Option(min=0, max=100, metavar="POINTS", help="Clean accuracy that a repair may cost.")
    ] = 2.0,
    test_images: Annotated[int, typer.Option(min=20, help="Held-out images to measure on at most.")] = 2000,
    rescan: Annotated[bool, typer.Option(help="Scan the repaired models, and probe them for a relapse.")] = True,
    data: Root = None,
    limit: Limit = None,
    only: Only = None,
    cache: Cache = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Results file; else docs/benchmark/repair-SPLIT.json.")] = None,
    fresh: Fresh = False,
    jobs: Jobs = 1,
    verbose: Verbose = False,
) -> None:
    """Repair every trained victim of a split, and measure what is left of backdoor and accuracy."""
    del verbose  # read by main, which prints the traceback
    mitigations = choose_mitigations(method, parse_settings(settings or ()))
    from banaudit.bench.repair_results import Amount
    from banaudit.bench.repairs import run_repairs

    path = output if output is not None else RESULTS / f"repair-{split}.json"
    amounts = [Amount.parse(text) for text in images.split(",")]
    if len(set(map(str, amounts))) < len(amounts):
        raise UsageError(f"--images {images}: names an amount twice")
    results = run_repairs(
        choose_recipes(split, limit, only),
        path,
        split=split,
        mitigations=mitigations,
        amounts=amounts,
        runs=runs,
        max_drop=max_drop / 100,
        test_images=test_images,
        rescan=rescan,
        workplace=workplace(data, cache, device, fresh=fresh, jobs=jobs),
    )
    show_results(path, split, results.entries)


def round_trip(
    *,
    zoo: Zoo,
    data: ZooData,
    factories: Factories = None,
    only: OnlyFiles = None,
    images: Annotated[int, typer.Option(min=100, help="Clean images of a repair.")] = 300,
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Results file; replaced.")] = RESULTS / "round-trip.json",
    verbose: Verbose = False,
) -> None:
    """Purify every checkpoint of a zoo for one epoch, and load what was written with plain torch code."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.round_trip import run_round_trip
    from banaudit.bench.tables import render

    run_round_trip(
        zoo,
        data,
        output,
        factories=factories,
        images=images,
        seed=seed,
        device=device,
        only=only,
        progress=tell,
    )
    write_stdout(render(output))
