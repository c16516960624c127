import threading

import pytest
import torch
import toys

from banaudit.data import batching
from banaudit.detectors import mapping
from banaudit.detectors.base import Samples
from banaudit.detectors.mapping import _logits, pair_margins, search_mapping, sinkhorn
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.precision import full_precision, wants_full_precision
from banaudit.results import Reading, Verdict

from .test_targeted_paths import LogitShift, labelled


def test_weights_leave_each_class_once_and_reach_each_class_once():
    weights = sinkhorn(torch.randn(7, 7, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(7), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(7))
    assert weights.diagonal().tolist() == [0.0] * 7


def test_two_classes_can_only_be_exchanged():
    torch.testing.assert_close(
        sinkhorn(torch.tensor([[9.0, -3.0], [5.0, 9.0]])), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    )


def test_without_preference_three_classes_share_evenly():
    expected = (torch.ones(3, 3) - torch.eye(3)) / 2
    torch.testing.assert_close(sinkhorn(torch.zeros(3, 3)), expected)


def test_preferences_are_balanced_by_hand():
    # Two permutations of three classes have no fixed point: 0 1 2 -> 1 2 0 and -> 2 0 1. Their weights are in the ratio
    # exp(1 + 0 + 0) : exp(0 + 0 + 0), since Sinkhorn's iteration only multiplies rows and columns.
    weights = sinkhorn(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    forward = weights[0, 1] * weights[1, 2] * weights[2, 0]
    backward = weights[0, 2] * weights[2, 1] * weights[1, 0]
    assert float(forward / backward) == pytest.approx(torch.e, rel=1e-3)
    assert float(weights[0, 1]) == pytest.approx(1 / (1 + torch.e ** (-1 / 3)), rel=1e-3)


def test_one_class_cannot_draw_all():
    towards_first = torch.zeros(4, 4)
    towards_first[:, 0] = 10.0
    assert float(sinkhorn(towards_first)[1:, 0].max()) == pytest.approx(1 / 3, rel=1e-2)


def test_pair_margins_by_hand():
    logits = torch.tensor([[5.0, 1.0, 0.0], [3.0, 2.0, 2.0], [1.0, 4.0, 2.0]])
    margins = pair_margins(logits, torch.tensor([0, 0, 1]), 3)
    torch.testing.assert_close(margins, torch.tensor([[0.0, -2.5, -3.0], [-3.0, 0.0, -2.0], [0.0, 0.0, 0.0]]))


def searched(perturbation, samples, *, steps=5, search_images=50, read_images=50, other_than=()):
    return search_mapping(
        perturbation,
        samples,
        steps=steps,
        search_images=search_images,
        read_images=read_images,
        generator=torch.Generator().manual_seed(0),
        what="paths",
        other_than=other_than,
    )


def test_no_shift_of_the_logits_permutes_classes():
    found = searched(LogitShift([1.0] * 4), labelled(4, 10), steps=6, search_images=20, read_images=40)
    assert found.score <= 0.5  # a shift can send all images to one class, which one class in four has as its target
    assert set(found.targets) == set(range(4))


class Turn:
    """A number that turns every class into the next, once it is above one."""

    def zero(self):
        return torch.zeros(1)

    def random(self, step, generator):
        return torch.tensor([-1.0])

    def logits(self, images, perturbation, what):
        labels = images.flatten().long()
        here, after = (torch.nn.functional.one_hot(at % 5, 5).float() for at in (labels, labels + 1))
        return 4 * here + 4 * perturbation * (after - here)

    def descend(self, perturbation, gradient, step):
        return perturbation - 0.25 * gradient.sign()


def test_a_map_that_is_there_is_found():
    samples = labelled(5, 10)
    without_last = Samples(samples.search, samples.held_out.subset((samples.held_out.labels != 4).nonzero().flatten()))
    found = searched(Turn(), without_last)
    assert found.targets == {0: 1, 1: 2, 2: 3, 3: 4}  # of a class without images there is nothing to say
    assert (found.score, found.null) == (1.0, 0.0)
    assert found.per_source.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0]


def test_another_map_has_no_pair_of_those_that_were_found():
    samples = labelled(5, 10)
    found = [searched(Turn(), samples)]
    while len(found) < 4:
        found.append(searched(Turn(), samples, other_than=found))
    pairs = [pair for item in found for pair in item.targets.items()]
    assert len(set(pairs)) == len(pairs) == 4 * 5
    assert [item.score for item in found[1:]] == [0.0] * 3  # every class turns into the next, or stays


@pytest.fixture(scope="module")
def all_to_all():
    """A network whose trigger sends each class to the next."""
    return toys.train(0.3, relabel=toys.all_to_all, epochs=10)


def all_to_all_reading(finding):
    (reading,) = (item for item in finding.evidence if item.reading is Reading.ALL_TO_ALL)
    return reading


def test_finds_the_planted_map(all_to_all, clean_data):
    finding = UniversalPerturbation()(all_to_all, clean_data)
    assert finding.verdict is Verdict.BACKDOORED
    reading = all_to_all_reading(finding)
    assert reading.fired
    assert reading.score > 0.8
    assert reading.mapping == {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 5: 0}


def test_finds_no_map_in_the_other_networks(planted, clean_twin, clean_data):
    for model in (planted, clean_twin):
        reading = all_to_all_reading(UniversalPerturbation()(model, clean_data))
        assert not reading.fired
        assert reading.score < 0.3


def test_large_images_are_searched_in_parts(monkeypatch):
    samples = labelled(5, 10)
    whole = searched(Turn(), samples)
    images = samples.search.images
    monkeypatch.setattr(batching, "PASS_PIXELS", 7 * images.shape[2] * images.shape[3])
    parted = searched(Turn(), samples)
    assert (parted.targets, parted.score, parted.null) == (whole.targets, whole.score, whole.null)


def test_parts_are_computed_again_in_the_same_precision_in_another_thread(monkeypatch):
    """As a backward pass on an accelerator does."""
    asked = []

    class Asking(Turn):
        def logits(self, images, perturbation, what):
            asked.append(wants_full_precision())
            return super().logits(images, perturbation, what)

    images = labelled(5, 10).search.images
    monkeypatch.setattr(batching, "PASS_PIXELS", 7 * images.shape[2] * images.shape[3])
    variable = torch.zeros(1, requires_grad=True)
    with full_precision(True):
        logits = _logits(Asking(), images, variable, "map")
    thread = threading.Thread(target=lambda: logits.sum().backward())
    thread.start()
    thread.join()
    assert len(asked) > 2
    assert all(asked)
    assert variable.grad is not None


def test_the_map_hardens_as_the_search_goes_on(monkeypatch):
    class Still:
        """Logits that no perturbation changes."""

        def zero(self):
            return torch.zeros(1)

        def random(self, step, generator):
            return torch.zeros(1)

        def logits(self, images, perturbation, what):
            labels = images.flatten().long()
            return 4 * torch.nn.functional.one_hot(labels % 5, 5) + torch.arange(5.0) + 0 * perturbation

        def descend(self, perturbation, gradient, step):
            return perturbation

    asked = []
    plain = mapping.sinkhorn
    monkeypatch.setattr(mapping, "sinkhorn", lambda scores, barred: asked.append(scores) or plain(scores, barred))
    searched(Still(), labelled(5, 10), steps=4, search_images=20, read_images=20)
    sharper = asked[-1].nan_to_num(0).abs().max() / asked[0].nan_to_num(0).abs().max()
    assert float(sharper) == pytest.approx(mapping.FIRST_TEMPERATURE / mapping.LAST_TEMPERATURE, rel=1e-4)
