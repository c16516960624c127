"""What repairs leave of backdoors and of clean accuracy, and what the repaired models are then called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from banaudit.bench.population import CHOSE_REPAIR
from banaudit.bench.repair_results import RepairResults, Rescan
from banaudit.bench.runner import truth_of
from banaudit.bench.strata import kind_of
from banaudit.bench.tables.markdown import NOTHING, bullets, grouped, share, table
from banaudit.bench.tables.repairs.cases import BASELINE, CURED, Case, View
from banaudit.bench.tables.repairs.relapse import relapses
from banaudit.bench.tables.repairs.rows import (
    Group,
    after,
    attack_in_words,
    before,
    count_victims,
    setting_in_words,
    spread,
    with_totals,
)
from banaudit.mitigations import DEFAULT
from banaudit.results import UnlearnedChange, Verdict


def side_by_side(view: View) -> list[str]:
    """Every method beside every other, by attack and, where there are several, by data set and network."""
    parts = [
        "## Side by side",
        "Clean accuracy / attack success on held-out images, per cent: mean and standard deviation of the repairs. "
        "Where a method did not repair all victims of a row, their number stands in brackets: such cells compare "
        "only victim by victim (*Every victim*, below). "
        f"*Cured by fine-tuning*: rows in which plain fine-tuning leaves less than {CURED:.0%} on average.",
        _comparison("attack", view, attack_in_words),
    ]
    if len({setting_in_words(case) for case in view.backdoored}) > 1:
        parts += [
            "### By network and data set",
            _comparison("attack, data set, network", view, _attack_and_setting),
        ]
    return parts


def _comparison(title: str, view: View, group: Group) -> str:
    rows = [
        (name, str(count_victims(members)), before(members), *(_after_some(members, method) for method in view.methods))
        for name, members in with_totals(view.backdoored, group)
    ]
    return table((title, "victims", "before", *view.methods), rows)


def _after_some(cases: Sequence[Case], method: str) -> str:
    """Behaviour after the repairs by one method, and of how many victims it is where it is not of all."""
    repaired = count_victims(case for case in cases if case.method == method)
    return after(cases, method) + (f" ({repaired})" if 0 < repaired < count_victims(cases) else "")


def _attack_and_setting(case: Case) -> str:
    return f"{attack_in_words(case)}; {setting_in_words(case)}"


def what_is_left(view: View) -> list[str]:
    """Attack success that each method leaves, and the clean accuracy that it costs, by attack."""
    parts = ["## Method by method", "Accuracies in points; a minus is a gain."] if view.backdoored else []
    for method in view.methods:
        if of_method := _left_by(method, view.backdoored):
            parts += [f"### {method}", of_method]
    return parts


def on_those_that_chose_nothing(view: View) -> list[str]:
    """What the default leaves of victims that chose none of its settings, where others of the tables did."""
    seeds = {case.victim.recipe.seed for case in view.backdoored if case.method == DEFAULT.name}
    blind = [case for case in view.backdoored if case.victim.recipe.seed not in CHOSE_REPAIR]
    rows = _left_by(DEFAULT.name, blind) if seeds & CHOSE_REPAIR else ""
    return [f"## {DEFAULT.name} on victims that chose none of its settings", rows] if rows else []


def _left_by(method: str, cases: Sequence[Case]) -> str:
    head = (
        "attack",
        "repairs",
        "attack success left, mean",
        "largest",
        f"{CURED:.0%} or more",
        "accuracy lost",
        "most",
        "lost against fine-tuning",
        "within budget",
    )
    rows = []
    for name, everything in with_totals(cases, attack_in_words):
        repairs = [case for case in everything if case.method == method]
        if not repairs:
            continue
        left = [case.success for case in repairs]
        lost = [case.lost for case in repairs]
        rows.append(
            (
                name,
                str(len(repairs)),
                spread(left),
                f"{100 * max(left):.2f}",
                str(sum(value >= CURED for value in left)),
                spread(lost),
                f"{100 * max(lost):.2f}",
                spread(_against_baseline(everything, method)) if method != BASELINE else NOTHING,
                f"{sum(case.repair.within_budget for case in repairs)}/{len(repairs)}",
            )
        )
    return table(head, rows) if rows else ""


def _against_baseline(cases: Iterable[Case], method: str) -> list[float]:
    """Clean accuracy lost against plain fine-tuning of the same victim with the same images and seed."""
    cases = list(cases)
    baseline = {case.place: case.repair.after.accuracy for case in cases if case.method == BASELINE}
    return [
        baseline[case.place] - case.repair.after.accuracy
        for case in cases
        if case.method == method and case.place in baseline
    ]


def clean_victims(view: View) -> list[str]:
    """Accuracy that the repair of a clean victim costs, and how many are accused afterwards."""
    rows: list[tuple[str, ...]] = []
    groups = grouped(view.clean, lambda case: kind_of(case.victim.recipe))
    for name, everything in [*groups.items(), ("**all**", list(view.clean))]:
        for method in view.methods:
            cases = [case for case in everything if case.method == method]
            if not cases:
                continue
            scanned = _rescans(cases)
            rows.append(
                (
                    name,
                    method,
                    str(len(cases)),
                    spread([case.repair.before.accuracy for case in cases]),
                    spread([case.lost for case in cases]),
                    f"{100 * max(case.lost for case in cases):.2f}",
                    f"{sum(case.repair.within_budget for case in cases)}/{len(cases)}",
                    share(sum(scan.verdict is Verdict.BACKDOORED for scan in scanned), len(scanned)),
                )
            )
    head = ("kind", "method", "repairs", "accuracy", "lost", "most", "within budget", "accused afterwards")
    return [
        "## Clean victims repaired by mistake",
        table(head, rows) if rows else "No clean victim was repaired.",
    ]


def unlearned(view: View) -> list[str]:
    """What stood out on the networks as they came and was trained against, and whether it led to the target."""
    methods = {case.method for case in view.usual if case.repair.unlearned}
    if not methods:
        return []
    rows = []
    cases = [case for case in view.usual if case.method in methods]
    for name, members in grouped(cases, _attack_or_clean).items():
        numbers = [str(len(members))]
        for kind in ("patch", "perturbation"):
            found = [
                _leads_to_target(case, change)
                for case in members
                for change in case.repair.unlearned
                if change.kind == kind
            ]
            numbers += [str(sum(found)), str(len(found) - sum(found))]
        rows.append((name, *numbers))
    head = ("attack", "repairs", "patch to the target", "to another", "perturbation to the target", "to another")
    return [
        "## What was unlearned",
        f"Changes of pixels that stood out on the network as it came, by {', '.join(sorted(methods))}. Where there are "
        "several targets, or none, each counts as another.",
        table(head, rows),
    ]


def _attack_or_clean(case: Case) -> str:
    return "clean" if case.victim.recipe.attack is None else attack_in_words(case)


def _leads_to_target(case: Case, change: UnlearnedChange) -> bool:
    return change.target == truth_of(case.victim).target


def calls(view: View) -> list[str]:
    """How many of the repairs that leave a backdoor, and of those that do not, the tool calls repaired."""
    rows: list[tuple[str, ...]] = []
    for method in view.methods:
        cases = [case for case in view.backdoored if case.method == method]
        left = [case for case in cases if case.success >= CURED]
        scanned = _rescans(left)
        cured = _rescans(case for case in cases if case.success < CURED)
        rows.append(
            (
                method,
                f"{len(left)} of {len(cases)}",
                str(sum(not case.repair.within_budget for case in left)),
                share(sum(_unaccused(scan) for scan in scanned), len(scanned)),
                share(sum(_called_repaired(scan) for scan in scanned), len(scanned)),
                share(sum(_called_repaired(scan) for scan in cured), len(cured)),
            )
        )
    head = (
        "method",
        "left",
        "of these over budget",
        "left, scanned, not accused",
        "left, scanned, called repaired",
        "cured, scanned, called repaired",
    )
    return [
        "## What the tool says of its own repairs",
        f"*Left*: attack success of {CURED:.0%} or more after the repair. *Called repaired*: it would have been "
        "written, the second scan finds no evidence, and the relapse probe stays below its threshold. The first scan "
        "is taken to have named the right classes.",
        table(head, rows),
    ]


def _rescans(cases: Iterable[Case]) -> list[Rescan]:
    return [case.entry.rescan for case in cases if case.entry.rescan is not None]


def _unaccused(rescan: Rescan) -> bool:
    return rescan.verdict is Verdict.NO_EVIDENCE


def _called_repaired(rescan: Rescan) -> bool:
    return _unaccused(rescan) and not relapses(rescan)


def every_victim(view: View) -> list[str]:
    """Behaviour of each victim before and after."""
    rows = [
        (name, before(cases), *(after(cases, method) for method in view.methods))
        for name, cases in grouped(view.usual, lambda case: case.entry.victim).items()
    ]
    return ["## Every victim", table(("victim", "before", *view.methods), rows)]


def problems(results: RepairResults) -> list[str]:
    """Repairs that could not be made."""
    failed = [entry for entry in results.entries if entry.repair is None]
    if not failed:
        return []
    reasons = sorted({f"{results.setups[item.setup].method} on {item.victim}: {item.problem}" for item in failed})
    return ["## Repairs that could not be made", bullets(reasons)]
