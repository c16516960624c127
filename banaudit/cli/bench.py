"""``banaudit bench``: the measurements behind what banaudit says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from banaudit.cli.bench_calibrate import calibrate
from banaudit.cli.bench_figure import figure, noise
from banaudit.cli.bench_options import (
    RESULTS,
    Cache,
    Device,
    Fresh,
    Images,
    Limit,
    Only,
    Root,
    Seed,
    Split,
    Verbose,
    choose_recipes,
    tell,
)
from banaudit.cli.bench_repair import repair, round_trip
from banaudit.cli.bench_study import study
from banaudit.cli.bench_timing import timing
from banaudit.cli.options import choose_detectors, parse_settings
from banaudit.cli.streams import write_stdout
from banaudit.errors import UsageError
from banaudit.whole_files import write_whole

app = typer.Typer(
    name="bench",
    help="Measure banaudit itself: known checkpoints, victims trained for the purpose, speed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("calibrate")(calibrate)
app.command("study")(study)
app.command("figure")(figure)
app.command("noise")(noise)
app.command("repair")(repair)
app.command("round-trip")(round_trip)
app.command("timing")(timing)


@app.command("zoo")
def zoo(
    *,
    zoo: Annotated[Path, typer.Option(help="Folder with the manifests third_party.json and trained.json.")],
    data: Annotated[Path, typer.Option("--data", "-d", help="Folder with cifar10/test, gtsrb32/test, mnist/test.")],
    factories: Annotated[
        Path | None, typer.Option(help="Folder of factories.json: architectures as code you trust.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only files that match, e.g. '*ibau*'.")] = None,
    max_images: Images = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Results file; resumed if it is there.")] = RESULTS / "zoo.json",
    fresh: Fresh = False,
    verbose: Verbose = False,
) -> None:
    """Scan every checkpoint of a zoo and measure its clean accuracy over the whole test split."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.tables import render
    from banaudit.bench.zoo import run_zoo

    run_zoo(
        zoo,
        data,
        output,
        factories=factories,
        images=max_images,
        seed=seed,
        device=device,
        only=only,
        fresh=fresh,
        progress=tell,
    )
    write_stdout(render(output))


@app.command("train")
def train(
    *,
    split: Split,
    data: Root = None,
    limit: Limit = None,
    cache: Cache = None,
    device: Device = "auto",
    verbose: Verbose = False,
) -> None:
    """Train the victims of a split that are not in the cache yet."""
    del verbose  # read by main, which prints the traceback
    from banaudit.audit import pick_device
    from banaudit.bench.population import floor_misses
    from banaudit.bench.victims import train_victim

    where = pick_device(device)
    recipes = choose_recipes(split, limit)
    for number, recipe in enumerate(recipes, start=1):
        facts = train_victim(recipe, root=data, cache=cache, device=where, progress=tell).facts
        success = "" if facts.attack_success is None else f", attack success {facts.attack_success:.1%}"
        short = "".join(f"; {miss}" for miss in floor_misses(facts))
        write_stdout(
            f"{number} of {len(recipes)}: {recipe.key}: clean accuracy {facts.clean_accuracy:.1%}{success}{short}\n"
        )


@app.command("run")
def run(
    *,
    split: Split,
    data: Root = None,
    limit: Limit = None,
    only: Only = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", metavar="A,B", help="Methods to run instead of the default; all.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a method's setting.")
    ] = None,
    clean_images: Annotated[
        Literal["test", "pool"], typer.Option(help="Clean images: the held-out split, or training images kept aside.")
    ] = "test",
    max_images: Images = 1000,
    seed: Seed = 0,
    cache: Cache = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Results file; else docs/benchmark/SPLIT.json.")] = None,
    fresh: Fresh = False,
    verbose: Verbose = False,
) -> None:
    """Scan every trained victim of a split with the default methods, or with others."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench import runner
    from banaudit.bench.tables import render

    path = output if output is not None else RESULTS / f"{split}.json"
    recipes = choose_recipes(split, limit, only)
    results = runner.run(
        recipes,
        path,
        split=split,
        clean_images=clean_images,
        detectors=choose_detectors(method, parse_settings(settings or ()), released=False),
        images=max_images,
        seed=seed,
        root=data,
        cache=cache,
        device=device,
        fresh=fresh,
        progress=tell,
    )
    tell(f"{len(results.entries)} victims in {path}; {len(recipes)} recipes asked for")
    if not results.entries:
        raise UsageError(f"split {split}: none of its victims is trained; run banaudit bench train --split {split}")
    write_stdout(render(path))


@app.command("speed")
def speed(
    *,
    architecture: Annotated[str, typer.Option("--arch", help="Network, as the benchmark names it.")] = "resnet18",
    width: Annotated[int, typer.Option(min=1, help="Channels of the first stage; 64 is the full network.")] = 64,
    images: Annotated[int, typer.Option(min=50, help="Clean images.")] = 500,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    plain_share: Annotated[
        float, typer.Option(help="Share of the plain procedure's passes to time; the rest is computed.")
    ] = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Results file; replaced.")] = RESULTS / "speed.json",
    verbose: Verbose = False,
) -> None:
    """Time the authors' procedure, pass by pass, beside the whole default scan."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.runner import write_results
    from banaudit.bench.speed import compare
    from banaudit.bench.tables import render

    result = compare(
        architecture=architecture,
        width=width,
        images=images,
        classes=classes,
        device=device,
        plain_share=plain_share,
        seed=seed,
        progress=tell,
    )
    write_results(output, result)
    write_stdout(render(output))


@app.command("table")
def table(
    results: Annotated[Path, typer.Argument(help="Results file of another bench command.")],
    *,
    output: Annotated[Path | None, typer.Option(help="Markdown file; else standard output.")] = None,
    verbose: Verbose = False,
) -> None:
    """Print the tables of a results file as Markdown."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.tables import render

    text = render(results)
    if output is None:
        write_stdout(text)
        return
    try:
        write_whole(output, text.encode())
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be written ({error.strerror or error})") from None
