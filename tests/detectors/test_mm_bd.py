import pytest
import torch
from scipy import stats
from toys import TARGET

from banaudit.detectors import mm_bd
from banaudit.detectors.mm_bd import MMBD, gamma_p_value, margins
from banaudit.meter import Meter
from banaudit.results import Verdict


def test_margin_is_own_logit_minus_the_best_other():
    logits = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0]])
    assert margins(logits, torch.tensor([1, 2])).tolist() == [3.0, -3.0]


def test_gamma_p_value_against_scipy():
    largest = torch.tensor([8.0, 12.0, 10.0, 25.0, 9.0, 11.0], dtype=torch.float64)
    others = torch.tensor([8.0, 12.0, 10.0, 9.0, 11.0], dtype=torch.float64)
    scale = float(others.var() / others.mean())
    below = stats.gamma.cdf(25.0, float(others.mean()) / scale, scale=scale)
    assert gamma_p_value(largest) == pytest.approx(1 - below**6, rel=1e-3)


def test_equal_margins_are_no_outlier():
    assert gamma_p_value(torch.full((5,), 3.0, dtype=torch.float64)) > 0.5


def test_finds_the_largest_margin_there_is(untinted, tiled_data):
    found = MMBD().maximum_margins(untinted, tiled_data.images, 6, torch.Generator().manual_seed(0), Meter())
    # its tile white, all others black
    torch.testing.assert_close(found.margins, torch.full((6,), 20.0), rtol=0.01, atol=0)
    label, shown = next(iter(found.images.items()))
    row, column = 6 * (label // 3), 4 * (label % 3)
    assert shown.shape == (12, 12, 3)
    assert shown[row : row + 6, column : column + 4].mean() > 250
    assert shown.mean() < 60


def test_finds_the_planted_backdoor(tinted, tiled_data):
    finding = MMBD()(tinted, tiled_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET
    assert finding.forward_images == MMBD().planned_images(6, len(tiled_data))


def test_does_not_accuse_the_clean_twin(untinted, tiled_data):
    assert MMBD()(untinted, tiled_data).verdict is Verdict.NO_EVIDENCE


def test_names_the_planted_target_of_a_trained_network_first(planted, clean_data):
    assert MMBD()(planted, clean_data).evidence[0].target == TARGET


def test_logits_that_never_move_are_no_verdict(planted, clean_data):
    quiet = type(planted)(planted.network, (0.5,) * 3, (0.25,) * 3, logit_scale=1e-9).eval()
    finding = MMBD(images=2, steps=3)(quiet, clean_data)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "the search failed" in finding.reason


def test_an_outlier_that_the_gamma_test_finds_likely_is_not_accused(tinted, tiled_data, monkeypatch):
    monkeypatch.setattr(mm_bd, "gamma_p_value", lambda margins: 0.06)
    finding = MMBD()(tinted, tiled_data)
    assert finding.evidence[0].score > finding.evidence[0].threshold
    assert finding.verdict is Verdict.NO_EVIDENCE
