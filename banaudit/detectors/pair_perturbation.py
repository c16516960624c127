"""Pair perturbation: for every two classes, one small change of the pixels that sends the images of one to the other.

A backdoor that only one class triggers is a shortcut from that class to the target. It is invisible where all other
classes are moved as well: they have no shortcut, and hide the one that has. So a perturbation is grown for each
(source, target) pair by itself, and read on images of the source that played no part in the search.

Margins are read after few steps (:mod:`pair_leads` has the ruler): a shortcut shows at once, and after some more every
pair follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, images_of_a_pass, passes
from banaudit.detectors import pair_noise
from banaudit.detectors.base import Detector, Found, Samples, agreement_of, classes_below, freeze, restarts_agree
from banaudit.detectors.pair_leads import PairLeader, PairMargins, images_of_each, left_out, unit_of
from banaudit.detectors.reference import natural_closeness
from banaudit.detectors.targeted_paths import by_source_and_target, margins_towards
from banaudit.detectors.universal_perturbation import shown_change
from banaudit.errors import TimeLimitReached, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.pixel_changes import grow, step_length
from banaudit.precision import fast_precision
from banaudit.results import Evidence, Reading
from banaudit.shapes import Images

FIRST_LOOK = 8000
"""Images that a step of all pairs may descend on: 12 for each pair of 10 classes, 4 of 43. Of 90 classes and more each
has one, and not all pairs are looked at, but from each source the targets whose margins are largest from the start."""

FIRST_LOOK_STEPS = 2
"""Steps after which most pairs are dropped, where they are many."""

SHORTLIST = 120
"""Pairs that are followed to the end; as many as these are not dropped."""

CLASSES = range(7, 12)
"""Classes of the networks that an audit asks it about: of four, cut out of clean networks of ten, chance puts one of
twelve pairs ahead; of eleven every pair (of 110) is still followed to the end."""

LEAST_IMAGES = 50
"""Images of a class whose pairs are looked at, 25 in each half: on opened models they were enough."""

SECOND_LOOK = 0.25
"""Lead above which a first half makes a second one worthwhile; or a lower threshold that the user sets."""

NOISE_LEAD = 0.1
"""Least lead of the same pair under noise on the neurons with which it counts as named by both."""

CONFIRMED = "confirmed by noise"
"""Label of the second reading."""


@final
class PairPerturbation(Detector):
    """Scores how far one (source, target) pair of classes is ahead of all others under a small change of the pixels.

    For each pair a change v, grown by steps of fixed L2 norm inside a ball whose radius rises with them, descends
    CE(f(clip(x + v)), t) over images x of class s; the model runs as it is (stored statistics). All targets of a source
    are searched in one batch. A second reading asks for less, where noise on the neurons puts the same pair first.

    Source:
        One perturbation for each pair of classes: Xiang, Miller, Kesidis, "Detection of Backdoors in Trained
        Classifiers Without Access to the Training Set", IEEE TNNLS 2022 (arXiv 1908.10498). Theirs is grown until it
        moves a fixed share of the images, and its norm is held against a null fitted to all pairs; the fixed steps and
        the lead over the next pair are ours, as is what is taken off for classes that are alike, and dropping pairs
        early (after K-Arm, ICML 2021).
    """

    name: ClassVar[str] = "pair-perturbation"
    title: ClassVar[str] = "a class whose images one small change sends to one other class"
    needs: ClassVar[str] = "clean images, fifty of each class that is looked at; 7 to 11 classes"
    misses: ClassVar[str] = "backdoors that several classes trigger; some that one class triggers, of 43 classes all"
    insists: ClassVar[str] = "anywhere=true"

    step_size: PositiveFloat = 0.4
    """Growth of the L2 norm with each step, for 3 x 32 x 32 images in [0, 1]."""
    steps: PositiveInt = 4
    """Steps; on clean networks a pair can come to lead later, on backdoored ones it leads early."""
    read_from: PositiveInt = 3
    """First step after which margins are read. Before it they are what they are without any change."""
    search_images: PositiveInt = 40
    """Images of the source that each step descends on. A third of them leaves so much to chance that the second pair
    may well be ahead of the first."""
    read_images: PositiveInt = 50
    """Images of each source that played no part in the search, for a reading."""
    threshold: PositiveFloat = 2.0
    """Lead above which a change of the pixels accuses by itself. On most clean networks no pair leads by both rulers,
    and the score is 0; on a clean one of Imagenette a pair led by 1.02, on one for digits by 1.53."""
    confirmed_threshold: PositiveFloat = 0.3
    """Sum of both leads above which it fires where noise on the neurons puts the same pair first (:mod:`pair_noise`),
    whether or not the pixels' two halves and two rulers agree on it. Of clean networks for digits nearly all name
    two different pairs."""
    anywhere: bool = False
    """Whether an audit asks it about networks of any number of classes, with any number of images."""

    def unsuited(self, num_classes: int, images: Sequence[int] | None = None) -> str:
        """Too few or too many classes, or too few with enough images, unless it is to run anywhere."""
        if self.anywhere:
            return ""
        if num_classes not in CLASSES:
            return f"the network has {num_classes} classes, not {CLASSES[0]} to {CLASSES[-1]}"
        enough = sum(count >= LEAST_IMAGES for count in images) if images is not None else num_classes
        if enough < CLASSES[0]:
            return f"{enough} classes have {LEAST_IMAGES} clean images and more, {CLASSES[0]} are needed"
        return ""

    def overlooks(self, images: Sequence[int]) -> str:
        """Classes with too few images to be looked at as a source."""
        scarce = classes_below(images, LEAST_IMAGES)
        if self.anywhere or not scarce:
            return ""
        few = f"of each there are fewer than {LEAST_IMAGES} clean images"
        return f"backdoors that images of {scarce} alone trigger, as {few}"

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes of all searches, and of the noise that the leader is held against."""
        pairs = num_classes * (num_classes - 1)
        half = images // 2 // num_classes
        search, read = min(self.search_images, half), min(self.read_images, half)
        kept, planned = pairs, num_classes * read
        if pairs > SHORTLIST:
            kept, thin = SHORTLIST, self._thin(num_classes)
            planned += min(pairs, FIRST_LOOK) * (FIRST_LOOK_STEPS * min(thin, search) + min(2 * thin, read))
        searches = 2 * (planned + kept * (self.steps * search + len(self.reads()) * read))
        return searches + pair_noise.planned_images(num_classes, search + read)

    def reads(self) -> tuple[int, ...]:
        """Steps after which margins are read."""
        return tuple(range(min(self.read_from, self.steps), self.steps + 1))

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Search on one half of the images and read on the other; where a pair leads, the other way too; ask noise."""
        freeze(model)
        natural = natural_closeness(samples.search, samples.held_out, generator, meter)
        first = _Search(self, model, samples.search, samples.held_out, generator, meter, "first half")
        read = [first.margins()]
        leader = read[0].leader(natural, generator)
        leaders = [leader]
        if leader.score > self._looked_at_twice:
            second = _Search(self, model, samples.held_out, samples.search, generator, meter, "second half")
            read.append(second.margins(of=read[0]))
            leaders.append(read[1].leader(natural, generator))
            leader = read[0].and_of(read[1]).leader(natural, generator)
        shift, success = first.follow_pair(*leader.pair, leader.step)
        moved = f"after {leader.step} steps {success:.0%} of the images are moved{first.left_out()}"
        evidence = [self._alone(leader, leaders, moved)]
        try:
            noise = pair_noise.leader_under_noise(model, *first.images(), natural, generator, meter)
        except UnsupportedModelError as problem:
            # Without an answer of the neurons pixels decide alone; but not against a lead that noise may well confirm.
            if leader.score > self.confirmed_threshold and not evidence[0].fired:
                led = f"class {leader.source} to {leader.target} leads by {leader.score:.2f}"
                raise UnsupportedModelError(
                    f"{led}, which needs noise on the neurons to confirm it: {problem}"
                ) from None
        except TimeLimitReached:
            if not evidence[0].fired:
                raise
        else:
            evidence.append(self._confirmed(evidence[0], noise))
        example = samples.held_out.images[(samples.held_out.labels == leader.source).nonzero().flatten()[0]]
        trigger = shown_change(
            self.name,
            shift,
            example,
            leader.target,
            what=f"perturbation of class {leader.source}",
            success=success,
            accused=any(item.fired for item in evidence),
        )
        return Found(evidence, (trigger,))

    def _alone(self, leader: PairLeader, leaders: Sequence[PairLeader], moved: str) -> Evidence:
        """What a change of the pixels says by itself."""
        agreement = agreement_of([item.pair for item in leaders], leader.pair)
        return Evidence(
            reading=Reading.SOURCE_TARGET,
            measures=(
                "lead of the first source-target pair's margin over the second's under a small change of pixels, as it "
                "is and beyond what alike classes explain, in units of the spread of all pairs' margins; null: the "
                "second's over the third"
            ),
            score=leader.score,
            threshold=self.threshold,
            fired=leader.score > self.threshold and restarts_agree(agreement),
            null=leader.null,
            target=leader.target,
            sources=(leader.source,),
            restarts=tuple(item.score for item in leaders),
            agreement=agreement,
            note=f"class {leader.source} to {leader.target}: {moved}",
        )

    def _confirmed(self, alone: Evidence, noise: PairLeader) -> Evidence:
        """Whether noise on the neurons, found and read on either half, names the pair that a change of the pixels does.

        Where the pixels' two rulers put different pairs first, theirs is that beyond what alike classes explain, and
        their lead is 0.
        """
        same = (alone.sources, alone.target) == ((noise.source,), noise.target) and noise.score > NOISE_LEAD
        score = alone.score + noise.score if same else 0.0
        return Evidence(
            reading=Reading.SOURCE_TARGET,
            label=CONFIRMED,
            measures=(
                "the lead among pixels and that under noise on the neurons, added up, where both put one pair first; "
                "else 0"
            ),
            score=score,
            threshold=self.confirmed_threshold,
            fired=score > self.confirmed_threshold,
            target=alone.target,
            sources=alone.sources,
            note=f"under noise class {noise.source} to {noise.target} leads by {noise.score:.2f}",
        )

    @property
    def _looked_at_twice(self) -> float:
        return min(SECOND_LOOK, self.threshold, self.confirmed_threshold)

    def _least_images(self, one: CleanData, other: CleanData) -> int:
        """Images of a class in each half from which on it is looked at: all are where an audit would not ask."""
        sizes = [sum(both) for both in zip(one.class_sizes, other.class_sizes, strict=True)]
        return 1 if self.anywhere or self.unsuited(one.num_classes, sizes) else LEAST_IMAGES // 2

    def _thin(self, num_classes: int) -> int:
        """Images that a pair descends on in the first look."""
        return max(1, min(self.search_images, FIRST_LOOK // (num_classes * (num_classes - 1))))


class _Search:
    """One search: the perturbations of all pairs, found on some images and read on others."""

    def __init__(
        self,
        settings: PairPerturbation,
        model: SplitModel,
        search: CleanData,
        read: CleanData,
        generator: torch.Generator,
        meter: Meter,
        what: str,
    ) -> None:
        self._settings = settings
        self._model = model
        self._meter = meter
        self._what = f"{settings.name}, {what}: from each class to each other"
        self._classes = search.num_classes
        least = settings._least_images(search, read)
        self._search = images_of_each(search, settings.search_images, least, generator)
        self._read = images_of_each(read, settings.read_images, least, generator)
        self._sources = [label for label in self._search if label in self._read]
        self._step = step_length(settings.step_size, search.images[0])

    def images(self) -> tuple[dict[int, Images], dict[int, Images]]:
        """Label -> images of each class that is looked at: those of the search, and those that are read."""
        return {label: self._search[label] for label in self._sources}, {
            label: self._read[label] for label in self._sources
        }

    def left_out(self) -> str:
        """Classes that are not looked at as a source, in words; empty: there are none."""
        return left_out(set(self._sources), self._classes)

    def margins(self, of: PairMargins | None = None) -> PairMargins:
        """All pairs, or the most promising where they are many; or those of another search."""
        start = self._start()
        wanted = ~start.isnan()
        if of is not None:
            wanted &= ~of.margins[0].isnan()
        elif int(wanted.sum()) > SHORTLIST:
            wanted = self._shortlist(start)
        reads = self._settings.reads()
        margins = torch.full((len(reads), self._classes, self._classes), torch.nan)
        for source in self._sources:
            targets = wanted[:, source].nonzero().flatten()
            if len(targets):
                margins[:, targets, source] = self._follow(source, targets, reads)[0]
        return PairMargins(reads, margins, unit_of(start))

    def follow_pair(self, source: int, target: int, step: int) -> tuple[Tensor, float]:
        """What moves the images of one pair after so many steps, [C, H, W], and the share that is moved."""
        _, shift = self._follow(source, torch.tensor([target]), [step])
        moved = margins_towards(self._logits(self._read[source], shift)[0], target)
        return shift[0].cpu(), float((moved > 0).float().mean())

    def _start(self) -> Tensor:
        """[K, K] mean margin towards target (row) of the held-out images of each source (column); else NaN."""
        images = torch.cat([self._read[source] for source in self._sources])
        labels = torch.cat([torch.full((len(self._read[source]),), source) for source in self._sources])
        logits = self._logits(images, torch.zeros_like(images[:1]))[0]
        return by_source_and_target(logits, labels)

    def _shortlist(self, start: Tensor) -> Tensor:
        """[K, K] whether a pair is among the first after a first look on few images; the start says whom to look at."""
        thin = self._settings._thin(self._classes)
        found = torch.full_like(start, torch.nan)
        for source in self._sources:
            nearest = start[:, source].nan_to_num(-torch.inf).argsort(descending=True)
            targets = nearest[: min(self._classes - 1, max(1, FIRST_LOOK // self._classes))]
            found[targets, source] = self._follow(source, targets, [FIRST_LOOK_STEPS], thin=thin)[0][0]
        kept = torch.zeros_like(found, dtype=torch.bool)
        kept.view(-1)[found.nan_to_num(-torch.inf).flatten().topk(SHORTLIST).indices] = True
        return kept & ~found.isnan()

    def _follow(
        self, source: int, targets: Tensor, reads: Sequence[int], *, thin: int | None = None
    ) -> tuple[Tensor, Images]:
        """Margins [R, T] of the source's held-out images after the steps to be read, and the changes [T, C, H, W]."""
        search, read = self._search[source][:thin], self._read[source][: 2 * thin if thin else None]
        margins, shifts = [], []
        for part in torch.split(targets, max(1, images_of_a_pass(search) // len(search))):
            found, shift = self._follow_part(search, read, part, reads)
            margins.append(found)
            shifts.append(shift)
        return torch.cat(margins, dim=1), torch.cat(shifts)

    def _follow_part(
        self, search: Images, read: Images, targets: Tensor, reads: Sequence[int]
    ) -> tuple[Tensor, Images]:
        shift = torch.zeros(len(targets), *search.shape[1:], device=search.device)
        wanted = targets.to(search.device).repeat_interleave(len(search))
        margins = torch.empty(len(reads), len(targets))
        for step in range(1, reads[-1] + 1):
            variable = shift.requires_grad_(True)
            stamped = (search + variable[:, None]).clamp(0, 1).flatten(0, 1)
            self._meter.spend(self._what, forward=len(stamped), backward=len(stamped))
            with fast_precision(stamped.device):
                logits = self._model(stamped)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), wanted, reduction="sum"), variable)
            shift = grow(shift.detach(), gradient, self._step, step)
            if not bool(shift.any()):
                raise UnsupportedModelError("no gradient reaches the pixels, so nothing can be searched for")
            if step in reads:
                logits = self._logits(read, shift)
                for place, target in enumerate(targets.tolist()):
                    margins[reads.index(step), place] = margins_towards(logits[place], target).mean()
        return margins, shift

    def _logits(self, images: Images, shift: Images) -> Tensor:
        """[T, B, K] logits of the images under each change."""
        stamped = (images + shift[:, None]).clamp(0, 1).flatten(0, 1)
        self._meter.spend(self._what, forward=len(stamped))
        with torch.no_grad():
            logits = torch.cat([self._model(part) for part in passes(stamped)])
        if not bool(logits.isfinite().all()):
            # A pair's margin would be NaN, the mark of one that is not followed: the one that matters might be lost so.
            raise UnsupportedModelError("the search ended in outputs that are not finite")
        return logits.float().view(len(shift), len(images), -1).cpu()
