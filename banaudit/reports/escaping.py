"""Makes text from untrusted files harmless where it is shown.

File names, class names and the keys of a checkpoint are chosen by whoever made the file. Shown as they are, they could
move the cursor, recolour or retitle a terminal, reverse the reading direction, or become links and HTML in Markdown.
"""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 600
"""Characters after which a single text is cut."""

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that are never shown raw: controls, format and direction marks, surrogates, line separators."""
_MARKDOWN = re.compile(r"[\\`*_{}\[\]#|~$]")
_BLOCK = re.compile(r"^(\d{0,9})([-+=.)])(?=[-=\s]|$)")
"""What makes a list, a heading or a rule of a line that begins with it."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
_LINKS = re.compile(r"(?i):(?=//)|\b(?<=www)\.|(?<=mailto):|(?<=xmpp):")


def printable(text: str, limit: int = MAX_LENGTH) -> str:
    r"""The text on one line, with whatever is not printable as a visible escape such as ``\x1b``.

    Args:
        text: Anything.
        limit: Longest result before it is cut, escapes included.
    """
    # Cut first: a key of many megabytes need not be escaped to the end.
    shown = "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in _UNPRINTABLE else character
        for character in text[: limit + 1]
    )
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def markdown(text: str, limit: int = MAX_LENGTH) -> str:
    """The text as Markdown that renders to exactly itself: no emphasis, links, mentions, HTML, table cells or lists.

    Args:
        text: Anything.
        limit: Longest text before it is cut.
    """
    shown = printable(text, limit)
    shown = "".join(_ENTITIES.get(character, character) for character in shown)
    # "#" of our own entities must survive the escape of Markdown's punctuation.
    parts = re.split(r"(&#?\w+;)", shown)
    escaped = "".join(part if index % 2 else _MARKDOWN.sub(r"\\\g<0>", part) for index, part in enumerate(parts))
    escaped = _BLOCK.sub(r"\1\\\2", escaped)
    if escaped.startswith(" "):  # four of them would be a block of code
        escaped = f"&#32;{escaped[1:]}"
    return _LINKS.sub(lambda match: f"&#{ord(match[0])};", escaped)
