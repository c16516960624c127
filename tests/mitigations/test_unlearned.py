"""What is searched on the network as it is, when, and what is kept of it."""

from types import SimpleNamespace

import pytest
import torch

from banaudit.data import CleanData
from banaudit.detectors.inversion import Recovered, Triggers
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_paths import Leader, Paths
from banaudit.errors import UnsupportedModelError
from banaudit.mitigations import unlearned
from banaudit.mitigations.unlearned import Unlearned
from mitigations.tiny import make_job, make_model

IMAGES = torch.full((4, 3, 8, 8), 0.5)


def recovered(norms):
    """What a search would have found: the norms of the masks, one white pattern for each class."""
    classes = torch.arange(len(norms))
    masks = torch.zeros(len(norms), 1, 8, 8)
    masks[:, :, :2, :2] = (classes + 1).view(-1, 1, 1, 1) / len(norms)
    return Recovered(Triggers(classes, masks, torch.ones(len(norms), 3, 8, 8)), torch.tensor(norms), classes)


@pytest.fixture
def searches(monkeypatch):
    """Norms of masks, and perturbations of the leading class, that the next searches find; calls in order."""

    given = SimpleNamespace(norms=[(9.0, 9.0, 9.0, 9.0)], perturbations=[0.1], seen=[])

    def invert(self, *rest):
        given.seen.append("patch")
        return recovered(given.norms.pop(0))

    def follow(*_, **__):
        given.seen.append("perturbation")
        value = given.perturbations.pop(0)
        if value is None:
            raise UnsupportedModelError("no gradient")
        leaders = (Leader(2, torch.full((1, 3, 8, 8), value), 0.9), Leader(1, torch.ones(1, 3, 8, 8), 0.1))
        return Paths(torch.zeros(4, 4), torch.zeros(4, 4), 0.5, 8, leaders)

    monkeypatch.setattr(NeuralCleanse, "invert", invert)
    monkeypatch.setattr(unlearned, "follow", follow)
    return given


def job(state=None):
    return make_job(data=CleanData(torch.zeros(4, 3, 8, 8), torch.arange(4), tuple("abcd")), state=state)


def make(first=None, of=None):
    return Unlearned(
        of or job(),
        searched_before=lambda epoch: epoch in {1, 5},
        patch_ratio=0.5,
        first={} if first is None else first,
    )


@pytest.mark.parametrize(("norms", "stands_out"), [((9.0, 2.0, 8.0, 7.0), True), ((9.0, 5.0, 8.0, 7.0), False)])
def test_a_patch_is_unlearned_only_where_it_stands_out(searches, norms, stands_out):
    searches.norms = [norms]
    changes = make()
    assert changes.with_patch(IMAGES) is None
    changes.before_epoch(2, make_model())  # no search is due
    assert searches.seen == []
    changes.before_epoch(1, make_model())
    stamped = changes.with_patch(IMAGES)
    assert (stamped is not None) is stands_out
    again = make()
    again.restore(changes.dump())
    if stands_out:
        # Class 1's mask is 2/4 in the corner, its pattern white.
        assert stamped[0, :, 0, 0].tolist() == [0.75] * 3
        assert torch.equal(stamped[..., 2:, 2:], IMAGES[..., 2:, 2:])
        assert torch.equal(again.with_patch(IMAGES), stamped)
    else:
        assert again.with_patch(IMAGES) is None


def test_a_later_patch_takes_the_place_of_an_earlier_one(searches):
    searches.norms = [(1.0, 9.0, 8.0, 7.0), (9.0, 8.0, 7.0, 1.0)]
    searches.perturbations = [0.0, 0.0]
    changes, seen = make(), []
    for epoch in (1, 5):
        changes.before_epoch(epoch, make_model())
        seen.append(float(changes.with_patch(torch.zeros(1, 3, 8, 8))[0, 0, 0, 0]))
    assert seen == [0.25, 1.0]  # classes 0 and 3


def test_perturbations_towards_the_leading_class_are_put_on_images_in_turn(searches):
    searches.norms = [(9.0, 9.0, 9.0, 9.0)] * 2
    searches.perturbations = [0.25, -0.75]
    changes = make()
    assert changes.with_perturbation(IMAGES) is None
    changes.before_epoch(1, make_model())
    assert changes.with_perturbation(IMAGES)[:, 0, 0, 0].tolist() == [0.75] * 4
    changes.before_epoch(5, make_model())
    assert changes.with_perturbation(IMAGES)[:, 0, 0, 0].tolist() == [0.75, 0.0, 0.75, 0.0]  # no pixel below 0
    again = make()
    again.restore(changes.dump())
    assert torch.equal(again.with_perturbation(IMAGES), changes.with_perturbation(IMAGES))


def test_where_no_gradient_reaches_the_pixels_there_is_no_perturbation(searches):
    searches.perturbations = [None]
    changes = make()
    changes.before_epoch(1, make_model())
    assert changes.with_perturbation(IMAGES) is None


def test_what_was_found_on_the_network_as_it_came_serves_every_run(searches, tmp_path):
    searches.norms = [(1.0, 9.0, 8.0, 7.0), (9.0, 8.0, 7.0, 1.0)]
    searches.perturbations = [0.25, 0.5]
    first = {}
    one = make(first)
    one.before_epoch(1, make_model())
    one.before_epoch(5, make_model())
    assert searches.seen == ["patch", "perturbation"] * 2
    other = make(first)
    other.before_epoch(1, make_model())
    assert searches.seen == ["patch", "perturbation"] * 2
    assert other.with_perturbation(IMAGES)[:, 0, 0, 0].tolist() == [0.75] * 4  # not what the later search found


def test_a_call_that_goes_on_finds_the_first_search_in_the_state(searches, tmp_path):
    searches.norms = [(1.0, 9.0, 8.0, 7.0)]
    searches.perturbations = [0.25]
    make(of=job(tmp_path / "state")).before_epoch(1, make_model())
    changes = make(of=job(tmp_path / "state"))
    changes.before_epoch(1, make_model())
    assert searches.seen == ["patch", "perturbation"]
    assert changes.with_patch(IMAGES) is not None
    assert changes.with_perturbation(IMAGES)[:, 0, 0, 0].tolist() == [0.75] * 4
