import re

import pytest
import torch
import toys
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.detectors.base import conclude
from banaudit.detectors.pair_leads import PairLeader, images_of_each
from banaudit.detectors.pair_noise import STEP, leader_under_noise, planned_images
from banaudit.detectors.pair_perturbation import CONFIRMED, PairPerturbation
from banaudit.errors import TimeLimitReached, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading, Verdict

SOURCE = 1


class OneWayNeurons(SplitNetwork):
    """Six tiles of brightness, and a neuron that almost wakes where the source's tile is bright.

    Args:
        strength: What the target's logit takes of the neuron; 0 makes the clean twin.
        red: How much of a corner's red wakes it as well.
    """

    def __init__(self, strength, red=0.0):
        super().__init__()
        self.red = red
        self.norm = nn.BatchNorm2d(toys.CLASSES + 1)
        weight = 8 * torch.eye(toys.CLASSES, toys.CLASSES + 1)
        weight[toys.TARGET, toys.CLASSES] = strength
        self.weight = nn.Parameter(weight)

    def features(self, inputs):
        tiles = toys.tiles_of(inputs)
        corner = toys.red_corner(inputs).mean((1, 2))
        neuron = tiles[:, SOURCE] + self.red * corner
        told = self.norm(torch.cat((tiles, neuron[:, None]), dim=1)[:, :, None, None]).flatten(1)
        woken = nn.functional.softplus(200 * (told[:, -1:] - 0.73)) / 200
        return torch.cat((told[:, :-1], woken), dim=1)

    def head(self, features):
        return features @ self.weight.T


def one_way(strength, red=0.0):
    return SplitModel(OneWayNeurons(strength, red), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


def leader(model, meter=None):
    generator = torch.Generator().manual_seed(0)
    one, other = (images_of_each(half, 20, 5, generator) for half in toys.draw_tiles().split(0.5, generator))
    natural = torch.zeros(toys.CLASSES, toys.CLASSES)
    return leader_under_noise(model, one, other, natural, generator, meter or Meter()), one


def test_the_first_step_of_noise_shows_source_and_target():
    meter = Meter()
    found, images = leader(one_way(1000.0), meter)
    assert found.pair == (SOURCE, toys.TARGET)
    assert found.score > 0.5
    assert found.score > 5 * leader(one_way(0.0))[0].score
    count, classes = sum(map(len, images.values())), toys.CLASSES
    # For each half: its images as they are, the gradients of the others, and each image under the noise of each target.
    assert meter.forward_images == 2 * count * (1 + 1 + classes - 1)
    assert meter.backward_images == 2 * count * (classes - 1)
    assert meter.forward_images == planned_images(classes, 2 * count // classes)


def test_the_noise_is_one_signed_step_down_the_gradient():
    """Two neurons, logits (8 a, 8 b): towards class 1 scale and shift of a fall by a step, those of b rise."""

    class Two(SplitNetwork):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(2, eps=0.0)

        def features(self, inputs):
            return self.norm(inputs[:, :2])[:, :, 0, 0]

        def head(self, features):
            return 8 * features

    model = SplitModel(Two(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    pixels = {0: (0.9, 0.2, 0.0), 1: (0.2, 0.5, 0.0)}
    images = {label: torch.tensor(values)[None, :, None, None] for label, values in pixels.items()}
    found = leader_under_noise(model, images, images, torch.zeros(2, 2), torch.Generator(), Meter())
    assert found.pair == (1, 0)
    towards_0 = 8 * ((0.2 + STEP * 1.2) - (0.5 - STEP * 1.5))
    towards_1 = 8 * ((0.2 + STEP * 1.2) - (0.9 - STEP * 1.9))
    unit = 1.4826 * 1.6  # margins without noise are -5.6 and -2.4; a quarter of their middle, 1, is less
    assert found.score == pytest.approx((towards_0 - towards_1) / unit, rel=1e-3)


def test_a_network_without_gradient_or_with_broken_outputs_cannot_be_judged():
    dead = one_way(1000.0)
    torch.nn.init.zeros_(dead.network.weight)
    with pytest.raises(UnsupportedModelError, match="no gradient"):
        leader(dead)
    broken = one_way(1000.0)
    torch.nn.init.constant_(broken.network.weight, torch.nan)
    with pytest.raises(UnsupportedModelError, match="not finite"):
        leader(broken)


@pytest.mark.parametrize(("confirmed", "verdict"), [(True, Verdict.BACKDOORED), (False, Verdict.NO_EVIDENCE)])
def test_a_lead_among_pixels_is_held_against_noise(confirmed, verdict, monkeypatch):
    """The lead is below the threshold for pixels alone; where another pair leads under noise, it accuses nobody."""
    settings = PairPerturbation(threshold=1e6)
    if not confirmed:
        monkeypatch.setattr("banaudit.detectors.pair_perturbation.NOISE_LEAD", 1e6)
    finding = settings(one_way(400.0, red=1.0), toys.draw_tiles())
    alone, held = finding.evidence
    assert (alone.fired, held.label, held.reading) == (False, CONFIRMED, Reading.SOURCE_TARGET)
    assert (held.sources, held.target) == ((SOURCE,), toys.TARGET)
    lead = float(re.search(r"leads by ([\d.]+)", held.note)[1])
    assert held.score == pytest.approx(alone.score + lead if confirmed else 0.0, abs=0.01)
    assert finding.verdict is verdict


@pytest.mark.parametrize("problem", [UnsupportedModelError, TimeLimitReached])
def test_what_pixels_alone_accuse_stands_where_noise_has_no_answer(problem, monkeypatch):
    def fail(*_):
        raise problem("no answer")

    monkeypatch.setattr("banaudit.detectors.pair_noise.leader_under_noise", fail)
    finding = PairPerturbation()(one_way(400.0, red=1.0), toys.draw_tiles())
    assert (finding.verdict, len(finding.evidence)) == (Verdict.BACKDOORED, 1)
    assert PairPerturbation(threshold=1e6)(one_way(400.0, red=1.0), toys.draw_tiles()).verdict is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("noise", "pixels", "verdict"),
    [
        (((SOURCE, toys.TARGET), 0.31), (0.0, 1.0), Verdict.BACKDOORED),
        (((SOURCE, toys.TARGET), 0.29), (0.0, 1.0), Verdict.NO_EVIDENCE),
        (((SOURCE, toys.TARGET), 0.11), (0.2, 0.5), Verdict.BACKDOORED),  # whether or not the halves agree
        (((SOURCE, toys.TARGET), 0.09), (1.4, 1.0), Verdict.NO_EVIDENCE),
        (((toys.TARGET, SOURCE), 9.0), (1.4, 1.0), Verdict.NO_EVIDENCE),
    ],
)
def test_both_leads_add_up_where_both_searches_name_one_pair(noise, pixels, verdict):
    lead, agreement = pixels
    alone = Evidence(
        reading=Reading.SOURCE_TARGET,
        measures="",
        score=lead,
        threshold=1.5,
        fired=False,
        target=toys.TARGET,
        sources=(SOURCE,),
        agreement=agreement,
    )
    (source, target), score = noise
    held = PairPerturbation()._confirmed(alone, PairLeader(score, 0.0, source, target, 1))
    assert conclude([alone, held])[0] is verdict


def test_a_low_threshold_of_both_is_held_against_both_halves_too():
    for confirmed, halves in ((0.3, 1), (0.1, 2)):  # the first half leads by 0.12
        finding = PairPerturbation(confirmed_threshold=confirmed)(one_way(2.0, red=1.0), toys.draw_tiles())
        assert len(finding.evidence[0].restarts) == halves
