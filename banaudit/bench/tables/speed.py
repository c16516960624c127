"""The table of a comparison of speed."""

from __future__ import annotations

from banaudit.bench.speed import SpeedResult
from banaudit.bench.tables.markdown import GIB, table


def speed_table(result: SpeedResult) -> str:
    """The authors' procedure, pass by pass, beside the whole default scan."""
    plain, scan = result.plain, result.scan
    rows = [
        (
            "`released` BAN, written plainly",
            f"{plain.seconds:.1f}" + (" (extrapolated)" if plain.extrapolated else ""),
            f"{plain.forward_images:,}",
            f"{plain.backward_images:,}",
            f"{plain.peak_bytes / GIB:.2f}",
        ),
        (
            "default scan, every reading",
            f"{scan.seconds:.1f}",
            f"{scan.forward_images:,}",
            f"{scan.backward_images:,}",
            f"{scan.peak_bytes / GIB:.2f}",
        ),
    ]
    methods = [
        (m.method, f"{m.seconds:.1f}", f"{m.forward_images:,}", f"{m.backward_images:,}", m.verdict.value)
        for m in result.methods
    ]
    economies = [
        (item.name, item.work, f"{item.without:,.4g}", f"{item.with_it:,.4g}", f"{item.factor:.2f}x")
        for item in result.economies
    ]
    timed = (
        f" {plain.timed_share:.1%} of the plain procedure's passes were timed and its seconds computed from them."
        if plain.extrapolated
        else ""
    )
    return (
        "\n\n".join(
            [
                "# Speed",
                f"{result.network}, {result.classes} classes, {result.images} images, {result.device}, "
                f"{result.threads} threads, torch {result.torch_version}. {result.model_note}.{timed}",
                f"Ratio: **{result.ratio:.1f}x**. Memory is {result.memory_note}.",
                table(("", "seconds", "images forward", "images backward", "peak memory, GiB"), rows),
                "## The default scan by method",
                table(("method", "seconds", "images forward", "images backward", "verdict"), methods),
                "## What each economy brings",
                "The same work without and with it, on the same network; everything else as in a scan unless the row "
                "says otherwise.",
                table(("economy", "work and unit", "without", "with", "factor"), economies),
            ]
        )
        + "\n"
    )
