"""Distillation under neuron noise: BAN's repair with the suspect model itself as the teacher."""

from __future__ import annotations

import copy
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.mitigations.base import RepairJob, SGDMitigation
from banaudit.neurons import Form, require_batch_norm, train_under_noise, worst_noise
from banaudit.shapes import Images, Labels, Logits
from banaudit.training import Tuned


def distillation_loss(logits: Logits, teacher: Logits, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), mean over the batch; a scalar.

    Args:
        logits: [B, K] of the student.
        teacher: [B, K], without gradient.
        temperature: T.

    Source:
        Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, Section 2.
    """
    student = (logits / temperature).log_softmax(dim=1)
    divergence = F.kl_div(student, (teacher / temperature).softmax(dim=1), reduction="batchmean")
    return temperature**2 * divergence


@final
class BANDistillation(SGDMitigation):
    """Trains all weights to answer clean images as before, with and without the worst noise on the neurons.

    min_w (1 - a) CE(f(x; w), y) + a KD(f(x; w), f(x; w_0)) + lambda_2 CE(f(x; w under noise), y)

    with the noise of BAN (Eq. 3-4, found anew for each batch), w_0 the weights as they came, and KD the distillation
    loss at a temperature. On clean images the suspect model is right and its backdoor is silent, so that its own
    answers there hand on what it knows beyond the labels of the few images, and nothing of the backdoor. They hold the
    accuracy while a larger learning rate moves the weights far enough to lose the backdoor.

    Source:
        Ours, on top of Xu et al., "BAN", NeurIPS 2024, Eq. 8. Distillation against backdoors: Li et al., "Neural
        Attention Distillation", ICLR 2021, whose teacher is a fine-tuned copy and which matches attention maps.
    """

    name: ClassVar[str] = "ban-distillation"
    title: ClassVar[str] = "fine-tuning against neuron noise, held to the model's own answers on clean images"
    needs: ClassVar[str] = "BatchNorm, clean images"

    epochs: PositiveInt = 10
    """Passes over the training images."""
    learning_rate: PositiveFloat = 0.03
    """Of SGD, at the start."""
    anneal: bool = True
    """Let the learning rate fall to zero as half a cosine."""
    eps: PositiveFloat = 0.3
    """Largest relative change of a neuron's weight and bias in one ascent, twice that with the random start."""
    noise_steps: PositiveInt = 1
    """Steps of the ascent, each of eps / noise_steps."""
    form: Form = "relative"
    """How the noise enters."""
    noise_weight: NonNegativeFloat = 0.5
    """lambda_2, the weight of the loss under noise."""
    distillation: float = Field(default=0.5, ge=0, le=1)
    """Share a of the clean loss that is distillation."""
    temperature: PositiveFloat = 2.0
    """T of the distillation."""

    def repair(self, job: RepairJob) -> Tuned:
        """Fine-tune with a frozen copy of the model as it came in as the teacher, and keep an epoch."""
        teacher = copy.deepcopy(job.model).eval().requires_grad_(False)

        def objective(model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
            return self.loss(model, teacher, images, labels, generator)

        return self.tune(job, objective, passes=self._passes())

    def loss(
        self, model: SplitModel, teacher: SplitModel, images: Images, labels: Labels, generator: torch.Generator
    ) -> Tensor:
        """Loss of a batch, a scalar with gradients for the weights.

        Args:
            model: In train mode.
            teacher: In eval mode, without gradients.
            images: [B, C, H, W], augmented.
            labels: [B].
            generator: The only source of randomness; lives on the CPU.
        """
        noise = worst_noise(
            model,
            images,
            labels,
            eps=self.eps,
            steps=self.noise_steps,
            clip=False,  # start and steps add up to 2 eps, as in BAN's repair
            form=self.form,
            generator=generator,
        )
        noisy, clean = train_under_noise(model, images, noise, form=self.form), model(images)
        with torch.no_grad():
            wanted = teacher(images)
        kept = (1 - self.distillation) * F.cross_entropy(clean, labels)
        kept = kept + self.distillation * distillation_loss(clean, wanted, self.temperature)
        return kept + self.noise_weight * F.cross_entropy(noisy, labels)

    def planned_images(self, training: int, selection: int) -> int:
        """Those of the fine-tuning."""
        return self.planned_tuning(training, selection, forward=self._passes()[0])

    def check(self, model: SplitModel) -> None:
        """The network must have BatchNorm."""
        require_batch_norm(model)

    def _passes(self) -> tuple[int, int]:
        """The ascent, a noisy and a clean pass, and the teacher's, which has no way back."""
        return self.noise_steps + 3, self.noise_steps + 2
