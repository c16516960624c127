"""The tables of what every method, or every repair, takes, and how that grows with the number of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from banaudit.bench.published_timing import SECONDS, SETUPS
from banaudit.bench.tables.markdown import GIB, NOTHING, bullets, table
from banaudit.bench.timing import RepairTimingEntry, TimedEntry, TimingEntry, TimingResults
from banaudit.results import Verdict

Cell = Callable[[TimedEntry], str]


def timing_tables(results: TimingResults) -> str:
    """Seconds with their growth and the paper's beside them, passes, memory, and what could not be judged."""
    unjudged = [
        f"{entry.method}, {entry.classes} classes: {entry.reason}"
        for entry in results.entries
        if entry.verdict is Verdict.INCONCLUSIVE and entry.whole
    ]
    failed = [f"{entry.method}, {entry.classes} classes: {entry.problem}" for entry in results.repairs if entry.problem]
    accuracies = ", ".join(f"{value:.0%} with {count} classes" for count, value in sorted(results.accuracy.items()))
    parts = [
        "# Time and memory",
        f"{results.network}, {results.images} images of 32 pixels, {results.device}, {results.threads} threads, torch "
        f"{results.torch_version}. {results.model_note}; clean accuracy {accuracies}.",
        *(_of_methods(results.entries, results) if results.entries else []),
        *(_of_repairs(results.repairs, results) if results.repairs else []),
        *(["## Without a verdict", bullets(unjudged)] if unjudged else []),
        *(["## Without a repair", bullets(failed)] if failed else []),
    ]
    return "\n\n".join(parts) + "\n"


def _of_methods(entries: Sequence[TimingEntry], results: TimingResults) -> list[str]:
    return [
        f"{_HOW.format('method', results.budget, '')} Methods that may stop early are then overstated.",
        "## Seconds",
        f"The last columns are the paper's (Figure 4), on a GPU of theirs, with a ResNet-18 of width 64: {SETUPS[0]}, "
        f"and {SETUPS[1]}. Only the numbers that its text gives. BTI-DBF's second is without pre-training; FeatureRE "
        "would take more than 400 hours there, as they estimate from one class. The schedules of the inversion methods "
        "are shorter here than theirs: each one's description says by how much.",
        *_tables(entries, results, ("theirs, CIFAR-10", "theirs, ImageNet200"), _published),
    ]


def _of_repairs(repairs: Sequence[RepairTimingEntry], results: TimingResults) -> list[str]:
    return [
        f"{_HOW.format('repair', results.budget, ' backward')} The scans before and after are not in it. The plan of "
        "`ban-distillation` is its first strength alone where it was stopped there; it tries up to five. Its searches "
        "come first, and their passes take less time than those of training, so that its seconds are then understated.",
        "## Seconds",
        *_tables(repairs, results, (), lambda _: ()),
    ]


_HOW = (
    "Every {0} with its default settings, by itself, one after the other in one run on the same model for each number "
    "of classes. *computed*: the {0} was stopped {1:g} s after its first pass{2}; its passes are the planned ones, "
    "and its seconds those since then, divided by the share of the planned passes (in brackets) that it had done, and "
    "those before."
)


def _tables(
    timed: Sequence[TimedEntry], results: TimingResults, beside: tuple[str, ...], also: Callable[[str], tuple[str, ...]]
) -> list[str]:
    """Seconds with their growth, passes and memory; ``beside`` are columns of which ``also`` has the cells."""
    classes = sorted({entry.classes for entry in timed})
    methods = list(dict.fromkeys(entry.method for entry in timed))
    entries = {(entry.method, entry.classes): entry for entry in timed}

    def cells(method: str, text: Cell) -> list[str]:
        found = [entries.get((method, count)) for count in classes]
        return [NOTHING if entry is None else text(entry) for entry in found]

    def growth(method: str) -> list[str]:
        first = entries.get((method, classes[0]))
        later = [entries.get((method, count)) for count in classes[1:]]
        return [
            NOTHING
            if first is None or entry is None or not first.seconds or first.failed or entry.failed
            else f"{entry.seconds / first.seconds:.1f}x"
            for entry in later
        ]

    columns = [f"{count} classes" for count in classes]
    growths = [f"{count} against {classes[0]} ({count / classes[0]:.1f}x the classes)" for count in classes[1:]]
    return [
        table(
            ("method", *columns, *growths, *beside),
            [
                (method, *cells(method, lambda entry: entry.seconds_in_words), *growth(method), *also(method))
                for method in methods
            ],
        ),
        "## Images passed through the network, forward + backward",
        table(("method", *columns), [(method, *cells(method, _passes)) for method in methods]),
        "## Peak memory, GiB",
        f"{results.memory_note[:1].upper()}{results.memory_note[1:]}.",
        table(("method", *columns), [(method, *cells(method, _memory)) for method in methods]),
    ]


def _passes(entry: TimedEntry) -> str:
    how = " until it failed" if entry.failed else "" if entry.whole else " computed"
    return f"{entry.forward_images:,} + {entry.backward_images:,}{how}"


def _memory(entry: TimedEntry) -> str:
    return f"{entry.peak_bytes / GIB:.2f}"


def _published(method: str) -> tuple[str, ...]:
    return tuple(NOTHING if value is None else f"{value:,.2f}" for value in SECONDS.get(method, (None, None)))
