"""How names out of a hostile file are put into one line of text."""

from __future__ import annotations

import itertools
from collections.abc import Collection

RESAVE = (
    "in the environment where the model was made, save the weights alone: "
    'torch.save(model.state_dict(), "weights.pt"), or as safetensors'
)
"""The next step for every file that is refused because it carries code."""


def printable(text: str, limit: int = 120) -> str:
    """Text that cannot move a terminal's cursor, break a line or reverse the reading order.

    Args:
        text: Anything that came out of a file.
        limit: Longest result, in characters.
    """
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def enumerated(names: Collection[object], limit: int = 4) -> str:
    """The first few names, and how many more there are: ``a, b and 3 more``."""
    shown = ", ".join(printable(str(name)) for name in itertools.islice(names, limit))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
