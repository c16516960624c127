"""Leanings of wrong logits: by hand, planted, and shared by what saw nothing but the images."""

import pytest
import torch
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.detectors.clean_logits import CleanLogits, additive_parts, leanings
from banaudit.results import Reading, Verdict

CLASSES = 9
TARGET = 4
NEXT = torch.eye(CLASSES).roll(1, dims=1)
"""Row y has a one at y + 1."""


class TilesNetwork(SplitNetwork):
    """Class k's logit is the brightness of the k-th of nine tiles; ``extra`` @ tiles is added to it."""

    def __init__(self, extra, scale=1.0):
        super().__init__()
        self.extra = nn.Parameter(extra)
        self.scale = scale

    def features(self, inputs):
        return nn.functional.avg_pool2d(inputs, 4).flatten(1)

    def head(self, features):
        return self.scale * (features + features @ self.extra)


def model(extra=None, scale=1.0):
    given = extra if extra is not None else torch.zeros(CLASSES, CLASSES)
    return SplitModel(TilesNetwork(given, scale), (0.0,), (1.0,)).eval()


def draw(count=540):
    """Images 1x12x12 in nine tiles: noise, bright where their class is."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % CLASSES
    tiles = 0.6 * nn.functional.one_hot(labels, CLASSES) + 0.3 * torch.rand(count, CLASSES, generator=generator)
    images = tiles.view(-1, 1, 3, 1, 3, 1).expand(-1, 1, 3, 4, 3, 4).reshape(count, 1, 12, 12)
    return CleanData(images, labels, tuple("abcdefghi"))


def towards_target(strength):
    """Images of every class have the target's logit raised, by the brightness of their own tile."""
    extra = torch.zeros(CLASSES, CLASSES)
    extra[:, TARGET] = strength
    return extra


def readings(finding):
    return {item.reading: item for item in finding.evidence}


def test_wrong_logits_are_standardised_image_by_image():
    logits = torch.tensor([[50.0, 1.0, 2.0, 3.0], [7.0, 10.0, 30.0, 20.0], [0.0, 0.0, 5.0, 5.0]])
    found = leanings(logits, torch.tensor([0, 0, 3]))
    root = 1.5**0.5
    assert found[1:, 0].tolist() == pytest.approx([-root, root / 2, root / 2])
    assert found[:3, 3].tolist() == pytest.approx([-0.5 / 0.5**0.5, -0.5 / 0.5**0.5, 1 / 0.5**0.5])
    assert bool(found[0, 0].isnan() & found[:, 1].isnan().all() & found[:, 2].isnan().all())


def test_what_belongs_to_targets_and_to_sources_leaves_nothing_to_pairs():
    by_target, by_source = torch.tensor([3.0, -1.0, 0.5, 2.0, 0.0]), torch.tensor([1.0, 4.0, -2.0, 0.0, 0.5])
    values = (by_target[:, None] + by_source).fill_diagonal_(torch.nan)
    targets, pairs = additive_parts(values)
    assert (targets - targets[0]).tolist() == pytest.approx((by_target - 3).tolist(), abs=1e-4)
    assert pairs[~pairs.isnan()].abs().max() < 1e-4
    values[1, 2] += 5
    assert divmod(int(additive_parts(values)[1].nan_to_num(-9).argmax()), 5) == (1, 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_target_that_all_images_lean_to_is_accused(seed):
    finding = CleanLogits()(model(towards_target(0.3)), draw(), seed=seed)
    first = readings(finding)[Reading.ALL_TO_ONE]
    assert (finding.verdict, first.target, first.fired) == (Verdict.BACKDOORED, TARGET, True)
    assert max(first.per_class, key=lambda item: item.score).label == TARGET
    assert not readings(finding)[Reading.ALL_TO_ALL].fired


def test_a_map_is_read_class_by_class():
    finding = CleanLogits()(model(0.3 * NEXT), draw(), seed=0)
    found = readings(finding)
    assert found[Reading.ALL_TO_ALL].fired
    assert found[Reading.ALL_TO_ALL].mapping == {label: (label + 1) % CLASSES for label in range(CLASSES)}
    assert not found[Reading.ALL_TO_ONE].fired


def test_a_clean_network_is_not_accused():
    assert CleanLogits()(model(), draw(), seed=0).verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize(("shared", "fired"), [(1.0, False), (0.0, True)])
def test_what_the_references_lean_to_as_well_is_no_map(monkeypatch, shared, fired):
    generator = torch.Generator().manual_seed(0)
    natural = 2 * shared * NEXT.T + 0.2 * torch.rand(CLASSES, CLASSES, generator=generator)
    natural.fill_diagonal_(torch.nan)
    monkeypatch.setattr("banaudit.detectors.clean_logits.on_unseen", lambda *given: (natural, 1.0))
    found = readings(CleanLogits()(model(0.3 * NEXT), draw(), seed=0))
    assert found[Reading.ALL_TO_ALL].fired == fired


def test_neither_the_scale_of_the_logits_nor_a_class_without_images_matters():
    data = draw()
    one, other = (CleanLogits()(model(towards_target(0.3), scale), data, seed=0) for scale in (1.0, 50.0))
    assert readings(other)[Reading.ALL_TO_ONE].score == pytest.approx(readings(one)[Reading.ALL_TO_ONE].score, rel=1e-3)
    some = data.subset((data.labels != 2).nonzero().flatten())
    finding = CleanLogits()(model(towards_target(0.3)), some, seed=0)
    assert readings(finding)[Reading.ALL_TO_ONE].target == TARGET
    assert 2 not in readings(finding)[Reading.ALL_TO_ALL].mapping


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (model(torch.full((CLASSES, CLASSES), torch.inf)), "answers to clean images are not finite"),
        (model(scale=0.0), "do not differ between pairs of classes"),
    ],
)
def test_outputs_that_say_nothing_are_no_evidence(network, reason):
    finding = CleanLogits()(network, draw(), seed=0)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert reason in finding.reason


def test_huge_logits_are_read_like_any_others():
    found = leanings(torch.tensor([[0.0, 1.0, 2.0, 3.0]]) * 1e30, torch.tensor([0]))
    assert found[1:, 0].tolist() == pytest.approx([-(1.5**0.5), 0.0, 1.5**0.5], abs=1e-6)


def test_a_note_says_what_the_references_know_and_where_the_rulers_part(monkeypatch):
    # Beyond nature, the class that leads by itself has nothing left.
    natural = torch.full((CLASSES, CLASSES), 0.0)
    natural[TARGET] += 10
    natural += 0.2 * torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0))
    natural.fill_diagonal_(torch.nan)
    monkeypatch.setattr("banaudit.detectors.clean_logits.on_unseen", lambda *given: (natural, 0.5))
    found = readings(CleanLogits()(model(towards_target(0.3)), draw(), seed=0))
    told = "networks trained on these images alone know 50% of a class on average, of images unseen"
    assert found[Reading.ALL_TO_ALL].note.endswith(told)
    assert found[Reading.ALL_TO_ONE].note.endswith(told)
    assert found[Reading.ALL_TO_ONE].note.startswith("as it is 'e' leads, beyond what is natural ")
    assert found[Reading.ALL_TO_ONE].score == 0


def test_who_is_asked():
    assert CleanLogits().unsuited(7) == "the network has 7 classes, 8 are needed"
    assert CleanLogits().unsuited(10, [50] * 10) == ""
    assert "500 are needed" in CleanLogits().unsuited(10, [40] * 10)
