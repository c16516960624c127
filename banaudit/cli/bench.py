"""``banaudit bench``: the measurements behind what banaudit says of itself."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from banaudit.cli.bench_calibrate import calibrate
from banaudit.cli.bench_figure import figure, noise
from banaudit.cli.bench_options import (
    RESULTS,
    Cache,
    Device,
    Factories,
    Fresh,
    Images,
    Jobs,
    Limit,
    Methods,
    MethodSettings,
    Only,
    OnlyFiles,
    Released,
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
    write_output,
)
from banaudit.cli.bench_repair import repair, round_trip
from banaudit.cli.bench_study import study
from banaudit.cli.bench_timing import timing
from banaudit.cli.options import choose_detectors, parse_settings
from banaudit.cli.streams import write_stdout
from banaudit.errors import UsageError

if TYPE_CHECKING:
    from banaudit.bench.victims import VictimFacts, VictimRecipe

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
    zoo: Zoo,
    data: ZooData,
    factories: Factories = None,
    only: OnlyFiles = None,
    method: Methods = None,
    settings: MethodSettings = None,
    max_images: Images = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Results file; resumed if it is there.")] = RESULTS / "zoo.json",
    fresh: Fresh = False,
    verbose: Verbose = False,
) -> None:
    """Scan every checkpoint of a zoo, and measure its clean accuracy over the whole test split."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.tables import render
    from banaudit.bench.zoo import run_zoo

    run_zoo(
        zoo,
        data,
        output,
        factories=factories,
        detectors=choose_detectors(method, parse_settings(settings or ())),
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
    only: Only = None,
    cache: Cache = None,
    device: Device = "auto",
    jobs: Jobs = 1,
    verbose: Verbose = False,
) -> None:
    """Train the victims of a split that are not in the cache yet."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.parallel import spread
    from banaudit.bench.population import floor_misses

    recipes = choose_recipes(split, limit, only)
    work = functools.partial(_train, data=data, cache=cache, device=device)
    for number, (recipe, facts) in enumerate(spread(work, recipes, jobs), start=1):
        success = "" if facts.attack_success is None else f", attack success {facts.attack_success:.1%}"
        short = "".join(f"; {miss}" for miss in floor_misses(facts))
        write_stdout(
            f"{number} of {len(recipes)}: {recipe.key}: clean accuracy {facts.clean_accuracy:.1%}{success}{short}\n"
        )


def _train(recipe: VictimRecipe, data: Path | None, cache: Path | None, device: str) -> VictimFacts:
    """One victim, in whatever process; its weights stay in the cache."""
    from banaudit.audit import pick_device
    from banaudit.bench.victims import train_victim

    return train_victim(recipe, root=data, cache=cache, device=pick_device(device), progress=tell).facts


@app.command("run")
def run(
    *,
    split: Split,
    data: Root = None,
    limit: Limit = None,
    only: Only = None,
    method: Methods = None,
    settings: MethodSettings = None,
    released: Released = False,
    clean_images: Annotated[
        Literal["test", "pool"], typer.Option(help="Clean images: the held-out split, or training images kept aside.")
    ] = "test",
    max_images: Images = 1000,
    seed: Seed = 0,
    cache: Cache = None,
    device: Device = "auto",
    output: Annotated[Path | None, typer.Option(help="Results file; else docs/benchmark/SPLIT.json.")] = None,
    fresh: Fresh = False,
    jobs: Jobs = 1,
    verbose: Verbose = False,
) -> None:
    """Scan every trained victim of a split with the default methods, or with others."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench import runner

    path = output if output is not None else RESULTS / f"{split}.json"
    recipes = choose_recipes(split, limit, only)
    results = runner.run(
        recipes,
        path,
        split=split,
        clean_images=clean_images,
        detectors=choose_detectors(method, parse_settings(settings or ()), released=released),
        images=max_images,
        seed=seed,
        workplace=workplace(data, cache, device, fresh=fresh, jobs=jobs),
    )
    tell(f"{len(results.entries)} victims in {path}; {len(recipes)} recipes asked for")
    show_results(path, split, results.entries)


@app.command("rejudge")
def rejudge(
    results: Annotated[list[Path], typer.Argument(help="Results files of bench run, study or zoo; changed in place.")],
    *,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Results file of the same models with methods that those scans lack.",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Judge recorded scans by thresholds changed since, and by methods added since; no model is needed."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.rejudge import rejudge_file

    for path in results:
        rejudge_file(path, tell, add or ())


@app.command("speed")
def speed(
    *,
    architecture: Annotated[str, typer.Option("--arch", help="Network, as the benchmark names it.")] = "resnet18",
    width: Annotated[int, typer.Option(min=1, help="Channels of the first stage; 64 is the full network.")] = 64,
    images: Annotated[int, typer.Option(min=50, help="Clean images.")] = 500,
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    plain_share: Annotated[
        float,
        typer.Option(min=0.001, max=1.0, help="Share of the plain procedure's passes to time; the rest is computed."),
    ] = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(help="Results file; replaced.")] = RESULTS / "speed.json",
    verbose: Verbose = False,
) -> None:
    """Time the authors' procedure, pass by pass, beside the whole default scan."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.results_files import write_results
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
    results: Annotated[
        list[Path],
        typer.Argument(help="Results file of another bench command; or several, of bench run or of bench repair."),
    ],
    *,
    output: Annotated[Path | None, typer.Option(help="Markdown file; else standard output.")] = None,
    verbose: Verbose = False,
) -> None:
    """Print the tables of a results file as Markdown; of several files of scans, the methods side by side."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.tables import render, render_several

    if output is not None and output.resolve() in {path.resolve() for path in results}:
        raise UsageError(f"--output {output}: is the results file itself; name a Markdown file")
    text = render(results[0]) if len(results) == 1 else render_several(results)
    if output is None:
        write_stdout(text)
        return
    write_output(output, text)
