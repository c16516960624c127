"""Trigger inversion: the search for a small patch that sends every image to a class, for all classes at once.

What Neural Cleanse and TABOR share: the tanh box, the patch (mask and pattern), the search with its dynamic cost, the
contest that drops hopeless classes early, and the outlier test on the masks' norms.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData, batches, images_of_a_pass
from banaudit.detectors.base import Detector, Found, Samples, freeze
from banaudit.errors import DataError, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.precision import fast_precision
from banaudit.results import Evidence, Reading, TriggerFacts
from banaudit.shapes import Images, Labels
from banaudit.statistics import outlier_scores
from banaudit.triggers import RecoveredTrigger, patch_pictures

ADAM_BETAS = (0.5, 0.9)
"""Decay rates of Adam, as in the official code of every inversion method here."""

MASK_START = -1.0
"""Mean of the raw mask at the start: tanh-boxed 0.12, an eighth of the way from nothing to full replacement."""

SUCCESS_MEMORY = 0.8
"""Weight of the past in the running success rate: it sees about the last five batches."""

COST_FLOOR = 0.1
"""The cost never falls below this multiple of its first value, so that it is back in a few steps when it is needed."""

FINISHED_EVERY = 10
"""Steps between two looks at which classes have finished; a look makes the accelerator wait."""

RELATIVE_GAIN = 0.99
"""A norm counts as smaller when it is below this multiple of the one before."""

SMALLEST_NORM = 1e-3
"""Pixels; smaller masks count as this, so that logarithms stay finite."""


def boxed(raw: Tensor) -> Tensor:
    """Numbers of any size put into (0, 1): tanh(raw) / 2 + 1/2."""
    return torch.tanh(raw) / 2 + 0.5


def field_size(step: int, num_classes: int, *, finalists: int, rung: int) -> int:
    """Number of classes in a search whose field is halved every ``rung`` steps until ``finalists`` are left."""
    return min(num_classes, max(finalists, -(-num_classes // (1 << (step // rung)))))


def images_of_other_classes(clean: CleanData) -> tuple[Tensor, int]:
    """Which images may be searched on for each class: those of the others.

    Args:
        clean: N images of K classes.

    Returns:
        Weights [K, N] on the CPU, 1 for an image of another class, and the fewest images that a class has.

    Raises:
        DataError: All images are of one class.
    """
    weights = (clean.labels.cpu() != torch.arange(clean.num_classes)[:, None]).float()
    fewest = int(weights.sum(1).min())
    if fewest == 0:
        raise DataError("trigger inversion: expected clean images of at least two classes, found one; add images")
    return weights, fewest


@dataclass(frozen=True)
class Triggers:
    """One patch for each of T target classes: x becomes (1 - mask) x + mask pattern.

    Args:
        labels: [T] the class that each patch aims at.
        masks: [T, 1, H, W] in [0, 1]; [T, C, H, W] where each channel has its own.
        patterns: [T, C, H, W] in [0, 1].
    """

    labels: Labels
    masks: Tensor
    patterns: Tensor

    def stamp(self, images: Images) -> Images:
        """Each patch on its images: [T, B, C, H, W], or [B, C, H, W] to be shared by all, gives [T, B, C, H, W]."""
        return (1 - self.masks)[:, None] * images + (self.masks * self.patterns)[:, None]

    def subset(self, index: Tensor) -> Triggers:
        """Those at these positions."""
        return Triggers(self.labels[index], self.masks[index], self.patterns[index])

    def norms(self) -> Tensor:
        """L1 norm of each mask [T], in pixels."""
        return self.masks.flatten(1).sum(1)


@dataclass(frozen=True)
class Recovered:
    """What a search found, class by class.

    Args:
        triggers: The smallest successful patch of each class, or the last one where none was successful; [K, ...].
        norms: [K] L1 norm of the mask in pixels; the whole area where no patch was successful.
        finalists: [T] the classes that were searched to the end.
    """

    triggers: Triggers
    norms: Tensor
    finalists: Labels

    def ranked(self) -> Labels:
        """Positions among the finalists [T], the smallest mask first; on the CPU."""
        return self.norms[self.finalists].double().cpu().argsort(stable=True)


def patch_losses(model: SplitModel, triggers: Triggers, images: Images, cost: Tensor) -> tuple[Tensor, Tensor]:
    """CE(f((1 - m) x + m p), t) + c_t |m|_1 for each class, and the share of its images that reach it.

    Args:
        model: Frozen.
        triggers: T of them.
        images: [T, B, C, H, W], a batch for each.
        cost: [T] weight c_t of the mask's norm, per pixel.

    Returns:
        Losses [T] and shares [T].
    """
    stamped = triggers.stamp(images).flatten(0, 1)
    with fast_precision(images.device):
        logits = model(stamped).float()
    targets = triggers.labels.repeat_interleave(images.shape[1])
    losses = F.cross_entropy(logits, targets, reduction="none").view(images.shape[:2]).mean(1)
    hits = (logits.argmax(1) == targets).float().view(images.shape[:2]).mean(1)
    return losses + cost * triggers.norms(), hits


def success_rates(model: SplitModel, triggers: Triggers, clean: CleanData, meter: Meter, *, batch_size: int) -> Tensor:
    """Share of images of other classes that each trigger sends to its class, [T], in full precision.

    Args:
        model: Frozen.
        triggers: T of them.
        clean: Images that played no part in the search.
        meter: Is told of every pass.
        batch_size: Images in one pass.
    """
    rates = []
    with torch.no_grad():
        for index, label in enumerate(triggers.labels.tolist()):
            one = triggers.subset(torch.tensor([index], device=triggers.labels.device))
            others = clean.subset((clean.labels != label).nonzero().flatten())
            hits = torch.zeros((), device=clean.images.device)
            for images, _ in batches(others.images, others.labels, batch_size):
                meter.spend("trigger on held-out images", forward=len(images))
                hits += (model(one.stamp(images)[0]).argmax(1) == label).sum()
            rates.append(hits / max(len(others), 1))
    return torch.stack(rates)


class PatchInversion(Detector, ABC):
    """A detector that inverts a patch for each class and asks whether one class needs far less of it than the others.

    The search, for every target t at once (batched; each class has a batch of images of the other classes)::

        min over mask, pattern of  CE(f((1 - m) x + m p), t) + c_t |m|_1 + penalty_t(m, p)

    with mask and pattern in a tanh box and Adam. Subclasses say what the penalty is.

    The reading: with the log norms l_t of the smallest successful masks, the score of a class is
    (median of the other finalists' l - l_t) / their scaled MAD, one-sided; the class of the smallest norm is accused
    if its score is above ``threshold``, its norm is at most ``largest_ratio`` of the runner-up's, and its trigger
    works on held-out images.
    """

    steps: PositiveInt = 150
    """Adam steps for the classes that stay to the end."""
    batch_size: PositiveInt = 8
    """Images a step, for each class, once at most ``crowd`` classes are left; fewer before, at least 2."""
    crowd: PositiveInt = 20
    """Classes in the search from which on each gets fewer images, so that the cost of many classes stays bounded."""
    learning_rate: PositiveFloat = 0.1
    """Step size of Adam, on the raw (boxed) mask and pattern."""
    initial_cost: PositiveFloat = 1e-3
    """First weight c of the mask's L1 norm, per pixel."""
    cost_growth: float = Field(default=1.2, ge=1)
    """Factor on the cost after a successful step; an unsuccessful one divides it by its power 1.5. 1: a fixed cost."""
    success: float = Field(default=0.98, gt=0, le=1)
    """Running share of stamped search images that must reach the class for a mask to count."""
    patience: PositiveInt = 60
    """Steps without a smaller successful mask after which a class that has one is finished."""
    finalists: int = Field(default=10, ge=3)
    """The half of the classes with the largest masks is dropped every ``rung`` steps until this many are left."""
    rung: PositiveInt = 50
    """Steps between two cuts of the field."""
    held_out_images: PositiveInt = 100
    """Images, from those kept out of the search, that the recovered triggers are tried on."""
    threshold: PositiveFloat = 3.5
    """Robust standard deviations, on the log scale, that the smallest mask must lie below the median of the others."""
    largest_ratio: float = Field(default=0.7, gt=0, le=1)
    """Largest norm, as a share of the runner-up's, at which the smallest mask is an accusation."""
    least_success: float = Field(default=0.7, ge=0, le=1)
    """Success rate on held-out images below which a recovered trigger is not one."""

    penalty_passes: ClassVar[int]
    """Images a step that the penalty passes through the network, for each class."""

    @abstractmethod
    def penalty(self, model: SplitModel, triggers: Triggers, meter: Meter) -> Tensor:
        """What the method adds to the loss of each class, [T]; differentiable in masks and patterns."""

    @final
    def contenders(self, step: int, num_classes: int) -> int:
        """Number of classes still in the search at a step."""
        return field_size(step, num_classes, finalists=self.finalists, rung=self.rung)

    @final
    def images_a_class(self, contenders: int) -> int:
        """Images a step for each class while so many are in the search."""
        return min(self.batch_size, max(2, self.batch_size * self.crowd // contenders))

    @final
    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes that :meth:`search` is expected to take at most."""
        contenders = [self.contenders(step, num_classes) for step in range(self.steps)]
        searched = sum(count * (self.images_a_class(count) + self.penalty_passes) for count in contenders)
        return searched + self.contenders(self.steps, num_classes) * min(self.held_out_images, images // 2)

    @final
    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Invert a patch for each class, and hold the smallest against the others."""
        recovered = self.invert(model, samples.search, generator, meter)
        if bool((recovered.norms >= recovered.triggers.masks[0].numel()).all()):
            raise UnsupportedModelError("the search failed: no class was reached by any patch")
        held_out = samples.held_out.draw(self.held_out_images, generator)
        finalists = recovered.triggers.subset(recovered.finalists)
        rates = success_rates(model, finalists, held_out, meter, batch_size=self.held_out_images)
        evidence = self.judge(samples, recovered, rates)
        return Found([evidence], self._shown(samples, recovered, rates, fired=evidence.fired))

    @final
    def _shown(
        self, samples: Samples, recovered: Recovered, rates: Tensor, *, fired: bool
    ) -> tuple[RecoveredTrigger, ...]:
        """The two smallest patches."""
        shown = []
        for place, position in enumerate(recovered.ranked()[:2].tolist()):
            label = int(recovered.finalists[position])
            patch, clean = recovered.triggers.subset(recovered.finalists[[position]]), samples.example(label)
            facts = TriggerFacts(
                target=label,
                accused=fired and place == 0,
                what="patch",
                size=round(float(recovered.norms[label]), 3),
                size_of="L1 norm of the mask, in pixels",
                success=round(float(rates[position]), 4),
            )
            pictures = patch_pictures(patch.masks[0], patch.patterns[0], clean, patch.stamp(clean[None])[0, 0])
            shown.append(RecoveredTrigger(self.name, facts, pictures))
        return tuple(shown)

    @final
    def judge(self, samples: Samples, recovered: Recovered, rates: Tensor) -> Evidence:
        """Hold the smallest mask against the others.

        Args:
            samples: For the names of the classes.
            recovered: Of all K classes.
            rates: [T] success of the finalists' triggers on held-out images.
        """
        norms, finalists = recovered.norms.double().cpu(), recovered.finalists.cpu()
        scores = outlier_scores(-norms.clamp(min=SMALLEST_NORM).log(), finalists)
        ranked = finalists[recovered.ranked()]
        target = int(ranked[0])
        score = float(scores[target])
        ratio = float(norms[target] / norms[ranked[1]])
        rate = float(rates.cpu()[finalists == target])
        dropped = len(norms) - len(finalists)
        note = (
            f"mask of {norms[target]:.1f} pixels, {ratio:.2f} of the runner-up's (class {int(ranked[1])}); "
            f"its trigger moves {rate:.0%} of held-out images"
        )
        if dropped:
            note += f"; {dropped} classes with larger masks were dropped early and are in no median"
        return Evidence(
            reading=Reading.ALL_TO_ONE,
            measures="smallness of the smallest mask against the other classes' (log norms), in robust std",
            score=round(score, 6),
            threshold=self.threshold,
            fired=score > self.threshold and ratio <= self.largest_ratio and rate >= self.least_success,
            target=target,
            per_class=samples.per_class(scores),
            note=note,
        )

    @final
    def invert(self, model: SplitModel, search: CleanData, generator: torch.Generator, meter: Meter) -> Recovered:
        """Search the smallest patch of every class.

        Args:
            model: A private copy; frozen in place.
            search: Images to search on.
            generator: On the CPU.
            meter: Is told of every pass.

        Raises:
            DataError: All images are of one class.
            UnsupportedModelError: An output was not finite.
            TimeLimitReached: From the meter.
        """
        freeze(model)
        classes, device = search.num_classes, search.images.device
        channels, height, width = search.images.shape[1:]
        of_other_class, available = images_of_other_classes(search)
        raw_masks = torch.randn(classes, 1, height, width, generator=generator).add_(MASK_START)
        raw_patterns = torch.randn(classes, channels, height, width, generator=generator)
        raw_masks, raw_patterns = raw_masks.to(device).requires_grad_(), raw_patterns.to(device).requires_grad_()
        optimizer = torch.optim.Adam([raw_masks, raw_patterns], lr=self.learning_rate, betas=ADAM_BETAS)
        progress = _Progress.start(self, Triggers(torch.arange(classes, device=device), raw_masks, raw_patterns))
        finite = torch.ones((), dtype=torch.bool, device=device)
        for step in range(self.steps):
            active = progress.active(step)
            if not len(active):
                break
            if step % FINISHED_EVERY == 0:
                _require_finite(finite)
            batch = min(self.images_a_class(len(active)), available)
            chosen = torch.multinomial(of_other_class[active.cpu()], batch, generator=generator)
            optimizer.zero_grad()
            hits = []
            # The classes share nothing, so large images can go through the network a few classes at a time.
            together = max(1, images_of_a_pass(search.images) // batch)
            for labels, rows in zip(torch.split(active, together), torch.split(chosen, together), strict=True):
                triggers = Triggers(labels, boxed(raw_masks[labels]), boxed(raw_patterns[labels]))
                meter.spend("trigger inversion", forward=rows.numel(), backward=rows.numel())
                losses, reached = patch_losses(model, triggers, search.images[rows.to(device)], progress.cost[labels])
                (losses + self.penalty(model, triggers, meter)).sum().backward()  # type: ignore[no-untyped-call]
                hits.append(reached)
                finite &= losses.isfinite().all()
            with torch.no_grad():
                triggers = Triggers(active, boxed(raw_masks[active]), boxed(raw_patterns[active]))
            progress.record(triggers, torch.cat(hits), step)
            optimizer.step()
        _require_finite(finite)
        progress.narrow(self.steps)
        return progress.recovered()


def _require_finite(finite: Tensor) -> None:
    """Refuse a search that met outputs that are no numbers: its class would pass for one that no patch reaches."""
    if not bool(finite):
        raise UnsupportedModelError("the search ended in outputs that are not finite")


@dataclass
class _Progress:
    """The state of each class in a search: its cost, its running success, its smallest successful patch."""

    settings: PatchInversion
    best: Triggers
    best_norm: Tensor
    cost: Tensor
    hits: Tensor
    improved: Tensor
    """Step of the last improvement, [K]."""
    contest: Labels
    """Classes not dropped."""
    searched: Labels
    """Those of them that are not finished, in order of their labels."""

    @classmethod
    def start(cls, settings: PatchInversion, raw: Triggers) -> _Progress:
        classes, device = len(raw.labels), raw.labels.device
        return cls(
            settings=settings,
            best=Triggers(raw.labels, boxed(raw.masks.detach()), boxed(raw.patterns.detach())),
            best_norm=torch.full((classes,), torch.inf, device=device),
            cost=torch.full((classes,), settings.initial_cost, device=device),
            hits=torch.zeros(classes, device=device),
            improved=torch.zeros(classes, device=device),
            contest=raw.labels,
            searched=raw.labels,
        )

    def record(self, triggers: Triggers, hits: Tensor, step: int) -> None:
        """Take in what the patches of the active classes did on one batch."""
        settings, active = self.settings, triggers.labels
        running = hits if step == 0 else SUCCESS_MEMORY * self.hits[active] + (1 - SUCCESS_MEMORY) * hits
        self.hits[active] = running
        successful, norms = running >= settings.success, triggers.norms().detach()
        never = self.best_norm[active].isinf()
        smaller = successful & (norms < self.best_norm[active])
        clearly = successful & (norms < RELATIVE_GAIN * self.best_norm[active])
        self.improved[active] = torch.where(clearly | never, step, self.improved[active])
        self.best_norm[active] = torch.where(smaller, norms, self.best_norm[active])
        keep = (smaller | never).view(-1, 1, 1, 1)  # before the first success: the latest
        self.best.masks[active] = torch.where(keep, triggers.masks.detach(), self.best.masks[active])
        self.best.patterns[active] = torch.where(keep, triggers.patterns.detach(), self.best.patterns[active])
        cost, growth = self.cost[active], settings.cost_growth
        self.cost[active] = torch.where(successful, cost * growth, cost / growth**1.5).clamp(
            min=COST_FLOOR * settings.initial_cost
        )

    def active(self, step: int) -> Labels:
        """The classes to search at this step."""
        self.narrow(step)
        if step % FINISHED_EVERY == 0:
            finished = step - self.improved[self.contest] >= self.settings.patience
            self.searched = self.contest[~finished]
        return self.searched

    def narrow(self, step: int) -> None:
        """Drop the least promising classes, for good, where the contest is to be smaller at this step."""
        count = self.settings.contenders(step, len(self.cost))
        if count < len(self.contest):
            norms, area = self.best_norm[self.contest], self.best.masks[0].numel()
            key = torch.where(norms.isinf(), area * (2 - self.hits[self.contest]), norms)
            self.contest = self.contest[key.argsort(stable=True)[:count]].sort().values
            self.searched = self.contest[torch.isin(self.contest, self.searched)]

    def recovered(self) -> Recovered:
        """The outcome."""
        area = torch.full_like(self.best_norm, float(self.best.masks[0].numel()))
        norms = torch.where(self.best_norm.isinf(), area, self.best_norm)
        return Recovered(triggers=self.best, norms=norms, finalists=self.contest)
