"""Short names for the state of this code: results say which made them, and an interrupted run knows its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import banaudit

NOT_CODE_OF_A_SCAN = frozenset({"bench", "cli", "reports", "demo"})
"""Parts of the package that change no verdict."""


def _digest(left_out: frozenset[str] = frozenset()) -> str:
    """The same sources, the same name."""
    package = Path(banaudit.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in left_out:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


# Taken when this module is read: what runs is what was there then, whatever is edited while work is under way.
CODE = _digest(NOT_CODE_OF_A_SCAN)
"""Of what decides verdicts and repairs."""
ALL_CODE = _digest()
"""Of the whole package, trainers and attacks included."""
