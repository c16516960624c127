"""Repairs with fewer clean images and with other settings, and what they cost."""

from __future__ import annotations

import statistics

from banaudit.bench.strata import stratum_of
from banaudit.bench.tables.markdown import NOTHING, grouped, table
from banaudit.bench.tables.repairs.cases import Case, View, amounts_of
from banaudit.bench.tables.repairs.paper import ablation_cell
from banaudit.bench.tables.repairs.rows import (
    after,
    attack_in_words,
    count_victims,
    pair,
    setting_in_words,
    with_totals,
)


def by_amount(view: View) -> list[str]:
    """How the result falls with less data, over the victims that every amount has."""
    cases = [
        case for case in view.cases if case.entry.setup in view.main and case.repair.after.attack_success is not None
    ]
    amounts = amounts_of(cases)
    if len(amounts) < 2:
        return []
    common = set.intersection(
        *({case.entry.victim for case in cases if case.entry.amount == amount} for amount in amounts)
    )
    rows = []
    for name, members in with_totals([case for case in cases if case.entry.victim in common], attack_in_words):
        for amount in amounts:
            chosen = [case for case in members if case.entry.amount == amount]
            images = sorted({case.entry.images for case in chosen})
            cells = []
            for method in view.methods:
                left = [case.success for case in chosen if case.method == method]
                largest = f", largest {100 * max(left):.1f}" if left else ""
                cells.append(after(chosen, method) + largest)
            shown = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
            rows.append((name, amount, shown, str(count_victims(chosen)), *cells))
    return [
        "## Fewer clean images",
        f"The {len(common)} victims that were repaired with every amount; accuracy / attack success, per cent.",
        table(("attack", "amount", "images", "victims", *view.methods), rows) if rows else "",
    ]


def by_settings(view: View) -> list[str]:
    """Other settings beside the usual ones, on the victims that both have."""
    others = list(dict.fromkeys(case.entry.setup for case in view.cases if case.entry.setup not in view.main))
    if not others:
        return []
    rows = []
    for digest in others:
        mine = {case.place: case for case in view.cases if case.entry.setup == digest}
        method = next(iter(mine.values())).method
        usual = {case.place: case for case in view.cases if case.entry.setup in view.main and case.method == method}
        for name, members in with_totals(list(mine.values()), _stratum):
            partners = [usual[case.place] for case in members if case.place in usual]
            rows.append(
                (
                    view.labels[digest],
                    name,
                    str(len(members)),
                    pair(case.repair.after for case in members),
                    pair(case.repair.after for case in partners),
                    ablation_cell(members[0]),
                )
            )
    head = ("setting", "victims", "repairs", "with it", "usual setting, same victims", "theirs (Table 7)")
    return ["## Other settings", "Accuracy / attack success, per cent.", table(head, rows)]


def _stratum(case: Case) -> str:
    return f"{stratum_of(case.victim.recipe)}; {case.entry.amount}"


def cost(view: View) -> list[str]:
    """Seconds and images that went through the network, by data set, network and device."""
    rows = []
    groups = grouped(
        view.usual,
        lambda case: "|".join((setting_in_words(case), case.repair.device, str(case.repair.threads), case.method)),
    )
    for name, cases in groups.items():
        setting, device, threads, method = name.split("|")
        scans = [case.entry.rescan.seconds for case in cases if case.entry.rescan is not None]
        rows.append(
            (
                setting,
                device if device != "cpu" else f"cpu, {threads} thread{'s' if threads != '1' else ''}",
                method,
                str(len(cases)),
                f"{statistics.mean(case.repair.training_images for case in cases):,.0f}",
                f"{statistics.median(case.repair.seconds for case in cases):,.1f}",
                f"{statistics.mean(case.repair.forward_images for case in cases):,.0f}",
                f"{statistics.mean(case.repair.backward_images for case in cases):,.0f}",
                f"{statistics.median(scans):,.1f}" if scans else NOTHING,
            )
        )
    head = (
        "data set, network",
        "device",
        "method",
        "repairs",
        "images trained on",
        "seconds",
        "images forward",
        "images backward",
        "seconds of scan and probe",
    )
    return ["## Seconds and passes", table(head, rows)]
