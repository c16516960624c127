"""What a repair finds on the network as it is and trains it to ignore: the smallest patch, and a perturbation.

Neuron noise reaches what neurons amplify. Patches survive it in networks without skip connections, blended patterns
where the accuracy leaves no room for strong noise; but both are changes of the pixels that a search finds: the patch
with the smallest mask of all classes (Neural Cleanse), and the small change of all pixels, the same for every image,
towards the class that such changes reach first (universal perturbation). On images that carry them the true labels are
taught.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import Samples, freeze
from banaudit.detectors.inversion import Triggers
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_paths import follow, planned_images
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.errors import UnsupportedModelError
from banaudit.mitigations.base import RepairJob
from banaudit.shapes import Images
from banaudit.training import EPOCH_SEEDS

FIRST = "first search"
"""Name of the run under which a repair keeps what was found on the network as it came."""


@final
class Unlearned:
    """The changes of pixels that a repair unlearns, searched before some of its epochs.

    Args:
        job: Images, seed, meter, and where the first search is kept, which is the same for every run of a repair.
        searched_before: Whether there is a search before an epoch, from 1.
        patch_ratio: Largest norm of the smallest mask, as a share of the runner-up's, at which there is a patch.
        first: What earlier runs of the same repair found on the network as it came; filled by the first of them.
    """

    def __init__(
        self,
        job: RepairJob,
        *,
        searched_before: Callable[[int], bool],
        patch_ratio: float,
        first: dict[str, Any],
    ) -> None:
        self._job = job
        self._searched_before = searched_before
        self._patch_ratio = patch_ratio
        self._first = first
        self._patch: Triggers | None = None
        """One, if any."""
        self._perturbations: Tensor | None = None
        """[S, C, H, W], one of each search."""

    def with_patch(self, images: Images) -> Images | None:
        """Images [B, C, H, W] with the patch on them; none where no patch stands out."""
        return self._patch.stamp(images)[0] if self._patch is not None else None

    def with_perturbation(self, images: Images) -> Images | None:
        """Images [B, C, H, W] with the perturbations that were found on them in turn; none where there is none."""
        if self._perturbations is None:
            return None
        turn = torch.arange(len(images), device=images.device) % len(self._perturbations)
        return (images + self._perturbations[turn]).clamp(0, 1)

    def before_epoch(self, epoch: int, model: SplitModel) -> None:
        """Search where the epoch asks for it; a patch stays until another is found, perturbations stay for good."""
        if not self._searched_before(epoch):
            return
        kept = self._job.progress.run(FIRST)
        known = (self._first or kept.load()) if epoch == 1 else None
        if known is not None:
            self.restore(known)
            return
        frozen = freeze(copy.deepcopy(model)).lay_out_fast(self._job.training.images)
        draws = torch.Generator().manual_seed(self._job.seed * EPOCH_SEEDS + epoch)
        self._search_patch(frozen, draws)
        self._search_perturbation(frozen, draws)
        if epoch == 1:
            self._first.update(self.dump())
            kept.save(self.dump())

    def _search_patch(self, model: SplitModel, draws: torch.Generator) -> None:
        method, training = NeuralCleanse(), self._job.training
        if training.num_classes < method.fewest_classes:
            return
        recovered = method.invert(model, training, draws, self._job.meter)
        smallest = recovered.finalists[recovered.ranked()[:2].to(recovered.finalists.device)]
        norm, runner_up = recovered.norms[smallest].tolist()
        if norm <= self._patch_ratio * runner_up:
            self._patch = recovered.triggers.subset(smallest[:1])

    def _search_perturbation(self, model: SplitModel, draws: torch.Generator) -> None:
        method = UniversalPerturbation()
        same = Samples(self._job.training, self._job.training)  # which class leads needs no unseen images
        try:
            paths = follow(
                method.perturbation(model, same, self._job.meter),
                same,
                steps=method.steps,
                search_images=method.search_images,
                read_images=method.read_images,
                generator=draws,
                what="the change of all pixels that leads to a class first",
            )
        except UnsupportedModelError:  # no gradient reaches the pixels
            return
        found = paths.leaders[0].perturbation
        self._perturbations = found if self._perturbations is None else torch.cat((self._perturbations, found))

    def dump(self) -> dict[str, Any]:
        """What was found, for an interrupted repair."""
        return {"patch": None if self._patch is None else vars(self._patch), "perturbations": self._perturbations}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`dump` gave."""
        device = self._job.training.labels.device
        patch: dict[str, Tensor] | None = state["patch"]
        self._patch = None if patch is None else Triggers(**{name: part.to(device) for name, part in patch.items()})
        self._perturbations = None if state["perturbations"] is None else state["perturbations"].to(device)


def planned_search(classes: int, images: int) -> int:
    """Forward passes of a search, at most.

    Args:
        classes: Number of classes K.
        images: Training images there are.
    """
    method = UniversalPerturbation()
    search, read = min(method.search_images, images), min(method.read_images, images)
    paths = planned_images(classes, steps=method.steps, search_images=search, read_images=read)
    return paths + NeuralCleanse().planned_images(classes, 0)
