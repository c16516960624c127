"""``banaudit methods``: what can look for a backdoor, what each needs, and what it is known to miss."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from banaudit.cli.streams import write_stdout
from banaudit.reports.escaping import markdown

COST = "images forward as planned, for 10 classes and 1,000 images"


def methods(
    format_: Annotated[
        Literal["text", "json", "markdown"], typer.Option("--format", help="Format on standard output.")
    ] = "text",
    repairs: Annotated[bool, typer.Option("--repairs", help="Those of purify instead of those of scan.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """List the methods with what each needs, misses, and can be set to."""
    del verbose  # read by main, which prints the traceback
    listed = _repairs() if repairs else _detectors()
    if format_ == "json":
        write_stdout(json.dumps(listed, indent=2) + "\n")
    elif format_ == "markdown":
        write_stdout(_table(listed, _REPAIR_COLUMNS if repairs else _DETECTOR_COLUMNS))
    else:
        write_stdout("".join(_paragraph(entry) for entry in listed))


def _detectors() -> list[dict[str, Any]]:
    from banaudit.detectors import DETECTORS, default_detectors

    default = {detector.name for detector in default_detectors()}
    return [
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


def _repairs() -> list[dict[str, Any]]:
    from banaudit.mitigations import DEFAULT, MITIGATIONS

    return [
        {
            "name": name,
            "default": method is DEFAULT,
            "does": method.title,
            "needs": method.needs,
            "settings": method().settings(),
        }
        for name, method in MITIGATIONS.items()
    ]


_DETECTOR_COLUMNS = {
    "name": "method",
    "default": "default",
    "looks_for": "looks for",
    "needs": "needs",
    "misses": "known to miss",
    "accuses_wrongly": "known to accuse wrongly",
    "passes": COST,
}
_REPAIR_COLUMNS = {"name": "method", "does": "does", "needs": "needs"}
"""Entry -> heading, of the tables."""

_LINES = {
    "looks_for": "looks for",
    "does": "does",
    "needs": "needs",
    "misses": "misses",
    "accuses_wrongly": "beware",
    "passes": "costs",
    "settings": "settings",
}
"""Entry -> word in front of it, in the text; what is empty has no line."""


def _told(key: str, value: Any) -> str:
    """An entry in words."""
    if key == "settings":
        return ", ".join(f"{name}={setting}" for name, setting in value.items())
    if key == "accuses_wrongly":
        return f"accuses wrongly: {value}"
    return f"{value:,} {COST}" if key == "passes" else str(value)


def _paragraph(entry: dict[str, Any]) -> str:
    lines = [f"  {word:<11}{_told(key, entry[key])}\n" for key, word in _LINES.items() if entry.get(key)]
    return f"{entry['name']}{' (default)' if entry['default'] else ''}\n{''.join(lines)}\n"


def _table(listed: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """That of the detectors stands in ``docs/methods.md``."""
    rows = [list(columns.values()), *([_cell(key, entry[key]) for key in columns] for entry in listed)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(columns)}", *lines[1:]]) + "\n"


def _cell(key: str, value: Any) -> str:
    if key == "name":
        return f"`{value}`"
    if key == "default":
        return "yes" if value else ""
    return f"{value:,}" if key == "passes" else markdown(value)
