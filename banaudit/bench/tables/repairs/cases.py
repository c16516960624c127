"""Repairs with everything that they belong to, and which of them the tables are about."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from banaudit.bench.repair_results import RepairEntry, RepairMeasured, RepairResults, RepairSetup
from banaudit.bench.victims import VictimFacts
from banaudit.mitigations import MITIGATIONS, TargetedMitigation
from banaudit.mitigations.base import MAX_DROP

CURED = 0.1
"""Attack success below which a victim counts as cured."""

USUAL_AMOUNT = "5 %"
"""The paper's share of clean images; where a file has it, most tables are about it."""

BASELINE = "fine-tuning"
"""What every repair is held against."""


@dataclass(frozen=True)
class Case:
    """One repair with everything that it belongs to."""

    entry: RepairEntry
    repair: RepairMeasured
    victim: VictimFacts
    setup: RepairSetup

    @property
    def method(self) -> str:
        """Name of the mitigation."""
        return self.setup.method

    @property
    def success(self) -> float:
        """Attack success that is left; only of backdoored victims."""
        assert self.repair.after.attack_success is not None
        return self.repair.after.attack_success

    @property
    def group(self) -> Literal["clean", "cured", "left"]:
        """A victim without a backdoor, one that has lost it, or one that has not."""
        if self.repair.after.attack_success is None:
            return "clean"
        return "cured" if self.success < CURED else "left"

    @property
    def lost(self) -> float:
        """Clean accuracy lost against before."""
        return self.repair.before.accuracy - self.repair.after.accuracy

    @property
    def place(self) -> tuple[str, str, int]:
        """Victim, amount and seed: what repairs share that are held against each other."""
        return self.entry.victim, self.entry.amount, self.entry.seed


@dataclass(frozen=True)
class View:
    """The repairs that count, by use.

    Args:
        cases: All of them, of every setup and amount.
        usual: Of each method's usual setup, at the usual amount.
        methods: In the order of the file.
        amount: The usual one.
        labels: Digest of a setup -> the method with whatever is not its default.
        main: Digests of the methods' usual setups.
    """

    cases: tuple[Case, ...]
    usual: tuple[Case, ...]
    methods: tuple[str, ...]
    amount: str
    labels: dict[str, str]
    main: frozenset[str]

    @property
    def backdoored(self) -> tuple[Case, ...]:
        """Of the usual ones, those whose attack success was measured."""
        return tuple(case for case in self.usual if case.repair.after.attack_success is not None)

    @property
    def clean(self) -> tuple[Case, ...]:
        """Of the usual ones, those of victims without a backdoor."""
        return tuple(case for case in self.usual if case.victim.recipe.attack is None)


def view_of(results: RepairResults, entries: Sequence[RepairEntry], victims: dict[str, VictimFacts]) -> View:
    """What the tables show of a file.

    Args:
        results: The whole file; a method's usual setup is chosen by all of its entries.
        entries: Those of its entries that count.
        victims: Every victim by its key.
    """
    cases = tuple(
        Case(entry, entry.repair, victims[entry.victim], results.setups[entry.setup])
        for entry in entries
        if entry.repair is not None
    )
    counts: dict[str, int] = {}
    for entry in results.entries:
        counts[entry.setup] = counts.get(entry.setup, 0) + 1
    methods = tuple(dict.fromkeys(results.setups[digest].method for digest in counts))
    main = frozenset(
        max(
            (digest for digest in counts if results.setups[digest].method == method),
            key=lambda digest: (not _changes(results.setups[digest]), counts[digest]),
        )
        for method in methods
    )
    amounts = amounts_of(cases)
    amount = USUAL_AMOUNT if USUAL_AMOUNT in amounts else next(iter(amounts), USUAL_AMOUNT)
    return View(
        cases=cases,
        usual=tuple(case for case in cases if case.entry.setup in main and case.entry.amount == amount),
        methods=methods,
        amount=amount,
        labels=_labels({digest: results.setups[digest] for digest in counts}),
        main=main,
    )


def amounts_of(cases: Iterable[Case]) -> list[str]:
    """Amounts, the largest first."""
    images: dict[str, list[int]] = {}
    for case in cases:
        images.setdefault(case.entry.amount, []).append(case.entry.asked)
    return sorted(images, key=lambda amount: statistics.mean(images[amount]), reverse=True)


def _changes(setup: RepairSetup) -> list[str]:
    """What of a setup is not the default of today."""
    mitigation = MITIGATIONS.get(setup.method)
    defaults = mitigation().settings() if mitigation is not None else {}
    changed = [f"{key}={value}" for key, value in setup.settings.items() if defaults.get(key) != value]
    changed += [f"no {key}" for key in defaults if key not in setup.settings]
    if mitigation is not None and issubclass(mitigation, TargetedMitigation) and not (setup.aimed or changed):
        changed.append("not aimed")
    return changed + ([f"max-drop={100 * setup.max_drop:g}"] if setup.max_drop != MAX_DROP else [])


def _labels(setups: dict[str, RepairSetup]) -> dict[str, str]:
    labels = {digest: " ".join([setup.method, *_changes(setup)]) for digest, setup in setups.items()}
    names = list(labels.values())
    return {digest: name if names.count(name) == 1 else f"{name} ({digest})" for digest, name in labels.items()}
