"""The protocol that every detector inherits, with detectors that do nothing but follow it."""

from typing import ClassVar

import pytest
import torch
import toys

from banaudit.data import CleanData
from banaudit.detectors.base import Detector, Found, Samples, conclude
from banaudit.errors import DataError, UnsupportedModelError, UsageError
from banaudit.meter import Meter
from banaudit.results import Evidence, Reading, Verdict


def evidence(score, threshold, *, fired, reading=Reading.ALL_TO_ONE):
    return Evidence(reading=reading, measures="share", score=score, threshold=threshold, fired=fired)


class Scripted(Detector):
    """Answers what the test says, and remembers what it was given."""

    name: ClassVar[str] = "scripted"
    title: ClassVar[str] = "what the test says"
    misses: ClassVar[str] = "everything"
    answer: ClassVar[object] = None
    seen: ClassVar[dict] = {}

    def planned_images(self, num_classes, images):
        return 0

    def search(self, model, samples, generator, meter):
        Scripted.seen = {"model": model, "samples": samples, "drawn": torch.rand(1, generator=generator).item()}
        Scripted.seen["global"] = torch.rand(1).item()
        meter.spend("work", forward=7, backward=3)
        if isinstance(Scripted.answer, Exception):
            raise Scripted.answer
        return Found(Scripted.answer)


def run(answer, model=None, **given):
    Scripted.answer = answer
    return Scripted()(model if model is not None else toys.hand_made(0.0), toys.draw_tiles(48), **given)


def test_a_fired_reading_accuses_and_the_reason_names_the_strongest():
    finding = run(
        [
            evidence(0.9, 1.0, fired=False),
            evidence(0.6, 0.5, fired=True, reading=Reading.ALL_TO_ALL),
            evidence(0.8, 0.5, fired=False),  # above its threshold, but its restarts disagree
        ]
    )
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.reason == "all-to-all score 0.6 is above the threshold 0.5"
    assert (finding.forward_images, finding.backward_images) == (7, 3)


def test_nothing_fired_is_no_evidence():
    finding = run([evidence(0.2, 1.0, fired=False), evidence(0.4, 0.5, fired=False)])
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.reason == "all-to-one score 0.4 is not above the threshold 0.5"


def test_what_cannot_be_judged_is_inconclusive_and_never_clean():
    finding = run(UnsupportedModelError("this method needs a head"))
    assert (finding.verdict, finding.reason, finding.evidence) == (
        Verdict.INCONCLUSIVE,
        "this method needs a head",
        (),
    )
    assert finding.forward_images == 7


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (DataError("the images are unusable"), "the images are unusable"),
        (RuntimeError("out of memory\nat length"), "the method failed: RuntimeError: out of memory"),
        (AssertionError("no more than 64 images"), "the method failed: AssertionError: no more than 64 images"),
    ],
)
def test_one_method_that_fails_does_not_end_the_audit(problem, reason):
    finding = run(problem)
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.reason == reason


def test_a_wrong_call_is_not_swallowed():
    with pytest.raises(UsageError):
        run(UsageError("there is no such class"))


@pytest.mark.parametrize(
    ("agreement", "why"), [(0.7, "the restarts disagree"), (0.9, "other conditions of the reading")]
)
def test_reason_of_a_map_that_did_not_fire(agreement, why):
    item = Evidence(
        reading=Reading.ALL_TO_ALL, measures="none", score=1.0, threshold=0.5, fired=False, agreement=agreement
    )
    assert why in conclude([item])[1]


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_decide_nothing(score):
    finding = run([evidence(score, 1, fired=False)])
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.evidence == ()
    assert "not finite" in finding.reason


def test_a_detector_gets_a_private_copy_in_eval_mode_and_two_disjoint_halves():
    model = toys.hand_made(0.0).train()
    run([evidence(0, 1, fired=False)], model)
    assert model.training
    assert Scripted.seen["model"] is not model
    assert not Scripted.seen["model"].training
    samples = Scripted.seen["samples"]
    assert len(samples.search) == len(samples.held_out) == 24
    search = {image.sum().item() for image in samples.search.images}
    assert not search & {image.sum().item() for image in samples.held_out.images}
    assert samples.held_out.labels.bincount().tolist() == [4] * 6


def test_randomness_comes_from_the_seed_alone():
    quiet = [evidence(0, 1, fired=False)]
    torch.manual_seed(1)
    run(quiet, seed=5)
    first = Scripted.seen["drawn"], Scripted.seen["global"]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    run(quiet, seed=5)
    assert (Scripted.seen["drawn"], Scripted.seen["global"]) == first
    assert torch.equal(torch.get_rng_state(), before)
    run(quiet, seed=6)
    assert Scripted.seen["drawn"] != first[0]


def test_bars_are_named():
    data = CleanData(torch.zeros(3, 1, 1, 1), torch.arange(3), tuple("abc"))
    bars = Samples(data, data).per_class(torch.tensor([0.5, 1 / 3, 2.0]))
    assert [(bar.label, bar.name, bar.score) for bar in bars] == [(0, "a", 0.5), (1, "b", 0.333333), (2, "c", 2.0)]


def test_a_meter_is_optional_and_shared():
    meter = Meter()
    run([evidence(0, 1, fired=False)], meter=meter)
    run([evidence(0, 1, fired=False)], meter=meter)
    assert meter.forward_images == 14


def test_nothing_is_said_of_images_that_leave_nothing_to_search_with():
    one_each = CleanData(torch.rand(6, 3, 16, 16), torch.arange(6), tuple("abcdef"))
    Scripted.answer = [evidence(9.0, 1.0, fired=True)]
    found = Scripted()(toys.hand_made(0.0), one_each)
    assert (found.verdict, found.evidence) == (Verdict.INCONCLUSIVE, ())
    assert "two clean images" in found.reason
