"""Tables of trained victims: detection, targets, false alarms and ranking, by attack, network and data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from banaudit.bench.population import OPENED_SEEDS
from banaudit.bench.roc import ALARM_RATES, Curve, curves
from banaudit.bench.runner import BenchmarkResults, VictimEntry
from banaudit.bench.strata import attack_of, kind_of, network_of, shortfalls
from banaudit.bench.tables.markdown import NOTHING, bullets, grouped, percent, share, table
from banaudit.bench.tables.methods import method_tables
from banaudit.bench.tables.scans import (
    DEVELOPMENT,
    alarms,
    detection,
    fired_readings,
    outcome_cell,
    provenance,
    score_tables,
    targets,
)

OPENED_BEFORE = (
    "These test victims were opened with thresholds that had been set on others. The rule was changed since, with them "
    "in sight: they count as development models now (split `opened`)"
)


def _standing(results: BenchmarkResults) -> str:
    """What the figures may be taken for."""
    if results.split != "test":
        return DEVELOPMENT
    still = sum(entry.victim.recipe.seed not in OPENED_SEEDS for entry in results.entries)
    if still == len(results.entries):
        return ""
    stay = f", but for {still} networks that the change does not touch: they stay in the test" if still else ""
    return f"{OPENED_BEFORE}{stay}."


def benchmark_tables(results: BenchmarkResults) -> str:
    """Detection, targets and false alarms by attack, architecture and data set, and the ranking of each reading."""
    misses = shortfalls(results.entries)
    counted = [entry for entry in results.entries if not misses[entry.key]]
    excluded = [entry for entry in results.entries if misses[entry.key]]
    backdoored = [entry for entry in counted if entry.truth.backdoored]
    clean = [entry for entry in counted if not entry.truth.backdoored]
    parts = [
        f"# Benchmark: {results.split} split",
        f"{len(backdoored)} backdoored and {len(clean)} clean victims; clean images from the "
        f"{'held-out split' if results.clean_images == 'test' else 'pool that no victim was trained on'}. "
        "*Target right*: of all victims, detected and the target named (source-specific: the source besides; "
        "all-to-all: at least 80 % of the map). An inconclusive verdict on a backdoored victim counts as a miss. "
        "Intervals are exact, 95 %.",
        _standing(results),
        provenance(results.settings, [entry.scan for entry in results.entries]),
        "## Backdoored victims by attack",
        _detection_table("attack", backdoored, lambda entry: attack_of(entry.victim.recipe)),
        "## Clean victims by kind",
        _alarm_table("kind", clean, lambda entry: kind_of(entry.victim.recipe)),
        "## By architecture",
        _both_table("architecture", counted, lambda entry: network_of(entry.victim.recipe)),
        "## By data set",
        _both_table("data set", counted, lambda entry: entry.victim.recipe.dataset),
        *method_tables(counted),
        "## Ranking by each reading",
        "Area under the ROC curve of the score, backdoored victims against clean ones, with its 95 % interval "
        "(Newcombe's method 5), and the share detected at the lowest threshold that accuses at most so many clean "
        "victims; the first columns take only victims of the reading's own kind. The joint verdict's score is the "
        "largest score / threshold among the readings that could fire; a reading's is raw, whatever it asks besides.",
        _ranking_table(counted) if backdoored and clean else "It takes backdoored and clean victims.",
        "## Victims below their floor",
        "Left out of the tables above. Cells on CIFAR of which more than 30 % fell short by their accuracy are trained "
        "again, for longer; where an attack does not take, it is only counted here."
        if excluded
        else "None: every backdoored victim's attack succeeds and its clean accuracy stands.",
        _miss_table(results.entries, excluded) if excluded else "",
        bullets([f"{entry.key}: {'; '.join(misses[entry.key])}" for entry in excluded]),
        "## Every victim",
        table(
            (
                "victim",
                "clean accuracy",
                "attack success",
                "verdict",
                "target",
                "outcome",
                "what fired",
                "seconds",
            ),
            [_victim_row(entry) for entry in results.entries],
        ),
        *score_tables([(entry.key, entry.scan) for entry in results.entries], results.measures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _groups(entries: Iterable[VictimEntry], name: Callable[[VictimEntry], str]) -> list[tuple[str, list[VictimEntry]]]:
    """Entries by name, and all of them at the end."""
    entries = list(entries)
    return [*grouped(entries, name).items(), ("**all**", entries)]


def _detection_table(title: str, entries: Sequence[VictimEntry], name: Callable[[VictimEntry], str]) -> str:
    rows = [(label, *detection(group)) for label, group in _groups(entries, name)]
    return table((title, "detected", "target right", "inconclusive"), rows)


def _alarm_table(title: str, entries: Sequence[VictimEntry], name: Callable[[VictimEntry], str]) -> str:
    rows = [(label, *alarms(group)) for label, group in _groups(entries, name)]
    return table((title, "false alarms", "inconclusive"), rows)


def _miss_table(entries: Sequence[VictimEntry], excluded: Sequence[VictimEntry]) -> str:
    """How many of each cell fell short of their floors, and what the verdict says of those."""

    def cell(entry: VictimEntry) -> tuple[str, str, str]:
        recipe = entry.victim.recipe
        return attack_of(recipe), network_of(recipe), recipe.dataset

    trained = grouped((entry for entry in entries if entry.truth.backdoored), cell)
    rows = [
        (*name, share(len(group), len(trained[name])), *detection(group)[:2])
        for name, group in grouped(excluded, cell).items()
    ]
    return table(("attack", "network", "data set", "below its floor", "of these detected", "target right"), rows)


def _both_table(title: str, entries: Sequence[VictimEntry], name: Callable[[VictimEntry], str]) -> str:
    rows = [(label, *detection(group)[:2], alarms(group)[0]) for label, group in _groups(entries, name)]
    return table((title, "detected", "target right", "false alarms"), rows)


def _ranking_table(entries: Sequence[VictimEntry]) -> str:
    own = {curve.name: curve for curve in curves(entries, own_kind=True)}
    head = ("score", "AUROC, own kind", *(f"detected at {rate:.0%} false alarms" for rate in ALARM_RATES))
    rows = [
        (
            curve.name,
            _area(own.get(curve.name)),
            *(share(*own[curve.name].detected_at(rate)) if curve.name in own else NOTHING for rate in ALARM_RATES),
            _area(curve),
            *(share(*curve.detected_at(rate)) for rate in ALARM_RATES),
        )
        for curve in curves(entries, own_kind=False)
    ]
    return table((*head, "AUROC, all backdoored", *head[2:]), rows)


def _area(curve: Curve | None) -> str:
    if curve is None:
        return NOTHING
    low, high = curve.interval
    return f"{curve.area:.3f} [{low:.2f}, {high:.2f}] ({len(curve.positives)} against {len(curve.negatives)})"


def _victim_row(entry: VictimEntry) -> tuple[str, ...]:
    outcome = outcome_cell(entry.outcome)
    return (
        entry.key,
        percent(entry.victim.clean_accuracy),
        percent(entry.victim.attack_success),
        entry.scan.verdict.value,
        targets(entry.truth, entry.scan),
        outcome,
        fired_readings(entry.scan),
        f"{entry.scan.seconds:.0f}",
    )
