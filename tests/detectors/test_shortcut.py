"""The three readings that both searches for shortcuts share, on paths and maps written by hand."""

import itertools
import math
from types import SimpleNamespace
from typing import ClassVar, final

import pytest
import torch

from banaudit.data import CleanData
from banaudit.detectors import shortcut
from banaudit.detectors.base import Samples
from banaudit.detectors.mapping import Mapping
from banaudit.detectors.shortcut import ShortcutDetector
from banaudit.detectors.targeted_paths import Lead, PairLead
from banaudit.meter import Meter
from banaudit.results import Reading

from .test_targeted_paths import LogitShift, labelled


class Counted(LogitShift):
    """Logits of the class that an image is, shifted; every pass is booked."""

    def __init__(self, gain, meter):
        super().__init__(gain)
        self.meter = meter

    def logits(self, images, perturbation, what):
        self.meter.spend(what, forward=len(images))
        return super().logits(images, perturbation, "paths")


@final
class Shifts(ShortcutDetector):
    name: ClassVar[str] = "shifts"
    title: ClassVar[str] = "a class that a shift of the logits reaches too easily"
    needs: ClassVar[str] = "nothing"
    misses: ClassVar[str] = "everything else"
    perturbs: ClassVar[str] = "shift"
    gain: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    step_size: float = 1.0
    lead_threshold: float = 0.5
    pair_threshold: float = 0.5
    steps: int = 4

    def perturbation(self, model, images, meter, *, share=1.0):
        return Counted(self.gain, meter)

    def lead_threshold_at(self, reach):
        return self.lead_threshold

    def relied_on_above(self, reach):
        return self.lead_threshold

    def shown(self, leader, samples, *, accused):
        return None


def read(detector, meter=None):
    samples = labelled(len(detector.gain), 20)
    meter = meter if meter is not None else Meter()
    found = detector.search(None, samples, torch.Generator().manual_seed(0), meter)
    return {item.reading: item for item in found.evidence}


def test_an_easy_class_leads_and_the_others_do_not():
    reading = read(Shifts(gain=(1.0, 1.0, 3.0, 1.0)))[Reading.ALL_TO_ONE]
    assert (reading.fired, reading.target, reading.agreement) == (True, 2, 1.0)
    assert len(reading.restarts) == 2
    assert [bar.label for bar in reading.per_class] == [0, 1, 2, 3]
    assert max(reading.per_class, key=lambda bar: bar.score).label == 2
    equal = read(Shifts())[Reading.ALL_TO_ONE]
    assert not equal.fired
    assert equal.score == pytest.approx(0.0)


def test_no_reading_fires_without_cause():
    assert not any(item.fired for item in read(Shifts()).values())


def test_all_passes_are_planned():
    detector = Shifts(gain=(1.0, 1.0, 3.0, 1.0), restarts=3, steps=2, mapping_steps=2, lead_threshold=0.01)
    meter = Meter()
    read(detector, meter)
    # Each half of the samples has 80 images here, where real ones are halves of one set. No map is followed: the two
    # further searches for one are planned and not made.
    assert meter.forward_images == detector.planned_images(4, 160) - 2 * (2 * 80 + 2 * 80)


def test_a_restart_that_could_make_nothing_fire_is_not_run():
    detector, meter = Shifts(restarts=3, steps=2, mapping_steps=2, mapping_threshold=1.0), Meter()
    readings = read(detector, meter)
    assert all(len(item.restarts) == 1 and item.agreement is None for item in readings.values())
    assert 3 * meter.forward_images == detector.planned_images(4, 160)


@pytest.mark.parametrize(
    ("scores", "targets", "fired"),
    [
        ((0.9, 0.8), (1, 1), True),
        ((0.9, 0.4), (1, 1), False),  # the weakest restart counts
        ((0.9, 0.8), (1, 2), False),  # the restarts disagree
    ],
)
def test_restarts_must_all_name_the_same_class(monkeypatch, scores, targets, fired):

    leads = iter(
        Lead(score=score, null=0.1, target=target, per_class=torch.zeros(4))
        for score, target in zip(scores, targets, strict=True)
    )
    monkeypatch.setattr(shortcut, "lead", lambda margins, start: next(leads))
    reading = read(Shifts())[Reading.ALL_TO_ONE]
    assert reading.fired is fired
    assert reading.score == min(scores)
    assert reading.restarts == scores
    assert reading.null == 0.1


@pytest.mark.parametrize(
    ("scores", "reaches", "targets", "led"),
    [
        ((0.6, 0.7), (0.5, 0.5), (2, 2), True),
        ((0.6, 0.7), (0.5, 0.5), (2, 1), False),
        ((0.5,), (0.5,), (2,), False),
        (
            (0.3, 0.7),
            (0.2, 0.6),
            (2, 2),
            False,
        ),  # each is above what its own reach asks, the first not above the other's
        ((0.7, float("nan")), (0.5, 0.5), (2, 2), False),
    ],
)
def test_one_class_leads_by_more_than_the_furthest_paths_ask(monkeypatch, scores, reaches, targets, led):
    monkeypatch.setattr(Shifts, "lead_threshold_at", lambda self, reach: reach)
    paths = [SimpleNamespace(reach=reach) for reach in reaches]
    leads = [Lead(score, 0.1, target, torch.zeros(4)) for score, target in zip(scores, targets, strict=True)]
    assert Shifts().one_class_leads(paths, leads) is led


CYCLE = {0: 1, 1: 2, 2: 3, 3: 0}


def found_map(score, targets):
    targets = dict(targets)
    return Mapping(score=score, null=0.0, targets=targets, per_source=torch.zeros(4))


def let_find(monkeypatch, maps, rivals=()):
    """Searches find the maps in turn, then others with these scores over and over; what each was to be other than."""
    scores = itertools.cycle(rivals or (0.0,))
    maps, given = iter(maps), []

    def search(*_, other_than, **__):
        given.append(list(other_than))
        return found_map(next(scores), CYCLE) if other_than else next(maps)

    monkeypatch.setattr(shortcut, "search_mapping", search)
    return given


@pytest.mark.parametrize(
    ("scores", "maps", "classes", "fired"),
    [
        ((0.9, 0.5), ((1, 2, 3, 0), (1, 2, 3, 0)), 4, True),
        ((0.9, 0.3), ((1, 2, 3, 0), (1, 2, 3, 0)), 4, False),  # the weakest restart counts
        ((0.9, 0.5), ((1, 2, 3, 0), (1, 2, 0, 3)), 4, False),  # half the map is not enough
    ],
)
def test_maps_must_agree_on_more_than_half(monkeypatch, scores, maps, classes, fired):
    let_find(monkeypatch, [found_map(*item) for item in zip(scores, map(enumerate, maps), strict=True)])
    reading = read(Shifts(gain=(1.0,) * classes))[Reading.ALL_TO_ALL]
    assert reading.fired is fired
    assert reading.score == min(scores)
    assert reading.mapping == dict(enumerate(maps[1]))


@pytest.mark.parametrize(("scores", "agreement", "fired"), [((0.9, 0.5), 1.0, True), ((0.5, 0.9), 0.75, False)])
def test_restarts_do_not_agree_on_a_class_that_one_of_them_drew_no_image_of(monkeypatch, scores, agreement, fired):
    maps = ({0: 1, 1: 2, 2: 3, 3: 0}, {0: 1, 2: 3, 3: 0})
    let_find(monkeypatch, [found_map(*item) for item in zip(scores, maps, strict=True)])
    reading = read(Shifts())[Reading.ALL_TO_ALL]
    assert (reading.fired, reading.agreement) == (fired, agreement)


@pytest.mark.parametrize(("best_rival", "fired"), [(0.2, True), (0.6, False)])
def test_a_map_must_lead_the_best_of_the_others(monkeypatch, best_rival, fired):
    given = let_find(monkeypatch, [found_map(0.9, CYCLE), found_map(0.9, CYCLE)], rivals=(0.1, best_rival))
    reading = read(Shifts())[Reading.ALL_TO_ALL]  # at 4 classes the threshold is 0.447, three quarters of it 0.335
    assert (reading.score, reading.fired) == (0.9, fired)
    assert reading.note == f"the next map carries {best_rival:.0%}"
    assert [len(item) for item in given] == [0, 0, 1, 2, 1, 2]  # two beside each, with no pair of those before


def test_other_maps_are_looked_for_only_where_one_could_fire(monkeypatch):
    given = let_find(monkeypatch, [found_map(0.9, CYCLE), found_map(0.3, CYCLE)])
    reading = read(Shifts())[Reading.ALL_TO_ALL]
    assert (reading.fired, reading.note, len(given)) == (False, "", 2)


@pytest.mark.parametrize(("classes", "threshold"), [(10, 0.31), (43, 0.173), (4, 0.447)])
def test_more_classes_need_fewer_followers(classes, threshold):
    reading = read(Shifts(gain=(1.0,) * classes, steps=1))[Reading.ALL_TO_ALL]
    assert reading.threshold == pytest.approx(threshold, abs=1e-3)


def test_one_pair_far_ahead_is_a_source_and_its_target(monkeypatch):
    monkeypatch.setattr(shortcut, "pair_lead", lambda path: PairLead(0.8, source=1, target=3))
    reading = read(Shifts())[Reading.SOURCE_TARGET]
    assert (reading.fired, reading.sources, reading.target) == (True, (1,), 3)
    assert math.isclose(reading.score, 0.8)
    pairs = iter((PairLead(0.8, source=1, target=3), PairLead(0.9, source=2, target=3)))
    monkeypatch.setattr(shortcut, "pair_lead", lambda path: next(pairs))
    assert not read(Shifts())[Reading.SOURCE_TARGET].fired


def test_bars_carry_the_names():
    data = labelled(4, 10).search
    named = CleanData(data.images, data.labels, ("ape", "bee", "cat", "dog"))
    evidence = Shifts().search(None, Samples(named, named), torch.Generator().manual_seed(0), Meter()).evidence
    assert [bar.name for bar in evidence[0].per_class] == ["ape", "bee", "cat", "dog"]
