"""What the two searches for shortcuts share: settings, restarts, and the three readings with their rules.

A subclass names its perturbation; everything else (paths towards each class, the search for an all-to-all map, the
null, the agreement of restarts) is the same, so that the two differ in nothing but what they perturb.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import (
    MAPPING_AGREEMENT,
    Detector,
    Found,
    Samples,
    agreement_of,
    restarts_agree,
    threshold_for,
)
from banaudit.detectors.mapping import Mapping, search_mapping
from banaudit.detectors.targeted_paths import (
    Lead,
    Leader,
    PairLead,
    Paths,
    Perturbation,
    follow,
    lead,
    pair_lead,
    planned_images,
)
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading
from banaudit.shapes import Images
from banaudit.triggers import RecoveredTrigger

RIVALS = 2
"""Further maps that are looked for beside each one that could fire; one by itself is often far from the next best."""

RIVAL_LEAD = 0.75
"""Share of the map's threshold by which fewer images have to follow the best of them. On the draws that it was set on,
maps of backdoored development networks led by 0.95 and more, those of others that were above their threshold (nearly
all DenseNets, which neuron noise steers easily, clean ones too) by 0.59 at most. In the scans of the benchmark two of
backdoored networks led by less (23071, 24059); ``universal-perturbation`` finds these."""


@dataclass(frozen=True)
class _Followed:
    """The paths of one restart, and what they say."""

    paths: Paths
    lead: Lead
    pair: PairLead


class ShortcutDetector(Detector):
    """Detector that looks for a class, a map or a pair that one small common perturbation reaches too easily."""

    steps: PositiveInt = 8
    """Most steps on each path."""
    step_size: PositiveFloat
    """How much a perturbation grows with each step; the unit is the subclass's."""
    search_images: PositiveInt = 48
    """Images of other classes that each step towards a class descends on."""
    mapping_steps: PositiveInt = 8
    """Steps of the all-to-all search."""
    mapping_step_share: PositiveFloat = 0.55
    """Growth of a perturbation with each of these steps, as a share of ``step_size``. The whole way is shorter than the
    paths': with one as long, networks that are easily steered (digits) follow some map without a backdoor."""
    mapping_images: PositiveInt = 256
    """Images that each of these steps descends on, where they are more than ``mapping_images_per_class`` of each."""
    mapping_images_per_class: PositiveInt = 9
    """Needed to tell where each class is carried: with 3 of each of 43 classes much of the map came out wrong."""
    read_images: PositiveInt = 160
    """Held-out images of a reading."""
    restarts: PositiveInt = 2
    """Independent paths on different images, at most; all must name the same class."""
    lead_threshold: PositiveFloat
    """Lead of the first class over the second above which the all-to-one reading fires."""
    mapping_threshold: PositiveFloat = 0.31
    """Share of images that follow the map above which the all-to-all reading fires, for ten classes."""
    mapping_decline: float = Field(default=0.4, ge=0)
    """The same for K classes is (10 / K) to this power as much: the more classes, the fewer images follow a map of all
    of them, with a backdoor and without. Set where clean networks and victims of 10 and of 43 classes part."""
    pair_threshold: PositiveFloat
    """Lead of the first source -> target pair over the next above which the source-target reading fires."""

    perturbs: ClassVar[str]
    """What is perturbed, in the user's words."""

    @abstractmethod
    def lead_threshold_at(self, reach: float) -> float:
        """Lead that accuses, which may depend on how far the paths led.

        Args:
            reach: Share of the images that reach the median class where they ended.
        """

    @abstractmethod
    def relied_on_above(self, reach: float) -> float:
        """Lead above which paths are followed once more: less than what accuses where lesser leads are relied on too.

        Args:
            reach: As for :meth:`lead_threshold_at`.
        """

    @abstractmethod
    def perturbation(self, model: SplitModel, images: Images, meter: Meter, *, share: float = 1.0) -> Perturbation:
        """The perturbation of this detector for a private copy of the model.

        Args:
            model: The copy.
            images: [B, C, H, W], whatever their number: those that it is found on have this shape.
            meter: Counts passes.
            share: Growth with each step as a share of ``step_size``.
        """

    @abstractmethod
    def shown(self, leader: Leader, samples: Samples, *, accused: bool) -> RecoveredTrigger | None:
        """What leads to a class, to be looked at; none: there is nothing to see.

        Args:
            leader: The class and the perturbation.
            samples: Clean images.
            accused: Whether the all-to-one reading fired for this class.
        """

    @final
    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes of all searches run to their ends, without those beside a map that could fire, as few do."""
        half = images // 2
        mapping = self.mapping_steps * min(self._mapping_images(num_classes), half) + 2 * min(self.read_images, half)
        return self.restarts * (self.planned_paths(num_classes, images) + mapping)

    @final
    def planned_paths(self, num_classes: int, images: int) -> int:
        """Forward passes of :meth:`paths` run to their ends, with half of so many images to search on."""
        half = images // 2
        search, read = min(self.search_images, half), min(self.read_images, half)
        return planned_images(num_classes, steps=self.steps, search_images=search, read_images=read)

    @final
    def paths(self, perturbation: Perturbation, samples: Samples, generator: torch.Generator, what: str) -> Paths:
        """Paths towards each class with these settings.

        Args:
            perturbation: From :meth:`perturbation`.
            samples: Clean images.
            generator: Source of randomness, on the CPU.
            what: For the progress bar.

        Raises:
            UnsupportedModelError: No gradient leads to some class, or a path ends in outputs that are not finite.
        """
        return follow(
            perturbation,
            samples,
            steps=self.steps,
            search_images=self.search_images,
            read_images=self.read_images,
            generator=generator,
            what=what,
        )

    @final
    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Paths towards each class and a search for a map, each restarted while a reading of it could fire, or count.

        The weakest restart counts: once a reading is not above its threshold, further ones could not make it fire.
        Where a map could fire, others are looked for: one that hardly leads them is no backdoor's.
        """
        followed = self._follow(model, samples, generator, meter)
        paths = [found.paths for found in followed]
        one = self._all_to_one(samples, paths, [found.lead for found in followed])
        mappings, rivals = self._map(model, samples, generator, meter)
        evidence = [
            one,
            self._all_to_all(samples, mappings, rivals),
            self._source_target([found.pair for found in followed]),
        ]
        leaders = next((path.leaders for path in paths if path.leaders[0].target == one.target), ())
        shown = (self.shown(leader, samples, accused=one.fired and leader.target == one.target) for leader in leaders)
        return Found(evidence, tuple(trigger for trigger in shown if trigger is not None))

    @final
    def one_class_leads(self, paths: Sequence[Paths], leads: Sequence[Lead]) -> bool:
        """Whether the searches made so far let one class lead: all of them, the same one, by more than accuses.

        Args:
            paths: Of each search.
            leads: What each of them shows.
        """
        threshold = self.lead_threshold_at(max(path.reach for path in paths))
        return all(item.score > threshold for item in leads) and len({item.target for item in leads}) == 1

    def _follow(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> list[_Followed]:
        perturbation = self.perturbation(model, samples.search.images, meter)
        found: list[_Followed] = []
        for restart in range(self.restarts):
            what = f"{self.name}, restart {restart + 1} of {self.restarts}: towards each class"
            paths = self.paths(perturbation, samples, generator, what)
            found.append(_Followed(paths, lead(paths.margins, paths.start), pair_lead(paths)))
            last = found[-1]
            if last.lead.score <= self.relied_on_above(last.paths.reach) and last.pair.score <= self.pair_threshold:
                break
        return found

    def _map(
        self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter
    ) -> tuple[list[Mapping], list[Mapping]]:
        """The map of each restart, and those that were looked for beside them; none: no map could fire."""
        perturbation = self.perturbation(model, samples.search.images, meter, share=self.mapping_step_share)

        def search(restart: int, beside: Sequence[Mapping] = ()) -> Mapping:
            which = "another map" if beside else "all-to-all"
            return search_mapping(
                perturbation,
                samples,
                steps=self.mapping_steps,
                search_images=self._mapping_images(samples.num_classes),
                read_images=self.read_images,
                generator=generator,
                what=f"{self.name}, restart {restart + 1} of {self.restarts}: {which}",
                other_than=beside,
            )

        found: list[Mapping] = []
        for restart in range(self.restarts):
            found.append(search(restart))
            if found[-1].score <= self._mapping_threshold(samples.num_classes):
                return found, []
        rivals: list[Mapping] = []
        for restart, first in enumerate(found):
            beside = [first]
            for _ in range(min(RIVALS, samples.num_classes - 2)):
                beside.append(search(restart, beside))
            rivals += beside[1:]
        return found, rivals

    def _mapping_images(self, num_classes: int) -> int:
        return max(self.mapping_images, self.mapping_images_per_class * num_classes)

    def _mapping_threshold(self, num_classes: int) -> float:
        return min(1.0, threshold_for(num_classes, self.mapping_threshold, self.mapping_decline))

    def _all_to_one(self, samples: Samples, paths: list[Paths], leads: list[Lead]) -> Evidence:
        weakest = min(leads, key=lambda item: item.score)
        agreement = agreement_of([item.target for item in leads], weakest.target)
        threshold = self.lead_threshold_at(max(path.reach for path in paths))
        reach = ", ".join(f"{path.reach:.0%} after {path.steps} steps" for path in paths)
        return Evidence(
            reading=Reading.ALL_TO_ONE,
            measures=(
                f"lead of the first class over the second under {self.perturbs}, in units of the median class's gain; "
                "null: the second's over the third"
            ),
            score=weakest.score,
            threshold=threshold,
            fired=self.one_class_leads(paths, leads),
            null=max(item.null for item in leads),
            target=weakest.target,
            per_class=samples.per_class(torch.stack([item.per_class for item in leads]).mean(dim=0)),
            restarts=tuple(item.score for item in leads),
            agreement=agreement,
            note=f"share of images that reach the median class: {reach}",
        )

    def _all_to_all(self, samples: Samples, mappings: list[Mapping], rivals: list[Mapping]) -> Evidence:
        weakest = min(mappings, key=lambda item: item.score)
        next_best = max((item.score for item in rivals), default=0.0)
        threshold = self._mapping_threshold(samples.num_classes)
        # A class with few images may be in the draws of some restarts and not of others: they do not agree on it.
        common = sum(
            all(item.targets.get(source) == target for item in mappings) for source, target in weakest.targets.items()
        )
        agreement = common / max(1, len(weakest.targets)) if len(mappings) > 1 else None
        return Evidence(
            reading=Reading.ALL_TO_ALL,
            measures=(
                f"share of held-out images that one {self.perturbs} carries to their class's own target; "
                "null: a random one of the same size"
            ),
            score=weakest.score,
            threshold=threshold,
            fired=(
                weakest.score > threshold
                and (agreement is None or agreement >= MAPPING_AGREEMENT)
                and weakest.score - next_best > RIVAL_LEAD * threshold
            ),
            null=max(item.null for item in mappings),
            mapping=weakest.targets,
            per_class=samples.per_class(torch.stack([item.per_source for item in mappings]).mean(dim=0)),
            restarts=tuple(item.score for item in mappings),
            agreement=agreement,
            note=f"the next map carries {next_best:.0%}" if rivals else "",
        )

    def _source_target(self, pairs: list[PairLead]) -> Evidence:
        weakest = min(pairs, key=lambda item: item.score)
        agreement = agreement_of([(pair.source, pair.target) for pair in pairs], (weakest.source, weakest.target))
        return Evidence(
            reading=Reading.SOURCE_TARGET,
            measures=f"lead of the first source-target pair over the second under {self.perturbs}",
            score=weakest.score,
            threshold=self.pair_threshold,
            fired=weakest.score > self.pair_threshold and restarts_agree(agreement),
            target=weakest.target,
            sources=(weakest.source,),
            restarts=tuple(item.score for item in pairs),
            agreement=agreement,
        )
