"""``banaudit bench calibrate``: thresholds refitted from raw scores, no model needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from banaudit.cli.bench_options import RESULTS, Verbose
from banaudit.cli.streams import write_stdout


def calibrate(
    results: Annotated[
        list[Path], typer.Argument(help="Results files of development victims, and of opened ones of the test.")
    ],
    *,
    rate: Annotated[float, typer.Option(help="False-alarm rate of the joint verdict to aim at.")] = 0.02,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file; replaced.")] = RESULTS / "calibration.json",
    verbose: Verbose = False,
) -> None:
    """Refit every threshold from the raw scores of development victims, beside the frozen ones; changes no code."""
    del verbose  # read by main, which prints the traceback
    from banaudit.bench.calibration import calibrate as refit
    from banaudit.bench.results_files import need_results, write_results
    from banaudit.bench.runner import BenchmarkResults
    from banaudit.bench.tables import render

    held = [need_results(path, BenchmarkResults) for path in results]
    write_results(output, refit(*held, aimed_rate=rate))
    write_stdout(render(output))
