"""The tables of what every method takes, and how that grows with the number of classes."""

from __future__ import annotations

from collections.abc import Callable

from banaudit.bench.published_timing import SECONDS, SETUPS
from banaudit.bench.tables.markdown import GIB, NOTHING, bullets, table
from banaudit.bench.timing import TimingEntry, TimingResults
from banaudit.results import Verdict

Cell = Callable[[TimingEntry], str]


def timing_tables(results: TimingResults) -> str:
    """Seconds with their growth and the paper's beside them, passes, memory, and what could not be judged."""
    classes = sorted({entry.classes for entry in results.entries})
    methods = list(dict.fromkeys(entry.method for entry in results.entries))
    entries = {(entry.method, entry.classes): entry for entry in results.entries}

    def cells(method: str, text: Cell) -> list[str]:
        found = [entries.get((method, count)) for count in classes]
        return [NOTHING if entry is None else text(entry) for entry in found]

    def growth(method: str) -> list[str]:
        first = entries.get((method, classes[0]))
        later = [entries.get((method, count)) for count in classes[1:]]
        return [
            NOTHING if first is None or entry is None or not first.seconds else f"{entry.seconds / first.seconds:.1f}x"
            for entry in later
        ]

    columns = [f"{count} classes" for count in classes]
    growths = [f"{count} against {classes[0]} ({count / classes[0]:.1f}x the classes)" for count in classes[1:]]
    unjudged = [
        f"{entry.method}, {entry.classes} classes: {entry.reason}"
        for entry in results.entries
        if entry.verdict is Verdict.INCONCLUSIVE and entry.timed_share == 1
    ]
    accuracies = ", ".join(f"{value:.0%} with {count} classes" for count, value in sorted(results.accuracy.items()))
    parts = [
        "# Time and memory",
        f"{results.network}, {results.images} images of 32 pixels, {results.device}, {results.threads} threads, torch "
        f"{results.torch_version}. {results.model_note}; clean accuracy {accuracies}.",
        "Every method with its default settings, by itself, one after the other in one run on the same model for each "
        "number of classes. *computed*: the method was stopped after "
        f"{results.budget:g} s from its first pass; its passes are the planned ones, and its seconds those since then, "
        "divided by the share of the planned passes (in brackets) that it had done, and those before. Methods that may "
        "stop early are then overstated.",
        "## Seconds",
        f"The last columns are the paper's (Figure 4), on a GPU of theirs, with a ResNet-18 of width 64: {SETUPS[0]}, "
        f"and {SETUPS[1]}. Only the numbers that its text gives. BTI-DBF's second is without pre-training; FeatureRE "
        "would take more than 400 hours there, as they estimate from one class. The schedules of the inversion methods "
        "are shorter here than theirs: each one's description says by how much.",
        table(
            ("method", *columns, *growths, "theirs, CIFAR-10", "theirs, ImageNet200"),
            [(method, *cells(method, _seconds), *growth(method), *_published(method)) for method in methods],
        ),
        "## Images passed through the network, forward + backward",
        table(("method", *columns), [(method, *cells(method, _passes)) for method in methods]),
        "## Peak memory, GiB",
        f"{results.memory_note[:1].upper()}{results.memory_note[1:]}.",
        table(("method", *columns), [(method, *cells(method, _memory)) for method in methods]),
        *(["## Without a verdict", bullets(unjudged)] if unjudged else []),
    ]
    return "\n\n".join(parts) + "\n"


def _seconds(entry: TimingEntry) -> str:
    return (
        f"{entry.seconds:,.1f}"
        if entry.timed_share == 1
        else f"{entry.seconds:,.0f} computed ({entry.timed_share:.1%})"
    )


def _passes(entry: TimingEntry) -> str:
    return f"{entry.forward_images:,} + {entry.backward_images:,}" + ("" if entry.timed_share == 1 else " computed")


def _memory(entry: TimingEntry) -> str:
    return f"{entry.peak_bytes / GIB:.2f}"


def _published(method: str) -> tuple[str, ...]:
    return tuple(NOTHING if value is None else f"{value:,.2f}" for value in SECONDS.get(method, (None, None)))
