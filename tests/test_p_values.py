"""P-values, and where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from banaudit import calibration
from banaudit.bench.calibration import is_of_today
from banaudit.bench.datasets import dataset_spec
from banaudit.bench.rejudge import rejudged
from banaudit.bench.results_files import need_results
from banaudit.bench.runner import BenchmarkResults, Outcome
from banaudit.bench.strata import counted
from banaudit.detectors import MMBD, default_detectors, suited
from banaudit.results import Evidence, Finding, Reading, Verdict

BENCHMARK = Path(__file__).parents[1] / "docs" / "benchmark"


def evidence(score, *, fired=False, agreement=None, reading=Reading.ALL_TO_ONE):
    return Evidence(reading=reading, measures="", score=score, threshold=2.0, fired=fired, agreement=agreement)


def found(verdict=Verdict.NO_EVIDENCE):
    return Finding(method="m", title="", verdict=verdict, reason="", evidence=(evidence(1.0),))


def development_files():
    for path in (BENCHMARK / "development.json", *sorted(BENCHMARK.glob("opened-*.json"))):
        yield need_results(path, BenchmarkResults)


def clean_scans():
    for results in development_files():
        for entry in counted(results.entries):
            recipe = entry.victim.recipe
            like_the_others = dataset_spec(recipe.dataset).size in calibration.SIDES and calibration.FAMILIES.fullmatch(
                recipe.architecture
            )
            today = is_of_today(entry, results.settings[entry.scan.settings])
            if not entry.truth.backdoored and today and like_the_others:
                yield entry.scan


def test_the_frozen_strengths_are_those_of_the_benchmark():
    scans = list(clean_scans())
    assert sorted(round(calibration.strength(scan.readings), 3) for scan in scans) == list(calibration.CLEAN_STRENGTHS)
    assert min(scan.accuracy for scan in scans) >= calibration.LEAST_ACCURACY
    assert {scan.images for scan in scans} == {calibration.IMAGES}


def test_what_clean_scans_say_together_is_still_what_was_recorded():
    # The weights of joint evidence are in no record's settings: changed, they would leave old strengths behind unseen.
    for results in development_files():
        for before, now in zip(results.entries, rejudged(results).entries, strict=True):
            strengths = [calibration.strength(entry.scan.readings) for entry in (before, now)]
            assert strengths[1] == pytest.approx(strengths[0], abs=1e-3), before.key


def test_the_measured_rate_is_that_of_the_sealed_test_part_by_part():
    parts = [need_results(path, BenchmarkResults).entries for path in sorted(BENCHMARK.glob("test*.json"))]
    clean = [entry for part in parts for entry in counted(part) if not entry.truth.backdoored]
    accused = {entry.key for entry in clean if entry.outcome is Outcome.FALSE_ALARM}
    assert (len(accused), len({entry.key for entry in clean})) == calibration.MEASURED


def test_strength_is_the_largest_ratio_among_readings_that_may_fire():
    assert calibration.strength([]) == 0
    assert calibration.strength([evidence(1.0), evidence(1.8, agreement=0.5), evidence(9.0)]) == 0.5
    assert calibration.strength([evidence(1.0), evidence(3.0, fired=True)]) == 1.5


@pytest.mark.parametrize(("strength", "rank"), [(0.0, 4), (0.2, 4), (0.21, 3), (1.0, 2), (1.7, 1)])
def test_p_value_is_a_rank_with_the_model_itself_counted_in(strength, rank, monkeypatch):
    monkeypatch.setattr(calibration, "CLEAN_STRENGTHS", (0.2, 0.4, 1.6))
    assert calibration.p_value(strength) == rank / 4


LIKE = {"classes": 10, "present": 10, "side": 32, "images": 1000, "accuracy": 0.9}
LIKE |= {"network": "resnet18", "parameters": 701_466}


def test_a_scan_like_the_clean_development_models_is_near():
    assert calibration.distance([found()], default_detectors(), **LIKE) == ""
    assert calibration.statement("").startswith(
        f"the model's rank among {len(calibration.CLEAN_STRENGTHS)} clean development models"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 5, "present": 5}, "5 classes"),
        ({"present": 8}, "no images of 2 classes"),
        ({"side": 224}, "224 pixels"),
        ({"images": 499}, "only 499 clean images"),
        ({"accuracy": 0.6}, "accuracy of 60%"),
        ({"network": "mobilenetv2"}, "another family (mobilenetv2)"),
        ({"network": "torchvision:resnet18"}, "another family"),
        ({"network": "predensenet37"}, "another family"),
        ({"network": "resnet9.py:make"}, "another family (resnet9.py:make)"),
        ({"network": None}, "another family (unknown)"),
        ({"parameters": 11_173_962}, "11,173,962 weights"),
        ({"parameters": None}, "an unknown number of weights"),
    ],
)
def test_what_is_unlike_them_is_named(change, words):
    assert words in calibration.distance([found()], default_detectors(), **(LIKE | change))


def test_other_methods_and_methods_that_could_not_judge_have_no_p_value():
    assert calibration.distance([found()], (MMBD(),), **LIKE).startswith(
        "without corruptions, targeted-noise, universal-perturbation"
    )
    changed = (MMBD(steps=3), *(item for item in default_detectors() if item.name != MMBD.name))
    assert calibration.distance([found()], changed, **LIKE) == "other methods or settings than the default"
    few_images = suited(default_detectors(), 10, [49] * 10)
    assert calibration.distance([found()], few_images, **LIKE) == "without mixtures, pair-perturbation"
    without_pairs = suited(default_detectors(), 43, [49] * 43)
    assert calibration.distance([found()], without_pairs, **(LIKE | {"classes": 43, "present": 43})) == ""
    assert "m could not judge" in calibration.distance([found(Verdict.INCONCLUSIVE)], default_detectors(), **LIKE)
    assert calibration.distance([], default_detectors(), **LIKE) == "no method ran"
    assert calibration.statement("5 classes").startswith("uncalibrated")
