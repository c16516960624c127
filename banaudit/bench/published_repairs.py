"""What the paper reports of repairs, to be shown beside what is measured here.

Full-width ResNet-18 on CIFAR-10, trained for 200 epochs; 5 % of the training set, 25 epochs of repair. The paper names
no uncertainty but in Table 7.

Source:
    Xu, Liu, Koffas, Yu and Picek, "BAN", NeurIPS 2024, Tables 3, 5, 7, 10 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass

BEFORE = "before"
"""Stands for a method: no repair."""


@dataclass(frozen=True)
class Published:
    """A cell of one of the paper's tables.

    Args:
        table: Its number.
        accuracy: Clean accuracy, per cent.
        success: Attack success, per cent.
    """

    table: int
    accuracy: float
    success: float


@dataclass(frozen=True)
class PublishedAblation:
    """A row of the paper's Table 7: BAN fine-tuning of Bpp, means and spreads of five runs.

    Args:
        learning_rate: Of SGD.
        epochs: Of the repair.
        noise_weight: lambda_2.
        accuracy: Clean accuracy and its spread, per cent.
        success: Attack success and its spread, per cent.
    """

    learning_rate: float
    epochs: int
    noise_weight: float
    accuracy: tuple[float, float]
    success: tuple[float, float]


_COLUMNS = (BEFORE, "fine-tuning", "feature-flip", "bti-dbf-unlearning", "ban")
"""Of Tables 3 and 5; their feature-flip is FeatureRE's repair, their bti-dbf-unlearning BTI-DBF(U)."""

_TABLE_3 = {
    "badnets": (93.37, 99.41, 92.93, 87.81, 93.15, 99.79, 91.26, 13.12, 92.06, 1.97),
    "blend": (94.60, 100.0, 93.07, 99.99, 93.20, 39.28, 91.86, 100.0, 92.72, 4.10),
    "wanet": (93.57, 99.37, 93.05, 1.10, 93.67, 0.03, 90.30, 4.89, 92.05, 0.91),
    "iad": (93.17, 97.88, 94.11, 0.46, 92.73, 0.0, 89.54, 1.59, 92.78, 1.48),
    "bpp": (94.29, 99.93, 93.85, 4.46, 94.21, 98.13, 90.61, 2.73, 92.54, 2.58),
}
_TABLE_5 = {
    "wanet": (93.60, 91.86, 92.65, 18.03, 93.33, 91.96, 91.30, 1.72, 92.29, 1.11),
    "iad": (92.96, 90.62, 93.19, 3.72, 93.06, 91.20, 91.36, 3.72, 92.31, 1.13),
    "bpp": (94.45, 84.68, 93.90, 1.58, 94.32, 83.87, 90.16, 2.05, 93.23, 1.38),
}
_TABLE_10 = {
    "adap-patch": {BEFORE: (94.20, 99.75), "ban": (90.45, 10.24)},
    "ssdt": {BEFORE: (93.86, 90.30), "ban": (93.29, 0.90)},
}
_TABLE_11 = {
    "badnets": {BEFORE: (93.37, 99.41), "anp": (93.16, 2.13), "ban": (92.26, 2.04)},
    "blend": {BEFORE: (94.60, 100.0), "anp": (94.17, 97.24), "ban": (92.61, 1.04)},
    "wanet": {BEFORE: (93.57, 99.37), "anp": (93.06, 13.84), "ban": (92.18, 0.87)},
    "iad": {BEFORE: (92.83, 97.10), "anp": (92.50, 0.44), "ban": (92.36, 1.47)},
    "bpp": {BEFORE: (94.29, 99.93), "anp": (93.80, 4.77), "ban": (92.82, 2.16)},
}

ADAPTIVE_NOTE = (
    "The text beside Table 10 speaks of Adap-Blend, the table itself of Adap-Patch; it is shown in the latter's row."
)

TABLE_7 = tuple(
    PublishedAblation(rate, epochs, weight, (accuracy, accuracy_spread), (success, success_spread))
    for rate, epochs, weight, accuracy, accuracy_spread, success, success_spread in (
        (0.005, 25, 0.2, 93.26, 0.14, 2.53, 0.93),
        (0.005, 25, 0.5, 92.64, 0.19, 2.28, 0.72),
        (0.005, 25, 0.8, 92.19, 0.13, 2.89, 0.94),
        (0.005, 25, 1.0, 92.04, 0.29, 2.74, 0.49),
        (0.005, 10, 0.5, 92.97, 0.29, 2.62, 0.44),
        (0.005, 50, 0.5, 92.57, 0.09, 2.80, 0.73),
        (0.005, 75, 0.5, 92.51, 0.16, 2.34, 0.17),
        (0.001, 25, 0.5, 93.57, 0.17, 2.89, 1.01),
        (0.010, 25, 0.5, 91.99, 0.22, 2.52, 0.64),
        (0.020, 25, 0.5, 90.05, 0.37, 1.91, 0.55),
    )
)


def published(attack: str, labelling: str, method: str) -> tuple[Published, ...]:
    """What the paper gives for an attack and a method; more than one where two tables do not agree.

    Args:
        attack: Name of the attack.
        labelling: Kind of the labelling rule.
        method: Name of the mitigation, or :data:`BEFORE`.
    """
    found: list[Published] = []
    for number in _TABLES.get(labelling, ()):
        cell = _cell(number, attack, method)
        # Tables 3 and 11 give the same models before the repair.
        if cell is not None and all((cell.accuracy, cell.success) != (o.accuracy, o.success) for o in found):
            found.append(cell)
    return tuple(found)


_TABLES = {"all-to-one": (3, 10, 11), "all-to-all": (5,), "source-target": (10,)}
"""Kind of labelling rule -> the tables with attacks of that kind."""


def _cell(number: int, attack: str, method: str) -> Published | None:
    if number in {3, 5}:
        row = {3: _TABLE_3, 5: _TABLE_5}[number].get(attack)
        if row is None or method not in _COLUMNS:
            return None
        place = 2 * _COLUMNS.index(method)
        return Published(number, row[place], row[place + 1])
    pair = {10: _TABLE_10, 11: _TABLE_11}[number].get(attack, {}).get(method)
    return None if pair is None else Published(number, *pair)


AVERAGES = {
    "all-to-one": ("badnets", "blend", "wanet", "iad", "bpp"),
    "all-to-all": ("wanet", "iad", "bpp"),
}
"""Kind of labelling rule -> the attacks that the paper's averages (Tables 3 and 5) are over."""
