"""The commands, put together. A new one is a file of its own and a line here."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from banaudit import __version__
from banaudit.cli import bench, demo, inspect, methods, purify, scan, schema
from banaudit.errors import UsageError


class Ended(Exception):  # noqa: N818 - no error
    """A command has done its work and gives its exit code.

    ``SystemExit`` would not tell that: typer raises it with 1, an accusation, when nobody reads what it prints.

    Args:
        code: The exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Commands(TyperGroup):
    """The commands. They end with ``typer.Exit``; ``SystemExit`` is that of code which the user gave, and an error."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except typer.Exit as ended:
            raise Ended(ended.exit_code) from None
        except SystemExit as problem:
            if isinstance(problem.__context__, BrokenPipeError):
                raise  # rich's, where nobody reads the help that it prints
            detail = " ".join(str(problem).split())
            raise UsageError(
                f"code from outside banaudit ended the process (SystemExit: {detail}) before there was a result; "
                "check the file given with --arch"
            ) from problem


def build() -> typer.Typer:
    """The command line application."""
    app = typer.Typer(
        name="banaudit",
        cls=_Commands,
        help="Audit image classifiers that somebody else trained: find backdoors and name the target class.",
        epilog="Exit codes: 0 no evidence, 1 backdoored or unsafe to load, 2 usage or error, 3 inconclusive.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command("scan")(scan.scan)
    app.command("purify")(purify.purify)
    app.command("inspect")(inspect.inspect)
    app.command("methods")(methods.methods)
    app.command("schema")(schema.schema)
    app.command("demo")(demo.demo)
    app.add_typer(bench.app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"banaudit {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Takes the options that belong to no command; ``--version`` acts by its callback."""
