"""FreeEagle: a class that shows in the network's own idea of every other class is the target. Needs no images."""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.detectors.base import Detector, Found, Samples, freeze
from banaudit.detectors.tail import HEAD, Tail, find_tail
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading
from banaudit.statistics import median

PROBE_IMAGES = 8
"""Random images that show the shape and the sign of a layer's outputs."""

POSTERIOR_FLOOR = 1e-5
"""Least interquartile range of mean posteriors that is believed; rounding makes smaller ones."""

LOG_FLOOR = 0.1
"""Least interquartile range of log posteriors that is believed: ratios within a tenth of each other are equal."""


def fence_scores(values: Tensor, floor: float) -> Tensor:
    """Distance of each value above the third quartile, in interquartile ranges, [n].

    The quartiles are the sorted values at n/4 and 3n/4, rounded down, as in the official code.

    Args:
        values: [n] float64, at least five; of four the upper quartile is the largest.
        floor: Least interquartile range.
    """
    ranked = values.sort().values
    lower, upper = ranked[len(values) // 4], ranked[3 * len(values) // 4]
    return (values - upper) / (upper - lower).clamp(min=floor)


def mean_posteriors(log_posteriors: Tensor) -> Tensor:
    """Mean posterior of each class over the representations of all other classes, [K].

    Args:
        log_posteriors: [K, K]; of class t (column) for the representation of class s (row).
    """
    posteriors = log_posteriors.exp().fill_diagonal_(0)
    return posteriors.sum(0) / (len(posteriors) - 1)


def one_way_affinity(log_posteriors: Tensor) -> Tensor:
    """How much more s is taken for t than t for s, beyond what both do with all classes: [K, K], antisymmetric.

    Classes that look alike are taken for each other; a backdoor from one class leads one way.

    Args:
        log_posteriors: As for :func:`mean_posteriors`.
    """
    difference = log_posteriors - log_posteriors.T
    # A robust fit of a_s - a_t: one large entry does not spread over its row and column as with means.
    lead = median(difference)
    return difference - lead[:, None] + lead[None, :]


@final
class FreeEagle(Detector):
    """Inverts an inner representation of each class, and looks for a class that gets too much of all the others'.

    With the network cut at an inner layer and h the part behind it, for each class s, from a random start::

        e_s = argmin over e (e >= 0 behind a ReLU) of  CE(h(e), s) + wd/2 |e|^2
        M[s, t] = softmax(h(e_s))[t] for t != s
        v_t = mean over s != t of M[s, t]

    All-to-one: the score of class t is (v_t - Q3) / (Q3 - Q1), quartiles over the classes; the class of the largest v
    is accused above ``threshold``, unless it is the class of the empty representation h(0).
    Source-target: the same fence around :func:`one_way_affinity` of log M over all pairs, with ``pair_threshold``.

    Needs neither images nor BatchNorm. The layer is found by :mod:`banaudit.detectors.tail` in any architecture; where
    no layer cuts the network, h is the head. Passes are booked as whole ones though they begin at the layer.

    Chosen beside the image-space and neuron-noise methods because it imitates no trigger at all: what it reads is the
    order that training left between the classes, and pair by pair. TRODO, the other candidate that is blind to the
    kind of label map, needs a threshold from clean networks of the same kind and names no target.

    Source: Fu et al., "FreeEagle: Detecting Complex Neural Trojans in Data-Free Cases", USENIX Security 2023, and its
    official code.

    Deviates:
        - 200 steps of Adam at a rate of 0.05 instead of 1000 at 0.01: the same minimum, a fifth of the cost.
        - The layer lies nearest to half of the layers with weights; the official code names one by hand for each of
          its architectures, after 20 to 60 % of them.
        - Threshold: the official code fits one to a set of backdoored and clean networks of the same kind, on the
          distance from 1.0 to either side. Here it is Tukey's fence for values far out, one-sided.
        - The condition on the empty representation is ours, set after looking at the development models. Weight decay
          leaves so little in e_s that v mostly repeats what h makes of zeros, on clean networks too. A target that
          also catches h(0) is missed for it.
        - The source-target reading is ours; the paper lets a single large entry of M speak through v. It takes the
          transpose away as the official code's unused correction does, though as a difference of logs.
    """

    name: ClassVar[str] = "free-eagle"
    title: ClassVar[str] = "a class that shows in the inverted inner representations of all other classes"
    needs: ClassVar[str] = "no images"
    misses: ClassVar[str] = (
        "most backdoors that it was tried on; targets that an empty representation goes to as well; all-to-all"
    )
    fewest_classes: ClassVar[int] = 5

    depth: float = Field(default=0.5, ge=0, le=1)
    """Share of the layers with weights before the inner layer."""
    steps: PositiveInt = 200
    """Adam steps."""
    learning_rate: PositiveFloat = 0.05
    """Step size of Adam, in units of the layer's output."""
    weight_decay: NonNegativeFloat = 0.005
    """L2 penalty on the representation, in Adam's gradient."""
    class_batch: PositiveInt = 50
    """Classes inverted at once."""
    threshold: PositiveFloat = 3.0
    """Interquartile ranges above the third quartile at which the largest mean posterior lies far out."""
    pair_threshold: PositiveFloat = 5.0
    """The same for the largest one-way affinity, of which there are K - 1 times as many to choose from."""

    def planned_images(self, num_classes: int, images: int) -> int:
        """Forward passes that :meth:`search` is expected to take."""
        del images
        return num_classes * (self.steps + 1) + 2 * PROBE_IMAGES

    def search(self, model: SplitModel, samples: Samples, generator: torch.Generator, meter: Meter) -> Found:
        """Invert every class, and hold the posteriors of the others against each other."""
        like = samples.search.images
        probes = torch.rand(PROBE_IMAGES, *like.shape[1:], generator=generator).to(like.device)
        tail = find_tail(freeze(model), probes, self.depth, meter)
        log_posteriors = self.invert(tail, samples.num_classes, generator, meter)
        recognised = log_posteriors.argmax(1) == torch.arange(len(log_posteriors))
        if float(recognised.double().mean()) < 0.5:
            raise UnsupportedModelError(
                "the search failed: for most classes no inner representation was found that the network gives to it"
            )
        meter.spend("empty representation", forward=1)
        with torch.no_grad():
            empty = int(tail(torch.zeros(1, *tail.shape, device=like.device)).argmax())
        where = "the features" if tail.layer == HEAD else f"layer {tail.layer.removeprefix('network.')}"
        return Found(
            [
                self.judge_classes(samples, log_posteriors, empty, where),
                self.judge_pairs(samples, log_posteriors, where),
            ]
        )

    def invert(self, tail: Tail, num_classes: int, generator: torch.Generator, meter: Meter) -> Tensor:
        """Log posteriors [K, K], float64 on the CPU, of all classes (columns) for each class's representation (rows).

        Args:
            tail: The part of the network behind the inner layer.
            num_classes: K.
            generator: On the CPU.
            meter: Is told of every pass.
        """
        device = tail.image.device
        found = []
        for classes in torch.split(torch.arange(num_classes), self.class_batch):
            labels = classes.to(device)
            embeddings = torch.rand(len(classes), *tail.shape, generator=generator).to(device).requires_grad_()
            optimizer = torch.optim.Adam([embeddings], lr=self.learning_rate, weight_decay=self.weight_decay)
            for _ in range(self.steps):
                meter.spend("inner representations", forward=len(classes), backward=len(classes))
                optimizer.zero_grad()
                # Adam works entry by entry: the classes of a sum do not meet.
                loss = F.cross_entropy(tail(embeddings).float(), labels, reduction="sum")
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if tail.non_negative:
                    with torch.no_grad():
                        embeddings.clamp_(min=0)
            meter.spend("inner representations", forward=len(classes))
            with torch.no_grad():
                found.append(tail(embeddings).double().log_softmax(1).cpu())
        return torch.cat(found)

    def judge_classes(self, samples: Samples, log_posteriors: Tensor, empty: int, where: str) -> Evidence:
        """The all-to-one reading.

        Args:
            samples: For the names of the classes.
            log_posteriors: [K, K] float64.
            empty: Class of the representation that is zero everywhere.
            where: The inner layer, in words.
        """
        means = mean_posteriors(log_posteriors)
        scores = fence_scores(means, POSTERIOR_FLOOR)
        target = int(means.argmax())
        score = float(scores[target])
        return Evidence(
            reading=Reading.ALL_TO_ONE,
            measures="mean posterior over the other classes' representations, in interquartile ranges above Q3",
            score=round(score, 6),
            threshold=self.threshold,
            fired=score > self.threshold and target != empty,
            target=target,
            per_class=samples.per_class(scores),
            note=f"mean posterior {means[target]:.2g} at {where}; the empty representation goes to class {empty}",
        )

    def judge_pairs(self, samples: Samples, log_posteriors: Tensor, where: str) -> Evidence:
        """The source-target reading; arguments as for :meth:`judge_classes`."""
        classes = len(log_posteriors)
        pairs = ~torch.eye(classes, dtype=torch.bool)
        scores = torch.full_like(log_posteriors, -torch.inf)
        scores[pairs] = fence_scores(one_way_affinity(log_posteriors)[pairs], LOG_FLOOR)
        source, target = divmod(int(scores.argmax()), classes)
        score = float(scores[source, target])
        return Evidence(
            reading=Reading.SOURCE_TARGET,
            measures="one-way pull between two classes' representations (logs), in interquartile ranges above Q3",
            score=round(score, 6),
            threshold=self.pair_threshold,
            fired=score > self.pair_threshold,
            target=target,
            sources=(source,),
            per_class=samples.per_class(scores.max(0).values),
            note=f"from class {source} to class {target}, at {where}",
        )
