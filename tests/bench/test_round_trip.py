from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from stand_ins import FACTORY, BrightnessNetwork, write_images

from banaudit.bench import round_trip
from banaudit.bench.results_files import read_results
from banaudit.bench.round_trip import RoundTripResults, run_round_trip
from banaudit.bench.tables import render
from banaudit.cli import main


@pytest.fixture
def zoo(tmp_path):
    """The same network in three containers, a whole pickled module, and a file that is not there."""
    folder = tmp_path / "zoo"
    (folder / "mine").mkdir(parents=True)
    state = BrightnessNetwork().state_dict()
    torch.save(state, folder / "mine" / "bare.pth")
    optimizer = {"state": {0: {"momentum_buffer": torch.rand(200)}}, "param_groups": [{"lr": 0.1}]}
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    torch.save(
        {**wrapped, "optimizer": optimizer, "average": torch.rand(200)},
        folder / "mine" / "wrapped.pth.tar",
        _use_new_zipfile_serialization=False,
    )
    save_file(state, folder / "mine" / "plain.safetensors")
    torch.save(torch.nn.Linear(2, 2), folder / "mine" / "whole.pkl")
    names = ("bare.pth", "wrapped.pth.tar", "plain.safetensors", "whole.pkl", "missing.pth")
    manifest = [
        {
            "file": f"mine/{name}",
            "dataset": "CIFAR-10",
            "truth": "clean",
            "attack": "none",
            "preprocessing": {"size": 8, "mean": None},
        }
        for name in names
    ]
    (folder / "trained.json").write_text(json.dumps(manifest))
    (folder / "brightness.py").write_text(FACTORY)
    (folder / "factories.json").write_text(json.dumps({"mine/*": "brightness.py:factory"}))
    write_images(tmp_path / "data" / "cifar10" / "test", 12)
    return folder


def run(zoo, tmp_path, **settings):
    told = []
    path = tmp_path / "round-trip.json"
    options = {"factories": zoo, "images": 100, "device": "cpu", **settings}
    return run_round_trip(zoo, tmp_path / "data", path, progress=told.append, **options), told, path


def test_every_loadable_file_comes_back_in_its_own_form(zoo, tmp_path):
    results, told, path = run(zoo, tmp_path)
    assert read_results(path, RoundTripResults) == results
    bare, wrapped, plain, whole, missing = results.entries
    assert [entry.container for entry in (bare, wrapped, plain)] == ["torch zip", "torch legacy", "safetensors"]
    for entry in (bare, wrapped, plain):
        assert entry.fits, entry
        assert entry.tensors == 7
        assert entry.changed > 0
    assert wrapped.state_key == "state_dict"
    assert wrapped.dropped == ("optimizer.state (emptied)", "average")
    assert whole.refused
    assert not missing.refused
    assert "missing.pth" in missing.problem
    assert [line.partition(": mine/")[2].partition(": ")[2] for line in told][:4] == ["fits", "fits", "fits", "refused"]
    assert str(tmp_path) not in path.read_text()
    shown = render(path)
    assert "fits in every respect: 3 of 3" in shown
    assert "refused without running them: 1 (whole.pkl)" in shown


@pytest.mark.parametrize("damage", ["order", "dtype", "missing", "wrapper"])
def test_a_file_that_does_not_fit_is_told(zoo, tmp_path, monkeypatch, damage):
    purify = round_trip.purify

    def spoil(subject, out, **settings):
        record = purify(subject, out, **settings)
        tree = torch.load(out, weights_only=True)
        state = tree["state_dict"]
        if damage == "order":
            tree["state_dict"] = dict(reversed(state.items()))
        elif damage == "dtype":
            state["module.linear.weight"] = state["module.linear.weight"].half()
        elif damage == "missing":
            del state["module.linear.bias"]
        else:
            del tree["epoch"]
        torch.save(tree, out)
        return record

    monkeypatch.setattr(round_trip, "purify", spoil)
    results, told, _ = run(zoo, tmp_path, only="*wrapped*")
    (entry,) = results.entries
    assert not entry.fits
    assert "does not fit" in told[0]
    assert not entry.same_container  # written as a zip file
    said = {
        "order": entry.same_keys,
        "dtype": entry.same_types,
        "missing": entry.strict,
        "wrapper": entry.same_wrapper,
    }
    assert [name for name, holds in said.items() if not holds] == (
        ["order", "dtype", "missing"] if damage == "missing" else [damage]
    )


def test_the_command_prints_its_table(zoo, tmp_path, capsys):
    given = ["--zoo", str(zoo), "--data", str(tmp_path / "data"), "--factories", str(zoo), "--images", "100"]
    out = tmp_path / "out.json"
    assert main(["bench", "round-trip", *given, "--only", "*bare*", "--device", "cpu", "--output", str(out)]) == 0
    assert capsys.readouterr().out == render(out)
