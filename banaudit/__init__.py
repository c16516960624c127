"""banaudit audits image classifiers that somebody else trained.

>>> from pathlib import Path
>>> import banaudit
>>> report = banaudit.scan(banaudit.Subject(Path("model.pt"), Path("clean/")))  # doctest: +SKIP
>>> report.verdict  # doctest: +SKIP
<Verdict.BACKDOORED: 'backdoored'>
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from banaudit.audit import Subject, inspect, judge, scan
    from banaudit.results import Inspection, Report, Verdict

__version__ = "0.1.0"

__all__ = ["Inspection", "Report", "Subject", "Verdict", "inspect", "judge", "scan"]


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed, so that ``--help`` and ``--version`` answer at once."""
    if name in {"Subject", "inspect", "judge", "scan"}:
        from importlib import import_module

        return getattr(import_module("banaudit.audit"), name)
    if name in {"Inspection", "Report", "Verdict"}:
        from banaudit import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
