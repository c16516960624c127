from __future__ import annotations

import pytest
import torch

from banaudit.architectures.base import SplitModel
from banaudit.bench.economies import Economy, counted_economies, timed_economies
from banaudit.bench.networks import build_network
from banaudit.bench.synthetic import synthetic_images
from banaudit.data import CleanData
from banaudit.detectors import default_detectors, suited


def test_a_factor_is_how_many_times_cheaper():
    assert Economy(name="a", work="b", without=6.0, with_it=2.0).factor == 3.0


def test_the_model_stays_as_it_is_and_few_images_are_enough():
    pixels, labels = synthetic_images(20, 4, torch.Generator().manual_seed(0))
    clean = CleanData(pixels.float().div(255), labels, tuple("abcd"))
    model = SplitModel(build_network("resnet18", 2, 3, 4), (0.5,) * 3, (0.25,) * 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = timed_economies(model, clean, repeats=1)
    assert len({item.name for item in found}) == len(found) == 5
    assert all(item.without > 0 and item.with_it > 0 for item in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_shortlist_is_held_against_a_cost_in_proportion_to_the_classes():
    (shortlist,) = counted_economies(default_detectors(), 500)
    few = sum(detector.planned_images(10, 500) for detector in suited(default_detectors(), 43))
    assert shortlist.without == pytest.approx(4.3 * few, abs=1)
    assert 1.5 < shortlist.factor < 10
