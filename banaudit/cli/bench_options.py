"""Options that several ``banaudit bench`` commands share, and how they tell of progress."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from banaudit.cli.messages import say
from banaudit.cli.streams import write_stdout
from banaudit.cli.subject import MAX_SEED
from banaudit.errors import UsageError
from banaudit.whole_files import write_whole

if TYPE_CHECKING:
    from banaudit.bench.victims import VictimRecipe
    from banaudit.bench.workplace import Workplace

RESULTS = Path("docs/benchmark")
"""Where results files are kept, relative to the checkout."""

Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
Split = Annotated[
    Literal["development", "opened", "opened-1", "opened-2", "opened-3", "opened-4", "test", "whole-test", "paper"],
    typer.Option(
        help="Which victims; opened: of the test, seen before today's thresholds, all or one of four shares; "
        "test: the rest, opened once; whole-test: both, for repairs; paper: the paper's networks, for a GPU."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many victims of the split.")]
Only = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="Only victims whose name matches, e.g. '*vgg11*-badnets-*'.")
]
Cache = Annotated[
    Path | None, typer.Option(help="Where victims and decoded data are kept; else $BANAUDIT_CACHE, ~/.cache/banaudit.")
]
Root = Annotated[Path | None, typer.Option("--data", "-d", help="Folder of the data sets, as folders or zip files.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Scan again what was scanned with the same settings.")]
Images = Annotated[int, typer.Option("--max-images", min=20, help="Clean images of a scan at most.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of images and searches.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes that share the work.")]
Zoo = Annotated[Path, typer.Option(help="Folder with the manifests third_party.json and trained.json.")]
ZooData = Annotated[Path, typer.Option("--data", "-d", help="Folder with cifar10/test, gtsrb32/test, mnist/test.")]
Factories = Annotated[Path | None, typer.Option(help="Folder of factories.json: architectures as code you trust.")]
OnlyFiles = Annotated[str | None, typer.Option(metavar="PATTERN", help="Only files that match, e.g. '*ibau*'.")]
Methods = Annotated[
    str | None,
    typer.Option("--method", "-m", metavar="A,B", help="Methods instead of the default; also default, all."),
]
MethodSettings = Annotated[
    list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="Change a method's setting.")
]
Released = Annotated[bool, typer.Option("--released", help="Run BAN alone, as its authors released it.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")]


def choose_recipes(split: str, limit: int | None = None, only: str | None = None) -> Sequence[VictimRecipe]:
    """Recipes of a split whose name matches, the first so many of them.

    Raises:
        UsageError: None does.
    """
    from banaudit.bench.population import SPLITS

    recipes = SPLITS[split]()
    matching = [recipe for recipe in recipes if only is None or fnmatch(recipe.key, only)]
    if not matching:
        raise UsageError(
            f"--only {only}: matches no victim of split {split}; expected a pattern of their names, such as "
            f"{recipes[0].key}"
        )
    return matching[:limit]


def tell(text: str) -> None:
    """A line of progress on standard error."""
    say(text)


def workplace(data: Path | None, cache: Path | None, device: str, *, fresh: bool = False, jobs: int = 1) -> Workplace:
    """What a command's options say of where and how it works."""
    from banaudit.bench.datasets import default_cache
    from banaudit.bench.workplace import Workplace

    return Workplace(data, cache or default_cache(), device, fresh=fresh, jobs=jobs, progress=tell)


def show_results(path: Path, split: str, entries: Sequence[object]) -> None:
    """The tables of a results file on standard output.

    Args:
        path: The file.
        split: The victims that were asked for.
        entries: What the file holds of them.

    Raises:
        UsageError: It holds nothing, since no victim is trained.
    """
    from banaudit.bench.tables import render

    if not entries:
        raise UsageError(f"split {split}: none of these victims is trained; run banaudit bench train --split {split}")
    write_stdout(render(path))


def write_output(path: Path, text: str) -> None:
    """Write what a command made, whole or not at all.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UsageError(f"--output {path}: cannot be written ({error.strerror or error})") from None
