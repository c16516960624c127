import math

import pytest
import torch
import toys
from torch import nn

from banaudit.architectures import SplitModel
from banaudit.data import CleanData, batching
from banaudit.detectors.base import Samples
from banaudit.detectors.inversion import Recovered, Triggers, boxed, patch_losses, success_rates
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.errors import DataError
from banaudit.meter import Meter
from banaudit.results import Verdict


class Sums(nn.Module):
    """Logits: the sum of the first channel, and zero."""

    def forward(self, images):
        total = images[:, 0].sum((1, 2))
        return torch.stack((total, torch.zeros_like(total)), dim=1)


def two_triggers():
    masks = torch.zeros(2, 1, 2, 2)
    masks[0, 0, 0, 0] = 1.0
    masks[1, 0] = 0.5
    return Triggers(torch.tensor([0, 1]), masks, torch.tensor([1.0, 0.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2))


def test_box_maps_to_the_unit_interval():
    torch.testing.assert_close(boxed(torch.tensor([0.0, 1e3, -1e3])), torch.tensor([0.5, 1.0, 0.0]))


def test_stamp_mixes_image_and_pattern():
    stamped = two_triggers().stamp(torch.full((1, 3, 2, 2), 0.5))
    assert stamped.shape == (2, 1, 3, 2, 2)
    assert stamped[0, 0, 0].tolist() == [[1.0, 0.5], [0.5, 0.5]]
    assert stamped[1, 0, 0].tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_norms_are_in_pixels():
    assert two_triggers().norms().tolist() == [1.0, 2.0]


def test_patch_losses_by_hand():
    # class 0: the logits are (1 + 3 * 0.5, 0) = (2.5, 0); class 1: (4 * 0.25, 0) = (1, 0); both exact in bfloat16
    images = torch.full((2, 3, 3, 2, 2), 0.5)
    losses, hits = patch_losses(Sums(), two_triggers(), images, torch.tensor([0.1, 0.2]))
    expected = [math.log1p(math.exp(-2.5)) + 0.1 * 1, math.log1p(math.exp(1.0)) + 0.2 * 2]
    torch.testing.assert_close(losses, torch.tensor(expected))
    assert hits.tolist() == [1.0, 0.0]


def test_success_counts_images_of_other_classes_only():
    clean = CleanData(torch.full((4, 3, 2, 2), 0.5), torch.tensor([0, 1, 1, 1]), ("a", "b"))
    meter = Meter()
    rates = success_rates(Sums(), two_triggers(), clean, meter, batch_size=2)
    assert rates.tolist() == [1.0, 0.0]
    assert meter.forward_images == 3 + 1


@pytest.mark.parametrize(
    ("norms", "rate", "fired"),
    [
        ((30.0, 35.0, 3.0, 40.0), 0.9, True),
        ((30.0, 35.0, 3.0, 40.0), 0.5, False),  # the trigger does not carry over to held-out images
        ((30.0, 35.0, 28.0, 40.0), 0.9, False),  # not small
        ((4.0, 35.0, 3.0, 40.0), 0.9, False),  # two classes are alike
    ],
)
def test_judgement_needs_small_alone_and_working(norms, rate, fired):
    triggers = Triggers(torch.arange(4), torch.zeros(4, 1, 2, 2), torch.zeros(4, 3, 2, 2))
    recovered = Recovered(triggers, torch.tensor(norms), torch.arange(4))
    data = CleanData(torch.zeros(4, 3, 2, 2), torch.arange(4), tuple("abcd"))
    evidence = NeuralCleanse().judge(Samples(data, data), recovered, torch.full((4,), rate))
    assert evidence.fired is fired
    assert evidence.target == 2


def test_the_field_is_halved_down_to_the_finalists():
    detector = NeuralCleanse(steps=100, rung=20, finalists=10)
    assert [detector.contenders(step, 43) for step in (0, 19, 20, 40, 60, 80, 100)] == [43, 43, 22, 11, 10, 10, 10]
    assert detector.contenders(99, 6) == 6


def test_dropped_classes_are_not_searched_on(planted, clean_data):
    detector = NeuralCleanse(steps=40, rung=20, finalists=3)
    meter = Meter()
    recovered = detector.invert(planted, clean_data, torch.Generator().manual_seed(0), meter)
    assert meter.forward_images == 8 * (20 * 6 + 20 * 3)
    assert len(recovered.finalists) == 3
    assert recovered.norms.shape == (6,)


def test_a_finished_class_leaves_the_batch(planted, clean_data):
    detector = NeuralCleanse(steps=200, patience=1, success=0.1)
    meter = Meter()
    detector.invert(planted, clean_data, torch.Generator().manual_seed(0), meter)
    assert meter.forward_images < 200 * 6 * 8 / 2


def test_one_class_of_images_is_refused(planted, clean_data):
    single = clean_data.subset((clean_data.labels == 1).nonzero().flatten())
    with pytest.raises(DataError, match="at least two classes"):
        NeuralCleanse().invert(planted, single, torch.Generator(), Meter())


def test_large_images_pass_in_parts_and_nothing_else_changes(planted, clean_data, monkeypatch):
    taken = []
    inner = type(planted).forward

    def forward(model, images):
        taken.append(len(images))
        return inner(model, images)

    monkeypatch.setattr(type(planted), "forward", forward)
    found = []
    for pixels in (batching.PASS_PIXELS, 20 * 16 * 16):
        monkeypatch.setattr(batching, "PASS_PIXELS", pixels)
        detector = NeuralCleanse(steps=3, batch_size=8)
        found.append(detector.invert(planted, clean_data, torch.Generator().manual_seed(0), Meter()))
    assert taken == [48] * 3 + [16] * 9
    torch.testing.assert_close(found[0].triggers.masks, found[1].triggers.masks, rtol=0.02, atol=0.02)


def test_outputs_that_are_no_numbers_are_no_evidence():
    """Overflowing images of one class spoil the search for every other; that class would stand out."""

    class Overflowing(toys.HandNetwork):
        def head(self, features):
            logits = super().head(features)
            return torch.where((logits[:, :1] > 5) & (torch.arange(logits.shape[1]) == 0), torch.inf, logits)

    model = SplitModel(Overflowing(0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    finding = NeuralCleanse(steps=20)(model, toys.draw_tiles())
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "not finite" in finding.reason
