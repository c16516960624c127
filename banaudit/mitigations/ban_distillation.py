"""Distillation under neuron noise: BAN's repair with the suspect model as the teacher, and changes to unlearn."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.errors import DivergedError, UnsupportedModelError
from banaudit.mitigations.ban import NoiseTraining
from banaudit.mitigations.base import RepairJob
from banaudit.mitigations.unlearned import SearchPlan, Standouts, Unlearned, first_search, planned_first_search
from banaudit.neurons import count_neurons, train_under_noise
from banaudit.shapes import Images, Labels, Logits
from banaudit.training import Augmentation, Tuned, accuracy, private_copy

FURTHER = 1.5
"""How much further than in training the images that choose are shifted, to see what a strong repair costs."""

COPIES = 8
"""Shifted copies of each of these images."""


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


def avoidance_loss(logits: Logits, labels: Labels, target: int) -> Tensor:
    """-log(1 - softmax(logits)_target) of the images of other classes, summed, over the size of the batch; a scalar.

    Any other answer will do: to demand the true label of an image that was changed as far as this one costs accuracy,
    and takes nothing more from the backdoor.

    Args:
        logits: [B, K], K > 1.
        labels: [B] true labels.
        target: Class that the change leads to.
    """
    logs = logits.log_softmax(dim=1)
    others = torch.cat((logs[:, :target], logs[:, target + 1 :]), dim=1).logsumexp(dim=1)
    return -(others * (labels != target)).mean()


@dataclass(frozen=True)
class Strength:
    """How a repair differs from the one with the settings as they are.

    Args:
        batch_size: Factor of the batch size; smaller batches take more steps.
        noise_weight: Factor of the weight of the loss under noise.
        learning_rate: Factor of the learning rate.
        epochs: Factor of the epochs.
    """

    batch_size: float = 1.0
    noise_weight: float = 1.0
    learning_rate: float = 1.0
    epochs: float = 1.0


AS_SET = Strength()
STRONGER = (
    Strength(batch_size=0.25, noise_weight=2.0),
    Strength(batch_size=0.5, noise_weight=4.0, learning_rate=0.6, epochs=2.0),
)
WEAKER = (
    Strength(batch_size=0.25, learning_rate=0.4, epochs=2.0),
    Strength(batch_size=0.25, learning_rate=0.1, epochs=2.5),
)
"""For networks that the others ruin: few images, of which a larger batch makes but one or two steps. The last has BAN's
own learning rate and epochs."""


@dataclass(frozen=True)
class Tried:
    """A repair at one of the strengths.

    Args:
        tuned: What it led to; none: it diverged.
        cost: Accuracy that it lost on shifted copies of the images that choose; NaN where that is not asked.
    """

    tuned: Tuned | None
    cost: float = math.nan

    @property
    def within_budget(self) -> bool:
        """Whether some epoch is."""
        return self.tuned is not None and self.tuned.within_budget

    def affordable(self, drop: float) -> bool:
        """Whether the last epoch is within the budget and cost at most this much on the shifted copies.

        It is the last one that counts: an earlier epoch of a strong repair is no strong repair.
        """
        if self.tuned is None:
            return False
        last = self.tuned.epochs[-1].epoch
        # The small number is for shares that are no exact fractions.
        return self.tuned.within_budget and self.tuned.kept_epoch == last and self.cost <= drop + 1e-9


@final
class BANDistillation(NoiseTraining):
    """Trains all weights to answer clean images as before, under neuron noise, a patch and a universal perturbation.

    min_w (1 - a) CE(f(x; w), y) + a KD(f(x; w), f(x; w_0)) + lambda_2 CE(f(x; w under noise), y)
          + c CE(f(x'; w), y) - d log(1 - softmax(f(x''; w))_t)

    with the noise of BAN (Eq. 3-4, found anew for each batch), w_0 the weights as they came, KD the distillation loss
    at a temperature, x' a share of the images with a patch on them, and x'' others with one small change of all pixels
    towards a class t, each while there is one that stands out (:mod:`unlearned`).

    Why these terms. On clean images the suspect model is right and its backdoor is silent: its own answers there hand
    on what it knows beyond the labels of the few images, and nothing of the backdoor. They hold the accuracy while a
    larger learning rate than BAN's moves the weights far enough. Noise takes away what neurons amplify, but patches can
    survive it, and blended patterns where a network affords no strong noise; both are what a search on the pixels
    finds. It is made again later, on the network as it is then.

    How strong a repair a network affords differs by far: what takes a backdoor from a digit network at almost no cost
    takes much of a small CIFAR network's accuracy. So the strongest comes first, and those stronger than the settings
    are left out only where a perturbation is unlearned: there is little left for noise to do. Of the stronger ones the
    first is kept whose last epoch cost at most ``free_drop``; if there is none, the cheapest that cost at most
    ``stronger_drop``; else the first of the others with an epoch within the budget. Where there is none either, the
    cheapest of the stronger ones that have such an epoch is kept at it. No stronger one may cost more than the budget
    for the images as they are. The cost of a stronger one is measured on copies of the
    images that choose, shifted further than any in training: few images, which may be near copies of those trained on,
    are all right even after a repair that costs several points elsewhere.

    Source:
        Ours, on top of Xu et al., "BAN", NeurIPS 2024, Eq. 8. Unlearning a reversed patch: Wang et al., "Neural
        Cleanse", IEEE S&P 2019, Section VI; a universal perturbation, round after round: Zeng et al., "Adversarial
        Unlearning of Backdoors via Implicit Hypergradient", ICLR 2022, whose perturbation leads away from the true
        label wherever that is. Distillation against backdoors: Li et al., "Neural Attention
        Distillation", ICLR 2021, whose teacher is a fine-tuned copy and which matches attention maps.
    """

    name: ClassVar[str] = "ban-distillation"
    title: ClassVar[str] = "fine-tuning against neuron noise, a patch and a perturbation, held to its own answers"
    # Tabor looks for the patch in the same way.
    trains_against: ClassVar[frozenset[str]] = frozenset({"ban", "neural-cleanse", "tabor", "universal-perturbation"})

    epochs: PositiveInt = 10
    """Passes over the training images; other strengths take up to 2.5 times as many."""
    learning_rate: PositiveFloat = 0.05
    """Of SGD, at the start."""
    anneal: bool = True
    """Let the learning rate fall to zero as half a cosine."""
    noise_weight: NonNegativeFloat = 0.25
    """lambda_2, the weight of the loss under noise."""
    distillation: float = Field(default=0.9, ge=0, le=1)
    """Share a of the clean loss that is distillation."""
    temperature: PositiveFloat = 2.0
    """T of the distillation."""

    patch_weight: NonNegativeFloat = 0.5
    """c, the weight of the loss on images with the patch."""
    avoidance_weight: NonNegativeFloat = 0.5
    """d, the weight of the loss on images with a perturbation."""
    changed_share: float = Field(default=0.25, gt=0, le=0.5)
    """Share of a batch that carries the patch, and of others that carry a perturbation."""
    free_drop: float = Field(default=0.01, ge=0, lt=1)
    """Accuracy on the shifted copies up to which a repair stronger than these settings is kept at once."""
    stronger_drop: float = Field(default=0.02, ge=0, lt=1)
    """The same up to which it is kept if no other is cheaper."""
    gentle: bool = False
    """Make only the repair with these very settings, none of the stronger and the weaker ones."""
    patch_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Largest norm of the smallest mask, as a share of the runner-up's, at which its patch is unlearned."""

    def repair(self, job: RepairJob) -> Tuned:
        """Repair as strongly as the accuracy allows, from the weights as they came each time."""
        plan = self._search_plan()
        job.meter.planned_images += planned_first_search(plan, job.training.num_classes, len(job.training))
        try:
            first = first_search(job, plan)
        except UnsupportedModelError as problem:
            found = f"the search for a patch to unlearn: {problem}"
            raise UnsupportedModelError(f"{found}; --set {self.name}.patch_weight=0 does without it") from problem
        if self.gentle:
            run = replace(job, progress=job.progress.run("strength 1"))
            return replace(self.repair_once(run, job.model, first), unlearned=first.changes)
        stronger = STRONGER if first.target is None else ()
        strengths = self.strengths(stronger)
        before = self._accuracy_when_shifted(job, job.model, "as it came") if stronger else math.nan
        tried: list[Tried] = []
        kept = None
        while kept is None:
            number, last = len(tried) + 1, len(tried) + 1 == len(strengths)
            own = job if last else replace(job, model=private_copy(job.model))
            name, settings = f"strength {number}", strengths[number - 1]
            if number > 1:
                job.meter.planned_images += settings.planned_run(len(job.training), len(job.selection))
            tuned = settings.repair_unless_it_diverges(own, job.model, first, name, f"{name} of {len(strengths)}")
            cost = math.nan
            if tuned is not None and number <= len(stronger):
                cost = before - self._accuracy_when_shifted(job, own.model, name)
            tried.append(Tried(tuned, cost))
            kept = self.choose(tried, job.max_drop, stronger=len(stronger))
        chosen = tried[kept - 1].tuned
        assert chosen is not None
        return replace(chosen, attempts=self.attempts(strengths, tried, kept), unlearned=first.changes)

    def repair_unless_it_diverges(
        self, job: RepairJob, original: SplitModel, first: Standouts, name: str, told: str
    ) -> Tuned | None:
        """:meth:`repair_once`; none: it diverged, which an interrupted call does not find out twice.

        Args:
            job: Its model is changed.
            original: As there.
            first: As there.
            name: Of the run in the state. Of one that an interrupted call had made to the end, the state says all.
            told: Of the run, for whoever watches.
        """
        given_up = job.progress.run(f"{name}, diverged")
        if given_up.load() is not None:
            return None
        try:
            run = replace(job, progress=job.progress.run(name))
            tuned = self.repair_once(run, original, first, name=f"{told}, ")
        except DivergedError:
            given_up.save({})
            return None
        return _told(tuned, told)

    def choose(self, tried: Sequence[Tried], max_drop: float, *, stronger: int) -> int | None:
        """Which of the strengths tried so far is kept, from 1; none: the next one is to be tried.

        Args:
            tried: In their order.
            max_drop: Accuracy that a repair may cost.
            stronger: How many of all that are tried come before the settings as they are.
        """
        first = list(enumerate(tried[:stronger], start=1))
        free = [number for number, item in first if item.affordable(min(self.free_drop, max_drop))]
        if free:
            return free[0]
        most = min(self.stronger_drop, max_drop)
        affordable = [(item.cost, number) for number, item in first if item.affordable(most)]
        if affordable and len(tried) >= stronger:
            return min(affordable)[1]
        if len(tried) > stronger and tried[-1].within_budget:
            return len(tried)
        if len(tried) < stronger + 1 + len(WEAKER):
            return None
        within = [(item.cost, number) for number, item in first if item.within_budget]
        if within:
            return min(within)[1]
        ended = [(number, item.tuned) for number, item in enumerate(tried, start=1) if item.tuned is not None]
        if not ended:
            raise DivergedError("the repair diverged at every strength that was tried")
        return max((max(epoch.accuracy for epoch in tuned.epochs), number) for number, tuned in ended)[1]

    def attempts(self, strengths: Sequence[BANDistillation], tried: Sequence[Tried], kept: int) -> tuple[str, ...]:
        """A line for each strength that was tried: how it differs from the settings, and what it cost."""
        lines = []
        own = self.settings()
        if len(strengths) < 1 + len(WEAKER) + len(STRONGER):
            lines.append("the stronger ones were left out, since changes of all pixels are unlearned")
        for number, (settings, item) in enumerate(zip(strengths, tried, strict=False), start=1):
            other = {name: value for name, value in settings.settings().items() if value != own[name]}
            how = ", ".join(f"{name}={value:g}" for name, value in other.items()) or "the settings as they are"
            which = f"strength {number} of {len(strengths)} ({how})"
            tuned = item.tuned
            if tuned is None:
                lines.append(f"{which}: given up, it diverged")
                continue
            told = next(epoch for epoch in tuned.epochs if epoch.epoch == tuned.kept_epoch)
            change = round(-100 * item.cost, 1) + 0.0  # no minus before a zero
            shifted = "" if math.isnan(item.cost) else f"; on shifted copies {change:+.1f} points"
            lines.append(
                f"{which}: {'kept' if number == kept else 'given up'}, accuracy {told.accuracy:.1%} after epoch "
                f"{told.epoch} of {settings.epochs} on the images that choose, {tuned.accuracy_before:.1%} before"
                f"{shifted}"
            )
        return tuple(lines)

    def _accuracy_when_shifted(self, job: RepairJob, model: SplitModel, name: str) -> float:
        """On copies of the images that choose; found once, however often the repair is interrupted."""
        progress = job.progress.run(f"{name}, shifted")
        state = progress.load()
        if state is None:
            further = Augmentation(round(FURTHER * job.augmentation.margin), job.augmentation.flips)
            generator = torch.Generator().manual_seed(job.seed)
            found = []
            for _ in range(COPIES):
                copies = replace(job.selection, images=further(job.selection.images, generator))
                found.append(accuracy(model, copies, job.meter, "accuracy on shifted copies"))
            state = {"accuracy": sum(found) / COPIES}
            progress.save(state)
        return float(state["accuracy"])

    def strengths(self, stronger: tuple[Strength, ...]) -> tuple[BANDistillation, ...]:
        """These settings at each strength that may be tried: the stronger ones, as they are, and the weaker ones."""
        return tuple(
            self.model_copy(
                update={
                    "batch_size": max(1, round(strength.batch_size * self.batch_size)),
                    "noise_weight": strength.noise_weight * self.noise_weight,
                    "learning_rate": strength.learning_rate * self.learning_rate,
                    "epochs": max(1, round(strength.epochs * self.epochs)),
                }
            )
            for strength in (*stronger, AS_SET, *WEAKER)
        )

    def repair_once(self, job: RepairJob, original: SplitModel, first: Standouts, *, name: str = "") -> Tuned:
        """Fine-tune with these very settings, and keep an epoch.

        Args:
            job: Its model is changed.
            original: The network as it came in, whose frozen copy is the teacher; may be the job's.
            first: What stands out on it, to be unlearned.
            name: Of the run, before each epoch, for whoever watches.
        """
        teacher = copy.deepcopy(original).eval().requires_grad_(False)
        changes = Unlearned(job, first, self._search_plan(), epochs=self.epochs, share=self.changed_share)
        job.meter.planned_images += changes.planned_images()

        def objective(model: SplitModel, images: Images, labels: Labels, generator: torch.Generator) -> Tensor:
            loss = self.loss(model, teacher, images, labels, generator)
            count = max(1, round(self.changed_share * len(images)))
            patched = changes.with_patch(images[:count])
            perturbed = changes.with_perturbation(images[-count:], generator)
            found = [part for part in (patched, perturbed) if part is not None]
            if found:
                shown = torch.cat([images, *found])
                job.meter.book(forward=len(shown), backward=len(shown))
                still = torch.zeros(2, count_neurons(model), device=images.device)
                # Without noise, but apart from the running statistics, which come from the clean pass alone. The clean
                # images go along for the statistics of this batch: by their own, changed images would be learnt as
                # they never come at inference.
                answers = train_under_noise(model, shown, still, form=self.form)[len(images) :]
                parts = torch.split(answers, [len(part) for part in found])
                if patched is not None:
                    loss = loss + self.patch_weight * F.cross_entropy(parts[0], labels[:count])
                if perturbed is not None and first.target is not None:
                    avoided = avoidance_loss(parts[-1], labels[-count:], first.target)
                    loss = loss + self.avoidance_weight * avoided
            return loss

        return self.tune(job, objective, passes=self._passes(), companion=changes, name=name)

    def loss(
        self, model: SplitModel, teacher: SplitModel, images: Images, labels: Labels, generator: torch.Generator
    ) -> Tensor:
        """Loss of a batch as it is, a scalar with gradients for the weights.

        Args:
            model: In train mode.
            teacher: In eval mode, without gradients.
            images: [B, C, H, W], augmented.
            labels: [B].
            generator: The only source of randomness; lives on the CPU.
        """
        noisy, clean = self.noisy_loss(model, images, labels, generator, clip=False), model(images)
        with torch.no_grad():
            wanted = teacher(images)
        kept = (1 - self.distillation) * F.cross_entropy(clean, labels)
        kept = kept + self.distillation * distillation_loss(clean, wanted, self.temperature)
        return kept + noisy

    def planned_images(self, training: int, selection: int) -> int:
        """Those at the first strength; a repair adds those at each other, and its searches.

        How many are tried is not known before, and the searches depend on K.
        """
        if self.gentle:
            return self.planned_run(training, selection)
        shifted = (1 + len(STRONGER)) * COPIES * selection
        return shifted + self.strengths(STRONGER)[0].planned_run(training, selection)

    def planned_run(self, training: int, selection: int) -> int:
        """The same of the fine-tuning with these very settings."""
        return self.planned_tuning(training, selection, forward=self._passes()[0])

    def _search_plan(self) -> SearchPlan:
        """What is searched: nothing that would not be trained against."""
        return SearchPlan(
            patch_ratio=self.patch_ratio if self.patch_weight > 0 else None, perturbation=self.avoidance_weight > 0
        )

    def _passes(self) -> tuple[int, int]:
        """The ascent, a noisy and a clean pass, and the teacher's, which has no way back."""
        return self.noise_steps + 3, self.noise_steps + 2


def _told(tuned: Tuned, strength: str) -> Tuned:
    """The same, with the strength said in every epoch."""
    epochs = (item.model_copy(update={"what": f"{strength}, epoch {item.epoch}"}) for item in tuned.epochs)
    return replace(tuned, epochs=tuple(epochs))
