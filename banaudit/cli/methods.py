"""``banaudit methods``: what can look for a backdoor, what each needs, and what it is known to miss."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from banaudit.cli.streams import write_stdout
from banaudit.reports.escaping import markdown

COST = "images forward at most, for 10 classes and 1,000 images"


def methods(
    format_: Annotated[
        Literal["text", "json", "markdown"], typer.Option("--format", help="Format on standard output.")
    ] = "text",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """List the methods with what each needs, misses, and can be set to."""
    del verbose  # read by main, which prints the traceback
    from banaudit.detectors import DETECTORS, default_detectors

    default = {detector.name for detector in default_detectors()}
    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "default": name in default,
            "looks_for": method.title,
            "needs": method.needs,
            "misses": method.misses,
            "passes": method().planned_images(num_classes=10, images=1000),
            "settings": method().settings(),
        }
        for name, method in DETECTORS.items()
    ]
    if format_ == "json":
        write_stdout(json.dumps(listed, indent=2) + "\n")
        return
    if format_ == "markdown":
        write_stdout(_table(listed))
        return
    for entry in listed:
        mark = " (default)" if entry["default"] else ""
        settings = ", ".join(f"{key}={value}" for key, value in entry["settings"].items())
        write_stdout(
            f"{entry['name']}{mark}\n  looks for  {entry['looks_for']}\n  needs      {entry['needs']}\n"
            f"  misses     {entry['misses']}\n"
            f"  costs      {entry['passes']:,} {COST}\n"
            f"  settings   {settings}\n\n"
        )


def _table(listed: list[dict[str, Any]]) -> str:
    """The table in ``docs/methods.md``."""
    lines = [f"| method | default | looks for | needs | known to miss | {COST} |", "|---|---|---|---|---|---|"]
    for entry in listed:
        texts = [markdown(entry[key]) for key in ("looks_for", "needs", "misses")]
        lines.append(
            f"| `{entry['name']}` | {'yes' if entry['default'] else ''} | {' | '.join(texts)} | {entry['passes']:,} |"
        )
    return "\n".join(lines) + "\n"
