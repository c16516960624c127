"""Clean samples in memory: images with labels, and their parting into disjoint sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from banaudit.shapes import Images, Labels


@dataclass(frozen=True)
class CleanData:
    """Clean images with their labels.

    Args:
        images: [N, C, H, W] float in [0, 1].
        labels: [N] int64 in 0..K-1.
        class_names: K names; the position is the label.
    """

    images: Images
    labels: Labels
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of samples N."""
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes K of the network, whether or not each has samples."""
        return len(self.class_names)

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """Number of samples of each of the K classes."""
        return tuple(torch.bincount(self.labels.cpu(), minlength=self.num_classes).tolist())

    @property
    def num_present(self) -> int:
        """Number of classes that have samples."""
        return sum(size > 0 for size in self.class_sizes)

    def subset(self, index: Tensor) -> CleanData:
        """The samples at these positions, in this order."""
        return CleanData(self.images[index], self.labels[index], self.class_names)

    def drawn(self, count: int, generator: torch.Generator, *, exclude: int | None = None) -> Tensor:
        """Positions of at most ``count`` samples, without replacement, none of class ``exclude``.

        Args:
            count: How many at most.
            generator: Source of randomness; must live on the CPU.
            exclude: A label to leave out.

        Returns:
            On the samples' device.
        """
        usable = torch.arange(len(self)) if exclude is None else (self.labels.cpu() != exclude).nonzero().flatten()
        return usable[torch.randperm(len(usable), generator=generator)[:count]].to(self.labels.device)

    def draw(self, count: int, generator: torch.Generator) -> CleanData:
        """At most ``count`` samples without replacement, by a generator on the CPU."""
        return self.subset(self.drawn(count, generator))

    def to(self, device: torch.device | str) -> CleanData:
        """The same samples on another device."""
        return CleanData(self.images.to(device), self.labels.to(device), self.class_names)

    def in_turn(self, generator: torch.Generator) -> Tensor:
        """Positions of all samples, one of each class in turn: the first few are as balanced as the samples allow.

        Args:
            generator: Draws which samples of a class come first; must live on the CPU.

        Returns:
            [N], on the samples' device.
        """
        order = torch.randperm(len(self), generator=generator)
        shuffled = self.labels.cpu()[order]
        turn = torch.empty_like(order)
        for label in range(self.num_classes):
            members = shuffled == label
            turn[members] = torch.arange(int(members.sum()))
        return order[turn.argsort(stable=True)].to(self.labels.device)

    def split(self, share: float, generator: torch.Generator) -> tuple[CleanData, CleanData]:
        """Two disjoint parts, drawn class by class so that both have every class in like proportion.

        Args:
            share: Share of the samples that goes to the first part, in (0, 1).
            generator: Source of randomness; must live on the CPU.

        Returns:
            The part with ``share`` of each class (rounded, but at least one where the class has two), and the rest.
        """
        first: list[Tensor] = []
        second: list[Tensor] = []
        labels = self.labels.cpu()
        for label in range(self.num_classes):
            members = (labels == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            cut = round(share * len(members))
            if len(members) > 1:
                cut = min(max(cut, 1), len(members) - 1)
            first.append(members[:cut])
            second.append(members[cut:])
        return self.subset(torch.cat(first)), self.subset(torch.cat(second))
