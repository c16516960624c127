"""What a repair finds on the network as it is and trains it to ignore: the smallest patch, and a perturbation.

Neuron noise reaches what neurons amplify. Patches survive it in networks without skip connections, blended patterns
where the accuracy leaves no room for strong noise. Both are changes of the pixels, and a search finds them: the patch
with the smallest mask of all classes (Neural Cleanse), and the small change of all pixels, the same for every image,
towards the class that such changes reach first (universal perturbation). Images that carry them are given with their
true labels, but only where they stand out: a network without a backdoor would pay for what it never learnt.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors.base import Samples, freeze
from banaudit.detectors.inversion import Triggers
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_paths import follow, lead, path_towards, planned_images
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.errors import DivergedError, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.mitigations.base import RepairJob
from banaudit.shapes import Images
from banaudit.training import EPOCH_SEEDS

REPEATED_AT = 0.4
"""Share of the run after which the patch is searched a second time, on the network as it is then."""

LOOKS = 2
"""Searches, each on other images, in which the same class must stand out."""

WHAT = "the change of all pixels that leads to a class first"


@dataclass(frozen=True)
class Found:
    """Changes of pixels that stand out on a network.

    Args:
        patch: The patch with the smallest mask; none: its mask is not much smaller than the runner-up's.
        target: Class that one small change of all pixels leads to far sooner than to any other, if there is one.
        steps: Steps that the change took to get there.
        perturbations: [S, C, H, W] changes towards this class, on one network after the other; none without a target.
    """

    patch: Triggers | None = None
    target: int | None = None
    steps: int = 0
    perturbations: Tensor | None = None

    def dump(self) -> dict[str, Any]:
        """Tensors and numbers that :meth:`restored` needs, for an interrupted repair."""
        return {**vars(self), "patch": None if self.patch is None else vars(self.patch)}

    @classmethod
    def restored(cls, state: dict[str, Any], device: torch.device) -> Self:
        """The same from what :meth:`dump` gave."""
        patch: dict[str, Tensor] | None = state["patch"]
        shifts: Tensor | None = state["perturbations"]
        return cls(
            patch=None if patch is None else Triggers(**{name: part.to(device) for name, part in patch.items()}),
            target=state["target"],
            steps=state["steps"],
            perturbations=None if shifts is None else shifts.to(device),
        )


def first_search(job: RepairJob, patch_ratio: float) -> Found:
    """What stands out on the network as it came; found once, however often the repair is interrupted.

    Args:
        job: Its model is searched, and not changed.
        patch_ratio: Largest norm of the smallest mask, as a share of the runner-up's, at which there is a patch.

    Raises:
        UnsupportedModelError: The network gives outputs that are not finite.
    """
    progress, device = job.progress.run("first search"), job.training.labels.device
    state = progress.load()
    if state is None:
        model = _to_search(job.model, job.training)
        draws = torch.Generator().manual_seed(job.seed * EPOCH_SEEDS + 1)
        found = Found(patch=_smallest_patch(model, job, patch_ratio, draws))
        state = replace(found, **_leading_class(model, job.training, draws, job.meter)).dump()
        progress.save(state)
    return Found.restored(state, device)


def planned_first_search(classes: int, images: int) -> int:
    """Forward passes of :func:`first_search`, at most.

    Args:
        classes: Number of classes K.
        images: Training images there are.
    """
    method, half = UniversalPerturbation(), images // 2
    search, read = min(method.search_images, half), min(method.read_images, half)
    paths = planned_images(classes, steps=method.steps, search_images=search, read_images=read)
    return LOOKS * paths + planned_patch_search(classes)


def planned_patch_search(classes: int) -> int:
    """Forward passes of a search for a patch, at most."""
    return NeuralCleanse().planned_images(classes, 0)


def patch_searched_before(epoch: int, epochs: int) -> bool:
    """Whether a run of so many epochs looks for another patch before this one, from 1."""
    return epoch == 1 + round(REPEATED_AT * epochs) and epoch > 1


@final
class Unlearned:
    """The changes of pixels that a run of the fine-tuning unlearns; a companion of its epochs.

    Args:
        job: Images, seed and meter.
        first: What stood out on the network as it came.
        epochs: Of the run.
        patch_ratio: As for :func:`first_search`.
    """

    def __init__(self, job: RepairJob, first: Found, *, epochs: int, patch_ratio: float) -> None:
        self._job = job
        self._found = first
        self._epochs = epochs
        self._patch_ratio = patch_ratio

    def with_patch(self, images: Images) -> Images | None:
        """Images [B, C, H, W] with the patch on them; none where no patch stands out."""
        patch = self._found.patch
        return None if patch is None else patch.stamp(images)[0]

    def with_perturbation(self, images: Images) -> Images | None:
        """Images [B, C, H, W], each with one of the perturbations in turn; none where no class stands out."""
        shifts = self._found.perturbations
        if shifts is None:
            return None
        turn = torch.arange(len(images), device=images.device) % len(shifts)
        return (images + shifts[turn]).clamp(0, 1)

    def before_epoch(self, epoch: int, model: SplitModel) -> None:
        """Search again, on the network as it is: a patch once, a perturbation towards the same class each time.

        A patch stays until another is found, and perturbations stay for good: what is no longer trained against comes
        back.

        Raises:
            DivergedError: The network gives outputs that are not finite any more.
        """
        patch_due, target = patch_searched_before(epoch, self._epochs), self._found.target
        if epoch == 1 or not (patch_due or target is not None):
            return
        frozen = _to_search(model, self._job.training)
        draws = torch.Generator().manual_seed(self._job.seed * EPOCH_SEEDS + epoch)
        if patch_due:
            try:
                another = _smallest_patch(frozen, self._job, self._patch_ratio, draws)
            except UnsupportedModelError as problem:  # the network as it came could be searched
                raise DivergedError(f"the repair diverged: {problem}") from problem
            self._found = replace(self._found, patch=another or self._found.patch)
        if target is not None:
            self._add_perturbation(frozen, target, draws)

    def _add_perturbation(self, model: SplitModel, target: int, draws: torch.Generator) -> None:
        method, training = UniversalPerturbation(), self._job.training
        chosen = training.drawn(method.search_images, draws, exclude=target)
        shifts = method.perturbation(model, Samples(training, training), self._job.meter)
        try:
            shift = path_towards(shifts, training.images[chosen], target, steps=self._found.steps, what=WHAT)
        except UnsupportedModelError:  # no pixel moves the network any more
            return
        before = self._found.perturbations
        assert before is not None
        self._found = replace(self._found, perturbations=torch.cat((before, shift)))

    def dump(self) -> dict[str, Any]:
        """What was found, for an interrupted repair."""
        return self._found.dump()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave."""
        self._found = Found.restored(state, self._job.training.labels.device)


def _to_search(model: SplitModel, training: CleanData) -> SplitModel:
    return freeze(copy.deepcopy(model)).lay_out_fast(training.images)


def _smallest_patch(model: SplitModel, job: RepairJob, patch_ratio: float, draws: torch.Generator) -> Triggers | None:
    """The patch with the smallest mask of all classes, if it is far smaller than the runner-up's."""
    method, training = NeuralCleanse(), job.training
    if training.num_classes < method.fewest_classes:
        return None
    recovered = method.invert(model, training, draws, job.meter)
    smallest = recovered.finalists[recovered.ranked()[:2].to(recovered.finalists.device)]
    norm, runner_up = recovered.norms[smallest].tolist()
    return recovered.triggers.subset(smallest[:1]) if norm <= patch_ratio * runner_up else None


def _leading_class(model: SplitModel, training: CleanData, draws: torch.Generator, meter: Meter) -> dict[str, Any]:
    """Target, steps and perturbations of :class:`Found`; empty where no class stands out by the detector's own rule."""
    method = UniversalPerturbation()
    if method.unsuited(training.num_classes):
        return {}
    leaders, steps = [], []
    for _ in range(LOOKS):
        samples = Samples(*training.split(0.5, draws))
        if min(len(samples.search), len(samples.held_out)) < training.num_classes:
            return {}
        try:
            paths = follow(
                method.perturbation(model, samples, meter),
                samples,
                steps=method.steps,
                search_images=method.search_images,
                read_images=method.read_images,
                generator=draws,
                what=WHAT,
            )
        except UnsupportedModelError:  # no gradient reaches the pixels
            return {}
        if not lead(paths.margins, paths.start).score > method.lead_threshold_at(paths.reach):  # nor if it is NaN
            return {}
        leaders.append(paths.leaders[0])
        steps.append(paths.steps)
    if len({leader.target for leader in leaders}) > 1:
        return {}
    return {
        "target": leaders[0].target,
        "steps": max(steps),
        "perturbations": torch.cat([leader.perturbation for leader in leaders]),
    }
