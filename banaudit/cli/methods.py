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
    repairs: Annotated[bool, typer.Option("--repairs", help="Those of purify instead of those of scan.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """List the methods with what each needs, misses, and can be set to."""
    del verbose  # read by main, which prints the traceback
    if repairs:
        _list_repairs(format_)
        return
    from banaudit.detectors import DETECTORS, default_detectors

    default = {detector.name for detector in default_detectors()}
    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "default": name in default,
            "looks_for": method.title,
            "needs": method.needs,
            "misses": method.misses,
            "accuses_wrongly": method.warns,
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
        settings = _told(entry["settings"])
        warning = f"  beware     accuses wrongly: {entry['accuses_wrongly']}\n" if entry["accuses_wrongly"] else ""
        write_stdout(
            f"{entry['name']}{mark}\n  looks for  {entry['looks_for']}\n  needs      {entry['needs']}\n"
            f"  misses     {entry['misses']}\n"
            f"{warning}"
            f"  costs      {entry['passes']:,} {COST}\n"
            f"  settings   {settings}\n\n"
        )


def _list_repairs(format_: Literal["text", "json", "markdown"]) -> None:
    from banaudit.mitigations import DEFAULT, MITIGATIONS

    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "default": method is DEFAULT,
            "does": method.title,
            "needs": method.needs,
            "settings": method().settings(),
        }
        for name, method in MITIGATIONS.items()
    ]
    if format_ == "json":
        write_stdout(json.dumps(listed, indent=2) + "\n")
        return
    if format_ == "markdown":
        lines = ["| method | does | needs |", "|---|---|---|"]
        lines += [f"| `{entry['name']}` | {markdown(entry['does'])} | {markdown(entry['needs'])} |" for entry in listed]
        write_stdout("\n".join(lines) + "\n")
        return
    for entry in listed:
        write_stdout(
            f"{entry['name']}{' (default)' if entry['default'] else ''}\n  does       {entry['does']}\n"
            f"  needs      {entry['needs']}\n  settings   {_told(entry['settings'])}\n\n"
        )


def _told(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _table(listed: list[dict[str, Any]]) -> str:
    """The table in ``docs/methods.md``."""
    lines = [
        f"| method | default | looks for | needs | known to miss | known to accuse wrongly | {COST} |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in listed:
        texts = [markdown(entry[key]) for key in ("looks_for", "needs", "misses", "accuses_wrongly")]
        lines.append(
            f"| `{entry['name']}` | {'yes' if entry['default'] else ''} | {' | '.join(texts)} | {entry['passes']:,} |"
        )
    return "\n".join(lines) + "\n"
