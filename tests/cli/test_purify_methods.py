"""``banaudit purify --method`` from a file to a file, for the methods beyond fine-tuning."""

from __future__ import annotations

import json
from typing import ClassVar, final

import pytest
from safetensors.torch import load_file

from banaudit import audit as pipeline
from banaudit.demo import examples
from banaudit.detectors import Detector
from banaudit.detectors.base import Found
from banaudit.results import Evidence, Reading, Repair

SETTINGS = {
    "ban": ("--epochs", "1"),
    "ban-distillation": ("--epochs", "1", "--set", "ban-distillation.gentle=true"),
    "fine-tuning": ("--epochs", "1"),
    "ft-sam": ("--epochs", "1", "--set", "ft-sam.rho=0.1"),
    "anp": (
        *("--set", "anp.iterations=6", "--set", "anp.batch_size=16", "--set", "anp.learning_rate=0.5"),
        *("--set", "anp.largest_threshold=0.5"),
    ),
    "clp": (),
    "bti-dbf-unlearning": (
        *("--epochs", "1", "--set", "bti-dbf-unlearning.generator_steps=2"),
        *("--set", "bti-dbf-unlearning.mask_steps=2", "--set", "bti-dbf-unlearning.width=4"),
    ),
    "feature-flip": (
        *("--set", "feature-flip.target=3", "--set", "feature-flip.warm_up=2"),
        *("--set", "feature-flip.steps=2", "--set", "feature-flip.width=4"),
    ),
}

TRAINING = {"ban", "ban-distillation", "fine-tuning", "ft-sam", "bti-dbf-unlearning"}
PRUNING = {"anp", "clp"}


@final
class Silent(Detector):
    """Finds nothing, at once."""

    name: ClassVar[str] = "silent"
    title: ClassVar[str] = "a double for tests"
    misses: ClassVar[str] = "everything"

    def search(self, model, samples, generator, meter):
        return Found([Evidence(reading=Reading.ALL_TO_ONE, measures="none", score=0.0, threshold=0.5, fired=False)])

    def planned_images(self, num_classes, images):
        return 0


@pytest.fixture
def purified(run, tmp_path, monkeypatch):
    """Repairs the demo's model by some method; the old weights, the outcome, and where the new ones are."""
    monkeypatch.setattr(pipeline, "default_detectors", lambda: (Silent(),))

    def call(method, *settings, max_drop):
        out = tmp_path / "out.safetensors"
        with examples() as (demo, *_):
            numbers = [",".join(map(str, values)) for values in (demo.mean, demo.std)]
            done = run(
                *("purify", demo.model, "--data", demo.images, "-o", out, "--method", method, *settings),
                *("--mean", numbers[0], "--std", numbers[1], "--max-images", "100", "--max-drop", max_drop),
                *("--force", "--device", "cpu", "--no-progress"),
            )
            return load_file(demo.model), done, out

    return call


@pytest.mark.parametrize("method", SETTINGS)
def test_from_file_to_file(method, purified):
    old, done, out = purified(method, *SETTINGS[method], max_drop="30")
    assert done.code == 0, done.err
    new = load_file(out)
    assert {key: (tensor.shape, tensor.dtype) for key, tensor in old.items()} == {
        key: (tensor.shape, tensor.dtype) for key, tensor in new.items()
    }
    changed = [key for key in old if not old[key].equal(new[key])]
    assert changed
    assert method != "feature-flip" or len(changed) == 1
    if method in PRUNING:
        assert all(bool((new[key][new[key] != old[key]] == 0).all()) for key in changed)
    record = Repair.model_validate(json.loads(out.with_name("out.safetensors.json").read_text()))
    assert record.made.method == method
    shown = " ".join(done.out.split())
    assert ("epoch 1: loss" if method in TRAINING else record.epochs[-1].what.split(":")[0]) in shown
    assert f"{method}: " in shown
    assert ("augmentation: none" in shown) == (method in {"clp", "feature-flip"})


def test_the_scans_may_use_other_methods(purified, run):
    _, _, out = purified("clp", "--scan-method", "mm-bd", max_drop="30")
    record = Repair.model_validate(json.loads(out.with_name("out.safetensors.json").read_text()))
    assert [[finding.method for finding in scan.findings] for scan in (record.before, record.after)] == [["mm-bd"]] * 2
    refused = run("purify", "model.pt", "--data", "clean", "-o", "out.pt", "--scan-method", "mm-db")
    assert refused.code == 2
    assert "--scan-method mm-db: no such method" in refused.err


def test_a_ruined_network_is_inconclusive(purified):
    """Below the accuracy floor the second scan finds nothing, neither for nor against it."""
    _, done, out = purified("clp", "--set", "clp.u=1.2", max_drop="100")
    assert done.code == 3, done.err
    assert "the repaired model cannot be judged" in " ".join(done.out.split())
    assert out.exists()


def test_epochs_are_for_methods_that_have_some(run):
    done = run("purify", "model.pt", "--data", "clean", "-o", "out.pt", "--method", "clp", "--epochs", "3")
    assert done.code == 2
    assert "--epochs: clp does not train the network's weights; leave it out" in done.err


def test_help_names_every_method(run):
    from banaudit.mitigations import MITIGATIONS

    shown = "".join(run("purify", "--help").out.replace("│", " ").split())  # names break at their hyphens
    assert all(name in shown for name in MITIGATIONS)
