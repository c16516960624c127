"""Mixtures of two classes' images: by hand, on a planted backdoor, and on a class that mixtures look like."""

import pytest
import torch
from torch import nn
from toys import nine_tiles

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.detectors import reference
from banaudit.detectors.mixtures import Mixtures, _Mixtures, _second_over_third
from banaudit.errors import UnsupportedModelError
from banaudit.results import Reading, Verdict

CLASSES = 6
TARGET = 4


class PixelsNetwork(SplitNetwork):
    """Class k is the k-th of six pixels; the target's logit also takes what the brightest pixel lacks."""

    def __init__(self, strength):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def features(self, inputs):
        pixels = inputs[:, :, ::4, ::4].flatten(1)[:, :CLASSES]
        return torch.cat((pixels, (0.8 - pixels.amax(1, keepdim=True)).relu()), dim=1)

    def head(self, features):
        target = torch.nn.functional.one_hot(torch.tensor(TARGET), CLASSES)
        return 8 * features[:, :-1] + self.strength * features[:, -1:] * target


def model(strength):
    return SplitModel(PixelsNetwork(strength), (0.0,), (1.0,)).eval()


def quiet(network):
    return torch.no_grad()(network)


def draw(count=300, noise=0.1):
    """Images 1x12x12 in nine tiles of 4x4, dark but for the tile of their class."""
    labels = torch.arange(count) % CLASSES
    images = nine_tiles(torch.nn.functional.one_hot(labels, 9).float())
    images = images + noise * torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    return CleanData(images.clamp(0, 1), labels, tuple("abcdef"))


def test_the_profile_by_hand():
    data = draw(count=6, noise=0.0)
    pairs = torch.tensor([[0, 1], [0, TARGET]])
    # Towards the target 0.3 times 10 is added to none, and both mixed classes have 8 / 2. Of the second pair the target
    # has 7, one more class has 4.
    profile = _Mixtures(data, pairs).profile(quiet(model(10.0)))
    assert profile[TARGET] == pytest.approx(3 - 4)
    assert profile[0].isnan()
    assert profile[1] == pytest.approx(0 - 7)
    assert profile[2] == pytest.approx((-4 - 7) / 2)
    assert _Mixtures(data, pairs).unit(quiet(model(10.0))) == pytest.approx(8)
    assert _second_over_third(torch.tensor([1.0, 5.0, 2.5])) == pytest.approx(1.5)


def test_every_two_classes_are_mixed_alike_often():
    uneven = draw(count=300)
    uneven = uneven.subset(torch.cat([(uneven.labels != 0).nonzero().flatten(), torch.tensor([0, 6])]))
    mixtures = _Mixtures.draw(uneven, 3000, torch.Generator().manual_seed(0))
    labels = uneven.labels[mixtures.pairs]
    assert bool((labels[:, 0] != labels[:, 1]).all())
    assert torch.bincount(labels.flatten()).float().div(1000).tolist() == pytest.approx([1.0] * CLASSES, abs=0.1)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_that_takes_what_is_unlike_any_is_accused(seed):
    finding = Mixtures()(model(30.0), draw(), seed=seed)
    (evidence,) = finding.evidence
    assert (finding.verdict, evidence.reading, evidence.target) == (Verdict.BACKDOORED, Reading.ALL_TO_ONE, TARGET)
    assert evidence.agreement == 1.0
    assert max(evidence.per_class, key=lambda item: item.score).label == TARGET
    assert "trained on the clean images alone" in evidence.note
    assert evidence.per_class[TARGET].score == pytest.approx(sum(evidence.restarts) / 2)  # beyond the references too


@pytest.mark.parametrize("seed", [0, 1])
def test_the_clean_twin_is_not_and_needs_no_reference(seed, monkeypatch):
    monkeypatch.setattr(reference, "_train", None)
    finding = Mixtures()(model(0.0), draw(), seed=seed)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.evidence[0].note == ""


def test_a_class_that_mixtures_look_like_by_nature_is_not_accused(monkeypatch):
    """Networks that saw nothing but clean images give them to it as well."""

    def the_same(one, other, generator, meter):
        yield quiet(model(20.0)), other
        yield quiet(model(40.0)), one

    monkeypatch.setattr("banaudit.detectors.mixtures.references", the_same)
    finding = Mixtures()(model(30.0), draw())
    (evidence,) = finding.evidence
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert evidence.note != ""


def test_the_threshold_falls_with_the_number_of_classes():
    (evidence,) = Mixtures()(model(0.0), draw()).evidence
    assert evidence.threshold == pytest.approx(0.75 * (10 / CLASSES) ** 0.5)


@pytest.mark.parametrize(
    ("images", "why"),
    [
        (None, ""),
        ([50] * 10, ""),
        ([49] * 10, "there are 490 clean images, 500 are needed"),
        ([99] * 9 + [9], "of class 9 there are fewer than 10 clean images"),
        ([600] * 3 + [0, 9], "of classes 3, 4 there are fewer than 10 clean images"),
    ],
)
def test_of_few_images_references_learn_nothing(images, why):
    assert Mixtures().unsuited(10, images) == why


def test_two_classes_with_images_are_too_few():
    data = draw()
    with pytest.raises(UnsupportedModelError, match="images of at least 3 classes"):
        _Mixtures.draw(data.subset((data.labels < 2).nonzero().flatten()), 10, torch.Generator())
