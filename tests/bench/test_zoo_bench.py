from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from stand_ins import FACTORY, Accuser, BrightnessNetwork, write_images

from banaudit.bench.results_files import read_results
from banaudit.bench.runner import Outcome
from banaudit.bench.zoo import ManifestEntry, ZooResults, read_factories, read_manifests, run_zoo
from banaudit.errors import UsageError
from banaudit.results import Reading

SHARED = Path(__file__).resolve().parents[3] / "shared"
FACTORIES = Path(__file__).resolve().parents[1] / "zoo_architectures"


def entry(**changes):
    return {"file": "a.pth", "dataset": "CIFAR-10 (some copy)", "truth": "clean", "attack": "none"} | changes


@pytest.fixture
def zoo(tmp_path):
    """Two checkpoints that classify by brightness, and a whole pickled module."""
    folder = tmp_path / "zoo"
    (folder / "mine").mkdir(parents=True)
    network = BrightnessNetwork()
    weights = {
        key: 100 * tensor if key.startswith("linear") else tensor for key, tensor in network.state_dict().items()
    }
    for name in ("clean.pth", "badnets.pth"):
        torch.save(weights, folder / "mine" / name)
    torch.save(torch.nn.Linear(2, 2), folder / "mine" / "whole.pkl")
    common = {"preprocessing": {"size": 8, "mean": None}}
    manifest = [
        entry(file="mine/clean.pth", measured={"clean_acc": 0.99}, **common),
        entry(
            file="mine/badnets.pth",
            truth="backdoored",
            attack="BadNets",
            target=3,
            measured={"clean_acc": 0.5},
            **common,
        ),
        entry(file="mine/whole.pkl", truth="backdoored", attack="BadNets", target=1, **common),
        entry(file="mine/missing.pth", **common),
    ]
    (folder / "trained.json").write_text(json.dumps(manifest))
    (folder / "brightness.py").write_text(FACTORY)
    (folder / "factories.json").write_text(json.dumps({"mine/*.pth": "brightness.py:factory"}))
    write_images(tmp_path / "data" / "cifar10" / "test", 8)
    return folder


def run(zoo, tmp_path, **settings):
    told = []
    options = {"detectors": [Accuser()], "images": 60, "device": "cpu", "factories": zoo} | settings
    path = tmp_path / "zoo.json"
    return run_zoo(zoo, tmp_path / "data", path, progress=told.append, **options), told, path


def test_every_checkpoint_is_measured_and_judged(zoo, tmp_path):
    results, told, path = run(zoo, tmp_path)
    assert len(told) == 4
    assert read_results(path, ZooResults) == results
    clean, badnets, whole, missing = results.entries
    assert [item.outcome for item in results.entries] == [
        Outcome.FALSE_ALARM,
        Outcome.RIGHT,
        Outcome.REFUSED,
        Outcome.FAILED,
    ]
    assert (clean.accuracy, clean.accuracy_images, clean.accuracy_agrees) == (1.0, 80, True)
    assert badnets.accuracy_agrees is False
    assert (clean.recognised, clean.recognised_accuracy) == ("none", 1.0)
    assert (clean.architecture, clean.batch_norms) == ("brightness.py:factory", 1)
    assert badnets.scan.images == 60
    assert "torch.nn.modules.linear.Linear" in whole.offenders
    assert whole.scan is None
    assert "missing.pth" in missing.problem
    assert str(tmp_path) not in path.read_text()


def test_what_was_made_is_not_made_again(zoo, tmp_path):
    first, _, _ = run(zoo, tmp_path, only="*clean*")
    assert len(first.entries) == 1
    second, told, _ = run(zoo, tmp_path)
    assert len(told) == 3
    assert second.entries[0] == first.entries[0]
    assert run(zoo, tmp_path)[1] == []
    assert len(run(zoo, tmp_path, seed=1)[1]) == 4


def test_a_folder_that_is_no_zoo_is_refused(zoo, tmp_path):
    with pytest.raises(UsageError, match=r"holds none of third_party\.json"):
        read_manifests(tmp_path)
    (zoo / "third_party.json").write_text(json.dumps([entry(dataset="ImageNet")]))
    with pytest.raises(UsageError, match="'ImageNet' is not known"):
        read_manifests(zoo)
    (zoo / "third_party.json").write_text("{}")
    with pytest.raises(UsageError, match="is no manifest"):
        read_manifests(zoo)
    with pytest.raises(UsageError, match=r"factories\.json"):
        read_factories(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reading", "source", "target"),
    [
        ({}, None, None, None),
        ({"truth": "repaired (by somebody)", "target": 5}, None, None, None),
        ({"truth": "backdoored", "attack": "BadNets all2one", "target": 5}, Reading.ALL_TO_ONE, None, 5),
        (
            {"truth": "backdoored", "attack": "source-specific: label 4 -> 7 only", "target": 7},
            Reading.SOURCE_TARGET,
            4,
            7,
        ),
        ({"truth": "backdoored", "attack": "all-to-all BadNets"}, Reading.ALL_TO_ALL, None, None),
    ],
)
def test_the_truth_in_a_manifests_words(changes, reading, source, target):
    truth = ManifestEntry.model_validate(entry(**changes)).known()
    assert (truth.reading, truth.source, truth.target) == (reading, source, target)
    assert truth.backdoored == (reading is not None)
    assert (truth.mapping is not None) == (reading is Reading.ALL_TO_ALL)


def test_the_statistics_in_a_manifests_words():
    def statistics(preprocessing):
        return ManifestEntry.model_validate(entry(preprocessing=preprocessing)).statistics

    assert statistics({"mean": [0.5], "std": [0.25]}) == ((0.5,), (0.25,))
    assert statistics({"mean": None, "scale": "ToTensor [0,1]"}) == ((0.0,), (1.0,))
    assert statistics({"scale": "(x - mu) / sigma over the training set"}) == ((0.1307,), (0.3081,))


@pytest.mark.skipif(not (SHARED / "zoo").is_dir(), reason="the zoo of checkpoints is not here")
def test_every_file_of_the_zoo_has_its_factory_and_truth():
    entries = read_manifests(SHARED / "zoo")
    assert len(entries) == 26
    assert all((SHARED / "zoo" / item.file).is_file() for item in entries)
    assert all(item.known().target is not None or item.known().mapping for item in entries if item.known().backdoored)
    assert all(Path(arch.rpartition(":")[0]).is_file() for arch in read_factories(FACTORIES).values())
