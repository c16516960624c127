"""Rows and cells that several tables have: repairs grouped and totalled, and means with their deviations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from banaudit.bench.repair_results import Behaviour
from banaudit.bench.strata import attack_of, network_of
from banaudit.bench.tables.markdown import NOTHING, grouped
from banaudit.bench.tables.repairs.cases import BASELINE, CURED, Case

Group = Callable[[Case], str]
"""Name of the row that a repair is counted in."""


def attack_in_words(case: Case) -> str:
    """Attack and labelling rule of a backdoored victim.

    Raises:
        ValueError: The victim is clean.
    """
    return attack_of(case.victim.recipe)


def setting_in_words(case: Case) -> str:
    """Data set and network of a victim."""
    return f"{case.victim.recipe.dataset}, {network_of(case.victim.recipe)}"


def with_totals(cases: Sequence[Case], group: Group) -> list[tuple[str, list[Case]]]:
    """Rows, then all of them, and apart those that plain fine-tuning cures and those that it does not."""
    rows = grouped(cases, group)
    cured: list[Case] = []
    not_cured: list[Case] = []
    unknown: list[Case] = []
    for members in rows.values():
        left = [case.success for case in members if case.method == BASELINE]
        (unknown if not left else cured if statistics.mean(left) < CURED else not_cured).extend(members)
    totals = [("**all**", list(cases))] if len(rows) > 1 else []
    if not unknown:
        totals += [("**cured by fine-tuning**", cured), ("**not cured by fine-tuning**", not_cured)]
    return [*rows.items(), *((name, members) for name, members in totals if members)]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, per cent; of a single value no deviation."""
    if not values:
        return NOTHING
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def pair(behaviours: Iterable[Behaviour]) -> str:
    """Clean accuracy / attack success, each with its spread."""
    behaviours = list(behaviours)
    successes = [item.attack_success for item in behaviours if item.attack_success is not None]
    return f"{spread([item.accuracy for item in behaviours])} / {spread(successes)}" if behaviours else NOTHING


def before(cases: Iterable[Case]) -> str:
    """Behaviour before the repair, once for each victim."""
    return pair({case.entry.victim: case.repair.before for case in cases}.values())


def after(cases: Iterable[Case], method: str) -> str:
    """Behaviour after the repairs by one method."""
    return pair(case.repair.after for case in cases if case.method == method)


def count_victims(cases: Iterable[Case]) -> int:
    """How many victims the repairs are of."""
    return len({case.entry.victim for case in cases})
