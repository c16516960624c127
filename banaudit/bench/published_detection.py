"""What the paper reports of detection, to be shown beside what is measured here.

Its networks are of full width and trained for 200 epochs on the whole data sets, ImageNet200 at 224 pixels among them;
the counts are of models called backdoored, by a rule that the paper does not state for all-to-one backdoors beyond a
high share in one class. The paper names no uncertainty.

Source:
    Xu, Liu, Koffas, Yu and Picek, "BAN", NeurIPS 2024, Tables 1, 2, 6, 8 and 9.
"""

from __future__ import annotations

from dataclasses import dataclass

from banaudit.bench.strata import kind_of
from banaudit.bench.victims import VictimRecipe

CLEAN = "clean"
"""Stands for an attack: none, and nothing unusual in the training."""

METHODS = {
    "neural-cleanse": "NC",
    "tabor": "Tabor",
    "feature-re": "FeatureRE",
    "unicorn": "Unicorn",
    "bti-dbf": "BTI-DBF",
    "bti-dbf-star": "BTI-DBF*",
    "ban": "BAN",
}
"""Name of the method here -> in the paper, whose own is called Ours there."""

NETWORKS = {
    "resnet18": "ResNet18",
    "vgg11": "VGG16",
    "vgg16": "VGG16",
    "densenet37": "DenseNet121",
    "densenet121": "DenseNet121",
}
"""Network here -> the paper's nearest."""

FAMILIES = NETWORKS | {"preact_resnet18": "ResNet18", "wrn-16": "WRN"}
"""The same more coarsely, for cells of all data sets together; the paper has nothing like the last."""

DATASETS = {
    "cifar10": "CIFAR-10",
    "gtsrb32": "GTSRB",
    "tiny-imagenet-32": "Tiny-ImageNet",
    "imagenette64": "ImageNet200",
    "imagenette160": "ImageNet200",
}
"""Data set here -> the paper's, or the one that it stands in for."""

Cell = tuple[str, str, str]
"""Data set, network and attack: the first two in the paper's words, the attack in ours or :data:`CLEAN`."""


@dataclass(frozen=True)
class PublishedTable:
    """Counts of models called backdoored.

    Args:
        number: Of the table in the paper.
        models: In each cell.
        methods: Names of the columns, as here.
        rows: Cell -> one count a method.
    """

    number: int
    models: int
    methods: tuple[str, ...]
    rows: dict[Cell, tuple[int, ...]]


def cell_of(recipe: VictimRecipe) -> Cell | None:
    """The cell that a victim is nearest to; none where the paper has no like of it."""
    to_all = recipe.labelling is not None and recipe.labelling.kind not in {"all-to-one", "source-target"}
    dataset, network = DATASETS.get(recipe.dataset), NETWORKS.get(recipe.architecture)
    if dataset is None or network is None or to_all or (recipe.attack is None and kind_of(recipe) != "plain"):
        return None
    return dataset, network, CLEAN if recipe.attack is None else recipe.attack.name


def _rows(dataset: str, network: str, counts: dict[str, tuple[int, ...]]) -> dict[Cell, tuple[int, ...]]:
    return {(dataset, network, attack): row for attack, row in counts.items()}


ADAPTIVE_NOTE = (
    "The text beside Table 6 speaks of Adap-Blend, the table itself of Adap-Patch; its figures are shown in both rows."
)

_ADAPTIVE = (18, 15, 17, 20, 20, 20)

_SIX = ("neural-cleanse", "tabor", "feature-re", "unicorn", "bti-dbf-star", "ban")

PUBLISHED = (
    PublishedTable(
        number=1,
        models=20,
        methods=_SIX,
        rows=_rows(
            "CIFAR-10",
            "ResNet18",
            {
                CLEAN: (0, 0, 2, 6, 0, 0),
                "badnets": (20, 20, 14, 18, 18, 20),
                "blend": (20, 20, 20, 19, 20, 18),
                "wanet": (11, 8, 15, 20, 18, 20),
                "iad": (0, 0, 15, 11, 20, 20),
                "bpp": (0, 1, 12, 17, 20, 20),
            },
        )
        | _rows(
            "CIFAR-10",
            "VGG16",
            {
                CLEAN: (0, 0, 3, 6, 6, 0),
                "badnets": (18, 16, 13, 16, 18, 19),
                "blend": (19, 19, 16, 18, 16, 17),
                "wanet": (10, 9, 12, 18, 16, 20),
                "iad": (0, 0, 8, 17, 20, 20),
                "bpp": (9, 10, 5, 15, 14, 18),
            },
        )
        | _rows(
            "CIFAR-10",
            "DenseNet121",
            {
                CLEAN: (0, 0, 5, 8, 3, 0),
                "badnets": (18, 20, 19, 15, 17, 20),
                "blend": (20, 20, 12, 18, 19, 20),
                "wanet": (13, 10, 20, 17, 14, 19),
                "iad": (0, 0, 14, 16, 14, 19),
                "bpp": (0, 0, 16, 8, 16, 20),
            },
        ),
    ),
    PublishedTable(
        number=2,
        models=20,
        methods=("bti-dbf", "bti-dbf-star", "ban"),
        rows=_rows(
            "CIFAR-10",
            "ResNet18",
            {
                CLEAN: (0, 0, 0),
                "badnets": (5, 18, 20),
                "blend": (0, 20, 18),
                "wanet": (7, 18, 20),
                "iad": (19, 20, 20),
                "bpp": (20, 20, 20),
            },
        ),
    ),
    PublishedTable(
        number=6,
        models=20,
        methods=_SIX,
        rows=_rows(
            "CIFAR-10",
            "ResNet18",
            {"adap-patch": _ADAPTIVE, "adap-blend": _ADAPTIVE, "ssdt": (0, 0, 0, 0, 20, 20)},
        ),
    ),
    PublishedTable(
        number=8,
        models=10,
        methods=("bti-dbf", "bti-dbf-star", "ban"),
        rows=_rows("Tiny-ImageNet", "ResNet18", {CLEAN: (0, 0, 0), "wanet": (4, 6, 10), "iad": (9, 8, 10)})
        | _rows("ImageNet200", "ResNet18", {CLEAN: (3, 0, 0), "wanet": (6, 9, 10), "iad": (10, 10, 10)}),
    ),
    PublishedTable(
        number=9,
        models=20,
        methods=("neural-cleanse", "bti-dbf-star", "ban"),
        rows=_rows(
            "GTSRB",
            "ResNet18",
            {"badnets": (20, 20, 20), "wanet": (8, 18, 20), "iad": (0, 20, 20), "bpp": (13, 14, 20)},
        ),
    ),
)
"""Every table of detection in the paper."""
