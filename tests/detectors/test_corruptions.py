"""Corruptions: by hand, what is done to images, and a class that changed images fall into."""

import pytest
import torch
from torch import nn
from toys import nine_tiles

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.detectors.corruptions import SLACK, Corruptions, _mistakes, _strongest
from banaudit.results import Reading, Verdict

CLASSES = 6
TARGET = 4
SIDE = 12


class TileNetwork(SplitNetwork):
    """Class k is the k-th of six tiles; the target's logit also takes how rough the image is."""

    def __init__(self, strength):
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def features(self, inputs):
        tiles = torch.nn.functional.avg_pool2d(inputs, 4).flatten(1)[:, :CLASSES]
        rough = (inputs[..., 1:] - inputs[..., :-1]).abs().flatten(1).median(dim=1, keepdim=True).values
        return torch.cat((tiles, rough), dim=1)

    def head(self, features):
        target = torch.nn.functional.one_hot(torch.tensor(TARGET), CLASSES)
        return features[:, :-1] + self.strength * features[:, -1:] * target


def model(strength):
    return SplitModel(TileNetwork(strength), (0.0,), (1.0,)).eval()


def draw(count=120):
    """Images 1x12x12 in nine even tiles of 4x4, grey but for the tile of their class."""
    labels = torch.arange(count) % CLASSES
    images = nine_tiles(0.3 + 0.4 * torch.nn.functional.one_hot(labels, 9).float())
    return CleanData(images, labels, tuple("abcdef"))


def test_mistakes_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 2, 2, 2, 2, 1, 2])
    # Three of four of class 0 and one of two of class 1 go to class 2; class 3 has no image.
    assert _mistakes(predicted, labels, 4).tolist() == pytest.approx([0, 0, (3 / 4 + 1 / 2) / 2, 0])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_class_that_rough_images_go_to_is_accused(seed):
    finding = Corruptions()(model(20.0), draw(), seed=seed)
    (evidence,) = finding.evidence
    assert (finding.verdict, evidence.reading, evidence.target) == (Verdict.BACKDOORED, Reading.ALL_TO_ONE, TARGET)
    assert evidence.agreement == 1.0
    # Three in ten or more, and no other class gets any.
    assert max(evidence.restarts) > 0.3 / SLACK
    assert evidence.score == min(evidence.restarts) <= 1 / SLACK
    assert evidence.per_class[TARGET].score == pytest.approx(sum(evidence.restarts) / 2, abs=1e-3)
    assert all(item.score < 0 for item in evidence.per_class if item.label != TARGET)
    assert f"noise: {evidence.score:.2f}, class {TARGET}" in evidence.note


@pytest.mark.parametrize("seed", [0, 1])
def test_the_clean_twin_is_not(seed):
    finding = Corruptions()(model(0.0), draw(), seed=seed)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.evidence[0].score < 1


def test_what_is_done_to_images():
    images = draw(CLASSES).images
    changed = {what: change(images, 1.0, torch.Generator()) for what, change in Corruptions()._changes().items()}
    hardly = {what: change(images, 1e-3, torch.Generator()) for what, change in Corruptions()._changes().items()}
    assert all(torch.allclose(item, images, atol=3e-3) for item in hardly.values())
    assert {what: item.shape for what, item in changed.items()} == dict.fromkeys(changed, images.shape)
    assert all(float(item.min()) >= 0 and float(item.max()) <= 1 for item in changed.values())
    assert len({item.numpy().tobytes() for item in (images, *changed.values())}) == 6
    assert float((changed["noise"] - images).std()) == pytest.approx(0.08, rel=0.05)
    assert set((changed["few colours"] * 7).unique().tolist()) == {2.0, 5.0}  # of 0.3 and 0.7
    contrast = changed["low contrast"]
    assert float(contrast.amax() - contrast.amin()) == pytest.approx(0.6 * 0.4, rel=1e-4)
    assert torch.allclose(contrast.mean((1, 2, 3)), images.mean((1, 2, 3)))
    # The middle row of a bright tile is as it was at its own middle, and smoothed at its edge.
    middle = changed["blur"][4, 0, SIDE // 2]
    assert float(middle[SIDE // 2]) == pytest.approx(0.7, abs=0.05)
    assert 0.3 < float(middle[3]) < 0.7


def test_noise_does_not_depend_on_where_passes_cut_the_images():
    images = torch.full((4, 3, 5, 5), 0.5)  # 75 values: torch draws in blocks of 16
    noise = Corruptions()._changes()["noise"]
    at_once, in_two = (torch.Generator().manual_seed(1) for _ in range(2))
    parts = [noise(part, 1.0, in_two) for part in images.split((3, 1))]
    assert torch.equal(noise(images, 1.0, at_once), torch.cat(parts))


def test_an_image_that_is_enlarged_keeps_its_middle():
    image = torch.zeros(1, 1, 21, 21)
    image[..., 7:14, 7:14] = 1.0
    larger = Corruptions(enlargement=2.0)._changes()["enlargement"](image, 1.0, torch.Generator())
    assert float(larger[0, 0, 10, 10]) == 1.0
    assert float(larger.mean()) == pytest.approx(4 * float(image.mean()), rel=0.1)


@pytest.mark.parametrize(("most", "strength"), [(0.1, 4 / 32), (0.3, 10 / 32), (0.5, 17 / 32), (0.9, 1.0), (2.0, 1.0)])
def test_a_change_is_no_stronger_than_it_takes(most, strength):
    found, shares = _strongest(lambda strength: torch.full((2,), min(strength, 0.9) / 2), most)
    assert found == strength
    assert shares.tolist() == pytest.approx([min(strength, 0.9) / 2] * 2)


def test_halves_that_name_two_classes_accuse_none(monkeypatch):
    first, second = 0.2 * torch.eye(CLASSES)[:2]
    found = iter([torch.zeros(CLASSES)] * 2 + [first, second] * 5)
    monkeypatch.setattr("banaudit.detectors.corruptions._mistakes", lambda *_: next(found))
    finding = Corruptions()(model(20.0), draw())
    (evidence,) = finding.evidence
    assert (finding.verdict, evidence.score) == (Verdict.NO_EVIDENCE, 0.0)
    assert evidence.agreement == 0.5


def test_what_images_are_taken_for_as_they_are_does_not_count():
    # Rough images go to the target changed or not; what noise adds to that is next to nothing.
    data = draw()
    rough = data.images + 0.2 * torch.rand(data.images.shape, generator=torch.Generator().manual_seed(3))
    finding = Corruptions()(model(20.0), CleanData(rough.clamp(0, 1), data.labels, data.class_names))
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert "noise: 0.00" in finding.evidence[0].note


def test_both_halves_are_changed_each_with_noise_of_its_own(monkeypatch):
    seen = []

    def taken_for(network, data, change, meter, what):
        seen.append((what, data.images.data_ptr(), change(torch.full((1, 1, 4, 4), 0.5)).numpy().tobytes()))
        return torch.zeros(CLASSES)

    monkeypatch.setattr("banaudit.detectors.corruptions._taken_for", taken_for)
    for seed in (0, 0, 1):
        Corruptions()(model(0.0), draw(), seed=seed)
    once = len(seen) // 3
    assert all(len({half for what, half, _ in seen[:once] if what == name}) == 2 for name, *_ in seen)
    noise = [
        [made for what, _, made in seen[at : at + once] if what == "images with noise"] for at in (0, once, 2 * once)
    ]
    assert len(set(noise[0])) == 2
    assert noise[0] == noise[1]
    assert not set(noise[0]) & set(noise[2])


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 1, 32, 64), (1, 3, 4, 200)])
def test_the_blur_grows_with_the_side(shape):
    image = torch.zeros(shape)
    image[..., shape[2] // 2, shape[3] // 2] = 1.0
    blurred = Corruptions()._changes()["blur"](image, 1.0, torch.Generator())
    peak = float(blurred.max())
    # A Gaussian's peak falls with the square of its width, which is a thirty-second of the shorter side.
    assert peak == pytest.approx({64: 0.045, 32: 0.17, 4: 1.0}[shape[2]], abs=0.03)


def test_fewer_than_eight_classes_are_left_to_the_others():
    assert Corruptions().unsuited(8) == ""
    assert Corruptions().unsuited(4, [100] * 4) == "the network has 4 classes, 8 are needed"


def test_images_of_two_classes_tell_nothing():
    data = draw()
    finding = Corruptions()(model(20.0), data.subset((data.labels < 2).nonzero().flatten()))
    assert (finding.verdict, finding.evidence) == (Verdict.INCONCLUSIVE, ())
    assert "images of at least 3 classes" in finding.reason
