import pytest
import torch
import toys
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.detectors.pair_leads import PairMargins
from banaudit.detectors.pair_perturbation import PairPerturbation
from banaudit.meter import Meter
from banaudit.results import Reading, Verdict

SOURCE = 1


class OneWayNetwork(SplitNetwork):
    """Six tiles of brightness, and a neuron that wakes where the source's tile is bright and a corner is red."""

    def __init__(self, strength):
        super().__init__()
        weight = 8 * torch.eye(toys.CLASSES, toys.CLASSES + 1)
        weight[toys.TARGET, toys.CLASSES] = strength
        self.weight = nn.Parameter(weight)

    def features(self, inputs):
        tiles = toys.tiles_of(inputs)
        corner = toys.red_corner(inputs).mean((1, 2))
        woken = torch.nn.functional.softplus(20 * (tiles[:, SOURCE] + corner - 0.9)) / 20
        return torch.cat((tiles, woken[:, None]), dim=1)

    def head(self, features):
        return features @ self.weight.T


def one_way(strength):
    return SplitModel(OneWayNetwork(strength), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_source_and_target_of_a_planted_backdoor(seed):
    shown = []
    finding = PairPerturbation()(one_way(40.0), toys.draw_tiles(), seed=seed, triggers=shown.append)
    (evidence,) = finding.evidence
    assert (finding.verdict, evidence.reading) == (Verdict.BACKDOORED, Reading.SOURCE_TARGET)
    assert (evidence.sources, evidence.target, evidence.agreement) == ((SOURCE,), toys.TARGET, 1.0)
    assert len(evidence.restarts) == 2
    (trigger,) = shown
    assert (trigger.facts.target, trigger.facts.accused) == (toys.TARGET, True)


@pytest.mark.parametrize("seed", [0, 1])
def test_does_not_accuse_the_clean_twin(seed):
    finding = PairPerturbation()(one_way(0.0), toys.draw_tiles(), seed=seed)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert len(finding.evidence[0].restarts) == 1  # the first half was not near the threshold


@pytest.mark.parametrize(("settings", "halves"), [({}, 1), ({"threshold": 0.1}, 2)])
def test_a_low_threshold_is_held_against_both_halves_too(settings, halves):
    finding = PairPerturbation(**settings)(one_way(12.0), toys.draw_tiles())
    assert len(finding.evidence[0].restarts) == halves


def test_a_lead_that_only_noise_could_confirm_is_inconclusive_where_there_are_no_neurons_to_ask():
    lead = PairPerturbation()(one_way(40.0), toys.draw_tiles()).evidence[0].score
    for settings, verdict in (
        ({"threshold": 2 * lead}, Verdict.INCONCLUSIVE),
        ({"threshold": 2 * lead, "confirmed_threshold": 2 * lead}, Verdict.NO_EVIDENCE),
    ):
        finding = PairPerturbation(**settings)(one_way(40.0), toys.draw_tiles())
        assert finding.verdict is verdict
        assert ("BatchNorm" in finding.reason) == (verdict is Verdict.INCONCLUSIVE)


def test_smoothed_labels_are_no_shortcut(clean_data):
    """They make all pairs alike: in units of the pairs' own spread chance leads would be large."""
    smoothed = toys.train(0.0, smoothing=0.1)
    finding = PairPerturbation()(smoothed, clean_data)
    assert finding.verdict is Verdict.NO_EVIDENCE


class BrokenNetwork(OneWayNetwork):
    """Its outputs are no numbers wherever the upper left is dark."""

    def head(self, features):
        return super().head(features).masked_fill(features[:, :1] < 0.25, torch.nan)


def test_outputs_that_are_not_finite_cannot_be_judged():
    broken = SplitModel(BrokenNetwork(40.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    assert PairPerturbation()(broken, toys.draw_tiles()).verdict is Verdict.INCONCLUSIVE


class PixelsNetwork(SplitNetwork):
    """Class k of eight is the k-th pixel."""

    def features(self, inputs):
        return inputs.flatten(1)[:, :8]

    def head(self, features):
        return 8 * features


@pytest.mark.parametrize(
    ("images", "anywhere", "left_out"),
    [(60, False, ""), (48, False, "class 3"), (0, False, "class 3"), (0, True, "class 3"), (48, True, "")],
)
def test_a_class_of_too_few_images_is_no_source_and_is_named(images, anywhere, left_out):
    labels = torch.cat([torch.full((images if label == 3 else 60,), label) for label in range(8)])
    pixels = 0.3 * torch.rand(len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels.flatten(1)[torch.arange(len(labels)), labels] = 1.0
    model = SplitModel(PixelsNetwork(), (0.0,), (1.0,)).eval()
    (evidence,) = PairPerturbation(anywhere=anywhere)(model, CleanData(pixels, labels, tuple("abcdefgh"))).evidence
    assert evidence.note.endswith(f"moved; images of {left_out} are too few for a search" if left_out else "moved")


def test_without_a_gradient_nothing_can_be_judged():
    rounded = SplitModel(toys.rounding(OneWayNetwork)(40.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    finding = PairPerturbation()(rounded, toys.draw_tiles())
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "no gradient reaches the pixels" in finding.reason


def grid(*entries, fill=-9.0):
    """[4, 4] of ``fill``, NaN where source and target are one; entries as (target, source, value)."""
    values = torch.full((4, 4), fill)
    for target, source, value in entries:
        values[target, source] = value
    return values.fill_diagonal_(torch.nan)


def test_two_halves_count_as_one():
    first = PairMargins((2, 4), torch.stack((grid((3, 1, -1.0), (0, 2, -4.0)), grid((3, 1, 0.0), (0, 2, -4.0)))), 2.0)
    other = PairMargins((2, 4), torch.stack((grid((3, 1, -3.0), (0, 2, -2.0)), grid((3, 1, -2.0), (1, 2, -3.0)))), 4.0)
    both = first.and_of(other)
    leader = both.leader(torch.zeros(4, 4), torch.Generator())
    assert (leader.source, leader.target, leader.step, both.unit) == (1, 3, 4, 3.0)
    # Margins -1 and, of a pair that only one half puts forward, -6; then that and -6.5.
    assert (leader.score, leader.null) == (pytest.approx(5 / 3), pytest.approx(0.5 / 3))


def test_pairs_that_are_alike_by_nature_do_not_lead():
    margins = grid((3, 1, -1.0), (1, 3, -1.5), (0, 2, -4.0))
    natural = grid((3, 1, -3.0), (1, 3, -3.2), (0, 2, -9.0))
    assert PairMargins((3,), margins[None], 1.0).leader(natural, torch.Generator()).score == 0.0
    assert PairMargins((3,), margins[None], 1.0).leader(torch.zeros(4, 4), torch.Generator()).score == pytest.approx(
        0.5
    )


def test_pairs_that_are_not_followed_lead_nothing():
    margins = grid((3, 1, -1.0), (0, 2, -4.0), (1, 3, -4.5), fill=torch.nan)
    leader = PairMargins((3,), margins[None], 1.0).leader(torch.zeros(4, 4), torch.Generator())
    assert (leader.score, leader.null) == (pytest.approx(3.0), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("limit", "look"),
    [
        (4, 90),
        (120, 90),
        (4, 24),
    ],  # 3 images a pair; all pairs to the end; 4 targets a class
)
def test_with_many_pairs_only_the_foremost_go_on(limit, look, monkeypatch):
    monkeypatch.setattr("banaudit.detectors.pair_perturbation.SHORTLIST", limit)
    monkeypatch.setattr("banaudit.detectors.pair_perturbation.FIRST_LOOK", look)
    meter = Meter()
    data = toys.draw_tiles()
    finding = PairPerturbation()(one_way(40.0), data, meter=meter)
    assert (finding.evidence[0].sources, finding.evidence[0].target) == ((SOURCE,), toys.TARGET)
    monkeypatch.setattr("banaudit.detectors.pair_noise.planned_images", lambda *_: 0)  # there are no neurons to ask
    planned = PairPerturbation().planned_images(data.num_classes, len(data))
    assert 0.5 * planned < meter.forward_images <= 1.2 * planned


def test_classes_without_images_are_left_out():
    data = toys.draw_tiles()
    present = data.subset((data.labels != 0).nonzero().flatten())
    finding = PairPerturbation()(one_way(40.0), CleanData(present.images, present.labels, toys.NAMES))
    assert (finding.evidence[0].sources, finding.evidence[0].target) == ((SOURCE,), toys.TARGET)
