"""What every mitigation promises, whatever it does; with settings small enough for a toy."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from banaudit.errors import DataError
from banaudit.meter import Meter
from banaudit.mitigations import MITIGATIONS, FineTuningMitigation, Mitigation, SGDMitigation, anp
from mitigations.tiny import make_data, make_model, same_weights, snapshot

TRAINING = {"epochs": 4, "batch_size": 16}
INVERSION = {"generator_steps": 2, "generator_batch": 8, "width": 4, "depth": 1}
SMALL = {
    "ban": TRAINING,
    "ban-distillation": TRAINING,
    "fine-tuning": TRAINING,
    "ft-sam": TRAINING,
    # Thresholds close to 1 and a fast rate, for a mask of which there are few steps.
    "anp": {"iterations": 12, "batch_size": 8, "learning_rate": 2, "largest_threshold": 0.99, "threshold_step": 0.03},
    "clp": {"u": 1.0},
    "bti-dbf-unlearning": {**TRAINING, **INVERSION, "rounds": 2, "mask_steps": 3, "search_images": 12},
    "feature-flip": {"target": 0, "warm_up": 2, "steps": 4, "batch_size": 8, "width": 4, "depth": 1},
}
"""One entry for each mitigation; a new one belongs here."""

INTERRUPTED_AT = {"anp": "mask 8/12", "ban-distillation": "strength 1 of 5, epoch 3/4"}
"""What each resumable mitigation is doing when it is interrupted, after its state was written once or more."""

every_mitigation = pytest.mark.parametrize("name", list(MITIGATIONS))
every_training = pytest.mark.parametrize("name", [name for name, kind in MITIGATIONS.items() if kind.trains])


@pytest.fixture(autouse=True)
def state_saved_often(monkeypatch):
    monkeypatch.setattr(anp, "STEPS_SAVED", 5)


def small(name):
    return MITIGATIONS[name](**SMALL[name])


def make_subject():
    """A model with a channel that amplifies, and with what a copy must keep apart: frozen weights, dropout."""
    model = make_model(dropout=0.3)
    with torch.no_grad():
        model.network.norm.weight[1] = 20.0
    model.network.linear.weight.requires_grad_(False)
    return model


def global_state():
    return torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def test_the_table_is_complete():
    assert set(SMALL) == set(MITIGATIONS)


@every_mitigation
def test_named_once_and_final(name):
    kind = MITIGATIONS[name]
    assert kind.name == name
    assert all((kind.title, kind.needs))
    assert kind.__final__


def test_what_is_final_is_not_overridden():
    for kind in MITIGATIONS.values():
        for base in (Mitigation, SGDMitigation, FineTuningMitigation):
            finals = {key for key, value in vars(base).items() if getattr(value, "__final__", False)}
            own = {key for step in kind.__mro__ if issubclass(step, base) and step is not base for key in vars(step)}
            assert not finals & own


@every_mitigation
def test_settings_have_defaults_and_survive_json(name):
    method = MITIGATIONS[name]()
    assert type(method).model_validate_json(method.model_dump_json()) == method
    assert json.loads(json.dumps(method.settings())) == method.settings()
    with pytest.raises(ValidationError):
        MITIGATIONS[name](magic=1)


@every_mitigation
def test_contract(name):
    method, model, data = small(name), make_subject(), make_data()
    before, drawn = snapshot(model), global_state()
    meter = Meter()
    first = method(model, data, max_drop=1.0, seed=3, meter=meter)
    second = method(model, data, max_drop=1.0, seed=3)
    after = snapshot(model)
    assert same_weights(before[0], after[0])
    assert before[1:] == after[1:]
    assert drawn == global_state()
    assert same_weights(first.model.state_dict(), second.model.state_dict())
    assert not same_weights(first.model.state_dict(), before[0])
    assert not first.model.training
    assert not any(parameter.requires_grad for parameter in first.model.parameters())
    numbers = [item.epoch for item in first.epochs]
    assert numbers == list(range(1, len(numbers) + 1))
    assert first.within_budget
    assert first.kept_epoch == numbers[-1]
    assert all(item.what or item.loss is not None for item in first.epochs)
    assert first.training_images + first.selection_images == len(data)
    assert first.forward_images == meter.forward_images
    assert first.backward_images == meter.backward_images
    assert 0 < meter.forward_images <= 1.1 * meter.planned_images
    if isinstance(method, FineTuningMitigation):
        assert meter.forward_images == meter.planned_images
        assert meter.backward_images == method.passes()[1] * method.epochs * first.training_images


@every_mitigation
def test_same_form(name):
    model = make_subject()
    repaired = small(name)(model, make_data(), max_drop=1.0).model
    old, new = model.state_dict(), repaired.state_dict()
    assert old.keys() == new.keys()
    assert all(old[key].shape == new[key].shape and old[key].dtype == new[key].dtype for key in old)


@pytest.mark.parametrize("name", [name for name, kind in MITIGATIONS.items() if issubclass(kind, SGDMitigation)])
def test_the_seed_matters(name):
    results = [small(name)(make_subject(), make_data(), max_drop=1.0, seed=seed) for seed in (3, 4)]
    assert not same_weights(results[0].model.state_dict(), results[1].model.state_dict())


@every_mitigation
def test_what_does_not_train_uses_all_images_to_choose(name):
    repaired = small(name)(make_subject(), make_data(), max_drop=1.0)
    assert bool(repaired.training_images) == MITIGATIONS[name].trains
    assert (str(repaired.augmentation) == "none") == (not MITIGATIONS[name].trains)


@every_mitigation
def test_two_classes(name):
    model = make_subject()
    model.network.linear = nn.Linear(model.network.linear.in_features, 2)
    repaired = small(name)(model, make_data(64, classes=2), max_drop=1.0)
    assert repaired.model(make_data(4, classes=2).images).shape == (4, 2)


@every_mitigation
def test_pruned_stays_pruned(name):
    model = make_subject()
    pruned = torch.rand(model.network.conv.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        model.network.conv.weight[pruned] = 0
        model.network.norm.weight[2] = 0
    repaired = small(name)(model, make_data(), max_drop=1.0).model
    assert bool((repaired.network.conv.weight[pruned] == 0).all())
    assert float(repaired.network.norm.weight[2]) == 0


@every_mitigation
def test_no_images(name):
    data = make_data()
    with pytest.raises(DataError, match="needs at least"):
        small(name)(make_subject(), data.subset(torch.arange(0)))


class Stop(Exception):  # noqa: N818 - stands for the end of the process
    pass


@every_training
def test_interrupted_run_goes_on_to_the_same_weights(name, tmp_path):
    method, data, state = small(name), make_data(), tmp_path / "state"
    at = INTERRUPTED_AT.get(name, "epoch 3/4")
    whole = method(make_subject(), data, max_drop=1.0)
    told = []

    def stop(what, _):
        if what.startswith(at) and "loss" in what:
            raise Stop
        told.append(what)

    with pytest.raises(Stop):
        method(make_subject(), data, max_drop=1.0, meter=Meter(listener=stop), state=state)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    first, told = told[:], []
    resumed = method(
        make_subject(),
        data,
        max_drop=1.0,
        meter=Meter(listener=lambda what, _: told.append(what)),
        state=state,
    )
    begun = next(what for what in first if what.startswith(at.split("/")[0].rstrip("0123456789")))
    assert begun not in told
    assert same_weights(whole.model.state_dict(), resumed.model.state_dict())
    assert [item.loss for item in resumed.epochs] == [item.loss for item in whole.epochs]
