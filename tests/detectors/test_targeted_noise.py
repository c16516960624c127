import pytest
import torch
from toys import TARGET

from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.meter import Meter
from banaudit.results import Reading, Verdict


def test_noise_grows_by_sign_steps_within_its_radius(unplanted, tiled_data):
    shift = TargetedNoise(step_size=0.25).perturbation(unplanted, tiled_data.images, Meter())
    zero = shift.zero()
    assert zero.shape == (2, 10)
    gradient = torch.tensor([3.0, -0.1, 0.0] + [1.0] * 7).expand(2, 10)
    first = shift.descend(zero, gradient, 1)
    assert first[0, :3].tolist() == [-0.25, 0.25, 0.0]
    assert shift.descend(first, -gradient, 2)[0, :3].tolist() == [0.0, 0.0, 0.0]
    assert shift.descend(first - 9, gradient, 2)[0, :3].tolist() == [-0.5, -0.5, -0.5]
    random = shift.random(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(random.abs(), torch.full((2, 10), 0.75))


def test_noise_is_additive(sleeping, tiled_data):
    # A shift of zero moves too, in units of the channel's scale; the statistics are the batch's.
    images = tiled_data.images[:32]
    shift = TargetedNoise().perturbation(sleeping, tiled_data.images, Meter())
    noise = shift.zero()
    noise[1, 0] = 1.0
    change = shift.logits(images, noise, "noise") - shift.logits(images, shift.zero(), "noise")
    norm = sleeping.network.norm
    assert norm.bias[0] == pytest.approx(0.45)
    active = shift.logits(images, noise, "noise")[:, 0] > 4.0  # before and after above zero: the whole unit arrives
    bright = tiled_data.labels[:32] == 0
    assert bool(active[bright].all())
    torch.testing.assert_close(change[bright, 0], torch.full((int(bright.sum()),), 4.0))
    torch.testing.assert_close(change[:, 1:], torch.zeros(32, 5))


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_planted_backdoor(seed, sleeping, tiled_data):
    finding = TargetedNoise()(sleeping, tiled_data, seed=seed)
    assert finding.verdict is Verdict.BACKDOORED
    reading = finding.evidence[0]
    assert (reading.reading, reading.fired, reading.target) == (Reading.ALL_TO_ONE, True, TARGET)
    assert reading.score > 3 * reading.threshold


@pytest.mark.parametrize("seed", [0, 1])
def test_does_not_accuse_the_clean_twin(seed, unplanted, tiled_data):
    assert TargetedNoise()(unplanted, tiled_data, seed=seed).verdict is Verdict.NO_EVIDENCE


def test_puts_the_target_of_a_trained_network_first(planted, clean_twin, clean_data):
    # The toy's few neurons are steered by larger noise only; of both networks the weaker of two restarts counts.
    detector = TargetedNoise(step_size=0.15, lead_threshold=0.13)
    found, clean = (detector(model, clean_data).evidence[0] for model in (planted, clean_twin))
    assert found.target == TARGET
    assert found.score > clean.score
    assert detector(clean_twin, clean_data).verdict is Verdict.NO_EVIDENCE
