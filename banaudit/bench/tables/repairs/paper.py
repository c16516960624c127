"""Our repairs beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from banaudit.bench.attacks.labelling import AllToAll
from banaudit.bench.published_repairs import ADAPTIVE_NOTE, AVERAGES, BEFORE, TABLE_7, Published, published
from banaudit.bench.strata import network_of
from banaudit.bench.tables.markdown import NOTHING, grouped, table
from banaudit.bench.tables.repairs.cases import Case, View
from banaudit.bench.tables.repairs.rows import after, attack_in_words, before


def beside_the_paper(view: View) -> list[str]:
    """Each attack, and the means over the paper's attacks, with the numbers that the paper gives."""
    cases = [case for case in view.backdoored if case.victim.recipe.dataset == "cifar10"]
    networks = sorted({network_of(case.victim.recipe) for case in cases})
    methods = (BEFORE, *view.methods)
    rows: list[tuple[str, ...]] = []
    for name, members in grouped(cases, attack_in_words).items():
        recipe = members[0].victim.recipe
        assert recipe.attack is not None
        assert recipe.labelling is not None
        theirs = [published(recipe.attack.name, recipe.labelling.kind, method) for method in methods]
        if any(theirs):
            cells = [_ours(members, method) for method in methods]
            rows.append((name, *(_both(cell, given) for cell, given in zip(cells, theirs, strict=True))))
    for kind, attacks in AVERAGES.items():
        members = [case for case in cases if _labelling(case) == kind and _attack_name(case) in attacks]
        there = {_attack_name(case) for case in members}
        if members:
            cells = [_mean_of_rows(members, method) for method in methods]
            given = [_mean_published(sorted(there), kind, method) for method in methods]
            rows.append(
                (
                    f"**mean of these {len(there)} of {len(attacks)} {kind} attacks**",
                    *(_both(cell, theirs) for cell, theirs in zip(cells, given, strict=True)),
                )
            )
    return [
        "## Beside the paper",
        "Ours / theirs, clean accuracy / attack success, per cent. **Theirs are of another scale**: full-width "
        "ResNet-18, 200 epochs of training, the whole test set. Ours are the CIFAR-10 victims of "
        f"{', '.join(networks) or 'no network'}. "
        f"T: the paper's table; where it gives a cell twice, both are shown. Their means are over the "
        f"attacks of the row too. {ADAPTIVE_NOTE}",
        table(("attack", *methods), rows) if rows else "None of the paper's attacks was repaired on CIFAR-10.",
    ]


def _ours(members: Sequence[Case], method: str) -> str:
    return before(members) if method == BEFORE else after(members, method)


def _both(ours: str, theirs: Sequence[Published]) -> str:
    if not theirs:
        return ours
    cells = "; ".join(
        f"{cell.accuracy:.2f} / {cell.success:.2f}" + (f" (T{cell.table})" if cell.table else "") for cell in theirs
    )
    return f"{ours}; theirs {cells}"


def _attack_name(case: Case) -> str:
    attack = case.victim.recipe.attack
    return "" if attack is None else attack.name


def _labelling(case: Case) -> str:
    labelling = case.victim.recipe.labelling
    # The paper shifts the labels by one; a permutation of them is another attack.
    return "" if labelling is None else AllToAll().kind if isinstance(labelling, AllToAll) else labelling.kind


def _mean_of_rows(members: Sequence[Case], method: str) -> str:
    """The mean over attacks of each attack's mean."""
    means = []
    for group in grouped(members, attack_in_words).values():
        behaviours = [
            case.repair.before if method == BEFORE else case.repair.after
            for case in group
            if method in {BEFORE, case.method}
        ]
        if behaviours:
            means.append(
                (
                    statistics.mean(item.accuracy for item in behaviours),
                    statistics.mean(item.attack_success or 0.0 for item in behaviours),
                )
            )
    if not means:
        return NOTHING
    return " / ".join(f"{100 * statistics.mean(values):.2f}" for values in zip(*means, strict=True))


def _mean_published(attacks: Sequence[str], kind: str, method: str) -> tuple[Published, ...]:
    """The paper's average over the same attacks, each with the first table that gives it."""
    cells = [published(attack, kind, method)[:1] for attack in attacks]
    if not all(cells):
        return ()
    return (
        Published(
            cells[0][0].table,
            statistics.mean(cell[0].accuracy for cell in cells),
            statistics.mean(cell[0].success for cell in cells),
        ),
    )


def ablation_cell(case: Case) -> str:
    """The paper's row with the same settings, where there is one."""
    settings = case.setup.settings
    if case.method != "ban" or _attack_name(case) != "bpp" or _labelling(case) != "all-to-one":
        return NOTHING
    for row in TABLE_7:
        if (row.learning_rate, row.epochs, row.noise_weight) == tuple(
            settings.get(key) for key in ("learning_rate", "epochs", "noise_weight")
        ):
            accuracy, success = (f"{mean:.2f} ± {spread:.2f}" for mean, spread in (row.accuracy, row.success))
            return f"{accuracy} / {success}"
    return NOTHING
