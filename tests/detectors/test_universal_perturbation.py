import math

import pytest
import torch
from toys import TARGET, TinyNetwork, rounding

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors import shortcut
from banaudit.detectors.base import Samples
from banaudit.detectors.targeted_paths import Lead, Leader, PairLead, Paths
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.meter import Meter
from banaudit.results import Reading, Verdict


def shift_of(model, images, step=0.6, meter=None):
    data = CleanData(images, torch.zeros(len(images), dtype=torch.long), ("a",))
    detector = UniversalPerturbation(step_size=step)
    return detector.perturbation(model, data.images, meter if meter is not None else Meter())


def test_the_ball_grows_step_by_step(untinted):
    shift = shift_of(untinted, torch.zeros(2, 3, 32, 32), step=0.5)  # the size for which a step is stated
    gradient = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first = shift.descend(shift.zero(), gradient, 1)
    assert float(first.norm()) == pytest.approx(0.5)
    torch.testing.assert_close(first, -0.5 * gradient / gradient.norm())
    assert float(shift.descend(first, gradient, 2).norm()) == pytest.approx(1.0)
    assert float(shift.descend(first, -gradient, 2).norm()) == pytest.approx(0.0, abs=1e-6)
    assert float(shift.descend(9 * gradient, gradient, 3).norm()) == pytest.approx(1.5, rel=1e-5)
    assert float(shift.random(4, torch.Generator().manual_seed(0)).norm()) == pytest.approx(2.0)


def test_a_step_grows_with_the_root_of_the_pixels(untinted):
    shift = shift_of(untinted, torch.zeros(1, 3, 64, 64), step=0.5)
    gradient = torch.ones(1, 3, 64, 64)
    assert float(shift.descend(shift.zero(), gradient, 1).norm()) == pytest.approx(0.5 * math.sqrt(4), rel=1e-5)


def test_a_gradient_of_zero_is_no_division_by_zero(untinted):
    shift = shift_of(untinted, torch.zeros(1, 3, 12, 12))
    assert torch.equal(shift.descend(shift.zero(), shift.zero(), 1), shift.zero())


def test_images_stay_images_and_passes_are_booked(tinted):
    meter = Meter()
    images = torch.full((2, 3, 12, 12), 0.75)
    shift = shift_of(tinted, images, meter=meter)
    clipped = shift.logits(images, torch.full((1, 3, 12, 12), 9.0), "pixels")
    torch.testing.assert_close(clipped, tinted(torch.ones(2, 3, 12, 12)))
    shift.logits(images, shift.zero().requires_grad_(True), "pixels")
    assert (meter.forward_images, meter.backward_images) == (4, 2)


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_planted_backdoor(seed, sleeping, tiled_data):
    finding = UniversalPerturbation()(sleeping, tiled_data, seed=seed)
    assert finding.verdict is Verdict.BACKDOORED
    reading = finding.evidence[0]
    assert (reading.reading, reading.fired, reading.target) == (Reading.ALL_TO_ONE, True, TARGET)
    assert reading.score > 3 * reading.threshold


@pytest.mark.parametrize("seed", [0, 1])
def test_does_not_accuse_the_clean_twin(seed, unplanted, tiled_data):
    assert UniversalPerturbation()(unplanted, tiled_data, seed=seed).verdict is Verdict.NO_EVIDENCE


def test_needs_no_batch_norm(tinted, untinted, tiled_data):
    detector = UniversalPerturbation(step_size=1.5)  # a tint of all pixels is a large change
    finding = detector(tinted, tiled_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET
    assert detector(untinted, tiled_data).verdict is Verdict.NO_EVIDENCE


def test_without_a_gradient_nothing_can_be_judged(clean_data):
    rounded = SplitModel(rounding(TinyNetwork)(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    finding = UniversalPerturbation()(rounded, clean_data)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "no gradient leads towards class 0" in finding.reason


def test_puts_the_target_of_a_trained_network_first(planted, clean_twin, clean_data):
    found, clean = (UniversalPerturbation()(model, clean_data) for model in (planted, clean_twin))
    assert found.evidence[0].target == TARGET
    assert found.evidence[0].score > 1.5 * clean.evidence[0].score
    assert clean.verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize(
    ("leads", "reaches", "threshold", "fired"),
    [
        ((0.3, 0.25), (0.0, 0.1), 0.24, True),
        ((0.3, 0.25), (0.0, 0.3), 0.32, False),  # the larger reach counts
        ((0.15, 0.3), (0.0, 0.0), 0.2, False),  # relied on, so followed twice; the weaker lead counts
        ((0.09,), (0.0,), 0.2, False),
    ],
)
def test_what_a_lead_is_held_against_falls_with_the_reach(monkeypatch, leads, reaches, threshold, fired):
    scores, shares = iter(leads), iter(reaches)
    nothing = torch.zeros(7, 7)
    monkeypatch.setattr(
        shortcut,
        "follow",
        lambda *given, **settings: Paths(
            nothing, nothing, next(shares), 8, (Leader(1, torch.zeros(1, 3, 16, 16), 0.0),)
        ),
    )
    monkeypatch.setattr(shortcut, "lead", lambda *given: Lead(next(scores), 0.0, 1, torch.zeros(7)))
    monkeypatch.setattr(shortcut, "pair_lead", lambda paths: PairLead(0.0, 0, 1))
    images = CleanData(torch.rand(70, 3, 16, 16), torch.arange(70) % 7, tuple("abcdefg"))
    model = SplitModel(TinyNetwork(7), (0.0,) * 3, (1.0,) * 3)
    found = UniversalPerturbation().search(model, Samples(images, images), torch.Generator().manual_seed(0), Meter())
    first = found.evidence[0]
    assert (first.reading, first.threshold, first.fired) == (Reading.ALL_TO_ONE, pytest.approx(threshold), fired)
    assert (first.score, len(first.restarts)) == (min(leads), len(leads))


@pytest.mark.parametrize(("reach", "threshold"), [(0.0, 0.2), (0.25, 0.3), (0.5, 0.4), (1.0, 0.4)])
def test_less_of_a_lead_accuses_where_few_images_arrive(reach, threshold):
    detector = UniversalPerturbation()
    assert detector.lead_threshold_at(reach) == pytest.approx(threshold)
    assert detector.relied_on_above(reach) == pytest.approx(threshold / 2)
