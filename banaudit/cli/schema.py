"""``banaudit schema``: the JSON schema that reports follow."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import typer

from banaudit.cli.streams import write_stdout
from banaudit.reports import json_text


def schema(
    kind: Annotated[Literal["report", "inspection", "repair"], typer.Argument(help="Which record.")] = "report",
) -> None:
    """Print the versioned JSON schema of reports, inspections or repairs."""
    write_stdout(json.dumps(json_text.schema(kind), indent=2) + "\n")
