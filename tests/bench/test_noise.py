from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from stand_ins import BrightnessNetwork, bright_pixels

from banaudit.architectures.base import SplitModel
from banaudit.bench import embedding, noise
from banaudit.bench.attacks import BadNets
from banaudit.bench.attacks.labelling import AllToOne
from banaudit.bench.figures import draw_figure
from banaudit.bench.noise import LEVELS, PICTURED, NoiseResults, run_noise
from banaudit.bench.population import CIFAR, backdoored, clean
from banaudit.bench.results_files import read_results, write_results
from banaudit.bench.tables import render
from banaudit.bench.victims import Victim, VictimFacts, victim_folder
from banaudit.bench.workplace import Workplace
from banaudit.errors import UsageError

RECIPES = [clean(CIFAR, 1), backdoored(CIFAR, 2, BadNets(), AllToOne(target=3)), clean(CIFAR, 3)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "datasets"
    folder.mkdir(parents=True)
    pixels, labels = bright_pixels(6, side=8)
    np.savez(folder / "cifar10-test.npz", pixels=pixels, labels=labels, names=np.array([str(n) for n in range(10)]))
    for recipe in RECIPES[:2]:
        place = victim_folder(recipe, folder.parent)
        place.mkdir(parents=True)
        facts = VictimFacts(
            recipe=recipe,
            clean_accuracy=0.9,
            attack_success=None if recipe.attack is None else 1.0,
            mapping=(3,) * 10 if recipe.labelling else (),
            train_loss=0.1,
            seconds=1.0,
            torch_version="2",
        )
        (place / "victim.json").write_text(facts.model_dump_json())

    def load(place):
        facts = VictimFacts.model_validate_json((place / "victim.json").read_bytes())
        return Victim(facts, SplitModel(BrightnessNetwork(), (0.0,), (1.0,)).eval(), None)

    monkeypatch.setattr(noise, "load_victim", load)
    monkeypatch.setattr(embedding, "STEPS", 20)
    return folder.parent


def test_victims_are_measured_once_and_drawn(cache, tmp_path):
    path = tmp_path / "noise.json"
    told = []
    place = Workplace(cache=cache, device="cpu", progress=told.append)
    options = {"split": "development", "images": 60, "workplace": place}
    results = run_noise(RECIPES, path, **options)
    assert [entry.key for entry in results.entries] == [recipe.key for recipe in RECIPES[:2]]
    assert read_results(path, NoiseResults) == results
    assert run_noise(RECIPES, path, **options) == results
    assert len(told) == 2
    harmless, victim = results.entries
    assert [level.eps for level in victim.levels] == list(LEVELS)
    # BatchNorm here normalises with the statistics of the batch, which the brightness survives but for its scale.
    assert victim.levels[0].target_share is not None
    assert harmless.levels[0].target_share is None
    assert [layout.eps for layout in victim.layouts] == list(PICTURED)
    assert len(victim.layouts[0].points) == 30
    text = render(path)
    assert text.count(victim.key) == 3
    for kind in ("noise", "masked-accuracy", "mask-losses"):
        ElementTree.fromstring(draw_figure(kind, path))
    with pytest.raises(UsageError, match="give another --output"):
        run_noise(RECIPES, path, **options | {"seed": 1})


def test_measuring_changes_neither_the_model_nor_random_state(cache):
    model = SplitModel(BrightnessNetwork(), (0.0,), (1.0,)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = VictimFacts.model_validate_json((victim_folder(RECIPES[0], cache) / "victim.json").read_bytes())
    data = noise.draw_clean("cifar10", "test", 60, 0, cache=cache)
    state = torch.random.get_rng_state()
    noise.measure_noise(Victim(facts, model, None), data)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.network.norm.training


def test_without_victims_there_is_no_figure(tmp_path):
    path = tmp_path / "noise.json"
    write_results(path, NoiseResults(split="development", images=60, seed=0, eps=0.3))
    with pytest.raises(UsageError, match="hold no victim"):
        draw_figure("noise", path)
