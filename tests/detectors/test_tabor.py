import math

import pytest
import torch
from torch import nn
from toys import TARGET

from banaudit.detectors.inversion import Triggers
from banaudit.detectors.tabor import Tabor, roughness, size
from banaudit.meter import Meter
from banaudit.results import Verdict


class Zeros(nn.Module):
    def forward(self, images):
        return torch.zeros(len(images), 4)


def test_size_is_l1_and_squared_l2():
    assert size(torch.tensor([[[[0.5, -1.0], [0.0, 2.0]]]])).tolist() == [3.5 + 5.25]


def test_roughness_is_squared_differences_of_neighbours():
    # down: (0 - 1)^2 + (2 - 0)^2; across: (0 - 1)^2 + (2 - 0)^2
    assert roughness(torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])).tolist() == [10.0]


def test_penalty_by_hand():
    mask = torch.tensor([[[[1.0, 0.0], [0.5, 0.0]]]])
    pattern = torch.ones(1, 3, 2, 2)
    # outside the mask, in each of three channels: 0 1 / 0.5 1
    size_outside, rough_outside = 3 * (2.5 + 2.25), 3 * (0.25 + 0 + 1 + 0.25)
    expected = (
        1e-6 * (1.5 + 1.25)
        + 1e-5 * size_outside
        + 1e-7 * (0.25 + 0 + 1 + 0.25)
        + 1e-8 * rough_outside
        + 1e-2 * math.log(4)
    )
    meter = Meter()
    penalty = Tabor().penalty(Zeros(), Triggers(torch.tensor([2]), mask, pattern), meter)
    assert penalty.tolist() == pytest.approx([expected], rel=1e-5)
    assert meter.forward_images == 1


def test_finds_the_planted_backdoor(planted, clean_data):
    finding = Tabor()(planted, clean_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET


def test_does_not_accuse_the_clean_twin(clean_twin, clean_data):
    assert Tabor()(clean_twin, clean_data).verdict is Verdict.NO_EVIDENCE
