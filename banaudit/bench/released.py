"""BAN as its authors released it, told apart from ours wherever both are measured: a column, a row of its own."""

from __future__ import annotations

from banaudit.bench.runner import BenchmarkResults, VictimEntry
from banaudit.detectors.ban import BAN

RELEASED_BAN = "ban, released"
"""Name of the authors' procedure in tables; it is the method ``ban`` with other settings."""


def told_apart(results: BenchmarkResults) -> BenchmarkResults:
    """The results, in which scans by the authors' procedure are those of another method, :data:`RELEASED_BAN`.

    Known by its drifting running statistics, which nothing else here lets happen.

    Args:
        results: Scans of victims.
    """
    theirs = {
        digest for digest, settings in results.settings.items() if settings.detectors.get(BAN.name, {}).get("drift")
    }
    return results.model_copy(
        update={
            "settings": {
                digest: settings.model_copy(
                    update={"detectors": {_renamed(name): kept for name, kept in settings.detectors.items()}}
                )
                if digest in theirs
                else settings
                for digest, settings in results.settings.items()
            },
            "entries": tuple(
                _with_renamed(entry) if entry.scan.settings in theirs else entry for entry in results.entries
            ),
        }
    )


def _with_renamed(entry: VictimEntry) -> VictimEntry:
    scan = entry.scan
    methods = tuple(cost.model_copy(update={"method": _renamed(cost.method)}) for cost in scan.methods)
    readings = []
    for item in scan.readings:
        method, slash, reading = item.key.partition("/")
        readings.append(item.model_copy(update={"key": _renamed(method) + slash + reading}))
    renamed = scan.model_copy(update={"methods": methods, "readings": tuple(readings)})
    return entry.model_copy(update={"scan": renamed})


def _renamed(method: str) -> str:
    return RELEASED_BAN if method == BAN.name else method
