"""How names out of a hostile file are put into one line of text."""

from __future__ import annotations

from collections.abc import Iterable

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


def enumerated(names: Iterable[str], limit: int = 4) -> str:
    """The first few names, and how many more there are: ``a, b and 3 more``."""
    shown = [printable(name) for name in names]
    if len(shown) <= limit:
        return ", ".join(shown)
    return f"{', '.join(shown[:limit])} and {len(shown) - limit} more"
