"""What a repair finds on the network as it is and trains it to ignore: the smallest patch, and a perturbation.

Neuron noise reaches what neurons amplify. Patches survive it in networks without skip connections, blended patterns
where the accuracy leaves no room for strong noise. Both are changes of the pixels, and a search finds them: the patch
with the smallest mask of all classes (Neural Cleanse), and the small change of all pixels, the same for every image,
towards the class that such changes reach first (universal perturbation). Images with the patch are given with their
true labels, those with a perturbation are kept from its class; both only where they stand out, since a network without
a backdoor would pay for what it never learnt.
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
from banaudit.detectors.targeted_paths import Paths, lead, path_towards
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.errors import DivergedError, UnsupportedModelError
from banaudit.mitigations.base import RepairJob
from banaudit.results import UnlearnedChange
from banaudit.shapes import Images
from banaudit.training import EPOCH_SEEDS

REPEATED_AT = 0.4
"""Share of the run after which the patch is searched a second time, on the network as it is then."""

WHAT = "the change of all pixels that leads to a class first"


@dataclass(frozen=True)
class Standouts:
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

    @property
    def changes(self) -> tuple[UnlearnedChange, ...]:
        """The same in words, for the record."""
        changes = []
        if self.patch is not None:
            changes.append(UnlearnedChange(kind="patch", target=int(self.patch.labels[0])))
        if self.target is not None:
            changes.append(UnlearnedChange(kind="perturbation", target=self.target))
        return tuple(changes)

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


@dataclass(frozen=True)
class SearchPlan:
    """What is looked for.

    Args:
        patch_ratio: Largest norm of the smallest mask, as a share of the runner-up's, at which there is a patch; none:
            no patch is looked for.
        perturbation: Whether a class that leads under universal perturbations is looked for.
    """

    patch_ratio: float | None
    perturbation: bool

    def wants_patch(self, classes: int) -> bool:
        """Whether a patch is looked for on a network of so many classes."""
        return self.patch_ratio is not None and classes >= NeuralCleanse.fewest_classes

    def wants_leading_class(self, classes: int) -> bool:
        """Whether a leading class is."""
        return self.perturbation and not UniversalPerturbation().unsuited(classes)


def first_search(job: RepairJob, plan: SearchPlan) -> Standouts:
    """What stands out on the network as it came; found once, however often the repair is interrupted.

    Args:
        job: Its model is searched, and not changed.
        plan: What is looked for.

    Raises:
        UnsupportedModelError: A search for a patch found outputs that are not finite.
    """
    progress, device = job.progress.run("first search"), job.training.labels.device
    state = progress.load()
    if state is None:
        state = _search(job, plan).dump()
        progress.save(state)
    return Standouts.restored(state, device)


def planned_first_search(plan: SearchPlan, classes: int, images: int) -> int:
    """Forward passes of :func:`first_search`, at most.

    Args:
        plan: What is looked for.
        classes: Number of classes K.
        images: Training images there are.
    """
    planned = _planned_patch_search(plan, classes)
    if plan.wants_leading_class(classes):
        planned += 2 * UniversalPerturbation().planned_paths(classes, images)
    return planned


def patch_searched_before(epoch: int, epochs: int) -> bool:
    """Whether a run of so many epochs looks for another patch before this one, from 1."""
    return epoch == 1 + round(REPEATED_AT * epochs) and epoch > 1


@final
class Unlearned:
    """The changes of pixels that a run of the fine-tuning unlearns; a companion of its epochs.

    Args:
        job: Images, seed and meter.
        first: What stood out on the network as it came.
        plan: What is looked for again.
        epochs: Of the run.
        share: Of the training images that carry each change, beside which all are passed once more.
    """

    def __init__(self, job: RepairJob, first: Standouts, plan: SearchPlan, *, epochs: int, share: float) -> None:
        self._job = job
        self._found = first
        self._plan = plan
        self._epochs = epochs
        self._share = share

    def planned_images(self) -> int:
        """Forward passes of its searches, at most, and of the fine-tuning on what has been found."""
        planned = self._planned_passes(self._epochs)
        if any(patch_searched_before(epoch, self._epochs) for epoch in range(1, self._epochs + 1)):
            planned += _planned_patch_search(self._plan, self._job.training.num_classes)
        if self._found.target is not None:
            planned += (self._epochs - 1) * self._found.steps * UniversalPerturbation().search_images
        return planned

    def _planned_passes(self, epochs: int) -> int:
        changes = len(self._found.changes)
        return round(epochs * len(self._job.training) * (1 + changes * self._share)) if changes else 0

    def with_patch(self, images: Images) -> Images | None:
        """Images [B, C, H, W] with the patch on them; none where no patch stands out."""
        patch = self._found.patch
        return None if patch is None else patch.stamp(images)[0]

    def with_perturbation(self, images: Images, generator: torch.Generator) -> Images | None:
        """Images [B, C, H, W], each with one of the perturbations, drawn on the CPU; none where no class stands out."""
        shifts = self._found.perturbations
        if shifts is None:
            return None
        drawn = torch.randint(len(shifts), (len(images),), generator=generator).to(images.device)
        return (images + shifts[drawn]).clamp(0, 1)

    def before_epoch(self, epoch: int, model: SplitModel) -> None:
        """Search again, on the network as it is: a patch once, a perturbation towards the same class each time.

        A patch stays until another is found, and perturbations stay for good: what is no longer trained against comes
        back.

        Raises:
            DivergedError: The network gives outputs that are not finite any more.
        """
        patch_due = patch_searched_before(epoch, self._epochs) and self._plan.wants_patch(
            self._job.training.num_classes
        )
        target = self._found.target
        if epoch == 1 or not (patch_due or target is not None):
            return
        frozen = _to_search(model, self._job.training)
        draws = torch.Generator().manual_seed(self._job.seed * EPOCH_SEEDS + epoch)
        if patch_due:
            try:
                another = _smallest_patch(frozen, self._job, self._plan, draws)
            except UnsupportedModelError as problem:  # the network as it came could be searched
                raise DivergedError(f"the repair diverged: {problem}") from problem
            left = self._epochs - epoch + 1
            self._job.meter.planned_images -= self._planned_passes(left)
            self._found = replace(self._found, patch=another or self._found.patch)
            self._job.meter.planned_images += self._planned_passes(left)
        if target is not None:
            self._add_perturbation(frozen, target, draws)

    def _add_perturbation(self, model: SplitModel, target: int, draws: torch.Generator) -> None:
        method, training = UniversalPerturbation(), self._job.training
        chosen = training.drawn(method.search_images, draws, exclude=target)
        shifts = method.perturbation(model, training.images, self._job.meter)
        try:
            shift = path_towards(shifts, training.images[chosen], target, steps=self._found.steps, what=WHAT)
        except UnsupportedModelError:  # no pixel moves the network any more
            return
        if not bool(shift.isfinite().all()):
            raise DivergedError("the repair diverged: the gradients of its pixels are not finite any more")
        before = self._found.perturbations
        assert before is not None
        self._found = replace(self._found, perturbations=torch.cat((before, shift)))

    def dump(self) -> dict[str, Any]:
        """What was found, for an interrupted repair."""
        return self._found.dump()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave."""
        self._found = Standouts.restored(state, self._job.training.labels.device)


def _to_search(model: SplitModel, training: CleanData) -> SplitModel:
    return freeze(copy.deepcopy(model)).lay_out_fast(training.images)


def _search(job: RepairJob, plan: SearchPlan) -> Standouts:
    classes = job.training.num_classes
    if not (plan.wants_patch(classes) or plan.wants_leading_class(classes)):
        return Standouts()
    model = _to_search(job.model, job.training)
    draws = torch.Generator().manual_seed(job.seed * EPOCH_SEEDS + 1)
    patch = _smallest_patch(model, job, plan, draws)
    return replace(_leading_class(model, job, plan, draws), patch=patch)


def _planned_patch_search(plan: SearchPlan, classes: int) -> int:
    return NeuralCleanse().planned_images(classes, 0) if plan.wants_patch(classes) else 0


def _smallest_patch(model: SplitModel, job: RepairJob, plan: SearchPlan, draws: torch.Generator) -> Triggers | None:
    """The patch with the smallest mask of all classes, if it is far smaller than the runner-up's."""
    ratio = plan.patch_ratio
    # To the only class of which there are images, none of another can be led.
    few = job.training.num_present < 2
    if ratio is None or few or not plan.wants_patch(job.training.num_classes):
        return None
    recovered = NeuralCleanse().invert(model, job.training, draws, job.meter)
    smallest = recovered.finalists[recovered.ranked()[:2].to(recovered.finalists.device)]
    norm, runner_up = recovered.norms[smallest].tolist()
    return recovered.triggers.subset(smallest[:1]) if norm <= ratio * runner_up else None


def _leading_class(model: SplitModel, job: RepairJob, plan: SearchPlan, draws: torch.Generator) -> Standouts:
    """Target, steps and perturbations, if one class stands out by the detector's own rule.

    It has to twice, with the images that are searched on and those that are read from exchanged.
    """
    if not plan.wants_leading_class(job.training.num_classes):
        return Standouts()
    method = UniversalPerturbation()
    one, other = job.training.split(0.5, draws)
    if min(half.num_present for half in (one, other)) < 2:
        return Standouts()
    found: list[Paths] = []
    for samples in (Samples(one, other), Samples(other, one)):
        shifts = method.perturbation(model, samples.search.images, job.meter)
        try:
            found.append(method.paths(shifts, samples, draws, WHAT))
        except UnsupportedModelError:  # nothing can be searched for: no gradient, or outputs that are not finite
            return Standouts()
        if not method.one_class_leads(found, [lead(paths.margins, paths.start) for paths in found]):
            return Standouts()
    leaders = [paths.leaders[0] for paths in found]
    return Standouts(
        target=leaders[0].target,
        steps=max(paths.steps for paths in found),
        perturbations=torch.cat([leader.perturbation for leader in leaders]),
    )
