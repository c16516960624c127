from __future__ import annotations

import json
from typing import ClassVar, final

import numpy as np
import pytest
import torch
from stand_ins import Accuser, BrightnessNetwork, bright_pixels

from banaudit import relapse
from banaudit.architectures.base import SplitModel
from banaudit.bench import repairs
from banaudit.bench.attacks import BadNets
from banaudit.bench.attacks.labelling import AllToOne
from banaudit.bench.datasets import attacker_and_pool, load_split
from banaudit.bench.repair_results import Amount, RepairResults
from banaudit.bench.repairs import arbitrary_targets, run_repairs
from banaudit.bench.results_files import read_results
from banaudit.bench.trigger import Trigger
from banaudit.bench.victims import Victim, VictimFacts, VictimRecipe, victim_folder
from banaudit.bench.workplace import Workplace
from banaudit.errors import UnsupportedModelError, UsageError
from banaudit.mitigations import FineTuning, TargetedMitigation
from banaudit.results import Reading, Verdict
from banaudit.training import try_candidates

TARGET = 3
BACKDOORED = VictimRecipe(attack=BadNets(), labelling=AllToOne(target=TARGET), seed=1)
CLEAN = VictimRecipe(seed=2)
RECIPES = [BACKDOORED, CLEAN, VictimRecipe(seed=3)]
POOL = 80

GENTLE = FineTuning(epochs=2, learning_rate=1e-6, batch_size=16)
TWO_AMOUNTS = [Amount.parse("5%"), Amount.parse("20")]


@pytest.fixture(autouse=True)
def short_probe(monkeypatch):
    for name, value in {"MAX_STEPS": 2, "TUNING_STEPS": 2, "SEARCH_IMAGES": 20, "READ_IMAGES": 20}.items():
        monkeypatch.setattr(relapse, name, value)
    monkeypatch.setattr(repairs, "MIN_SCAN_IMAGES", 10)
    monkeypatch.setattr(repairs, "MAX_SCAN_IMAGES", 30)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with images by brightness, a backdoored and a clean victim."""
    folder = tmp_path / "cache" / "datasets"
    folder.mkdir(parents=True)
    for split, per_class in (("test", 8), ("train", 80)):
        pixels, labels = bright_pixels(per_class, side=32)
        np.savez(
            folder / f"cifar10-{split}.npz", pixels=pixels, labels=labels, names=np.array([str(n) for n in range(10)])
        )
    for recipe in (BACKDOORED, CLEAN):
        place = victim_folder(recipe, folder.parent)
        place.mkdir(parents=True)
        facts = VictimFacts(
            recipe=recipe,
            clean_accuracy=1.0,
            attack_success=None if recipe.attack is None else 1.0,
            train_loss=0.1,
            seconds=1.0,
            torch_version="2",
        )
        (place / "victim.json").write_text(facts.model_dump_json())

    def load(place):
        facts = VictimFacts.model_validate_json((place / "victim.json").read_bytes())
        trigger = None
        if facts.recipe.attack is not None:
            tensors = BadNets().draw((3, 32, 32), torch.Generator())
            trigger = Trigger(BadNets(), facts.recipe.labelling, tensors)
        network = BrightnessNetwork()
        network.norm.momentum = 0.0  # or the repair would take these images' statistics for those of the training
        return Victim(facts, SplitModel(network, (0.0,), (1.0,)).eval(), trigger)

    monkeypatch.setattr(repairs, "load_victim", load)
    return folder.parent


def run(path, cache, *, fresh=False, **changes):
    told = []
    options = {
        "split": "development",
        "mitigations": [GENTLE],
        "amounts": TWO_AMOUNTS[:1],
        "detectors": [Accuser(threshold=2.0)],
        "max_drop": 1.0,
    }
    place = Workplace(cache=cache, device="cpu", fresh=fresh, progress=told.append)
    return run_repairs(RECIPES, path, workplace=place, **options | changes), told


def weights(cache):
    return sorted((cache / "repairs").rglob("*.safetensors"))


def test_each_repair_is_measured_and_scanned(cache, tmp_path):
    path = tmp_path / "new" / "repair.json"
    results, told = run(path, cache, amounts=TWO_AMOUNTS, test_images=50)
    assert read_results(path, RepairResults) == results
    assert len(results.entries) == 4
    assert len(told) == 8  # the repair, then its scan
    assert [facts.recipe for facts in results.victims] == [BACKDOORED, CLEAN]
    entry = results.entries[0]
    # 5 % of 800 images, drawn from the pool of 80; of each class alike.
    assert (entry.victim, entry.amount, entry.images, entry.asked) == (BACKDOORED.key, "5 %", 40, 40)
    assert results.entries[1].images == 20
    made = entry.repair
    assert (made.test_images, made.success_images) == (50, 45)
    assert (made.before.accuracy, made.before.attack_success) == (1.0, 0.0)
    assert (made.after.accuracy, made.after.attack_success) == (1.0, 0.0)
    assert made.within_budget
    assert len(made.losses) == len(made.accuracies) == 2
    assert made.training_images + made.selection_images == 40
    assert made.forward_images > 2 * made.training_images
    scan = entry.rescan
    assert (scan.verdict, scan.images, scan.images_apart) == (Verdict.NO_EVIDENCE, 30, True)
    assert scan.scores == {"accuser/all-to-one": 1.0, "accuser/all-to-one#2": 0.333333}
    assert [found.reading for found in scan.relapse] == [Reading.ALL_TO_ONE]
    clean = results.entries[2]
    assert clean.repair.after.attack_success is None
    assert [found.reading for found in clean.rescan.relapse] == [
        Reading.ALL_TO_ONE,
        Reading.ALL_TO_ALL,
        Reading.SOURCE_TARGET,
    ]
    assert str(tmp_path) not in path.read_text()


@final
class Aimless(TargetedMitigation):
    """Changes nothing, and tells what it is aimed at."""

    name: ClassVar[str] = "aimless"
    title: ClassVar[str] = "a double for tests"
    trains: ClassVar[bool] = False

    def check(self, model):
        pass

    def planned_images(self, training, selection):
        return 0

    def repair(self, job):
        what = f"aimed at {self.target}"
        return try_candidates(job.model, [(what, {})], job.selection, max_drop=job.max_drop, meter=job.meter)


def test_what_repairs_one_backdoor_is_aimed_at_it(cache, tmp_path):
    """As purify does with what its scan accuses; a clean model has nothing to aim at."""
    results, _ = run(tmp_path / "aimed.json", cache, mitigations=[Aimless()], detectors=None, rescan=False)
    assert [entry.repair.kept_what for entry in results.entries] == ["aimed at 3", "aimed at None"]
    assert [setup.aimed for setup in results.setups.values()] == [True]
    named, _ = run(tmp_path / "named.json", cache, mitigations=[Aimless(target=5)], detectors=None, rescan=False)
    assert [entry.repair.kept_what for entry in named.entries] == ["aimed at 5"] * 2
    assert [setup.aimed for setup in named.setups.values()] == [False]


def test_images_of_repair_scan_and_training_are_apart(cache):
    images = repairs._Images(None, cache, 50)
    data = load_split("cifar10", "train", cache=cache)
    attacker, _ = attacker_and_pool(data)
    trained_on = {image.numpy().tobytes() for image in data.pixels[attacker].contiguous()}
    parts = images.parts("cifar10", 40, seed=1)
    sets = [
        {image.mul(255).round().byte().numpy().tobytes() for image in part.images}
        for part in (parts.repair, parts.scan)
    ]
    assert parts.apart
    assert len(parts.repair) == 40
    assert torch.bincount(parts.repair.labels).tolist() == pytest.approx([4] * 10, abs=2)
    assert not sets[0] & sets[1]
    assert not (sets[0] | sets[1]) & trained_on
    assert images.parts("cifar10", 1000, seed=1).apart is False
    assert len(images.parts("cifar10", 1000, seed=1).repair) == POOL
    assert images.held_out("cifar10") is images.held_out("cifar10")


def test_a_run_is_resumed_part_by_part(cache, tmp_path):
    path = tmp_path / "repair.json"
    first, told = run(path, cache, rescan=False)
    assert len(told) == 2
    assert all(entry.rescan is None for entry in first.entries)
    assert run(path, cache, rescan=False)[1] == []
    second, told = run(path, cache)
    assert len(told) == 2  # the scans alone
    assert [entry.repair for entry in second.entries] == [entry.repair for entry in first.entries]
    assert all(entry.rescan is not None for entry in second.entries)
    assert run(path, cache)[1] == []
    assert len(run(path, cache, runs=2)[1]) == 4
    assert len(run(path, cache, fresh=True)[1]) == 4
    changed, told = run(path, cache, mitigations=[GENTLE.with_settings({"epochs": "1"})], rescan=False)
    assert len(told) == 2
    assert len(changed.setups) == 2
    with pytest.raises(UsageError, match="another --output"):
        run(path, cache, split="test")


def test_a_repair_whose_weights_are_lost_is_made_again(cache, tmp_path):
    path = tmp_path / "repair.json"
    run(path, cache, rescan=False)
    lost, damaged = weights(cache)
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert len(run(path, cache)[1]) == 4


def test_an_interrupted_repair_goes_on(cache, tmp_path, monkeypatch):
    path = tmp_path / "repair.json"
    measure = repairs.write_whole

    def interrupt(place, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(repairs, "write_whole", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(path, cache)
    assert len(list((cache / "repairs").rglob("*.state"))) == 1
    monkeypatch.setattr(repairs, "write_whole", measure)
    run(path, cache)
    assert not list((cache / "repairs").rglob("*.state"))


def test_what_cannot_be_repaired_is_told(cache, tmp_path, monkeypatch):
    def refuse(self, model):
        raise UnsupportedModelError("needs something else")

    monkeypatch.setattr(FineTuning, "check", refuse)
    path = tmp_path / "repair.json"
    results, told = run(path, cache)
    assert [entry.problem for entry in results.entries] == ["needs something else"] * 2
    assert all(entry.repair is None for entry in results.entries)
    assert told[0].endswith("needs something else")
    assert run(path, cache)[1] == []


def test_over_the_budget_nothing_is_scanned(cache, tmp_path):
    ruinous = FineTuning(epochs=1, learning_rate=0.01, momentum=0.0)
    results, told = run(tmp_path / "repair.json", cache, mitigations=[ruinous], max_drop=0.0)
    assert [entry.repair.within_budget for entry in results.entries] == [False, False]
    assert all(entry.rescan is None for entry in results.entries)
    assert all(line.endswith("over the budget") for line in told)


def test_amounts_are_read_and_shown():
    assert Amount.parse(" 0.5% ").images(50_000) == 250
    assert Amount.parse("500").images(50_000) == 500
    assert Amount.parse("0.001%").images(800) == 1
    assert [str(Amount.parse(text)) for text in ("0.5%", "5 %", "2500", "1000000")] == [
        "0.5 %",
        "5 %",
        "2500",
        "1000000",
    ]
    for text in ("", "0", "-1", "1.5", "101%", "5%%", "many"):
        with pytest.raises(UsageError, match="expected a number of images or a share"):
            Amount.parse(text)


def test_the_probe_of_a_clean_model_has_targets_to_aim_at():
    wanted = arbitrary_targets(12, 10)
    assert set(wanted[Reading.ALL_TO_ONE].values()) == {2}
    assert len(wanted[Reading.ALL_TO_ONE]) == 9
    assert wanted[Reading.ALL_TO_ALL] == {label: (label + 1) % 10 for label in range(10)}
    assert wanted[Reading.SOURCE_TARGET] == {3: 2}
    assert all(arbitrary_targets(5, 2).values())


def test_the_file_has_a_line_for_each_repair_and_each_victim(cache, tmp_path):
    path = tmp_path / "repair.json"
    run(path, cache, rescan=False)
    lines = path.read_text().splitlines()
    assert sum(line.startswith('{"victim":') for line in lines) == 2
    assert sum(line.startswith('{"recipe":') for line in lines) == 2
    assert json.loads(path.read_text())["kind"] == "repairs"
