from __future__ import annotations

import pytest
import torch
from victim_entries import SETTINGS, entry, reading

from banaudit.bench.conditions import SEEDS, recompress, study_conditions
from banaudit.bench.population import HARD_KINDS, development
from banaudit.bench.runner import StudyResults
from banaudit.bench.strata import stratified, stratum_of
from banaudit.bench.tables.studies import study_tables
from banaudit.detectors import default_detectors


@pytest.mark.parametrize("study", ["seeds", "images", "recompressed", "trained-on", "released"])
def test_conditions_have_names_of_their_own(study):
    conditions = study_conditions(study, images=200, seed=4)
    assert len({condition.name for condition in conditions}) == len(conditions) > 1
    if study != "images":
        assert {condition.images for condition in conditions} == {200}
    if study != "seeds":
        assert {condition.seed for condition in conditions} == {4}


def test_each_seed_has_a_part_of_one_drawing():
    conditions = study_conditions("seeds")
    assert [(item.seed, item.part) for item in conditions] == [(n, n) for n in range(SEEDS)]
    assert {(item.draw_seed, item.parts) for item in conditions} == {(0, SEEDS)}


def test_the_released_condition_runs_ban_alone():
    plain, released = study_conditions("released")
    assert plain.detectors(default_detectors()) == default_detectors()
    (only,) = released.detectors(default_detectors())
    assert (only.name, only.drift) == ("ban", True)


@pytest.mark.parametrize("channels", [1, 3])
def test_compressed_again_images_are_near_but_not_the_same(channels):
    ramp = torch.linspace(0.1, 0.9, 32).expand(2, channels, 32, 32)
    noisy = (ramp + 0.1 * torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    again = recompress(noisy, 50)
    assert again.shape == noisy.shape
    assert 0.01 < float((again - noisy).abs().mean()) < 0.1
    assert float((recompress(noisy, 95) - noisy).abs().mean()) < float((again - noisy).abs().mean())


def test_a_sample_has_something_of_every_stratum():
    recipes = development()
    strata = {stratum_of(recipe) for recipe in recipes}
    sample = stratified(recipes, len(strata))
    assert {stratum_of(recipe) for recipe in sample} == strata
    assert sample == [recipe for recipe in recipes if recipe in sample]
    assert stratified(recipes, None) == recipes
    assert stratified(recipes, 1) == recipes[:1]


def study_of(study, *entries):
    conditions = study_conditions(study)[:3]
    return StudyResults(
        split="development",
        study=study,
        settings={SETTINGS.digest: SETTINGS},
        conditions={condition.name: condition for condition in conditions},
        entries=entries,
    )


def under(name, seed, score, **facts):
    return entry(seed, reading("m/a", score, agreement=1.0), condition=name, **facts)


def test_changes_are_held_against_the_first_condition():
    text = study_tables(
        study_of(
            "recompressed",
            *(under(name, 1, 2.0, backdoored=True) for name in ("plain", "JPEG 75")),
            under("JPEG 50", 1, 0.5, backdoored=True),
            *(under(name, 2, 0.1) for name in ("plain", "JPEG 75")),
            under("JPEG 50", 2, 0.1, unjudged=True),
            under("plain", 3, 0.1, kind=HARD_KINDS[0]),
        )
    ).splitlines()
    plain = "| plain | 1/1 = 100% [3%, 100%] | 1/1 = 100% [3%, 100%] | 0/1 = 0% [0%, 98%] | 0 | 0 | - | - |"
    assert plain in text
    assert any(line.startswith("| JPEG 50 | 0/1 = 0% [0%, 98%] |") and "| 1 | 1 | 2/2 = 100%" in line for line in text)
    assert any(line.startswith("- verdicts changed, all conditions together: 2/4 = 50%") for line in text)
    assert any(line.startswith("1 more victims were not scanned under every condition") for line in text)
    assert any(line.startswith("| m/a | 1/4 = 25%") and "1/1, 2; clean 0/1, 0.1" in line for line in text)


def test_changes_between_seeds_are_held_against_the_most_frequent_verdict():
    names = ("seed 0", "seed 1", "seed 2")
    results = study_of(
        "seeds",
        under("seed 0", 1, 0.5, backdoored=True),
        *(under(name, 1, 2.0, backdoored=True) for name in names[1:]),
        *(under(name, 2, 0.1) for name in names),
    )
    text = study_tables(results).splitlines()
    assert any(line.startswith("- verdicts changed, all conditions together: 1/6 = 17%") for line in text)
    assert any(line.startswith("- victims with a change anywhere: 1/2 = 50%") for line in text)
    key = results.entries[0].key
    assert f"| {key} | **missed** | right, 3 | right, 3 |" in text
