"""Tables of repairs: what each mitigation leaves of backdoors and clean accuracy, and what it is then called."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from banaudit.bench.attacks.labelling import AllToAll
from banaudit.bench.published_repairs import ADAPTIVE_NOTE, AVERAGES, BEFORE, TABLE_7, Published, published
from banaudit.bench.repairs import Behaviour, RepairEntry, RepairMeasured, RepairResults, RepairSetup
from banaudit.bench.strata import attack_of, kind_of, network_of, shortfalls_of
from banaudit.bench.tables.markdown import NOTHING, bullets, share, table
from banaudit.bench.victims import VictimFacts
from banaudit.mitigations import MITIGATIONS
from banaudit.mitigations.base import MAX_DROP
from banaudit.results import Reading, Verdict

DEVELOPMENT = (
    "These are development models: constants of the repairs were chosen on them, so the tables show what works and "
    "what does not, and are no estimate of how well a repair does."
)

CURED = 0.1
"""Attack success below which a victim counts as cured."""

USUAL_AMOUNT = "5 %"
"""The paper's share of clean images; where a file has it, most tables are about it."""

BASELINE = "fine-tuning"
"""What every repair is held against."""

PERCENTILE = 0.95
"""Of the probe on clean victims: above it a relapse would count."""


@dataclass(frozen=True)
class _Case:
    """One repair with everything that it belongs to."""

    entry: RepairEntry
    repair: RepairMeasured
    victim: VictimFacts
    setup: RepairSetup

    @property
    def method(self) -> str:
        return self.setup.method

    @property
    def success(self) -> float:
        """Attack success that is left; only of backdoored victims."""
        assert self.repair.after.attack_success is not None
        return self.repair.after.attack_success

    @property
    def lost(self) -> float:
        """Clean accuracy lost against before."""
        return self.repair.before.accuracy - self.repair.after.accuracy


Group = Callable[[_Case], str]
"""Name of the row that a repair is counted in."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class _View:
    """The repairs that count, by use.

    Args:
        cases: All of them, of every setup and amount.
        usual: Of each method's usual setup, at the usual amount.
        methods: In the order of the file.
        amount: The usual one.
        labels: Digest of a setup -> the method with whatever is not its default.
        main: Digests of the methods' usual setups.
    """

    cases: tuple[_Case, ...]
    usual: tuple[_Case, ...]
    methods: tuple[str, ...]
    amount: str
    labels: dict[str, str]
    main: frozenset[str]

    @property
    def backdoored(self) -> tuple[_Case, ...]:
        return tuple(case for case in self.usual if case.repair.after.attack_success is not None)

    @property
    def clean(self) -> tuple[_Case, ...]:
        return tuple(case for case in self.usual if case.victim.recipe.attack is None)


def repair_tables(results: RepairResults) -> str:
    """Attack success and accuracy before and after, method by method, right and wrong alike."""
    victims = {facts.recipe.key: facts for facts in results.victims}
    short = {key: why for key, why in shortfalls_of(victims.values()).items() if why}
    view = _view(results, [entry for entry in results.entries if entry.victim not in short], victims)
    networks = {_setting_of(case) for case in view.backdoored}
    parts = [
        f"# Repairs: {results.split} split",
        _introduction(results, view),
        DEVELOPMENT if results.split == "development" else "",
        "## Side by side",
        f"Clean accuracy / attack success on held-out images, per cent: mean and standard deviation of the repairs. "
        f"*Cured by fine-tuning*: rows in which plain fine-tuning leaves less than {CURED:.0%} on average.",
        _side_by_side("attack", view, _attack),
        *(
            ["### By network and data set", _side_by_side("attack, data set, network", view, _attack_and_setting)]
            if len(networks) > 1
            else []
        ),
        *_what_is_left(view),
        "## Beside the paper",
        "Ours / theirs, clean accuracy / attack success, per cent. **Theirs are of another scale**: full-width "
        "ResNet-18, 200 epochs of training, the whole test set. Ours are the CIFAR-10 victims of "
        f"{', '.join(sorted({network_of(case.victim.recipe) for case in _on_cifar(view)})) or 'no network'}. "
        f"T: the paper's table; where it gives a cell twice, both are shown. {ADAPTIVE_NOTE}",
        _beside_the_paper(view),
        "## Clean victims repaired by mistake",
        _clean_table(view),
        "## What the tool says of its own repairs",
        f"*Left*: attack success of {CURED:.0%} or more after the repair. *Called repaired*: it would have been "
        "written, and the second scan finds no evidence. The probe's column adds the relapse probe, firing above the "
        "95th percentile of the clean victims in the table below: in sample, so it flatters. The first scan is taken "
        "to have named the right classes.",
        _calls_table(view),
        "## Relapse probe",
        "Share of held-out images that a stand-in for the trigger moves after a few steps of fine-tuning on images "
        "that carry it. On clean victims it aims at arbitrary classes. With fewer than 19 clean repairs there is no "
        "95th percentile that holds for a new model, and the largest is shown.",
        _relapse_table(view),
        *_by_amount(view),
        *_by_settings(view),
        "## Seconds and passes",
        _cost_table(view),
        "## Every victim",
        _victims_table(view),
        "## Victims below their floor",
        "Left out of the tables above." if short else "None: every attack succeeds and clean accuracies stand.",
        bullets(f"{key}: {'; '.join(why)}" for key, why in short.items()),
        *_problems(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# -- what is shown -------------------------------------------------------------------------------------------------


def _view(results: RepairResults, entries: Sequence[RepairEntry], victims: dict[str, VictimFacts]) -> _View:
    cases = tuple(
        _Case(entry, entry.repair, victims[entry.victim], results.setups[entry.setup])
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
    amounts = _by_images(cases)
    amount = USUAL_AMOUNT if USUAL_AMOUNT in amounts else next(iter(amounts), USUAL_AMOUNT)
    return _View(
        cases=cases,
        usual=tuple(case for case in cases if case.entry.setup in main and case.entry.amount == amount),
        methods=methods,
        amount=amount,
        labels=_labels({digest: results.setups[digest] for digest in counts}),
        main=main,
    )


def _by_images(cases: Iterable[_Case]) -> list[str]:
    """Amounts, the largest first."""
    images: dict[str, list[int]] = {}
    for case in cases:
        images.setdefault(case.entry.amount, []).append(case.entry.asked)
    return sorted(images, key=lambda amount: statistics.mean(images[amount]), reverse=True)


def _changes(setup: RepairSetup) -> list[str]:
    """What of a setup is not the default of today."""
    mitigation = MITIGATIONS.get(setup.method)
    defaults = mitigation().settings() if mitigation is not None else {}
    changed = [f"{key}={value}" for key, value in setup.settings.items() if defaults.get(key, value) != value]
    return changed + ([f"max-drop={100 * setup.max_drop:g}"] if setup.max_drop != MAX_DROP else [])


def _labels(setups: dict[str, RepairSetup]) -> dict[str, str]:
    labels = {digest: " ".join([setup.method, *_changes(setup)]) for digest, setup in setups.items()}
    names = list(labels.values())
    return {digest: name if names.count(name) == 1 else f"{name} ({digest})" for digest, name in labels.items()}


def _introduction(results: RepairResults, view: _View) -> str:
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
        f"{len(backdoored)} backdoored and {len(victims) - len(backdoored)} clean victims, {len(seeds)} repair"
        f"{'s' if len(seeds) > 1 else ''} of each by {', '.join(view.methods)}. Clean images come from a pool that no "
        f"victim was trained on: {view.amount} of the training set unless a table says otherwise ({amounts}), of which "
        f"a part chooses what is kept. Measured on at most {max(setup.test_images for setup in usual):,} held-out "
        f"images. A repair may cost {100 * usual[0].max_drop:g} points. banaudit {usual[0].tool_version}, state "
        f"{', '.join(states)} of the code."
    )
    return text + (" **Not all repairs were made by the same code.**" if len(states) > 1 else "")


def _short_of(images: int, asked: int) -> bool:
    """Whether the pool held fewer images than were asked for, and not only the classes rounded."""
    return images < 0.95 * asked


# -- cells ---------------------------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, per cent; of a single value no deviation."""
    if not values:
        return NOTHING
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.2f}"


def _pair(behaviours: Iterable[Behaviour]) -> str:
    behaviours = list(behaviours)
    successes = [item.attack_success for item in behaviours if item.attack_success is not None]
    return f"{_spread([item.accuracy for item in behaviours])} / {_spread(successes)}" if behaviours else NOTHING


def _before(cases: Iterable[_Case]) -> str:
    """Behaviour before the repair, once for each victim."""
    return _pair({case.entry.victim: case.repair.before for case in cases}.values())


def _after(cases: Iterable[_Case], method: str) -> str:
    return _pair(case.repair.after for case in cases if case.method == method)


def _against_baseline(cases: Iterable[_Case], method: str) -> list[float]:
    """Clean accuracy lost against plain fine-tuning of the same victim with the same images and seed."""
    cases = list(cases)
    baseline = {_place(case): case.repair.after.accuracy for case in cases if case.method == BASELINE}
    return [
        baseline[_place(case)] - case.repair.after.accuracy
        for case in cases
        if case.method == method and _place(case) in baseline
    ]


def _place(case: _Case) -> tuple[str, str, int]:
    return case.entry.victim, case.entry.amount, case.entry.seed


def _count(cases: Iterable[_Case]) -> int:
    return len({case.entry.victim for case in cases})


# -- rows ----------------------------------------------------------------------------------------------------------


def _attack(case: _Case) -> str:
    return attack_of(case.victim.recipe)


def _setting_of(case: _Case) -> str:
    return f"{case.victim.recipe.dataset}, {network_of(case.victim.recipe)}"


def _attack_and_setting(case: _Case) -> str:
    return f"{_attack(case)}; {_setting_of(case)}"


def _grouped(cases: Iterable[_Case], group: Group) -> dict[str, list[_Case]]:
    found: dict[str, list[_Case]] = {}
    for case in cases:
        found.setdefault(group(case), []).append(case)
    return dict(sorted(found.items()))


def _with_totals(cases: Sequence[_Case], group: Group) -> list[tuple[str, list[_Case]]]:
    """Rows, then all of them, and apart those that plain fine-tuning cures and those that it does not."""
    rows = _grouped(cases, group)
    cured: list[_Case] = []
    not_cured: list[_Case] = []
    unknown: list[_Case] = []
    for members in rows.values():
        left = [case.success for case in members if case.method == BASELINE]
        (unknown if not left else cured if statistics.mean(left) < CURED else not_cured).extend(members)
    totals = [("**all**", list(cases))] if len(rows) > 1 else []
    if not unknown:
        totals += [("**cured by fine-tuning**", cured), ("**not cured by fine-tuning**", not_cured)]
    return [*rows.items(), *((name, members) for name, members in totals if members)]


def _side_by_side(title: str, view: _View, group: Group) -> str:
    rows = [
        (name, str(_count(members)), _before(members), *(_after(members, method) for method in view.methods))
        for name, members in _with_totals(view.backdoored, group)
    ]
    return table((title, "victims", "before", *view.methods), rows)


def _what_is_left(view: _View) -> list[str]:
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
    parts = ["## Method by method", "Accuracies in points; a minus is a gain."] if view.backdoored else []
    for method in view.methods:
        rows = []
        for name, everything in _with_totals(view.backdoored, _attack):
            cases = [case for case in everything if case.method == method]
            if not cases:
                continue
            left = [case.success for case in cases]
            lost = [case.lost for case in cases]
            rows.append(
                (
                    name,
                    str(len(cases)),
                    _spread(left),
                    f"{100 * max(left):.2f}",
                    str(sum(value >= CURED for value in left)),
                    _spread(lost),
                    f"{100 * max(lost):.2f}",
                    _spread(_against_baseline(everything, method)) if method != BASELINE else NOTHING,
                    f"{sum(case.repair.within_budget for case in cases)}/{len(cases)}",
                )
            )
        if rows:
            parts += [f"### {method}", table(head, rows)]
    return parts


def _on_cifar(view: _View) -> list[_Case]:
    return [case for case in view.backdoored if case.victim.recipe.dataset == "cifar10"]


def _beside_the_paper(view: _View) -> str:
    cases = _on_cifar(view)
    methods = (BEFORE, *view.methods)
    rows: list[tuple[str, ...]] = []
    for name, members in _grouped(cases, _attack).items():
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
            given = [_mean_published(attacks, kind, method) for method in methods]
            rows.append(
                (
                    f"**mean of {len(there)} of the paper's {len(attacks)} {kind} attacks**",
                    *(_both(cell, theirs) for cell, theirs in zip(cells, given, strict=True)),
                )
            )
    return table(("attack", *methods), rows) if rows else "None of the paper's attacks was repaired on CIFAR-10."


def _ours(members: Sequence[_Case], method: str) -> str:
    return _before(members) if method == BEFORE else _after(members, method)


def _both(ours: str, theirs: Sequence[Published]) -> str:
    if not theirs:
        return ours
    cells = "; ".join(
        f"{cell.accuracy:.2f} / {cell.success:.2f}" + (f" (T{cell.table})" if cell.table else "") for cell in theirs
    )
    return f"{ours}; theirs {cells}"


def _attack_name(case: _Case) -> str:
    attack = case.victim.recipe.attack
    return "" if attack is None else attack.name


def _labelling(case: _Case) -> str:
    labelling = case.victim.recipe.labelling
    # The paper shifts the labels by one; a permutation of them is another attack.
    return "" if labelling is None else AllToAll().kind if isinstance(labelling, AllToAll) else labelling.kind


def _mean_of_rows(members: Sequence[_Case], method: str) -> str:
    """The mean over attacks of each attack's mean."""
    means = []
    for group in _grouped(members, _attack).values():
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
    """The paper's own average: over all of its attacks, each with the first table that gives it."""
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


def _clean_table(view: _View) -> str:
    rows: list[tuple[str, ...]] = []
    groups = _grouped(view.clean, lambda case: kind_of(case.victim.recipe))
    for name, everything in [*groups.items(), ("**all**", list(view.clean))]:
        for method in view.methods:
            cases = [case for case in everything if case.method == method]
            if not cases:
                continue
            scanned = [case.entry.rescan for case in cases if case.entry.rescan is not None]
            rows.append(
                (
                    name,
                    method,
                    str(len(cases)),
                    _spread([case.repair.before.accuracy for case in cases]),
                    _spread([case.lost for case in cases]),
                    f"{100 * max(case.lost for case in cases):.2f}",
                    f"{sum(case.repair.within_budget for case in cases)}/{len(cases)}",
                    share(sum(scan.verdict is Verdict.BACKDOORED for scan in scanned), len(scanned)),
                )
            )
    head = ("kind", "method", "repairs", "accuracy", "lost", "most", "within budget", "accused afterwards")
    return table(head, rows) if rows else "No clean victim was repaired."


# -- what the tool says --------------------------------------------------------------------------------------------


def _calls_table(view: _View) -> str:
    rows: list[tuple[str, ...]] = []
    for method in view.methods:
        cases = [case for case in view.backdoored if case.method == method]
        left = [case for case in cases if case.success >= CURED]
        cured = [case for case in cases if case.success < CURED]
        scanned = [case for case in left if case.entry.rescan is not None]
        rows.append(
            (
                method,
                f"{len(left)} of {len(cases)}",
                str(sum(not case.repair.within_budget for case in left)),
                share(sum(_called_repaired(case) for case in scanned), len(scanned)),
                share(sum(_called_repaired(case) and not _relapses(case, view) for case in scanned), len(scanned)),
                share(
                    sum(_called_repaired(case) for case in cured if case.entry.rescan is not None),
                    sum(case.entry.rescan is not None for case in cured),
                ),
            )
        )
    head = (
        "method",
        "left",
        "of these over budget",
        "left, scanned, called repaired",
        "the same with the probe",
        "cured, scanned, called repaired",
    )
    return table(head, rows)


def _called_repaired(case: _Case) -> bool:
    return case.entry.rescan is not None and case.entry.rescan.verdict is Verdict.NO_EVIDENCE


def _relapses(case: _Case, view: _View) -> bool:
    """Whether the probe's share is above what clean victims repaired in the same way give."""
    assert case.entry.rescan is not None
    for found in case.entry.rescan.relapse:
        threshold = upper_percentile(_clean_shares(view, case.method, found.reading))
        if threshold is not None and found.relapsed > threshold:
            return True
    return False


def _clean_shares(view: _View, method: str, reading: Reading) -> list[float]:
    return [
        found.relapsed
        for case in view.clean
        if case.method == method and case.entry.rescan is not None
        for found in case.entry.rescan.relapse
        if found.reading is reading
    ]


def upper_percentile(values: Sequence[float]) -> float | None:
    """The order statistic that a new value of the same kind exceeds with a probability of at most 5 %.

    Args:
        values: Exchangeable with the new one; with fewer than 19 there is no such value, and the largest is taken.

    Returns:
        None where there are no values.
    """
    if not values:
        return None
    rank = math.ceil(PERCENTILE * (len(values) + 1))
    return sorted(values)[min(rank, len(values)) - 1]


def _relapse_table(view: _View) -> str:
    rows: list[tuple[str, ...]] = []
    for method in view.methods:
        for reading in Reading:
            clean = _clean_shares(view, method, reading)
            threshold = upper_percentile(clean)
            probed = [
                (case.success, found.relapsed)
                for case in view.backdoored
                if case.method == method and case.entry.rescan is not None
                for found in case.entry.rescan.relapse
                if found.reading is reading
            ]
            if not clean and not probed:
                continue
            cells = []
            for group in (
                [value for success, value in probed if success < CURED],
                [value for success, value in probed if success >= CURED],
            ):
                middle = f"{statistics.median(group):.0%}" if group else NOTHING
                above = (
                    "" if threshold is None else f", above: {sum(value > threshold for value in group)}/{len(group)}"
                )
                cells.append(middle + above if group else NOTHING)
            rows.append(
                (
                    method,
                    reading.value,
                    str(len(clean)),
                    f"{statistics.median(clean):.1%}" if clean else NOTHING,
                    f"{threshold:.1%}" if threshold is not None else NOTHING,
                    *cells,
                )
            )
    head = ("method", "aimed at", "clean repairs", "median", "95th percentile", "cured: median", "left: median")
    return table(head, rows) if rows else "No repaired model was probed."


# -- less data, other settings, cost -------------------------------------------------------------------------------


def _by_amount(view: _View) -> list[str]:
    """How the result falls with less data, over the victims that every amount has."""
    cases = [
        case for case in view.cases if case.entry.setup in view.main and case.repair.after.attack_success is not None
    ]
    amounts = _by_images(cases)
    if len(amounts) < 2:
        return []
    common = set.intersection(
        *({case.entry.victim for case in cases if case.entry.amount == amount} for amount in amounts)
    )
    rows = []
    for name, members in _with_totals([case for case in cases if case.entry.victim in common], _attack):
        for amount in amounts:
            chosen = [case for case in members if case.entry.amount == amount]
            images = sorted({case.entry.images for case in chosen})
            cells = []
            for method in view.methods:
                left = [case.success for case in chosen if case.method == method]
                largest = f", largest {100 * max(left):.1f}" if left else ""
                cells.append(_after(chosen, method) + largest)
            shown = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,} to {images[-1]:,}"
            rows.append((name, amount, shown, str(_count(chosen)), *cells))
    return [
        "## Fewer clean images",
        f"The {len(common)} victims that were repaired with every amount; accuracy / attack success, per cent.",
        table(("attack", "amount", "images", "victims", *view.methods), rows) if rows else "",
    ]


def _by_settings(view: _View) -> list[str]:
    """Other settings beside the usual ones, on the victims that both have."""
    others = list(dict.fromkeys(case.entry.setup for case in view.cases if case.entry.setup not in view.main))
    if not others:
        return []
    rows = []
    for digest in others:
        mine = {_place(case): case for case in view.cases if case.entry.setup == digest}
        method = next(iter(mine.values())).method
        usual = {_place(case): case for case in view.cases if case.entry.setup in view.main and case.method == method}
        for name, members in _grouped(mine.values(), _stratum).items():
            partners = [usual[_place(case)] for case in members if _place(case) in usual]
            rows.append(
                (
                    view.labels[digest],
                    name,
                    str(len(members)),
                    _pair(case.repair.after for case in members),
                    _pair(case.repair.after for case in partners),
                    _ablation_cell(members[0]),
                )
            )
    head = ("setting", "victims", "repairs", "with it", "usual setting, same victims", "theirs (Table 7)")
    return ["## Other settings", "Accuracy / attack success, per cent.", table(head, rows)]


def _stratum(case: _Case) -> str:
    recipe = case.victim.recipe
    return f"{f'clean, {kind_of(recipe)}' if recipe.attack is None else _attack(case)}; {case.entry.amount}"


def _ablation_cell(case: _Case) -> str:
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


def _cost_table(view: _View) -> str:
    rows = []
    groups = _grouped(
        view.usual,
        lambda case: "|".join((_setting_of(case), case.repair.device, str(case.repair.threads), case.method)),
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
    return table(head, rows)


def _victims_table(view: _View) -> str:
    rows = [
        (name, _before(cases), *(_after(cases, method) for method in view.methods))
        for name, cases in _grouped(view.usual, lambda case: case.entry.victim).items()
    ]
    return table(("victim", "before", *view.methods), rows)


def _problems(results: RepairResults) -> list[str]:
    """Repairs that could not be made."""
    failed = [entry for entry in results.entries if entry.repair is None]
    if not failed:
        return []
    reasons = sorted({f"{results.setups[item.setup].method} on {item.victim}: {item.problem}" for item in failed})
    return ["## Repairs that could not be made", bullets(reasons)]
