"""What a repair benchmark keeps: each repair with its measurements, and what the tool says of it.

A repair is measured on the held-out split, which plays no part in it; the second scan, with the relapse probe, can be
made later.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import Field

from banaudit.bench.cost import Cost
from banaudit.bench.runner import Number, ScanSettings
from banaudit.bench.victims import VictimFacts
from banaudit.errors import UsageError
from banaudit.results import Reading, Record, RelapseProbe, Scalar, UnlearnedChange, Verdict


def rounded(value: float) -> float:
    """A share as it is kept."""
    return round(value, 5)


@dataclass(frozen=True)
class Amount:
    """How many clean images a repair gets: a number, or a share of the training set.

    Args:
        number: Of images, or per cent of the training set.
        percent: Which of the two.
    """

    number: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``500`` or ``0.5%``.

        Raises:
            UsageError: It is neither.
        """
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
        number = float(found[1]) if found else 0.0
        percent = bool(found and found[2])
        if number <= 0 or (not percent and number != int(number)) or (percent and number > 100):
            raise UsageError(f"--images {text}: expected a number of images or a share such as 5%, or a list: 5%,1%")
        return cls(number, percent)

    def images(self, training_set: int) -> int:
        """The number of images.

        Args:
            training_set: Images in the whole training set.
        """
        return max(1, round(self.number / 100 * training_set)) if self.percent else int(self.number)

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.number:g} %" if self.percent else f"{self.number:.0f}"


class RepairSetup(Record):
    """All that decides a repair, but for victim, images, seed and code."""

    method: str
    settings: dict[str, Scalar]
    max_drop: float
    test_images: int = Field(description="Most held-out images that it is measured on.")
    tool_version: str
    aimed: bool = Field(
        default=False, description="At the class that the backdoor leads to, as purify does once the scan has named it."
    )

    @property
    def digest(self) -> str:
        """A short name for this setup; the same as before there were setups that are aimed, for those that are not."""
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:8]


class Behaviour(Record):
    """What a model does on the held-out images."""

    accuracy: float
    attack_success: Number = Field(default=None, description="Of the images whose wanted label is another than theirs.")
    leak_rate: Number = Field(default=None, description="Source-specific: as attack success, of the other classes.")


class RepairMeasured(Cost):
    """A repair: what it led to on held-out images, and what it took."""

    code: str = Field(description="Digest of the code that repaired.")
    before: Behaviour
    after: Behaviour
    test_images: int
    success_images: int = Field(description="Those of them that attack success is a share of.")
    within_budget: bool = Field(description="By the rule of purify; if not, it would have written nothing.")
    kept_epoch: int
    kept_what: str = Field(default="", description="What was kept where no epochs were tried.")
    attempts: tuple[str, ...] = Field(
        default=(), description="What was tried as a whole, where that was several things."
    )
    unlearned: tuple[UnlearnedChange, ...] = ()
    losses: tuple[Number, ...] = Field(description="Of each epoch, mean over the batches.")
    accuracies: tuple[float, ...] = Field(description="Of each epoch, on the images that choose.")
    accuracy_before: float = Field(description="On the images that choose, before the repair.")
    augmentation: str
    training_images: int
    selection_images: int
    device: str
    threads: int


class Relapse(Record):
    """What the relapse probe found, aimed at what the attacker wanted, or at arbitrary classes of a clean victim."""

    reading: Reading
    before_repair: float
    after_repair: float
    relapsed: float
    control: Number = None

    @classmethod
    def of(cls, reading: Reading, probe: RelapseProbe) -> Self:
        """The probe's shares."""
        return cls(
            reading=reading,
            before_repair=rounded(probe.before_repair),
            after_repair=rounded(probe.after_repair),
            relapsed=rounded(probe.relapsed),
            control=None if probe.control is None else rounded(probe.control),
        )


class Rescan(Cost):
    """What the tool says of its own repair."""

    settings: str = Field(description="Digest of the settings of the scan.")
    code: str = Field(description="Digest of the code that scanned.")
    verdict: Verdict = Field(description="The scan's; the probe's shares stand by themselves.")
    reason: str
    target: int | None = None
    scores: dict[str, Number] = Field(description="By reading.")
    fired: tuple[str, ...] = ()
    images: int
    images_apart: bool = Field(description="Whether none of them was used by the repair.")
    relapse: tuple[Relapse, ...] = ()


class RepairEntry(Record):
    """One repair of one victim."""

    victim: str = Field(description="Key.")
    setup: str = Field(description="Digest.")
    amount: str = Field(description="Clean images as they were asked for.")
    images: int = Field(description="Clean images that the repair got: the pool may hold fewer.")
    asked: int
    seed: int
    problem: str = Field(default="", description="Why there is no repair.")
    repair: RepairMeasured | None = None
    rescan: Rescan | None = Field(default=None, description="None also where purify would have written nothing.")

    @property
    def identity(self) -> tuple[str, str, str, int]:
        """What no two entries of a file have in common."""
        return self.victim, self.setup, self.amount, self.seed


class RepairResults(Record):
    """Mitigations x victims of one split."""

    schema_version: Literal["1.0"] = "1.0"
    kind: Literal["repairs"] = "repairs"
    split: str
    setups: dict[str, RepairSetup] = Field(default_factory=dict, description="By digest.")
    scans: dict[str, ScanSettings] = Field(default_factory=dict, description="By digest.")
    victims: tuple[VictimFacts, ...] = ()
    entries: tuple[RepairEntry, ...] = ()
