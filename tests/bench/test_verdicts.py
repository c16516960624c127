from __future__ import annotations

import pytest
from victim_entries import entry, reading

from banaudit.bench.runner import Outcome
from banaudit.bench.verdicts import fires, is_certain, joint_score, outcome_at
from banaudit.calibration import may_fire
from banaudit.results import Reading


@pytest.mark.parametrize(
    ("item", "able"),
    [
        (reading("a", 2.0), True),
        (reading("a", 2.0, fired=False), False),
        (reading("a", None), False),
        (reading("a", 0.5), True),
        (reading("a", 0.5, agreement=1.0), True),
        (reading("a", 0.5, agreement=0.5), False),
        (reading("a", 0.5, agreement=0.8, kind=Reading.ALL_TO_ALL), True),
        (reading("a", 0.5, agreement=0.7, kind=Reading.ALL_TO_ALL), False),
    ],
)
def test_what_a_reading_asks_besides_its_threshold_is_read_from_the_record(item, able):
    assert may_fire(item) is able
    assert fires(item, {"a": 0.1}) is able
    assert not fires(item, {"a": 3.0})


def test_the_record_is_uncertain_only_between_a_lower_threshold_and_the_old_one():
    assert not is_certain(reading("a", 0.5), 0.4)
    assert is_certain(reading("a", 0.5), 0.6)
    assert is_certain(reading("a", 2.0, fired=False), 0.1)
    assert is_certain(reading("a", 0.5, agreement=0.5), 0.4)


def test_the_joint_score_is_the_largest_ratio_among_readings_that_may_fire():
    scan = entry(1, reading("a", 3.0, 4.0), reading("b", 0.9, 0.5, fired=False), reading("c", -1.0)).scan
    assert joint_score(scan, {}) == 0.75
    assert joint_score(scan, {"a": 1.5}) == 2.0
    assert joint_score(entry(1, reading("a", None)).scan, {}) == 0.0


def test_a_verdict_is_made_anew_at_other_thresholds():
    wrong, right = reading("a", 0.8, target=5), reading("b", 0.6)
    victim = entry(1, wrong, right, backdoored=True)
    assert outcome_at(victim, {}) is Outcome.MISSED is victim.outcome
    assert outcome_at(victim, {"a": 0.7}) is Outcome.WRONG_TARGET
    assert outcome_at(victim, {"a": 0.7, "b": 0.3}) is Outcome.RIGHT
    assert outcome_at(entry(2, wrong), {"a": 0.7}) is Outcome.FALSE_ALARM
    assert outcome_at(entry(3, reading("a", 0.1), unjudged=True), {}) is Outcome.INCONCLUSIVE


def test_at_their_own_thresholds_recorded_outcomes_come_back():
    for victim in (entry(1, reading("a", 2.0), backdoored=True), entry(2, reading("a", 2.0)), entry(3)):
        assert outcome_at(victim, {}) is victim.outcome
