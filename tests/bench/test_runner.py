from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from stand_ins import Accuser, BrightnessNetwork, bright_pixels

from banaudit.architectures.base import SplitModel
from banaudit.bench import runner
from banaudit.bench.attacks import SSDT, BadNets
from banaudit.bench.attacks.labelling import AllToAll, AllToOne, SourceTarget
from banaudit.bench.conditions import draw_clean
from banaudit.bench.datasets import attacker_and_pool, load_split
from banaudit.bench.results_files import read_results
from banaudit.bench.runner import BenchmarkResults, Outcome, Truth, hold_against
from banaudit.bench.studies import run_study
from banaudit.bench.tables import render
from banaudit.bench.victims import Victim, VictimFacts, VictimRecipe, victim_folder
from banaudit.bench.workplace import Workplace
from banaudit.detectors.pair_perturbation import PairPerturbation
from banaudit.errors import UsageError
from banaudit.results import Reading, Verdict

RECIPES = [
    VictimRecipe(attack=BadNets(), labelling=AllToOne(target=3), seed=1),
    VictimRecipe(seed=2),
    VictimRecipe(seed=3),
]


def facts_of(recipe):
    mapping = recipe.labelling.mapping(10).tolist() if recipe.labelling else ()
    return VictimFacts(
        recipe=recipe,
        clean_accuracy=0.9,
        attack_success=None if recipe.attack is None else 1.0,
        mapping=mapping,
        train_loss=0.1,
        seconds=1.0,
        torch_version="2",
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with images by brightness and the first two victims."""
    folder = tmp_path / "cache" / "datasets"
    folder.mkdir(parents=True)
    for split, per_class in (("test", 8), ("train", 40)):
        pixels, labels = bright_pixels(per_class, side=32)
        np.savez(
            folder / f"cifar10-{split}.npz", pixels=pixels, labels=labels, names=np.array([str(n) for n in range(10)])
        )
    for recipe in RECIPES[:2]:
        place = victim_folder(recipe, folder.parent)
        place.mkdir(parents=True)
        (place / "victim.json").write_text(facts_of(recipe).model_dump_json())

    def load(place):
        facts = VictimFacts.model_validate_json((place / "victim.json").read_bytes())
        return Victim(facts, SplitModel(BrightnessNetwork(), (0.0,), (1.0,)).eval(), None)

    monkeypatch.setattr(runner, "load_victim", load)
    return folder.parent


def scan_all(path, cache, *, fresh=False, **settings):
    told = []
    options = {"split": "development", "detectors": [Accuser()], "images": 60} | settings
    place = Workplace(cache=cache, device="cpu", fresh=fresh, progress=told.append)
    results = runner.run(RECIPES, path, workplace=place, **options)
    return results, told


def test_trained_victims_are_scanned_and_judged(cache, tmp_path):
    path = tmp_path / "new" / "development.json"
    results, told = scan_all(path, cache)
    assert len(told) == 2
    assert [entry.outcome for entry in results.entries] == [Outcome.RIGHT, Outcome.FALSE_ALARM]
    assert read_results(path, BenchmarkResults) == results
    scan = results.entries[0].scan
    assert (scan.verdict, scan.target, scan.accuracy, scan.images) == (Verdict.BACKDOORED, 3, 1.0, 60)
    assert [item.key for item in scan.readings] == ["accuser/all-to-one", "accuser/all-to-one#2"]
    assert scan.readings[0].per_class[1] == pytest.approx(1 / 7, abs=1e-5)
    assert scan.readings[1].score == 0.333333
    assert results.measures == {"accuser/all-to-one": "certainty", "accuser/all-to-one#2": "doubt"}
    assert scan.methods[0].backward_images == scan.backward_images == 2
    assert str(tmp_path) not in path.read_text()


def test_a_run_is_resumed(cache, tmp_path):
    path = tmp_path / "development.json"
    first, _ = scan_all(path, cache)
    again, told = scan_all(path, cache)
    assert (again, told) == (first, [])
    assert len(scan_all(path, cache, fresh=True)[1]) == 2
    changed, told = scan_all(path, cache, seed=1)
    assert len(told) == len(changed.entries) == 2
    assert len(changed.settings) == 2
    with pytest.raises(UsageError, match="another --output"):
        scan_all(path, cache, split="test")


def test_the_record_names_the_methods_that_such_images_were_given_to(cache, tmp_path):
    results, _ = scan_all(tmp_path / "development.json", cache, detectors=[Accuser(), PairPerturbation()])
    (settings,) = results.settings.values()
    assert list(settings.detectors) == ["accuser"]
    assert {cost.method for cost in results.entries[0].scan.methods} == {"accuser"}


def test_results_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "zoo.json"
    path.write_text(json.dumps({"kind": "zoo"}))
    with pytest.raises(UsageError, match="is no BenchmarkResults file"):
        read_results(path, BenchmarkResults)


@pytest.mark.parametrize("source", ["test", "pool"])
def test_clean_images_are_even_and_none_was_trained_on(cache, source):
    clean = draw_clean("cifar10", source, 25, seed=0, cache=cache)
    counts = torch.bincount(clean.labels, minlength=10)
    assert len(clean) == 25
    assert (source, int(counts.max() - counts.min()) <= 1) in {("test", True), ("pool", True), ("pool", False)}
    if source == "pool":
        data = load_split("cifar10", "train", cache=cache)
        _, pool = attacker_and_pool(data)
        allowed = {image.numpy().tobytes() for image in data.pixels[pool].contiguous()}
        assert {image.mul(255).round().byte().numpy().tobytes() for image in clean.images} <= allowed
    other = draw_clean("cifar10", source, 25, seed=1, cache=cache)
    assert not torch.equal(clean.images, other.images)


SHIFT = {label: (label + 1) % 10 for label in range(10)}
ONE = Truth(backdoored=True, reading=Reading.ALL_TO_ONE, target=3)
PAIR = Truth(backdoored=True, reading=Reading.SOURCE_TARGET, source=1, target=3)
ALL = Truth(backdoored=True, reading=Reading.ALL_TO_ALL, mapping=SHIFT)
CLEAN = Truth(backdoored=False)


@pytest.mark.parametrize(
    ("truth", "verdict", "said", "outcome"),
    [
        (CLEAN, Verdict.NO_EVIDENCE, {}, Outcome.RIGHT),
        (CLEAN, Verdict.BACKDOORED, {"target": 3}, Outcome.FALSE_ALARM),
        (CLEAN, Verdict.INCONCLUSIVE, {}, Outcome.INCONCLUSIVE),
        (ONE, Verdict.BACKDOORED, {"target": 3}, Outcome.RIGHT),
        (ONE, Verdict.BACKDOORED, {"target": 4}, Outcome.WRONG_TARGET),
        (ONE, Verdict.NO_EVIDENCE, {}, Outcome.MISSED),
        (PAIR, Verdict.BACKDOORED, {"target": 3, "sources": (1,)}, Outcome.RIGHT),
        (PAIR, Verdict.BACKDOORED, {"target": 3}, Outcome.WRONG_TARGET),
        (ALL, Verdict.BACKDOORED, {"mapping": SHIFT | {0: 5, 1: 5}}, Outcome.RIGHT),
        (ALL, Verdict.BACKDOORED, {"mapping": SHIFT | {0: 5, 1: 5, 2: 5}}, Outcome.WRONG_TARGET),
        (ALL, Verdict.BACKDOORED, {"target": 3}, Outcome.WRONG_TARGET),
    ],
)
def test_a_verdict_is_held_against_the_truth(truth, verdict, said, outcome):
    scan = runner.ScanRecord(
        settings="s",
        code="c",
        verdict=verdict,
        reason="",
        accuracy=0.9,
        images=1,
        seconds=1,
        forward_images=1,
        backward_images=0,
        device="cpu",
        threads=1,
        **said,
    )
    assert hold_against(truth, scan) is outcome


@pytest.mark.parametrize(
    ("recipe", "truth"),
    [
        (RECIPES[0], ONE),
        (RECIPES[1], CLEAN),
        (VictimRecipe(attack=SSDT(), labelling=SourceTarget(source=1, target=3)), PAIR),
        (VictimRecipe(attack=BadNets(), labelling=AllToAll()), ALL),
    ],
)
def test_the_truth_comes_from_the_recipe(recipe, truth):
    assert runner.truth_of(facts_of(recipe)) == truth


def test_parts_of_the_clean_images_are_disjoint_and_even(cache):
    parts = [draw_clean("cifar10", "test", 1000, seed=0, part=part, parts=4, cache=cache) for part in range(4)]
    assert [len(part) for part in parts] == [20] * 4
    assert all(torch.bincount(part.labels).tolist() == [2] * 10 for part in parts)
    images = [image.numpy().tobytes() for part in parts for image in part.images]
    assert len(set(images)) == 80


def test_images_that_victims_were_trained_on_can_be_drawn(cache):
    data = load_split("cifar10", "train", cache=cache)
    attacker, _ = attacker_and_pool(data)
    allowed = {image.numpy().tobytes() for image in data.pixels[attacker].contiguous()}
    clean = draw_clean("cifar10", "trained on", 25, seed=0, cache=cache)
    assert {image.mul(255).round().byte().numpy().tobytes() for image in clean.images} <= allowed


def test_what_another_process_adds_meanwhile_is_neither_lost_nor_made_again(cache, tmp_path, monkeypatch):
    path = tmp_path / "development.json"
    elsewhere = tmp_path / "elsewhere.json"
    whole, _ = scan_all(elsewhere, cache)
    original = runner.judge

    def judge_while_another_writes(*arguments, **settings):
        path.write_bytes(elsewhere.read_bytes())
        return original(*arguments, **settings)

    monkeypatch.setattr(runner, "judge", judge_while_another_writes)
    results, told = scan_all(path, cache)
    assert len(told) == 1
    assert {entry.key for entry in results.entries} == {entry.key for entry in whole.entries}


def test_a_study_is_resumed_and_keeps_to_its_conditions(cache, tmp_path):
    path = tmp_path / "study.json"
    told = []
    place = Workplace(cache=cache, device="cpu", progress=told.append)
    options = {"split": "development", "detectors": [Accuser()], "images": 40, "workplace": place}
    results = run_study("recompressed", RECIPES, path, **options)
    assert [entry.condition for entry in results.entries] == ["plain", "JPEG 75", "JPEG 50"] * 2
    assert run_study("recompressed", RECIPES, path, **options) == results
    assert len(told) == 6
    assert "JPEG-compressed again" in render(path)
    with pytest.raises(UsageError, match="give another --output"):
        run_study("seeds", RECIPES, path, **options)
    one = run_study("trained-on", RECIPES, tmp_path / "one.json", limit=1, **options)
    assert {entry.key for entry in one.entries} == {RECIPES[0].key}
