"""The table of repaired files that take the place of the ones that came in."""

from __future__ import annotations

from banaudit.bench.round_trip import RoundTripEntry, RoundTripResults
from banaudit.bench.tables.markdown import NOTHING, bullets, short_name, table

_MARKS = {True: "yes", False: "**no**"}


def round_trip_table(results: RoundTripResults) -> str:
    """What each written file has in common with the one that came in."""
    loaded = [entry for entry in results.entries if entry.container]
    refused = [entry for entry in results.entries if entry.refused]
    others = [entry for entry in results.entries if not entry.container and not entry.refused]
    totals = [
        f"purified, and the file fits in every respect: {sum(entry.fits for entry in loaded)} of {len(loaded)}",
        f"refused without running them: {len(refused)} ({', '.join(short_name(entry.file) for entry in refused)})"
        if refused
        else "refused without running them: 0",
        f"not purified for another reason: {len(others)}",
    ]
    head = (
        "model",
        "container",
        "weights under",
        "tensors, changed",
        "same container",
        "same other entries",
        "same keys, in order",
        "same shapes and types",
        "strict load",
        "dropped",
    )
    return (
        "\n\n".join(
            [
                "# Repaired files in the place of the ones that came in",
                f"Each checkpoint was purified by one epoch of plain fine-tuning on at most {results.images} images, "
                "and the file that was written was read by plain torch code (`torch.load(weights_only=True)`, or "
                "safetensors): the container, the entries beside the weights, the keys of the state dict and their "
                "order, shapes and data types, and a strict load into the network that the original fits. *Dropped* "
                "are entries that could carry the old weights on, such as an optimizer's moments. "
                f"Seed {results.seed}; banaudit {results.tool_version}, state {results.code} of the code, "
                f"torch {results.torch_version}.",
                bullets(totals),
                table(head, [_row(entry) for entry in results.entries]),
            ]
        )
        + "\n"
    )


def _row(entry: RoundTripEntry) -> tuple[str, ...]:
    name = short_name(entry.file)
    if not entry.container:
        why = "refused" if entry.refused else entry.problem
        return (name, why, *(NOTHING for _ in range(8)))
    return (
        name,
        entry.container,
        entry.state_key or "the file itself",
        f"{entry.tensors}, {entry.changed}",
        _MARKS[entry.same_container],
        _MARKS[entry.same_wrapper],
        _MARKS[entry.same_keys],
        _MARKS[entry.same_types],
        _MARKS[entry.strict] + (f" ({entry.problem})" if entry.problem else ""),
        ", ".join(entry.dropped) or NOTHING,
    )
