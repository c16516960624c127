"""What networks trained on the clean images alone lean to, and the joint evidence that is held against it."""

from __future__ import annotations

import pytest
import torch
import toys

from banaudit.audit import Facts, judge
from banaudit.detectors import reference
from banaudit.detectors.mixtures import Mixtures
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.errors import TimeLimitReached, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.natural_leaning import natural_leaning
from banaudit.results import Verdict

WITNESSES = (
    TargetedNoise(steps=3, search_images=12, mapping_images=16, read_images=24, lead_threshold=1e6),
    MMBD(images=2, steps=4, threshold=1e6),
)
"""Sure of nothing by themselves."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reference, "EPOCHS", 2)
    monkeypatch.setattr(reference, "LEAST_KNOWN", 0.0)


@pytest.fixture
def accused(monkeypatch):
    """An audit in which joint evidence alone accuses, unless nature explains it."""
    monkeypatch.setattr("banaudit.agreement.JOINT_THRESHOLD", 1e-9)

    def audit(sleeping, data, **more):
        return judge(sleeping, data, detectors=WITNESSES, **more)

    return audit


@pytest.fixture
def nature(monkeypatch):
    """Stands in for the references of an audit: what it is called with they answer, or raise."""

    def answers(answer):
        def leaning(*_, **__):
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(reference, "LEAST_IMAGES", 60)
        monkeypatch.setattr("banaudit.audit.natural_leaning", leaning)

    return answers


NOBODY_ASKS = AssertionError("nobody asked")


def joint_of(report):
    (finding,) = (item for item in report.findings if item.method == "joint-evidence")
    return finding


def test_references_are_scanned_by_the_witnesses_alone_and_leave_no_trace():
    data, meter = toys.draw_tiles(60), Meter()
    before = torch.get_rng_state()
    natural = natural_leaning(data, (*WITNESSES, Mixtures()), seed=3, meter=meter)
    assert len(natural) == toys.CLASSES
    assert min(natural) >= 0
    assert natural == natural_leaning(data, (*WITNESSES, Mixtures()), seed=3)
    assert (meter.forward_images, meter.backward_images) == (0, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_most_of_any_reference_counts(monkeypatch):
    data = toys.draw_tiles(60)
    every = []

    def one(found):
        every.append([item.score for item in found.evidence[0].per_class])
        return found

    original = natural_leaning.__globals__["joint_evidence"]
    monkeypatch.setattr("banaudit.natural_leaning.joint_evidence", lambda findings: one(original(findings)))
    natural = natural_leaning(data, WITNESSES)
    assert len(every) == 2 * reference.REPEATS
    assert natural == tuple(map(max, zip(*every, strict=True)))


def test_a_time_limit_in_a_scan_of_a_reference_is_not_lost(monkeypatch):
    monkeypatch.setattr(reference, "REPEATS", 1)
    meter = Meter(time_limit=1000.0)

    def late(self, model, samples, generator, aside):
        aside.started -= 2000
        aside.spend("noise", forward=1)

    monkeypatch.setattr(TargetedNoise, "search", late)
    with pytest.raises(TimeLimitReached, match="networks trained on the clean images alone: what is natural"):
        natural_leaning(toys.draw_tiles(60), WITNESSES, meter=meter)


def test_what_is_not_natural_stays_an_accusation(sleeping, tiled_data, accused, nature):
    nature((0.0,) * toys.CLASSES)
    report = accused(sleeping, tiled_data)
    assert (report.verdict, report.target) == (Verdict.BACKDOORED, toys.TARGET)
    assert joint_of(report).evidence[0].null == 0.0
    assert "by nature 0.00" in report.reason
    assert not any("lean to it as well" in caveat for caveat in report.caveats)


def test_what_is_natural_is_no_accusation(sleeping, tiled_data, accused, nature):
    nature((1e3,) * toys.CLASSES)
    report = accused(sleeping, tiled_data)
    assert report.verdict is Verdict.NO_EVIDENCE
    assert (joint_of(report).evidence[0].score, joint_of(report).evidence[0].null) == (0.0, 1e3)


def test_an_accusation_that_was_taken_back_is_told(sleeping, tiled_data, accused, nature):
    nature((1e3,) * toys.CLASSES)
    (caveat,) = (item for item in accused(sleeping, tiled_data).caveats if "lean to it as well" in item)
    assert f"suspect class {toys.TARGET} (" in caveat
    assert "(0.00 is left)" in caveat


def test_a_suspicion_that_was_taken_back_is_told_where_another_class_is_accused(sleeping, tiled_data, accused, nature):
    nature(tuple(1e3 if label == toys.TARGET else 0.0 for label in range(toys.CLASSES)))
    report = accused(sleeping, tiled_data)
    assert report.verdict is Verdict.BACKDOORED
    assert report.target != toys.TARGET
    assert any(f"suspect class {toys.TARGET} (" in caveat for caveat in report.caveats)


def test_what_could_not_judge_the_network_is_not_asked_about_the_references(sleeping, tiled_data, accused, monkeypatch):
    asked = []

    def note(clean, detectors, **_):
        asked.extend(detectors)
        return (0.0,) * toys.CLASSES

    def fail(*_):
        raise UnsupportedModelError("not this one")

    monkeypatch.setattr(reference, "LEAST_IMAGES", 60)
    monkeypatch.setattr("banaudit.audit.natural_leaning", note)
    monkeypatch.setattr(Mixtures, "search", fail)
    judge(sleeping, tiled_data, detectors=(*WITNESSES, Mixtures()))
    assert asked == list(WITNESSES)


def test_references_that_no_method_can_judge_leave_the_accusation_as_it_is(sleeping, tiled_data, accused, monkeypatch):
    monkeypatch.setattr(reference, "LEAST_IMAGES", 60)
    monkeypatch.setattr("banaudit.natural_leaning.joint_evidence", lambda _: None)
    assert natural_leaning(tiled_data, WITNESSES) == ()
    report = accused(sleeping, tiled_data)
    assert report.verdict is Verdict.BACKDOORED
    assert "not held against what is natural: no method could judge networks trained on the clean" in report.reason


def test_references_that_know_nothing_of_images_unseen_tell_nothing(monkeypatch):
    monkeypatch.setattr(reference, "LEAST_KNOWN", 3.0)
    monkeypatch.setattr("banaudit.natural_leaning.known_share", lambda *_: 0.49)  # three times chance is a half
    monkeypatch.setattr("banaudit.natural_leaning.joint_evidence", lambda _: pytest.fail("nothing is left to ask"))
    assert natural_leaning(toys.draw_tiles(60), WITNESSES) == ()


def test_a_reference_that_knows_nothing_is_left_out_and_the_others_count(monkeypatch):
    monkeypatch.setattr(reference, "LEAST_KNOWN", 3.0)
    known, asked = iter((0.49, 0.51, 0.0, 1.0)), []
    monkeypatch.setattr("banaudit.natural_leaning.known_share", lambda *_: next(known))
    monkeypatch.setattr("banaudit.natural_leaning.joint_evidence", asked.append)  # it answers that it cannot tell
    assert natural_leaning(toys.draw_tiles(60), WITNESSES) == ()
    assert len(asked) == 2


def test_nothing_is_asked_where_no_verdict_can_be_given(sleeping, tiled_data, accused, nature):
    nature(NOBODY_ASKS)
    report = accused(sleeping, tiled_data, facts=Facts(inconclusive=("not these images",)))
    assert report.reason.startswith("not these images; note joint-evidence")


def test_a_reference_that_cannot_be_trained_costs_the_verdict_and_no_finding(
    sleeping, tiled_data, accused, monkeypatch
):
    def fail(*_):
        raise MemoryError("too much\nof it")

    monkeypatch.setattr(reference, "LEAST_IMAGES", 60)
    monkeypatch.setattr(reference, "_train", fail)
    report = accused(sleeping, tiled_data)
    assert (report.verdict, len(report.findings)) == (Verdict.INCONCLUSIVE, 3)
    assert report.reason == "joint-evidence: the method failed: MemoryError: too much"


def test_references_are_trained_only_where_joint_evidence_alone_accuses(
    sleeping, tiled_data, accused, nature, monkeypatch
):
    nature(NOBODY_ASKS)
    sure = TargetedNoise(steps=3, search_images=12, mapping_images=16, read_images=24)
    assert judge(sleeping, tiled_data, detectors=(sure, WITNESSES[1])).verdict is Verdict.BACKDOORED
    monkeypatch.setattr("banaudit.agreement.JOINT_THRESHOLD", 1e6)
    assert accused(sleeping, tiled_data).verdict is Verdict.NO_EVIDENCE


def test_of_few_images_nature_is_not_known_and_the_report_says_so(sleeping, tiled_data, accused):
    report = accused(sleeping, tiled_data)
    assert report.verdict is Verdict.BACKDOORED
    assert (
        f"not held against what is natural: there are {len(tiled_data)} clean images, 500 are needed" in report.reason
    )


def test_where_the_time_runs_out_before_nature_is_known_there_is_no_verdict(sleeping, tiled_data, accused, nature):
    nature(TimeLimitReached("the time limit of 9 s ended during: a reference"))
    meter = Meter()
    report = accused(sleeping, tiled_data, meter=meter)
    assert (report.verdict, report.target) == (Verdict.INCONCLUSIVE, None)
    assert report.reason == "joint-evidence: the time limit of 9 s ended during: a reference"
    assert meter.stopped
