"""Tables of a zoo: accuracy, verdict and every score of each checkpoint of known truth."""

from __future__ import annotations

from collections.abc import Sequence

from banaudit.bench.runner import Outcome
from banaudit.bench.tables.markdown import NOTHING, bullets, percent, share, short_name, table
from banaudit.bench.tables.scans import (
    DETECTED,
    DEVELOPMENT,
    counter,
    fired_readings,
    outcome_cell,
    provenance,
    score_tables,
    targets,
)
from banaudit.bench.zoo import ACCURACY_TOLERANCE, ZooEntry, ZooResults


def zoo_tables(results: ZooResults) -> str:
    """Accuracy, verdict and every reading's score of each checkpoint of a zoo."""
    entries = results.entries
    parts = [
        "# Verdicts on the zoo",
        f"{len(entries)} checkpoints, most of them found in public repositories. {DEVELOPMENT}",
        provenance(results.settings, [entry.scan for entry in entries if entry.scan is not None]),
        "## Totals",
        bullets(_zoo_totals(entries)),
        "## Verdicts",
        "A cell of a target or map reads *named / true*. Seconds are those of one shared machine and only compare "
        "models with each other.",
        table(
            ("model", "truth", "verdict", "target", "outcome", "what fired", "seconds", "passes forward + back"),
            [_verdict_row(entry) for entry in entries],
        ),
        "## Clean accuracy",
        "Over the whole test split, with the manifest's preprocessing and with the one recognised when none is given; "
        f"*agrees*: within {ACCURACY_TOLERANCE:.1%} of the manifest.",
        table(
            (
                "model",
                "architecture",
                "images",
                "manifest",
                "measured",
                "agrees",
                "recognised normalisation",
                "accuracy with it",
            ),
            [_accuracy_row(entry) for entry in entries],
        ),
        *score_tables([(entry.file, entry.scan) for entry in entries if entry.scan is not None], results.measures),
    ]
    return "\n\n".join(parts) + "\n"


def _zoo_totals(entries: Sequence[ZooEntry]) -> list[str]:
    scanned = [entry for entry in entries if entry.scan is not None]
    judged = [entry for entry in scanned if entry.outcome is not Outcome.INCONCLUSIVE]
    backdoored = [entry for entry in judged if entry.truth.backdoored]
    clean = [entry for entry in judged if not entry.truth.backdoored]
    compared = [entry.accuracy_agrees for entry in scanned if entry.accuracy_agrees is not None]
    count = counter(backdoored)
    return [
        f"backdoored models judged, detected: {share(count(*DETECTED), len(backdoored))}",
        f"detected with the right target: {share(count(Outcome.RIGHT), len(backdoored))}",
        f"clean or repaired models judged, false alarms: {share(counter(clean)(Outcome.FALSE_ALARM), len(clean))}",
        f"inconclusive: {counter(scanned)(Outcome.INCONCLUSIVE)} "
        f"({sum(entry.batch_norms == 0 for entry in scanned)} of the networks have no BatchNorm)",
        f"refused without running them: {counter(entries)(Outcome.REFUSED)}; "
        f"not loaded for another reason: {counter(entries)(Outcome.FAILED)}",
        f"clean accuracy within {ACCURACY_TOLERANCE:.1%} of the manifest: {sum(compared)} of {len(compared)}",
    ]


def _verdict_row(entry: ZooEntry) -> tuple[str, ...]:
    name, truth, scan = short_name(entry.file), f"{entry.words}: {entry.attack}", entry.scan
    outcome = outcome_cell(entry.outcome)
    if scan is None:
        return (name, truth, "refused" if entry.offenders else NOTHING, NOTHING, outcome, NOTHING, NOTHING, NOTHING)
    return (
        name,
        truth,
        scan.verdict.value,
        targets(entry.truth, scan),
        outcome,
        fired_readings(scan),
        f"{scan.seconds:.0f}",
        f"{scan.forward_images:,} + {scan.backward_images:,}",
    )


def _accuracy_row(entry: ZooEntry) -> tuple[str, ...]:
    agrees = {True: "yes", False: "**no**", None: NOTHING}[entry.accuracy_agrees]
    return (
        short_name(entry.file),
        entry.architecture or NOTHING,
        str(entry.accuracy_images) if entry.accuracy_images else NOTHING,
        percent(entry.manifest_accuracy),
        percent(entry.accuracy),
        agrees,
        entry.recognised or NOTHING,
        percent(entry.recognised_accuracy),
    )
