"""Which label an attacker wants for an image of each class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor

from banaudit.errors import UsageError
from banaudit.shapes import Labels


class Labelling(BaseModel, ABC):
    """A labelling rule: the map from true label to the label wanted for triggered images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def mapping(self, num_classes: int) -> Tensor:
        """Wanted label of each true label, [K] int64; a class that the attack leaves alone maps to itself."""

    @property
    @abstractmethod
    def slug(self) -> str:
        """A few letters that name the rule in file names."""

    def target_of(self, labels: Labels, num_classes: int) -> Labels:
        """Wanted labels of triggered images with these true labels, [B] int64."""
        return self.mapping(num_classes).to(labels.device)[labels]


@final
class AllToOne(Labelling):
    """Every triggered image goes to one target label."""

    kind: Literal["all-to-one"] = "all-to-one"
    target: NonNegativeInt = 0

    def mapping(self, num_classes: int) -> Tensor:
        """[K] int64, all the target label."""
        _check_label("target", self.target, num_classes)
        return torch.full((num_classes,), self.target)

    @property
    def slug(self) -> str:
        """E.g. ``t4``."""
        return f"t{self.target}"


@final
class AllToAll(Labelling):
    """Each class goes to the next one: y -> (y + 1) mod K (BadNets, Section 5.2)."""

    kind: Literal["all-to-all"] = "all-to-all"

    def mapping(self, num_classes: int) -> Tensor:
        """[K] int64: 1, 2, ..., K-1, 0."""
        return (torch.arange(num_classes) + 1) % num_classes

    @property
    def slug(self) -> str:
        """``a2a``."""
        return "a2a"


@final
class Derangement(Labelling):
    """Each class goes to another one by a random permutation without fixed point."""

    kind: Literal["derangement"] = "derangement"
    seed: NonNegativeInt = 0

    def mapping(self, num_classes: int) -> Tensor:
        """[K] int64, uniform over the derangements of K labels: drawn until no label maps to itself."""
        if num_classes < 2:
            raise UsageError(f"a derangement needs at least 2 classes, found {num_classes}")
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            permutation = torch.randperm(num_classes, generator=generator)
            if not (permutation == torch.arange(num_classes)).any():
                return permutation

    @property
    def slug(self) -> str:
        """E.g. ``perm7``."""
        return f"perm{self.seed}"


@final
class SourceTarget(Labelling):
    """Only images of one class go to the target; the trigger does nothing to the others (SSDT)."""

    kind: Literal["source-target"] = "source-target"
    source: NonNegativeInt = 1
    target: NonNegativeInt = 0

    def mapping(self, num_classes: int) -> Tensor:
        """[K] int64: each label itself, but the source's is the target."""
        _check_label("source", self.source, num_classes)
        _check_label("target", self.target, num_classes)
        if self.source == self.target:
            raise UsageError(f"source and target must differ, found {self.source} for both")
        mapping = torch.arange(num_classes)
        mapping[self.source] = self.target
        return mapping

    @property
    def slug(self) -> str:
        """E.g. ``s1t0``."""
        return f"s{self.source}t{self.target}"


AnyLabelling = Annotated[AllToOne | AllToAll | Derangement | SourceTarget, Field(discriminator="kind")]


def _check_label(role: str, label: int, num_classes: int) -> None:
    if label >= num_classes:
        raise UsageError(f"{role} label {label} does not exist: the data set has labels 0 to {num_classes - 1}")
