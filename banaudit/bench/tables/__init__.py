"""Markdown tables from results files, right and wrong alike: every proportion with its counts and exact interval.

One module for each kind of results file, which says in its field ``kind`` what it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from banaudit.bench.calibration import Calibration
from banaudit.bench.noise import NoiseResults
from banaudit.bench.repair_results import RepairResults
from banaudit.bench.results_files import from_file, kind_of, need_results
from banaudit.bench.round_trip import RoundTripResults
from banaudit.bench.runner import BenchmarkResults, StudyResults
from banaudit.bench.speed import SpeedResult
from banaudit.bench.tables.benchmark import benchmark_tables
from banaudit.bench.tables.calibration import calibration_tables
from banaudit.bench.tables.markdown import share
from banaudit.bench.tables.noise import noise_tables
from banaudit.bench.tables.repairs import joined, repair_tables
from banaudit.bench.tables.round_trip import round_trip_table
from banaudit.bench.tables.side_by_side import side_by_side
from banaudit.bench.tables.speed import speed_table
from banaudit.bench.tables.studies import study_tables
from banaudit.bench.tables.timing import timing_tables
from banaudit.bench.tables.zoo import zoo_tables
from banaudit.bench.timing import TimingResults
from banaudit.bench.zoo import ZooResults
from banaudit.errors import UsageError

__all__ = [
    "RENDERERS",
    "benchmark_tables",
    "calibration_tables",
    "noise_tables",
    "render",
    "render_several",
    "repair_tables",
    "round_trip_table",
    "share",
    "side_by_side",
    "speed_table",
    "study_tables",
    "timing_tables",
    "zoo_tables",
]


RENDERERS: dict[str, Callable[[Path], str]] = {
    "zoo": from_file(ZooResults, zoo_tables),
    "benchmark": from_file(BenchmarkResults, benchmark_tables),
    "calibration": from_file(Calibration, calibration_tables),
    "study": from_file(StudyResults, study_tables),
    "repairs": from_file(RepairResults, repair_tables),
    "round-trip": from_file(RoundTripResults, round_trip_table),
    "noise": from_file(NoiseResults, noise_tables),
    "speed": from_file(SpeedResult, speed_table),
    "timing": from_file(TimingResults, timing_tables),
}
"""What a results file says it holds -> how its tables are made."""


def render(path: Path) -> str:
    """The tables of a results file, by what it says it holds.

    Raises:
        UsageError: There is no such file, or it is no results file.
    """
    return RENDERERS[kind_of(path, RENDERERS)](path)


def render_several(paths: Sequence[Path]) -> str:
    """Tables over several results files of one kind: of scans every method side by side, of repairs all of them.

    Raises:
        UsageError: One is missing, or they do not belong together.
    """
    kinds = {kind_of(path, RENDERERS) for path in paths}
    if kinds == {"benchmark"}:
        return side_by_side([need_results(path, BenchmarkResults) for path in paths])
    if kinds == {"repairs"}:
        return repair_tables(joined([need_results(path, RepairResults) for path in paths]))
    raise UsageError(f"{', '.join(map(str, paths))}: expected files of bench run alone, or of bench repair alone")
