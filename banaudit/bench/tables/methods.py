"""Tables with a column for each method: every attack, network and data set, and the paper's figures beside ours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from banaudit.bench.published_detection import (
    ADAPTIVE_NOTE,
    CLEAN,
    FAMILIES,
    METHODS,
    PUBLISHED,
    Cell,
    PublishedTable,
    cell_of,
)
from banaudit.bench.released import RELEASED_BAN
from banaudit.bench.runner import VictimEntry
from banaudit.bench.strata import network_of, stratum_of
from banaudit.bench.tables.markdown import NOTHING, grouped, share, table
from banaudit.bench.victims import VictimRecipe
from banaudit.detectors.ban import BAN
from banaudit.detectors.mm_bd import MMBD
from banaudit.results import Verdict

JOINT = "joint verdict"

OTHER_SCALE = (
    "**Not the same experiment.** Theirs: full-width networks, 200 epochs, the whole data sets, 20 models in each cell "
    "(10 in Table 8), called backdoored by a share of predictions that the paper does not state. Ours: the networks "
    "and data sets named in each row; in tables of more than a part of the test our rules were set on some of them. "
    "ImageNet200 is stood in for by Imagenette, "
    "Tiny-ImageNet by its copy at 32 pixels, VGG16 by VGG11 and DenseNet121 by DenseNet-37 where it says so. "
    + ADAPTIVE_NOTE
)


BEYOND = (MMBD.name,)
"""Methods shown in the paper's cells that the paper does not have."""

ANY_DATA_SET = (
    "The cells of the paper's Tables 1 and 2, ours on any data set: a counterpart at the size that a processor without "
    "a GPU reaches, not a repetition; theirs are all on CIFAR-10. PreActResNet-18 counts as ResNet18, clean models of "
    "every kind as clean; the paper has no WideResNet."
)


def method_tables(entries: Sequence[VictimEntry]) -> list[str]:
    """Models accused by each method alone and by the joint verdict, then the same cells beside the paper's.

    Args:
        entries: Victims that reach their floors.
    """
    methods = methods_of(entries)
    if not methods:
        return []
    return [
        "## By attack, network and data set, each method alone",
        "Models accused, with whatever target: detections in rows of backdoored models, false alarms in rows of clean "
        "ones. A method that could not judge did not accuse.",
        table(
            ("victims", "network", "data set", JOINT, *methods),
            [
                (*place, *accused_by_all(group, methods))
                for place, group in grouped(entries, lambda entry: _place(entry.victim.recipe)).items()
            ],
        ),
        *_paper_tables(entries, methods),
    ]


def methods_of(entries: Iterable[VictimEntry]) -> list[str]:
    """Every method of some scans, in their order."""
    return list(dict.fromkeys(cost.method for entry in entries for cost in entry.scan.methods))


def accused_by_all(group: Sequence[VictimEntry], methods: Sequence[str]) -> tuple[str, ...]:
    """How many of some victims the joint verdict accuses, then each method alone; with whatever target."""
    return _accused(group, _joint), *(_accused(group, _by(method)) for method in methods)


def _place(recipe: VictimRecipe) -> tuple[str, str, str]:
    return stratum_of(recipe), network_of(recipe), recipe.dataset


def _paper_tables(entries: Sequence[VictimEntry], methods: Sequence[str]) -> list[str]:
    cells: dict[Cell, list[VictimEntry]] = {}
    for entry in entries:
        cell = cell_of(entry.victim.recipe)
        if cell is not None:
            cells.setdefault(cell, []).append(entry)
    parts = _any_data_set(entries, methods)
    for published in PUBLISHED:
        columns = [method for method in published.methods if method in methods]
        rows = [
            (
                *cell,
                "; ".join(sorted({f"{e.victim.recipe.dataset}, {network_of(e.victim.recipe)}" for e in cells[cell]})),
                _accused(cells[cell], _joint),
                *(text for method in columns for text in _beside(cells[cell], published, cell, method, methods)),
            )
            for cell in published.rows
            if cell in cells
        ]
        if rows and columns:
            parts.append(f"### Beside the paper's Table {published.number}")
            head = ("data set", "network", "attack", "our victims", f"{JOINT}, ours", *_heads(columns, methods))
            parts.append(table(head, rows))
    return ["## Beside the paper's figures", OTHER_SCALE, *parts] if parts else []


def _any_data_set(entries: Sequence[VictimEntry], methods: Sequence[str]) -> list[str]:
    """The cells of Tables 1 and 2 over all data sets, one row a network and attack."""
    cells: dict[tuple[str, str], list[VictimEntry]] = {}
    for entry in entries:
        recipe = entry.victim.recipe
        family = FAMILIES.get(recipe.architecture)
        if family is not None and (recipe.labelling is None or recipe.labelling.kind == "all-to-one"):
            cells.setdefault((family, CLEAN if recipe.attack is None else recipe.attack.name), []).append(entry)
    first, second = PUBLISHED[:2]
    theirs = {
        (network, attack, method): f"*{count}/{published.models}*"
        for published in (second, first)
        for (_, network, attack), row in published.rows.items()
        for method, count in zip(published.methods, row, strict=True)
    }
    columns = [method for method in METHODS if method in methods]
    places = [
        place
        for place in itertools.product(dict.fromkeys(FAMILIES.values()), dict.fromkeys(cell[2] for cell in first.rows))
        if place in cells
    ]
    if not columns or not places:
        return []
    also = [method for method in BEYOND if method in methods]
    rows = [
        (
            *place,
            *accused_by_all(cells[place], also),
            *(
                text
                for method in columns
                for text in (*_accused_by(cells[place], method, methods), theirs.get((*place, method), NOTHING))
            ),
        )
        for place in places
    ]
    head = ("network", "attack", f"{JOINT}, ours", *(f"{method}, ours" for method in also), *_heads(columns, methods))
    return ["### Cells of Tables 1 and 2, over all data sets", ANY_DATA_SET, table(head, rows)]


def _beside(
    group: Sequence[VictimEntry], published: PublishedTable, cell: Cell, method: str, methods: Sequence[str]
) -> tuple[str, ...]:
    theirs = published.rows[cell][published.methods.index(method)]
    return *_accused_by(group, method, methods), f"*{theirs}/{published.models}*"


def _heads(columns: Sequence[str], methods: Sequence[str]) -> list[str]:
    """For each method of the paper the heads of our columns, then of theirs."""
    heads = []
    for method in columns:
        heads += [f"{name}, ours" for name in _of_one(method, methods)]
        heads.append(f"*{METHODS[method]}, theirs*")
    return heads


def _accused_by(group: Sequence[VictimEntry], method: str, methods: Sequence[str]) -> list[str]:
    return [_accused(group, _by(name)) for name in _of_one(method, methods)]


def _of_one(method: str, methods: Sequence[str]) -> list[str]:
    """A method of the paper as it is here; of BAN, where it was run, also as its authors released it."""
    return [name for name in (method, RELEASED_BAN) if name == method or (method == BAN.name and name in methods)]


Verdicts = Callable[[VictimEntry], Verdict | None]
"""The verdict to be counted; none where there is none."""


def _joint(entry: VictimEntry) -> Verdict:
    return entry.scan.verdict


def _by(method: str) -> Verdicts:
    return lambda entry: next((cost.verdict for cost in entry.scan.methods if cost.method == method), None)


def _accused(group: Sequence[VictimEntry], verdict_of: Verdicts) -> str:
    verdicts = [verdict for entry in group if (verdict := verdict_of(entry)) is not None]
    return share(verdicts.count(Verdict.BACKDOORED), len(verdicts)) if verdicts else NOTHING
