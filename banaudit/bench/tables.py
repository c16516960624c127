"""Markdown tables from results files, right and wrong alike: every proportion with its counts and exact interval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from banaudit.bench.population import EPOCHS, EPOCHS_FACTOR, floor_misses
from banaudit.bench.runner import (
    AnyResults,
    BenchmarkResults,
    Outcome,
    ScanRecord,
    ScanSettings,
    ScoredReading,
    Truth,
    VictimEntry,
    read_results,
)
from banaudit.bench.speed import SpeedResult
from banaudit.bench.victims import VictimFacts, VictimRecipe
from banaudit.bench.zoo import ACCURACY_TOLERANCE, ZooEntry, ZooResults
from banaudit.errors import UsageError
from banaudit.statistics import auroc, clopper_pearson

NOTHING = "-"
"""A cell without a value."""

DEVELOPMENT = (
    "These are development models: thresholds were set on them and on models like them, so the table shows what works "
    "and what does not, and is no estimate of how often a verdict is right."
)

DETECTED = frozenset({Outcome.RIGHT, Outcome.WRONG_TARGET})
"""Outcomes of a backdoored model that count as detected."""

MISTAKES = frozenset({Outcome.WRONG_TARGET, Outcome.MISSED, Outcome.FALSE_ALARM, Outcome.FAILED})
"""Outcomes shown in bold."""

GIB = 2**30


def render(path: Path) -> str:
    """The tables of a results file, by what it says it holds.

    Raises:
        UsageError: There is no such file, or it is no results file.
    """
    try:
        kind = json.loads(path.read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: is no results file of the benchmark ({error})") from None
    if kind == "zoo":
        return zoo_tables(_read(path, ZooResults))
    if kind == "benchmark":
        return benchmark_tables(_read(path, BenchmarkResults))
    if kind == "speed":
        return speed_table(_read(path, SpeedResult))
    raise UsageError(f"{path}: kind {kind!r} is not known; expected zoo, benchmark or speed")


def _read(path: Path, kind: type[AnyResults]) -> AnyResults:
    results = read_results(path, kind)
    if results is None:
        raise UsageError(f"{path}: there is no such file any more")
    return results


def share(count: int, total: int) -> str:
    """A proportion as counts, percentage and exact 95 % interval."""
    if total == 0:
        return NOTHING
    low, high = clopper_pearson(count, total)
    return f"{count}/{total} = {count / total:.0%} [{low:.0%}, {high:.0%}]"


def zoo_tables(results: ZooResults) -> str:
    """Accuracy, verdict and every reading's score of each checkpoint of a zoo."""
    entries = results.entries
    parts = [
        "# Verdicts on the zoo",
        f"{len(entries)} checkpoints, most of them found in public repositories. {DEVELOPMENT}",
        _provenance(results.settings, [entry.scan for entry in entries if entry.scan is not None]),
        "## Totals",
        _bullets(_zoo_totals(entries)),
        "## Verdicts",
        "A cell of a target or map reads *named / true*. Seconds are those of one shared machine and only compare "
        "models with each other.",
        _table(
            ("model", "truth", "verdict", "target", "outcome", "what fired", "seconds", "passes forward + back"),
            [_verdict_row(entry) for entry in entries],
        ),
        "## Clean accuracy",
        "Over the whole test split, with the manifest's preprocessing and with the one recognised when none is given; "
        f"*agrees*: within {ACCURACY_TOLERANCE:.1%} of the manifest.",
        _table(
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
        *_score_tables([(entry.file, entry.scan) for entry in entries if entry.scan is not None], results.measures),
    ]
    return "\n\n".join(parts) + "\n"


def _zoo_totals(entries: Sequence[ZooEntry]) -> list[str]:
    scanned = [entry for entry in entries if entry.scan is not None]
    judged = [entry for entry in scanned if entry.outcome is not Outcome.INCONCLUSIVE]
    backdoored = [entry for entry in judged if entry.truth.backdoored]
    clean = [entry for entry in judged if not entry.truth.backdoored]
    compared = [entry.accuracy_agrees for entry in scanned if entry.accuracy_agrees is not None]
    count = _counter(backdoored)
    return [
        f"backdoored models judged, detected: {share(count(*DETECTED), len(backdoored))}",
        f"detected with the right target: {share(count(Outcome.RIGHT), len(backdoored))}",
        f"clean or repaired models judged, false alarms: {share(_counter(clean)(Outcome.FALSE_ALARM), len(clean))}",
        f"inconclusive: {_counter(scanned)(Outcome.INCONCLUSIVE)} "
        f"({sum(entry.batch_norms == 0 for entry in scanned)} of the networks have no BatchNorm)",
        f"refused without running them: {_counter(entries)(Outcome.REFUSED)}; "
        f"not loaded for another reason: {_counter(entries)(Outcome.FAILED)}",
        f"clean accuracy within {ACCURACY_TOLERANCE:.1%} of the manifest: {sum(compared)} of {len(compared)}",
    ]


def _counter(entries: Iterable[ZooEntry | VictimEntry]) -> Callable[..., int]:
    outcomes = [entry.outcome for entry in entries]
    return lambda *wanted: sum(outcome in wanted for outcome in outcomes)


def _verdict_row(entry: ZooEntry) -> tuple[str, ...]:
    name, truth, scan = _name(entry.file), f"{entry.words}: {entry.attack}", entry.scan
    outcome = _outcome(entry.outcome)
    if scan is None:
        return (name, truth, "refused" if entry.offenders else NOTHING, NOTHING, outcome, NOTHING, NOTHING, NOTHING)
    return (
        name,
        truth,
        scan.verdict.value,
        _targets(entry.truth, scan),
        outcome,
        _fired(scan),
        f"{scan.seconds:.0f}",
        f"{scan.forward_images:,} + {scan.backward_images:,}",
    )


def _targets(truth: Truth, scan: ScanRecord) -> str:
    if truth.mapping is not None:
        named = scan.mapping or {}
        hits = sum(named.get(label) == wanted for label, wanted in truth.mapping.items())
        return f"{hits} of {len(truth.mapping)} mapped rightly"
    named_target = NOTHING if scan.target is None else _arrow(scan.sources, scan.target)
    true_target = (
        NOTHING if truth.target is None else _arrow(() if truth.source is None else (truth.source,), truth.target)
    )
    return f"{named_target} / {true_target}"


def _arrow(sources: tuple[int, ...], target: int) -> str:
    return f"{','.join(map(str, sources))} -> {target}" if sources else str(target)


def _fired(scan: ScanRecord) -> str:
    """The readings that fired, the furthest above its threshold first."""
    fired = sorted(
        (item for item in scan.readings if item.fired and item.score is not None),
        key=lambda item: (item.score or 0.0) / item.threshold,
        reverse=True,
    )
    return ", ".join(f"{item.key} {item.score:.2g}" for item in fired) or NOTHING


def _outcome(outcome: Outcome) -> str:
    return f"**{outcome.value}**" if outcome in MISTAKES else outcome.value


def _accuracy_row(entry: ZooEntry) -> tuple[str, ...]:
    agrees = {True: "yes", False: "**no**", None: NOTHING}[entry.accuracy_agrees]
    return (
        _name(entry.file),
        entry.architecture or NOTHING,
        str(entry.accuracy_images) if entry.accuracy_images else NOTHING,
        _percent(entry.manifest_accuracy),
        _percent(entry.accuracy),
        agrees,
        entry.recognised or NOTHING,
        _percent(entry.recognised_accuracy),
    )


def benchmark_tables(results: BenchmarkResults) -> str:
    """Detection, targets and false alarms by attack, architecture and data set, and the ranking of each reading."""
    misses = _misses(results.entries)
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
        DEVELOPMENT if results.split == "development" else "",
        _provenance(results.settings, [entry.scan for entry in results.entries]),
        "## Backdoored victims by attack",
        _detection_table("attack", backdoored, _attack_of),
        "## Clean victims by kind",
        _alarm_table("kind", clean, lambda entry: kind_of(entry.victim.recipe)),
        "## By architecture",
        _both_table("architecture", counted, lambda entry: _network_of(entry.victim.recipe)),
        "## By data set",
        _both_table("data set", counted, lambda entry: entry.victim.recipe.dataset),
        "## Ranking by each reading",
        "Area under the ROC curve of the raw score, backdoored victims against clean ones, thresholds aside; the first "
        "column takes only victims of the reading's own kind.",
        _auroc_table(backdoored, clean),
        "## Victims below their floor",
        "Left out of the tables above."
        if excluded
        else "None: every backdoored victim's attack succeeds and its clean accuracy stands.",
        _bullets([f"{entry.key}: {'; '.join(misses[entry.key])}" for entry in excluded]),
        "## Every victim",
        _table(
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
        *_score_tables([(entry.key, entry.scan) for entry in results.entries], results.measures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _misses(entries: Sequence[VictimEntry]) -> dict[str, tuple[str, ...]]:
    """Why a victim does not count, by key; against the mean of its plain clean twins where there are some."""
    twins: dict[tuple[str, str], list[float]] = {}
    for entry in entries:
        if kind_of(entry.victim.recipe) == "plain" and not entry.truth.backdoored:
            twins.setdefault(_twin_group(entry.victim), []).append(entry.victim.clean_accuracy)
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        accuracies = twins.get(_twin_group(entry.victim), [])
        found[entry.key] = floor_misses(entry.victim, sum(accuracies) / len(accuracies) if accuracies else None)
    return found


def _twin_group(facts: VictimFacts) -> tuple[str, str]:
    return facts.recipe.dataset, _network_of(facts.recipe)


def _network_of(recipe: VictimRecipe) -> str:
    return f"{recipe.architecture}, width {recipe.width}"


def _attack_of(entry: VictimEntry) -> str:
    attack, labelling = entry.victim.recipe.attack, entry.victim.recipe.labelling
    assert attack is not None
    assert labelling is not None
    return f"{attack.name}, {labelling.kind}"


def kind_of(recipe: VictimRecipe) -> str:
    """How a clean model was trained, in words; ``plain`` where nothing was unusual."""
    training, words = recipe.training, []
    if training.label_smoothing:
        words.append("label-smoothed")
    if training.augmentation != "standard":
        words.append(f"{training.augmentation} augmentation")
    if training.adversarial_eps:
        words.append("adversarially trained")
    if recipe.imbalance < 1:
        words.append("imbalanced classes")
    if not words and training.epochs != _usual_epochs(recipe):
        words.append("under-trained" if training.epochs < _usual_epochs(recipe) else "over-trained")
    return ", ".join(words) or "plain"


def _usual_epochs(recipe: VictimRecipe) -> int:
    usual = EPOCHS.get(recipe.dataset)
    return recipe.training.epochs if usual is None else round(usual * EPOCHS_FACTOR.get(recipe.architecture, 1.0))


def _groups(entries: Iterable[VictimEntry], name: Callable[[VictimEntry], str]) -> list[tuple[str, list[VictimEntry]]]:
    """Entries by name, and all of them at the end."""
    entries = list(entries)
    grouped: dict[str, list[VictimEntry]] = {}
    for entry in entries:
        grouped.setdefault(name(entry), []).append(entry)
    return [*sorted(grouped.items()), ("**all**", entries)]


def _detection(entries: Sequence[VictimEntry]) -> tuple[str, str, str]:
    backdoored = [entry for entry in entries if entry.truth.backdoored]
    count, total = _counter(backdoored), len(backdoored)
    return share(count(*DETECTED), total), share(count(Outcome.RIGHT), total), str(count(Outcome.INCONCLUSIVE))


def _alarms(entries: Sequence[VictimEntry]) -> tuple[str, str]:
    clean = [entry for entry in entries if not entry.truth.backdoored]
    count, total = _counter(clean), len(clean)
    return share(count(Outcome.FALSE_ALARM), total), share(count(Outcome.INCONCLUSIVE), total)


def _detection_table(title: str, entries: Sequence[VictimEntry], name: Callable[[VictimEntry], str]) -> str:
    rows = [(label, *_detection(group)) for label, group in _groups(entries, name)]
    return _table((title, "detected", "target right", "inconclusive"), rows)


def _alarm_table(title: str, entries: Sequence[VictimEntry], name: Callable[[VictimEntry], str]) -> str:
    rows = [(label, *_alarms(group)) for label, group in _groups(entries, name)]
    return _table((title, "false alarms", "inconclusive"), rows)


def _both_table(title: str, entries: Sequence[VictimEntry], name: Callable[[VictimEntry], str]) -> str:
    rows = [(label, *_detection(group)[:2], _alarms(group)[0]) for label, group in _groups(entries, name)]
    return _table((title, "detected", "target right", "false alarms"), rows)


def _auroc_table(backdoored: Sequence[VictimEntry], clean: Sequence[VictimEntry]) -> str:
    kinds = {item.key: item.reading for entry in (*backdoored, *clean) for item in entry.scan.readings}
    rows: list[tuple[str, ...]] = []
    for key, kind in kinds.items():
        negatives = _scores(clean, key)
        own = [entry for entry in backdoored if entry.truth.reading is kind]
        cells = []
        for group in (own, backdoored):
            positives = _scores(group, key)
            both = bool(len(positives) and len(negatives))
            cells.append(
                f"{auroc(positives, negatives):.3f} ({len(positives)} against {len(negatives)})" if both else NOTHING
            )
        rows.append((key, *cells))
    return _table(("reading", "AUROC, own kind", "AUROC, all backdoored"), rows)


def _scores(entries: Iterable[VictimEntry], key: str) -> torch.Tensor:
    return torch.tensor(
        [item.score for entry in entries for item in entry.scan.readings if item.key == key and item.score is not None],
        dtype=torch.float64,
    )


def _victim_row(entry: VictimEntry) -> tuple[str, ...]:
    outcome = _outcome(entry.outcome)
    return (
        entry.key,
        _percent(entry.victim.clean_accuracy),
        _percent(entry.victim.attack_success),
        entry.scan.verdict.value,
        _targets(entry.truth, entry.scan),
        outcome,
        _fired(entry.scan),
        f"{entry.scan.seconds:.0f}",
    )


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
                _table(("", "seconds", "images forward", "images backward", "peak memory, GiB"), rows),
                "## The default scan by method",
                _table(("method", "seconds", "images forward", "images backward", "verdict"), methods),
            ]
        )
        + "\n"
    )


def _score_tables(scans: Sequence[tuple[str, ScanRecord]], measures: dict[str, str]) -> list[str]:
    """Every score against its threshold, and what the scores are."""
    keys = list(dict.fromkeys(item.key for _, scan in scans for item in scan.readings))
    if not keys:
        return []
    rows = [(_name(name), *(_score_cell(scan, key) for key in keys)) for name, scan in scans]
    return [
        "## Every score",
        "Score / threshold, then the class named; fired ones in bold. A score above its threshold that did not fire "
        "lacked what the reading asks besides (restarts that agree, a margin over the null).",
        _table(("model", *keys), rows),
        _bullets([f"`{key}`: {measures[key]}" for key in keys if key in measures]),
    ]


def _score_cell(scan: ScanRecord, key: str) -> str:
    found = next((item for item in scan.readings if item.key == key), None)
    if found is None or found.score is None:
        return NOTHING
    text = f"{found.score:.2g} / {found.threshold:.2g}{_named(found)}"
    return f"**{text}**" if found.fired else text


def _named(item: ScoredReading) -> str:
    return "" if item.target is None else f", {_arrow(item.sources, item.target)}"


def _provenance(settings: dict[str, ScanSettings], scans: Sequence[ScanRecord]) -> str:
    """What the scans were made with; says so where it was not the same for all."""
    if not scans:
        return "No scans."
    used = {scan.settings for scan in scans}
    states = sorted({scan.code for scan in scans})
    some = settings[scans[-1].settings]
    text = (
        f"Methods: {', '.join(some.detectors)}; at most {some.images} clean images; seed {some.seed}; "
        f"banaudit {some.tool_version}, state {', '.join(states)} of the code."
    )
    if len(used) > 1 or len(states) > 1:
        text += " **Not all scans were made with the same settings and code.**"
    return text


def _name(file: str) -> str:
    """A file without the folders that all of a zoo's files share."""
    return file.rpartition("/")[2]


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2%}"


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])
