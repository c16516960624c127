"""What is searched on the network as it is, when, and what is kept of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from banaudit.data import CleanData
from banaudit.detectors.inversion import Recovered, Triggers
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_paths import Lead, Leader, Paths
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.errors import DivergedError, UnsupportedModelError
from banaudit.mitigations import unlearned
from banaudit.mitigations.unlearned import (
    SearchPlan,
    Standouts,
    Unlearned,
    first_search,
    patch_searched_before,
    planned_first_search,
)
from mitigations.tiny import make_job, make_model

CLASSES = 8
IMAGES = torch.full((4, 3, 8, 8), 0.5)
EVEN = (9.0,) * CLASSES
BOTH = SearchPlan(patch_ratio=0.5, perturbation=True)
AHEAD = 1.0
"""A lead that stands out wherever the paths end."""


def recovered(norms):
    """What a search would have found: the norms of the masks, one white pattern for each class."""
    classes = torch.arange(len(norms))
    masks = torch.zeros(len(norms), 1, 8, 8)
    masks[:, :, :2, :2] = (classes + 1).view(-1, 1, 1, 1) / len(norms)
    return Recovered(Triggers(classes, masks, torch.ones(len(norms), 3, 8, 8)), torch.tensor(norms), classes)


@pytest.fixture
def searches(monkeypatch):
    """What the next searches find: norms of masks; leads with their classes; later perturbations. Calls in order."""
    given = SimpleNamespace(norms=[EVEN], leads=[(AHEAD, 2), (AHEAD, 2)], shifts=[], seen=[])

    def invert(self, *rest):
        given.seen.append("patch")
        norms = given.norms.pop(0)
        if norms is None:
            raise UnsupportedModelError("outputs that are not finite")
        return recovered(norms)

    def paths(*_):
        given.seen.append("paths")
        found = given.leads.pop(0)
        if found is None:
            raise UnsupportedModelError("no gradient")
        score, target = found
        shift = torch.full((1, 3, 8, 8), 0.25 * (1 + len(given.leads)))
        # A score hides in the margins, for the lead that is read from them.
        margins = torch.tensor([[score, float(target)]])
        monkeypatch.setattr(unlearned, "lead", lambda found, _: Lead(float(found[0, 0]), 0.0, int(found[0, 1]), found))
        leaders = (Leader(target, shift, 0.9), Leader(1, torch.ones(1, 3, 8, 8), 0.1))
        return Paths(margins, margins, 0.5, 6, leaders)

    def path_towards(perturbation, images, target, *, steps, what):
        given.seen.append(("path", target, steps, len(images)))
        value = given.shifts.pop(0)
        if value is None:
            raise UnsupportedModelError("no gradient")
        return torch.full((1, 3, 8, 8), value)

    monkeypatch.setattr(NeuralCleanse, "invert", invert)
    monkeypatch.setattr(UniversalPerturbation, "paths", paths)
    monkeypatch.setattr(unlearned, "path_towards", path_towards)
    return given


def job(*, each=4, classes=CLASSES, state=None):
    labels = torch.arange(classes).repeat(each)
    data = CleanData(torch.zeros(len(labels), 3, 8, 8), labels, tuple("abcdefgh"[:classes]))
    return make_job(data=data, state=state)


def make(first, of=None):
    return Unlearned(of or job(), first, BOTH, epochs=10, share=0.25)


def shown(changes, count=40):
    """Values of the first pixel of grey images with a perturbation, each once."""
    images = torch.full((count, 3, 8, 8), 0.5)
    changed = changes.with_perturbation(images, torch.Generator().manual_seed(0))
    return None if changed is None else set(changed[:, 0, 0, 0].tolist())


@pytest.mark.parametrize(
    ("norms", "stands_out"), [((9.0, 2.0, *EVEN[2:]), True), ((9.0, 5.0, *EVEN[2:]), False), (EVEN, False)]
)
def test_a_patch_is_unlearned_only_where_it_stands_out(searches, norms, stands_out):
    searches.norms = [norms]
    changes = make(first_search(job(), BOTH))
    stamped = changes.with_patch(IMAGES)
    assert (stamped is not None) is stands_out
    again = make(Standouts())
    again.restore(changes.dump())
    if stands_out:
        # Class 1's mask is 2/8 in the corner, its pattern white.
        assert stamped[0, :, 0, 0].tolist() == [0.625] * 3
        assert torch.equal(stamped[..., 2:, 2:], IMAGES[..., 2:, 2:])
        assert torch.equal(again.with_patch(IMAGES), stamped)
    else:
        assert again.with_patch(IMAGES) is None


def test_a_later_patch_takes_the_place_of_an_earlier_one(searches):
    searches.leads = [None]
    searches.norms = [(1.0, *EVEN[1:]), (*EVEN[:7], 1.0), EVEN]
    changes, seen = make(first_search(job(), BOTH)), []
    for epoch in (1, 2, 5, 5):  # at the first and the second nothing is due
        changes.before_epoch(epoch, make_model())
        seen.append(float(changes.with_patch(torch.zeros(1, 3, 8, 8))[0, 0, 0, 0]))
    assert seen == [0.125, 0.125, 1.0, 1.0]  # classes 0 and 7; where none stands out any more the last one stays


def test_the_patch_is_searched_once_again():
    assert [epoch for epoch in range(1, 11) if patch_searched_before(epoch, 10)] == [5]
    assert [epoch for epoch in range(1, 2) if patch_searched_before(epoch, 1)] == []


@pytest.mark.parametrize(
    ("leads", "target"),
    [
        ([(AHEAD, 2), (AHEAD, 2)], 2),
        ([(AHEAD, 2), (AHEAD, 3)], None),  # on other images another class
        ([(AHEAD, 2), (0.1, 2)], None),
        ([(0.1, 2)], None),
        ([(float("nan"), 2)], None),
        ([None], None),
    ],
)
def test_a_perturbation_is_unlearned_only_where_one_class_stands_out(searches, leads, target):
    searches.leads = list(leads)
    found = first_search(job(), BOTH)
    assert found.target == target
    assert searches.leads == []
    assert shown(make(found)) == (None if target is None else {1.0, 0.75})  # of each look its own


def test_the_lead_that_stands_out_is_the_detectors(searches, monkeypatch):
    monkeypatch.setattr(UniversalPerturbation, "lead_threshold_at", lambda self, reach: 2.0 * reach)  # 1 at one half
    searches.leads = [(1.0, 2)]
    assert first_search(job(), BOTH).target is None
    searches.norms, searches.leads = [EVEN], [(1.01, 2), (1.01, 2)]
    assert first_search(job(), BOTH).target == 2


@pytest.mark.parametrize("few", [{"classes": 7}, {"each": 1}])
def test_of_few_classes_or_images_none_stands_out(searches, few):
    assert first_search(job(**few), BOTH).target is None
    assert "paths" not in searches.seen


def test_what_is_not_wanted_is_not_searched(searches):
    searches.norms = [(1.0, *EVEN[1:])]
    nothing = first_search(job(), SearchPlan(patch_ratio=None, perturbation=False))
    assert (nothing.patch, nothing.target, searches.seen) == (None, None, [])
    changes = Unlearned(job(), nothing, SearchPlan(patch_ratio=None, perturbation=False), epochs=10, share=0.25)
    changes.before_epoch(5, make_model())
    assert (changes.planned_images(), searches.seen) == (0, [])
    assert first_search(job(), SearchPlan(patch_ratio=0.5, perturbation=False)).patch is not None
    assert searches.seen == ["patch"]


def test_the_searches_that_are_planned():
    patch, shift = SearchPlan(patch_ratio=0.5, perturbation=False), SearchPlan(patch_ratio=None, perturbation=True)
    planned = {(x, classes): planned_first_search(x, classes, 100) for x in (BOTH, patch, shift) for classes in (7, 8)}
    assert planned[BOTH, 8] == planned[patch, 8] + planned[shift, 8]
    assert planned[BOTH, 7] == planned[patch, 7] > 0 == planned[shift, 7]
    assert planned_first_search(BOTH, 3, 100) == 0
    led = make(Standouts(target=2, steps=6, perturbations=torch.zeros(1, 3, 8, 8)))
    searches_planned = 9 * 6 * UniversalPerturbation().search_images
    passes = 10 * 5 * 4 * CLASSES // 4  # in each epoch the images once more, and a quarter of them changed
    assert led.planned_images() - make(Standouts()).planned_images() == searches_planned + passes


def test_a_patch_that_is_found_later_adds_its_passes_to_the_plan(searches):
    searches.norms, searches.leads = [EVEN, (1.0, *EVEN[1:])], [None]
    running = job()
    changes = make(first_search(running, BOTH), running)
    planned = running.meter.planned_images
    changes.before_epoch(5, make_model())
    assert running.meter.planned_images - planned == 6 * 5 * 4 * CLASSES // 4  # for epochs 5 to 10


def test_of_images_of_one_class_nothing_stands_out(searches):
    whole = job()
    one = whole.training.subset((whole.training.labels == 3).nonzero().flatten())
    few = replace(whole, training=one)
    first = first_search(few, BOTH)
    assert first.changes == ()
    make(first, few).before_epoch(5, make_model())  # where a patch is looked for again
    assert searches.seen == []


def test_perturbations_towards_the_same_class_are_added_before_each_epoch(searches):
    searches.shifts = [-0.5, None]
    changes = make(first_search(job(), BOTH))
    searches.seen.clear()
    changes.before_epoch(1, make_model())
    assert searches.seen == []  # the network is still as it came
    changes.before_epoch(2, make_model())
    assert searches.seen == [("path", 2, 6, 4 * (CLASSES - 1))]
    assert shown(changes) == {1.0, 0.75, 0.0}
    changes.before_epoch(3, make_model())  # no pixel moves the network: what was found stays
    assert shown(changes) == {1.0, 0.75, 0.0}
    again = make(Standouts())
    again.restore(changes.dump())
    assert shown(again) == shown(changes)


def test_all_perturbations_are_shown_however_small_the_batches(searches):
    searches.shifts = [-0.1, -0.2, -0.3]
    changes = make(first_search(job(), BOTH))
    for epoch in (2, 3, 4):
        changes.before_epoch(epoch, make_model())
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        seen |= {round(value, 2) for value in changes.with_perturbation(IMAGES[:2], generator)[:, 0, 0, 0].tolist()}
    assert seen == {1.0, 0.75, 0.4, 0.3, 0.2}


def test_perturbations_that_are_not_finite_end_the_run(searches):
    searches.shifts = [float("nan")]
    changes = make(first_search(job(), BOTH))
    with pytest.raises(DivergedError, match="not finite"):
        changes.before_epoch(2, make_model())


def test_a_network_that_can_no_longer_be_searched_has_diverged(searches):
    searches.norms, searches.leads = [EVEN, None], [None]
    changes = make(first_search(job(), BOTH))
    with pytest.raises(DivergedError, match="not finite"):
        changes.before_epoch(5, make_model())


def test_a_call_that_goes_on_finds_the_first_search_in_the_state(searches, tmp_path):
    searches.norms = [(1.0, *EVEN[1:])]
    first = first_search(job(state=tmp_path / "state"), BOTH)
    seen = list(searches.seen)
    again = first_search(job(state=tmp_path / "state"), BOTH)
    assert searches.seen == seen == ["patch", "paths", "paths"]
    assert (again.target, again.steps) == (first.target, first.steps) == (2, 6)
    assert torch.equal(again.perturbations, first.perturbations)
    assert torch.equal(make(again).with_patch(IMAGES), make(first).with_patch(IMAGES))
