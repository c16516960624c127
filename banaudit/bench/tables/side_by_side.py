"""Methods side by side on the same victims, out of several results files: each method alone, and the joint verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from banaudit.agreement import TOGETHER
from banaudit.bench.population import CHOSE_METHOD
from banaudit.bench.released import told_apart
from banaudit.bench.runner import BenchmarkResults, Outcome, ScanSettings, VictimEntry
from banaudit.bench.strata import counted, stratum_of
from banaudit.bench.tables.markdown import NOTHING, grouped, share, table
from banaudit.bench.tables.methods import JOINT, accused_by_all, method_tables, methods_of
from banaudit.bench.tables.scans import DETECTED, alarms, counter, detection, provenance
from banaudit.bench.verdicts import outcome_at
from banaudit.detectors.ban import BAN
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.errors import UsageError

FIRST_DEFAULT = {BAN.name, MMBD.name, NeuralCleanse.name, TargetedNoise.name}
"""Methods that every default scan has asked."""


SAID_TOGETHER = TOGETHER | {"noise-agreement"}
"""What several methods say together, by the rule of today or in the records of the test's parts of before."""


def side_by_side(files: Sequence[BenchmarkResults]) -> str:
    """Every method of several files on every victim, alone and together.

    Together are the methods that the first file asks of a network of so many classes, and in older files at least those
    that every default scan has asked.

    The victims of the test are shown by the files of the test alone, as they were opened: each by the thresholds of its
    time, and by no method whose rule was set on it. All victims together are shown by the scans of today as far as
    there are such.

    Args:
        files: With clean images from one source, those that the joint verdict is read from first. What several files
            tell of one victim and method is taken from the first of them; of all victims together, from a scan with
            the settings that the first file has for as many classes, if there is one.

    Raises:
        UsageError: Their clean images come from different sources, or the first holds no scans.
    """
    files = [told_apart(results) for results in files]
    if len({results.clean_images for results in files}) > 1:
        raise UsageError("files side by side: expected clean images from one source, found test and pool")
    if not files[0].entries:
        raise UsageError("files side by side: the joint verdict is that of the first file, which holds no scans")
    asked = [set(files[0].settings[entry.scan.settings].detectors) for entry in files[0].entries]
    joint = set.union(*asked)
    always = set.intersection(*asked, *_older_defaults(files, joint))
    today = {entry.victim.recipe.num_classes: entry.scan.settings for entry in files[0].entries}
    of_today_first = _entries(files)
    of_today_first.sort(key=lambda entry: entry.scan.settings != today.get(entry.victim.recipe.num_classes))
    settings = _settings(files)
    standing = {entry.key for entry in counted(_merged(of_today_first))}
    entries = [entry for entry in _judged_together(of_today_first, settings, joint, always) if entry.key in standing]
    seen_blind = _entries(_without_chosen(files))
    blind = [entry for entry in _judged_together(seen_blind, settings, joint, always) if entry.key in standing]
    of_today = [entry for entry in entries if entry.scan.settings == today.get(entry.victim.recipe.num_classes)]
    shown = {entry.key for entry in entries}
    methods = methods_of(entries)
    parts = [
        "# Methods side by side",
        f"{len(entries)} victims that reach their floors, of the splits "
        f"{', '.join(dict.fromkeys(results.split for results in files))}. The joint verdict is that of "
        f"{', '.join(sorted(joint))}{_not_of_all(joint, always)}. *Alone*: the verdict that a method would have given "
        "without the others; joint-evidence and common-suspect are what several methods say together, and so was "
        "noise-agreement, whose rule is gone.",
        provenance(settings, [entry.scan for item in files for entry in item.entries if entry.key in shown]),
        "## Each method alone, and the joint verdict",
        *_overall(
            "Victims of the test, as they were opened: each by the rules of its time, and by no method whose rule was "
            "set on it",
            blind,
            methods,
        ),
        *_on_the_same(blind, [method for method in methods if method not in joint]),
        *_overall("Victims by the rules of today, those on which they were set among them", of_today, methods),
        *_overall(
            f"All victims: these, and {len(entries) - len(of_today)} that were scanned by older rules alone",
            entries,
            methods,
        ),
        "## By attack, over all networks and data sets",
        "Models accused, with whatever target: detections in rows of backdoored models, false alarms in rows of clean "
        "ones.",
        table(
            ("victims", JOINT, *methods),
            [
                (name, *accused_by_all(group, methods))
                for name, group in grouped(entries, lambda entry: stratum_of(entry.victim.recipe)).items()
            ],
        ),
        *method_tables(entries),
        *_notes(entries, joint),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _not_of_all(joint: set[str], always: set[str]) -> str:
    """Which methods of the joint verdict are not asked of every network."""
    some = ", ".join(sorted(joint - always))
    return f" ({some} not of every network, or not yet when the older scans were made)" if some else ""


def _older_defaults(files: Sequence[BenchmarkResults], joint: set[str]) -> list[set[str]]:
    """The methods of each scan that is or was a default one: of today's, and those that have always been among them."""
    every = [set(settings.detectors) for settings in _settings(files).values()]
    return [methods for methods in every if FIRST_DEFAULT <= methods <= joint]


def _judged_together(
    entries: Sequence[VictimEntry], settings: Mapping[str, ScanSettings], joint: set[str], always: set[str]
) -> list[VictimEntry]:
    """The victims that there is a joint verdict of, with the methods and readings of all their scans."""
    together = {entry.key for entry in entries if always <= settings[entry.scan.settings].detectors.keys() <= joint}
    return [entry for entry in _merged(entries) if entry.key in together]


def _without_chosen(files: Sequence[BenchmarkResults]) -> list[BenchmarkResults]:
    """The files of the test, without the scans of victims by a method whose rule was set on them."""
    blind = []
    for results in files:
        if results.split != "test":
            continue
        alone = {digest: set(settings.detectors) for digest, settings in results.settings.items()}
        entries = [
            entry
            for entry in results.entries
            if not any(
                entry.victim.recipe.seed in seeds and method in alone[entry.scan.settings]
                for method, seeds in CHOSE_METHOD.items()
            )
        ]
        blind.append(results.model_copy(update={"entries": tuple(entries)}))
    return blind


def _settings(files: Iterable[BenchmarkResults]) -> dict[str, ScanSettings]:
    return {digest: settings for results in files for digest, settings in results.settings.items()}


def _entries(files: Iterable[BenchmarkResults]) -> list[VictimEntry]:
    return [entry for results in files for entry in results.entries]


def _merged(entries: Iterable[VictimEntry]) -> list[VictimEntry]:
    """One entry a victim, with the methods and readings of all its scans."""
    merged: dict[str, VictimEntry] = {}
    for entry in entries:
        known = merged.get(entry.key)
        merged[entry.key] = entry if known is None else _with_methods_of(known, entry)
    return list(merged.values())


def _with_methods_of(entry: VictimEntry, other: VictimEntry) -> VictimEntry:
    known = {cost.method for cost in entry.scan.methods}
    new = tuple(cost for cost in other.scan.methods if cost.method not in known)
    names = {cost.method for cost in new}
    readings = tuple(item for item in other.scan.readings if _method_of(item.key) in names)
    scan = entry.scan.model_copy(
        update={"methods": (*entry.scan.methods, *new), "readings": (*entry.scan.readings, *readings)}
    )
    return entry.model_copy(update={"scan": scan})


def _method_of(key: str) -> str:
    return key.partition("/")[0]


def _overall(title: str, entries: Sequence[VictimEntry], methods: Sequence[str]) -> list[str]:
    if not entries:
        return []
    alone = [[found for entry in entries if (found := _alone(entry, method)) is not None] for method in methods]
    rows = [_row(name, group) for name, group in zip((JOINT, *methods), (entries, *alone), strict=True)]
    head = ("method", "detected", "target right", "false alarms", "inconclusive", "seconds, mean")
    return [f"### {title}", table(head, rows)]


def _on_the_same(entries: Sequence[VictimEntry], methods: Sequence[str]) -> list[str]:
    """Each other method against the joint verdict, over the victims that both have judged."""
    rows = []
    for method in methods:
        if method in SAID_TOGETHER:
            continue  # the joint verdict is made of them too
        both = [(entry, alone) for entry in entries if (alone := _alone(entry, method)) is not None]
        found = [tuple(item.outcome in DETECTED for item in pair) for pair in both if pair[0].truth.backdoored]
        rows.append(
            (
                method,
                *(detection([pair[at] for pair in both])[0] for at in (0, 1)),
                str(found.count((True, False))),
                str(found.count((False, True))),
                *(alarms([pair[at] for pair in both])[0] for at in (0, 1)),
            )
        )
    if not any(row[1] != NOTHING for row in rows):
        return []
    head = (
        "method",
        f"{JOINT}: detected",
        "the method: detected",
        f"{JOINT} alone",
        "the method alone",
        f"{JOINT}: false alarms",
        "the method: false alarms",
    )
    return [
        "### The same victims: each other method against the joint verdict",
        "Of the victims of the test, those that the method was run on too; *alone*: how many one detects and the other "
        "does not.",
        table(head, rows),
    ]


def _notes(entries: Sequence[VictimEntry], joint: set[str]) -> list[str]:
    """What the searches of methods outside the joint verdict noted, where the scans kept it."""
    default = joint | SAID_TOGETHER
    rows = [
        (entry.key, item.key, f"{item.score:.2g} / {item.threshold:.2g}, {item.target}", item.note)
        for entry in entries
        for item in entry.scan.readings
        if item.note and item.score is not None and _method_of(item.key) not in default
    ]
    if not rows:
        return []
    return [
        "## What the searches noted",
        "Of methods outside the joint verdict; score / threshold, then the class named.",
        table(("victim", "reading", "score", "note"), rows),
    ]


def _row(name: str, entries: Sequence[VictimEntry]) -> tuple[str, ...]:
    return (
        name,
        *detection(entries)[:2],
        alarms(entries)[0],
        share(counter(entries)(Outcome.INCONCLUSIVE), len(entries)),
        f"{sum(entry.scan.seconds for entry in entries) / len(entries):.1f}" if entries else NOTHING,
    )


def _alone(entry: VictimEntry, method: str) -> VictimEntry | None:
    """A victim as if nothing but this method had been run on it; none where it was not run."""
    if not entry.scan.methods:
        return entry  # no method was let at this network
    cost = next((cost for cost in entry.scan.methods if cost.method == method), None)
    if cost is None:
        return None
    readings = tuple(item for item in entry.scan.readings if _method_of(item.key) == method)
    scan = entry.scan.model_copy(update={"methods": (cost,), "readings": readings, "seconds": cost.seconds})
    alone = entry.model_copy(update={"scan": scan})
    return alone.model_copy(update={"outcome": outcome_at(alone, {})})
