"""ANP: neurons without which the network withstands adversarial noise are pruned (Wu and Wang, NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.errors import BanauditError, UnsupportedModelError
from banaudit.mitigations.base import Mitigation, RepairJob
from banaudit.neurons import batch_norms, count_neurons, require_batch_norm, train_under_noise, worst_noise
from banaudit.randomness import seed_global
from banaudit.shapes import Images, Labels, Weights
from banaudit.training import EPOCH_SEEDS, Tuned, private_copy, try_candidates

STEPS_SAVED = 100
"""Steps on the mask after which the state is written, for an interrupted repair."""


def mask_as_noise(mask: Tensor) -> Tensor:
    """The noise [2, P] under which gamma (1 + delta) is m gamma, and beta is itself.

    Args:
        mask: [P].
    """
    return torch.stack((mask - 1, torch.zeros_like(mask)))


def pruned_scales(model: SplitModel, pruned: Tensor) -> Weights:
    """Scales of the BatchNorm layers in which a neuron is pruned, with zeros in its place.

    Args:
        model: With P neurons.
        pruned: [P], true where a neuron goes.
    """
    layers = batch_norms(model)
    parts = torch.split(pruned, [layer.num_features for layer in layers.values()])
    return {
        f"{name}.weight": layer.weight.detach().masked_fill(part, 0.0)
        for (name, layer), part in zip(layers.items(), parts, strict=True)
        if part.any()
    }


@final
class ANP(Mitigation):
    """Learns which neurons to do without so that neuron noise does no harm, and prunes them.

    A neuron is a BatchNorm channel. A mask m in [0, 1] on its scale is trained by SGD on

    min_m alpha CE(f(x; m gamma, beta), y) + (1 - alpha) CE(f(x; (m + delta) gamma, (1 + xi) beta), y)

    with delta, xi in [-eps, eps] at their worst for the second term, found anew for each batch as in
    :class:`~banaudit.mitigations.ban.BANFineTuning`; the weights stay as they are. Neurons that noise sets off most
    easily, a backdoor's above all, are masked. Then gamma becomes zero where m is at most a threshold.

    The threshold is chosen by clean accuracy alone: of 0, 0.05, ... 0.9 the largest one that is within the budget. The
    paper leaves it to the user; published comparisons choose it by the true attack success, which nobody has who needs
    the repair.

    Source:
        Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021; defaults of the
        authors' code.
    Deviates:
        Images are shuffled and drawn with a seed. Like there, each batch is drawn with replacement, BatchNorm
        normalises with the statistics of the batch while the mask is learnt, the noise is not clipped to eps, and the
        shift beta of a pruned neuron stays.
    """

    name: ClassVar[str] = "anp"
    title: ClassVar[str] = "pruning of the neurons that adversarial noise sets off (ANP)"
    needs: ClassVar[str] = "BatchNorm, clean images"
    trains_against: ClassVar[frozenset[str]] = frozenset({"ban"})

    eps: PositiveFloat = 0.4
    """Largest relative change of a neuron's weight and bias."""
    noise_steps: PositiveInt = 1
    """Steps of the ascent, each of eps / noise_steps, from a random start in [-eps, eps]."""
    clip: bool = False
    """Keep the noise within eps; else start and steps add up to 2 eps."""
    clean_weight: float = Field(default=0.2, ge=0, le=1)
    """alpha, the weight of the loss without noise."""
    iterations: PositiveInt = 2000
    """Steps on the mask."""
    batch_size: PositiveInt = 128
    """Images in a step."""
    learning_rate: PositiveFloat = 0.2
    """Of SGD on the mask."""
    momentum: NonNegativeFloat = 0.9
    """Of SGD on the mask."""
    largest_threshold: float = Field(default=0.9, ge=0, lt=1)
    """Largest value of the mask at which a neuron may be pruned."""
    threshold_step: float = Field(default=0.05, ge=0.001, le=1)
    """Distance of the thresholds that are tried, from 0 on."""

    def check(self, model: SplitModel) -> None:
        """The network must have BatchNorm."""
        require_batch_norm(model)

    def planned_images(self, training: int, selection: int) -> int:
        """Each step finds the noise, then passes once with and once without; each threshold is judged."""
        del training
        return self.iterations * (self.noise_steps + 2) * self.batch_size + (1 + len(self.thresholds())) * selection

    def thresholds(self) -> list[float]:
        """Thresholds that are tried, the gentlest first."""
        return [
            round(number * self.threshold_step, 6)
            for number in range(int(self.largest_threshold / self.threshold_step + 1e-6) + 1)
        ]

    def repair(self, job: RepairJob) -> Tuned:
        """Learn the mask, then choose the threshold.

        Raises:
            UnsupportedModelError: No neuron is masked.
        """
        mask = self.learn_mask(job)
        candidates = list(self.candidates(job.model, mask))
        if not candidates:
            raise UnsupportedModelError(
                f"no neuron's mask is at most {self.largest_threshold:g} (the lowest is {float(mask.min()):.2f}): "
                f"nothing to prune; set {self.name}.iterations higher, or use another method"
            )
        return try_candidates(job.model, candidates, job.selection, max_drop=job.max_drop, meter=job.meter)

    def candidates(self, model: SplitModel, mask: Tensor) -> Iterator[tuple[str, Weights]]:
        """What each threshold prunes; thresholds that prune no more than the one before are left out.

        Args:
            model: The one to prune.
            mask: [P].
        """
        before = 0
        for threshold in self.thresholds():
            pruned = mask <= threshold
            count = int(pruned.sum())
            if count > before:
                yield f"mask at most {threshold:g}: {count} of {len(mask)} neurons pruned", pruned_scales(model, pruned)
            before = count

    def learn_mask(self, job: RepairJob) -> Tensor:
        """The mask [P] of the neurons; the job's model stays as it is.

        Raises:
            BanauditError: The loss is not finite.
        """
        # A copy: in train mode some layers record what passes through them.
        model = private_copy(job.model).train().requires_grad_(False)
        mask = torch.ones(count_neurons(model), device=job.training.images.device).requires_grad_(True)
        optimizer = torch.optim.SGD([mask], lr=self.learning_rate, momentum=self.momentum)
        done, told = 0, ""
        state = job.progress.load()
        if state is not None:
            mask.data.copy_(state["mask"])
            optimizer.load_state_dict(state["optimizer"])
            done = state["done"]
        passed = (self.noise_steps + 2) * self.batch_size
        while done < self.iterations:
            # Each part draws from numbers of its own: one that is repeated after an interruption is the same.
            seed = job.seed * EPOCH_SEEDS + done
            generator = torch.Generator().manual_seed(seed)
            seed_global(seed, job.training.images.device)
            end = min(done + STEPS_SAVED, self.iterations)
            for step in range(done + 1, end + 1):
                job.meter.spend(f"mask {step}/{self.iterations}{told}", forward=passed, backward=passed)
                chosen = torch.randint(len(job.training), (self.batch_size,), generator=generator)
                batch = job.training.subset(chosen.to(job.training.labels.device))
                images = job.augmentation(batch.images, generator)
                loss = self.loss(model, images, batch.labels, mask, generator)
                if not bool(loss.isfinite()):
                    raise BanauditError(
                        f"the mask diverged at step {step} (loss {loss.item()}); "
                        f"lower {self.name}.learning_rate, which is {self.learning_rate:g}"
                    )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                mask.data.clamp_(0, 1)
                told = f", loss {loss.item():.3f}"
            done = end
            job.progress.save({"mask": mask.detach(), "optimizer": optimizer.state_dict(), "done": done})
        return mask.detach()

    def loss(
        self, model: SplitModel, images: Images, labels: Labels, mask: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of the mask on a batch, a scalar.

        Args:
            model: In train mode, its weights frozen.
            images: [B, C, H, W], augmented.
            labels: [B].
            mask: [P].
            generator: Draws the start of the noise.
        """
        masked = mask_as_noise(mask)
        noise = worst_noise(
            model,
            images,
            labels,
            eps=self.eps,
            steps=self.noise_steps,
            clip=self.clip,
            form="relative",
            generator=generator,
            around=masked.detach(),
        )
        noisy, clean = (
            F.cross_entropy(train_under_noise(model, images, point, form="relative"), labels)
            for point in (masked + noise, masked)
        )
        return self.clean_weight * clean + (1 - self.clean_weight) * noisy
