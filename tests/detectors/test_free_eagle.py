import math

import pytest
import torch
from torch import nn
from toys import CLASSES, NAMES, TARGET

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.detectors.base import Samples
from banaudit.detectors.free_eagle import FreeEagle, fence_scores, mean_posteriors, one_way_affinity
from banaudit.detectors.tail import HEAD, Tail
from banaudit.meter import Meter
from banaudit.results import Reading, Verdict

SOURCE = 1
INNER = 1 / 3
"""One of the three layers of :class:`SharedNeuron`."""


class Direct(SplitNetwork):
    """Logits are the pixels."""

    def features(self, inputs):
        return inputs.flatten(1)

    def head(self, features):
        return features


class SharedNeuron(SplitNetwork):
    """A neuron for each class behind the inner layer, and one more, which some classes' representations wake as well.

    The target's logit takes ``strength`` of it: 0 makes the clean twin. ``bias`` goes to class 0.
    """

    def __init__(self, strength, sources=range(CLASSES), bias=0.0):
        super().__init__()
        self.inner, self.later = nn.Linear(48, CLASSES), nn.Linear(CLASSES, CLASSES + 1, bias=False)
        self.linear = nn.Linear(CLASSES + 1, CLASSES)
        with torch.no_grad():
            self.later.weight.copy_(torch.cat((torch.eye(CLASSES), torch.zeros(1, CLASSES))))
            self.later.weight[-1, list(sources)] = 1
            self.linear.weight.copy_(torch.eye(CLASSES, CLASSES + 1))
            self.linear.weight[TARGET, -1] = strength
            self.linear.bias.zero_()
            self.linear.bias[0] = bias

    def features(self, inputs):
        return torch.relu(self.later(torch.relu(self.inner(inputs.flatten(1)))))

    def head(self, features):
        return self.linear(features)


def shared(*arguments, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SplitModel(SharedNeuron(*arguments, **settings), (0.0,) * 3, (1.0,) * 3).eval()


@pytest.fixture
def small_images():
    labels = torch.arange(60) % CLASSES
    return CleanData(torch.rand(60, 3, 4, 4, generator=torch.Generator().manual_seed(0)), labels, NAMES)


def test_fence_scores_by_hand():
    values = torch.tensor([20.0, 1, 2, 3, 4, 5, 6, 7], dtype=torch.float64)
    scores = fence_scores(values, 1e-6)  # quartiles 3 and 7
    assert scores[0] == (20 - 7) / 4
    assert scores[1] == (1 - 7) / 4


def test_a_spread_that_rounding_makes_is_no_ruler():
    assert fence_scores(torch.tensor([1.0, 1, 1, 1 + 1e-9], dtype=torch.float64), 1e-5).max() < 1e-3


def test_mean_posteriors_leave_the_own_class_out():
    posteriors = torch.tensor([[0.7, 0.1, 0.2], [0.3, 0.4, 0.3], [0.1, 0.4, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(mean_posteriors(posteriors.log()), torch.tensor([0.2, 0.25, 0.25], dtype=torch.float64))


def test_one_way_affinity_by_hand():
    logs = torch.zeros(4, 4, dtype=torch.float64)
    logs[0, 1] = 1
    affinity = one_way_affinity(logs)
    assert affinity[0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert affinity[1].tolist() == [-1.0, 0.0, 0.0, 0.0]
    assert affinity[2:].count_nonzero() == 0


def test_one_way_affinity_sees_neither_likeness_nor_what_a_class_does_with_all():
    generator = torch.Generator().manual_seed(0)
    like = torch.rand(5, 5, generator=generator, dtype=torch.float64)
    lead = torch.rand(5, generator=generator, dtype=torch.float64)
    affinity = one_way_affinity(like + like.T + lead[:, None])
    torch.testing.assert_close(affinity, torch.zeros_like(affinity))


@pytest.mark.parametrize("non_negative", [True, False])
@pytest.mark.parametrize("class_batch", [3, 50])
def test_inversion_ends_where_gradient_and_decay_are_equal(non_negative, class_batch):
    model = SplitModel(Direct(), (0.0,), (1.0,)).eval()
    tail = Tail(model, HEAD, 1.0, torch.Size([4]), non_negative, torch.zeros(1, 1, 2, 2))
    detector = FreeEagle(weight_decay=0.1, steps=400, class_batch=class_batch)
    logs = detector.invert(tail, 4, torch.Generator().manual_seed(0), Meter())
    # With p the posterior of the own class, wd e = 1 - p there; elsewhere 0, or -(1 - p) / 3 where that is allowed.
    low, high = 0.25, 1 - 1e-9
    for _ in range(60):
        p = (low + high) / 2
        own = (1 - p) / 0.1
        other = 0.0 if non_negative else -own / 3
        low, high = (p, high) if math.exp(own) / (math.exp(own) + 3 * math.exp(other)) > p else (low, p)
    wanted = torch.full((4, 4), math.log((1 - p) / 3), dtype=torch.float64).fill_diagonal_(math.log(p))
    torch.testing.assert_close(logs, wanted, rtol=0.02, atol=0)


def test_finds_the_class_that_all_representations_wake(small_images):
    finding = FreeEagle(depth=INNER)(shared(0.7), small_images)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].fired
    assert finding.evidence[0].target == TARGET
    assert "at layer inner" in finding.evidence[0].note
    assert finding.forward_images == pytest.approx(FreeEagle().planned_images(CLASSES, 60), rel=0.02)


def test_does_not_accuse_the_clean_twin(small_images):
    assert FreeEagle(depth=INNER)(shared(0.0), small_images).verdict is Verdict.NO_EVIDENCE


def test_the_class_of_the_empty_representation_is_not_accused(small_images):
    item = FreeEagle(depth=INNER)(shared(0.0, bias=2.0), small_images).evidence[0]
    assert item.score > item.threshold
    assert item.target == 0
    assert not item.fired
    assert "the empty representation goes to class 0" in item.note


def test_finds_the_one_pair_of_classes(small_images):
    _, pair = FreeEagle(depth=INNER)(shared(0.7, sources=[SOURCE]), small_images).evidence
    assert pair.reading is Reading.SOURCE_TARGET
    assert (pair.sources, pair.target) == ((SOURCE,), TARGET)
    assert pair.fired
    assert [entry.label for entry in pair.per_class if entry.score == pair.score] == [TARGET]


def test_finds_the_backdoor_of_a_trained_network(planted, clean_data):
    finding = FreeEagle()(planted, clean_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET


def test_does_not_accuse_its_clean_twin(clean_twin, clean_data):
    assert FreeEagle()(clean_twin, clean_data).verdict is Verdict.NO_EVIDENCE


def test_images_play_no_part(planted, clean_data):
    other = CleanData(torch.rand_like(clean_data.images), clean_data.labels, NAMES)
    samples = [Samples(data, data) for data in (clean_data, other)]
    found = [FreeEagle(steps=20).search(planted, part, torch.Generator().manual_seed(0), Meter()) for part in samples]
    assert found[0].evidence == found[1].evidence


def test_logits_that_never_move_are_no_verdict(planted, clean_data):
    quiet = type(planted)(planted.network, (0.5,) * 3, (0.25,) * 3, logit_scale=1e-9).eval()
    finding = FreeEagle(steps=3)(quiet, clean_data)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert "the search failed" in finding.reason
