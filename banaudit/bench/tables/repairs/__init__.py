"""Tables of repairs: what each mitigation leaves of backdoors and clean accuracy, and what it is then called."""

from __future__ import annotations

from collections.abc import Sequence

from banaudit.bench.population import CHOSE_REPAIR
from banaudit.bench.repair_results import RepairResults
from banaudit.bench.strata import shortfalls_of
from banaudit.bench.tables.markdown import bullets
from banaudit.bench.tables.repairs.cases import View, view_of
from banaudit.bench.tables.repairs.outcomes import (
    calls,
    clean_victims,
    every_victim,
    on_those_that_chose_nothing,
    problems,
    side_by_side,
    unlearned,
    what_is_left,
)
from banaudit.bench.tables.repairs.paper import beside_the_paper
from banaudit.bench.tables.repairs.relapse import relapse_probe, upper_percentile
from banaudit.bench.tables.repairs.settings import by_amount, by_settings, cost
from banaudit.mitigations import DEFAULT

__all__ = ["joined", "repair_tables", "upper_percentile"]

_TEST = "test"
"""In the name of a split on whose victims no constant of a repair was chosen."""

_NOT_BLIND = f"No setting of a repair was chosen on these victims, but for some of {DEFAULT.name}'s, on {{}}."

_DEVELOPMENT = (
    "{} are development models: constants of the repairs were chosen on them, so the tables show what works and "
    "what does not, and are no estimate of how well a repair does."
)


def joined(files: Sequence[RepairResults]) -> RepairResults:
    """Several files as one; of a repair that several hold, the first one's."""
    entries = {entry.identity: entry for results in reversed(files) for entry in results.entries}
    victims = {facts.recipe.key: facts for results in reversed(files) for facts in results.victims}
    return RepairResults(
        split=" and ".join(dict.fromkeys(results.split for results in files)),
        setups={digest: setup for results in files for digest, setup in results.setups.items()},
        scans={digest: scan for results in files for digest, scan in results.scans.items()},
        victims=tuple(victims.values()),
        entries=tuple(entries.values()),
    )


def repair_tables(results: RepairResults) -> str:
    """Attack success and accuracy before and after, method by method, right and wrong alike."""
    victims = {facts.recipe.key: facts for facts in results.victims}
    short = {key: why for key, why in shortfalls_of(victims.values()).items() if why}
    view = view_of(results, [entry for entry in results.entries if entry.victim not in short], victims)
    parts = [
        f"# Repairs: {results.split} split",
        _introduction(results, view),
        _standing(results.split, view),
        *side_by_side(view),
        *what_is_left(view),
        *on_those_that_chose_nothing(view),
        *beside_the_paper(view),
        *clean_victims(view),
        *unlearned(view),
        *calls(view),
        *relapse_probe(view),
        *by_amount(view),
        *by_settings(view),
        *cost(view),
        *every_victim(view),
        "## Victims below their floor",
        "Left out of the tables above." if short else "None: every attack succeeds and clean accuracies stand.",
        bullets(f"{key}: {'; '.join(why)}" for key, why in short.items()),
        *problems(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _standing(split: str, view: View) -> str:
    """What the figures may be taken for."""
    tested = [_TEST in name for name in split.split(" and ")]
    if not all(tested):
        return _DEVELOPMENT.format("Some of these" if any(tested) else "These")
    recipes = {case.victim.recipe.key: case.victim.recipe for case in view.cases if case.method == DEFAULT.name}
    chose = sorted(key for key, recipe in recipes.items() if recipe.seed in CHOSE_REPAIR)
    return _NOT_BLIND.format(", ".join(chose)) if chose else ""


def _introduction(results: RepairResults, view: View) -> str:
    if not view.cases:
        return "No repairs."
    victims = {case.entry.victim for case in view.cases}
    backdoored = {case.entry.victim for case in view.cases if case.victim.recipe.attack is not None}
    seeds = {case.entry.seed for case in view.cases}
    states = sorted({case.repair.code for case in view.cases})
    usual = [results.setups[digest] for digest in view.main]
    images = sorted({(case.victim.recipe.dataset, case.entry.images, case.entry.asked) for case in view.usual})
    amounts = ", ".join(
        f"{count:,} of {dataset}" + (f" (the pool has no {asked:,})" if _short_of(count, asked) else "")
        for dataset, count, asked in images
    )
    text = (
        f"{len(backdoored)} backdoored and {len(victims) - len(backdoored)} clean victims; of each, or of some, "
        f"{len(seeds)} repair{'s' if len(seeds) > 1 else ''} by {', '.join(view.methods)}. Clean images come from a "
        f"pool that no victim was trained on: {view.amount} of the training set unless a table says otherwise "
        f"({amounts}), of which a part chooses what is kept. Measured on at most "
        f"{max(setup.test_images for setup in usual):,} held-out images. A repair may cost "
        f"{100 * usual[0].max_drop:g} points. banaudit {usual[0].tool_version}, state {', '.join(states)} of the code."
    )
    if changed := sorted(view.labels[digest] for digest in view.main if view.labels[digest] not in view.methods):
        text += f" Columns and rows are of other settings than the default's for {'; '.join(changed)}."
    return text + (" **Not all repairs were made by the same code.**" if len(states) > 1 else "")


def _short_of(images: int, asked: int) -> bool:
    """Whether the pool held fewer images than were asked for, and not only the classes rounded."""
    return images < 0.95 * asked
