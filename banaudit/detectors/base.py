"""What every detector shares: settings in the constructor, a model and clean data in the call, a finding out.

The base owns the protocol (private copy of the model, isolated random state, caveats, time limit); a detector's file
owns the paper. It also hands out what it recovered, as pictures beside the finding.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.errors import BanauditError, DataError, TimeLimitReached, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.method import Method
from banaudit.precision import full_precision
from banaudit.randomness import isolated_random
from banaudit.results import ClassScore, Evidence, Finding, Reading, Verdict
from banaudit.shapes import Images, Logits
from banaudit.triggers import RecoveredTrigger, TriggerSink

SEARCH_SHARE = 0.5
"""Share of the clean images that a search may use; the rest only ever evaluates what was found."""

MAPPING_AGREEMENT = 0.8
"""Share of an all-to-all map that restarts must have in common: a map of which less is true does not count as named.
Backdoored test networks had 0.93 and more in common, two without a backdoor that followed some map 0.7 each."""


TEN_CLASSES = 10
"""Number of classes for which thresholds are given that fall with it."""


def threshold_for(num_classes: int, at_ten: float, decline: float) -> float:
    """A threshold that falls with the number of classes.

    Args:
        num_classes: K.
        at_ten: The threshold for ten classes.
        decline: For K classes it is (10 / K) to this power as much.
    """
    scale: float = (TEN_CLASSES / num_classes) ** decline
    return at_ten * scale


NAMED = 10
"""Classes, at most, that a text lists."""


def classes_below(images: Sequence[int], least: int) -> str:
    """Classes with fewer images than that, in words; empty: none.

    Args:
        images: Clean images of each class.
        least: Images.
    """
    labels = [str(label) for label, count in enumerate(images) if count < least]
    if not labels:
        return ""
    listed = ", ".join(labels[:NAMED]) + (" and more" if len(labels) > NAMED else "")
    return f"class{'es' if len(labels) > 1 else ''} {listed}"


def too_few_classes(num_classes: int, least: int) -> str:
    """Why a network has too few classes for a method, in words; empty: it has enough.

    Args:
        num_classes: K.
        least: Classes.
    """
    return "" if num_classes >= least else f"the network has {num_classes} classes, {least} are needed"


@dataclass(frozen=True)
class Samples:
    """Clean images for one detector: what it may search on, and what played no part in the search.

    Args:
        search: Images the noise, mask or trigger is optimised on.
        held_out: Images the result is read from; disjoint from ``search``.
    """

    search: CleanData
    held_out: CleanData

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.search.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.search.class_names

    def example(self, target: int) -> Tensor:
        """A held-out image [C, H, W] to show a trigger on: the first of another class than ``target``."""
        others = (self.held_out.labels != target).nonzero().flatten()
        return self.held_out.images[others[0] if len(others) else 0]

    def per_class(self, scores: Tensor) -> tuple[ClassScore, ...]:
        """Scores [K] as the bars of a report."""
        return tuple(
            ClassScore(label=label, name=self.class_names[label], score=round(float(score), 6))
            for label, score in enumerate(scores)
        )


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        evidence: One for each reading.
        triggers: What was recovered for the strongest class, and for the runner-up where there is one; all on the CPU.
    """

    evidence: list[Evidence]
    triggers: tuple[RecoveredTrigger, ...] = ()


def freeze(model: SplitModel) -> SplitModel:
    """The same model in eval mode, without gradients for its parameters."""
    return model.eval().requires_grad_(False)


def finite_answers(model: SplitModel, images: Images, meter: Meter, what: str) -> Logits:
    """Logits [B, K] of a pass, without gradients.

    Args:
        model: Images in [0, 1] to logits.
        images: [B, C, H, W].
        meter: Books the pass.
        what: What the images are, for whoever watches.

    Raises:
        UnsupportedModelError: An answer is not finite.
        TimeLimitReached: From the meter.
    """
    meter.spend(what, forward=len(images))
    with torch.no_grad():
        logits: Logits = model(images)
    if not bool(logits.isfinite().all()):
        raise UnsupportedModelError(f"the network's answers to {what} are not finite")
    return logits


def agreement_of(answers: Sequence[object], answer: object) -> float | None:
    """Share of the restarts' answers that are ``answer``; none for a single one, which has nothing to agree with."""
    return sum(item == answer for item in answers) / len(answers) if len(answers) > 1 else None


def restarts_agree(agreement: float | None) -> bool:
    """Whether all restarts give one answer, as a single one does.

    Args:
        agreement: Of :func:`agreement_of`.
    """
    return agreement in {None, 1.0}


class Detector(Method, ABC):
    """A detector is its hyperparameters and one method.

    Subclasses are final, declare each hyperparameter once as a field with a default, and implement :meth:`search`.
    """

    misses: ClassVar[str]
    """Backdoors it is known to be blind to, or how far it has been measured here."""
    warns: ClassVar[str] = ""
    """What it is known to accuse wrongly; empty: nothing beyond what its threshold lets pass."""
    insists: ClassVar[str] = ""
    """The setting with which it judges networks, or images, that do not suit it (:meth:`unsuited`); empty: none."""
    fewest_classes: ClassVar[int] = 4
    """With fewer classes than this there is too little to compare a class with, and the finding is inconclusive: of two
    classes one has at least half of whatever is counted."""

    @abstractmethod
    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Search and read: one :class:`Evidence` for each reading, and the triggers that were recovered, if any.

        The pictures take no pass through the audited network and no random number: with or without somebody to look at
        them the finding is the same.

        Args:
            model: A private copy in eval mode; may be changed.
            samples: Clean images, on the model's device.
            generator: The only source of randomness; lives on the CPU.
            meter: Must be told of every pass.

        Raises:
            UnsupportedModelError: This method cannot judge this model.
            TimeLimitReached: From the meter.
        """

    def unsuited(self, num_classes: int, images: Sequence[int] | None = None) -> str:
        """Why an audit leaves a network to the other methods; empty: it does not.

        Args:
            num_classes: Number of its classes K.
            images: Clean images of each class; none: not known, and taken to be enough.
        """
        return ""

    @final
    def lacks_images(self, num_classes: int, images: Sequence[int]) -> bool:
        """Whether it is for want of images that it does not suit, and not for the number of classes.

        Args:
            num_classes: Number of the network's classes K.
            images: Clean images of each class.
        """
        return bool(self.unsuited(num_classes, images)) and not self.unsuited(num_classes)

    def overlooks(self, images: Sequence[int]) -> str:
        """What it does not look at for want of images, where an audit asks it; empty: nothing.

        Args:
            images: Clean images of each class.
        """
        return ""

    @abstractmethod
    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes that :meth:`search` is expected to take, for the progress bar."""

    @final
    def __call__(
        self,
        model: SplitModel,
        clean: CleanData,
        *,
        seed: int = 0,
        meter: Meter | None = None,
        triggers: TriggerSink | None = None,
    ) -> Finding:
        """Judge a model.

        Neither the model (parameters, buffers, mode, ``requires_grad``) nor any global random state is changed.

        Args:
            model: Normalisation inside; on the device to compute on.
            clean: Clean images with labels, on the same device.
            seed: Same seed, model, images and device: same finding.
            meter: Counts passes, tells progress, keeps the time limit.
            triggers: Given each recovered trigger, with its pictures, once the search is over.

        Returns:
            The finding; *inconclusive* when the method does not fit the model or the time ran out.
        """
        meter = meter if meter is not None else Meter()
        started = time.monotonic()
        forward, backward = meter.forward_images, meter.backward_images
        generator = torch.Generator().manual_seed(seed)
        outcome = Found([])
        try:
            with isolated_random(clean.images.device, seed):
                self._require_classes(clean.num_classes)
                private = copy.deepcopy(model).eval().lay_out_fast(clean.images)
                samples = Samples(*clean.split(SEARCH_SHARE, generator))
                _require_both(samples)
                with full_precision(model.full_precision):
                    found = self.search(private, samples, generator, meter)
                _require_finite(found)
                outcome = found
        except Exception as problem:
            verdict, reason = Verdict.INCONCLUSIVE, cannot_judge(problem)
        else:
            verdict, reason = conclude(outcome.evidence)
        if triggers is not None:
            for trigger in outcome.triggers:
                triggers(trigger)
        return Finding(
            method=self.name,
            title=self.title,
            verdict=verdict,
            reason=reason,
            evidence=tuple(outcome.evidence),
            triggers=tuple(trigger.facts for trigger in outcome.triggers),
            settings=self.settings(),
            seconds=round(time.monotonic() - started, 3),
            forward_images=meter.forward_images - forward,
            backward_images=meter.backward_images - backward,
        )

    @final
    def _require_classes(self, num_classes: int) -> None:
        if num_classes < self.fewest_classes:
            raise UnsupportedModelError(
                f"this method compares classes and needs at least {self.fewest_classes}; the network has {num_classes}"
            )


def _require_both(samples: Samples) -> None:
    if not len(samples.search) or not len(samples.held_out):
        raise DataError("no class has two clean images: one to search with, one to read from")


def _require_finite(found: Found) -> None:
    numbers = [
        number
        for item in found.evidence
        for number in (item.score, *item.restarts, *(entry.score for entry in item.per_class))
    ]
    numbers += [number for trigger in found.triggers for number in (trigger.facts.size, trigger.facts.success or 0.0)]
    if not all(map(math.isfinite, numbers)):
        raise UnsupportedModelError("the search ended in numbers that are not finite")


def cannot_judge(problem: Exception) -> str:
    """Why a method is inconclusive, in one line: what the other methods find must not be lost with it.

    Args:
        problem: What it raised: also out of memory, a batch that the network cannot take, whatever a user's network
            raises.

    Raises:
        BanauditError: The problem itself, where it lies in what the user gave.
    """
    if isinstance(problem, UnsupportedModelError | TimeLimitReached | DataError):
        return str(problem)
    if isinstance(problem, BanauditError):
        raise problem
    first = str(problem).partition("\n")[0]
    return f"the method failed: {type(problem).__name__}: {first}"


def conclude(evidence: Sequence[Evidence]) -> tuple[Verdict, str]:
    """A method's verdict and its reason in one line, from its readings, of which there is at least one."""
    fired = [item for item in evidence if item.fired]
    strongest = max(fired or evidence, key=lambda item: item.score / item.threshold)
    return Verdict.BACKDOORED if fired else Verdict.NO_EVIDENCE, _why(strongest)


def _why(item: Evidence) -> str:
    """A finding's reason in one line, from its strongest reading."""
    name = item.reading.value + (f" ({item.label})" if item.label else "")
    if item.score <= item.threshold:
        return f"{name} score {item.score:.3g} is not above the threshold {item.threshold:.3g}"
    above = f"{name} score {item.score:.3g} is above the threshold {item.threshold:.3g}"
    if item.fired:
        return above
    wanted = MAPPING_AGREEMENT if item.reading is Reading.ALL_TO_ALL else 1.0
    if item.agreement is not None and item.agreement < wanted:
        return f"{above}, but the restarts disagree"
    return f"{above}, but other conditions of the reading are not met"
