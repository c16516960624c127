from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from banaudit.data import CleanData
from banaudit.errors import BanauditError, DataError, UnsupportedModelError
from banaudit.meter import Meter
from banaudit.mitigations import BANFineTuning, FineTuning
from banaudit.neurons import NoisyModel, count_neurons, train_under_noise
from banaudit.training import Augmentation, Schedule, choose_augmentation, random_crop
from mitigations.tiny import make_data, make_model, same_weights


def test_the_paper_trains_for_25_epochs():
    assert BANFineTuning().epochs == FineTuning().epochs == 25


@pytest.mark.parametrize("mitigation", [BANFineTuning, FineTuning])
def test_it_learns_and_works_for_two_classes(mitigation):
    data = make_data(64, classes=2)
    repaired = mitigation(epochs=8, batch_size=16, learning_rate=0.05)(make_model(), data, max_drop=1.0, flips=False)
    predicted = repaired.model(data.images).argmax(dim=1)
    assert float((predicted == data.labels).double().mean()) > 0.9
    assert repaired.epochs[-1].loss < repaired.epochs[0].loss


def test_budget_decides_the_epoch():
    model, data = make_model(), make_data(300)
    sound = FineTuning(epochs=6, learning_rate=0.05)(model, data, flips=False, max_drop=0.02)
    assert (sound.kept_epoch, sound.within_budget) == (6, True)
    ruined = FineTuning(epochs=3, learning_rate=5.0, momentum=0.0)(sound.model, data, flips=False, max_drop=0.0)
    if not ruined.within_budget:
        best = max(item.accuracy for item in ruined.epochs)
        assert ruined.epochs[ruined.kept_epoch - 1].accuracy == best
    accuracies = [item.accuracy for item in ruined.epochs]
    lowest = ruined.accuracy_before - 1 / ruined.selection_images - 1e-6
    affordable = [item.epoch for item in ruined.epochs if item.accuracy >= lowest]
    assert ruined.kept_epoch == (affordable[-1] if affordable else 1 + accuracies.index(max(accuracies)))


def test_pruned_weights_stay_pruned():
    model = make_model()
    pruned = torch.rand(model.network.conv.weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        model.network.conv.weight[pruned] = 0
        model.network.norm.weight[2] = 0
    repaired = BANFineTuning(epochs=2)(model, make_data(), max_drop=1.0)
    assert torch.equal(repaired.model.network.conv.weight == 0, pruned)
    assert torch.equal(repaired.model.network.norm.weight == 0, torch.arange(6) == 2)


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_state_that_does_not_belong_starts_afresh(damage, tmp_path):
    method, data, state = FineTuning(epochs=2), make_data(), tmp_path / "state"
    if damage is None:
        method(make_model(), data, max_drop=1.0, seed=9, state=state)
    else:
        state.write_bytes(damage)
    whole = method(make_model(), data, max_drop=1.0)
    assert same_weights(
        whole.model.state_dict(), method(make_model(), data, max_drop=1.0, state=state).model.state_dict()
    )


@pytest.mark.parametrize("change", ["mean", "std", "logit_scale"])
def test_state_of_another_normalisation_starts_afresh(change, tmp_path):
    def other():
        model = make_model()
        setattr(model, change, getattr(model, change) * 2)
        return model

    method, data, state = FineTuning(epochs=2), make_data(), tmp_path / "state"
    method(make_model(), data, max_drop=1.0, state=state)
    resumed = method(other(), data, max_drop=1.0, state=state)
    assert not any(item.earlier for item in resumed.epochs)
    assert same_weights(method(other(), data, max_drop=1.0).model.state_dict(), resumed.model.state_dict())


def test_state_of_an_older_version_starts_afresh(tmp_path):
    method, data, state = FineTuning(epochs=2), make_data(), tmp_path / "state"
    method(make_model(), data, max_drop=1.0, state=state)
    saved = torch.load(state, weights_only=True)
    torch.save({**saved, "identity": "of an older version"}, state)
    assert not any(item.earlier for item in method(make_model(), data, max_drop=1.0, state=state).epochs)


def test_refusals():
    with pytest.raises(UnsupportedModelError, match="needs BatchNorm"):
        BANFineTuning()(make_model(normalised=False), make_data())
    FineTuning(epochs=1)(make_model(normalised=False), make_data(), max_drop=1.0)
    with pytest.raises(DataError, match="at least two images"):
        FineTuning()(make_model(), make_data(1))
    with pytest.raises(BanauditError, match="lower the learning rate"):
        FineTuning(learning_rate=1e20)(make_model(), make_data())


def test_noise_for_training_is_the_noise_for_detection():
    model, data = make_model(), make_data(20)
    noise = torch.rand(2, count_neurons(model), generator=torch.Generator().manual_seed(5)) - 0.5
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for form in ("relative", "additive"):
        expected = NoisyModel(copy.deepcopy(model), form=form)
        with torch.autocast("cpu", enabled=False):
            got = train_under_noise(model, data.images, noise, form=form)
        assert torch.allclose(got, expected.logits(data.images, noise), atol=0.05)
    assert same_weights(before, model.state_dict())
    assert not model.network.norm.training


def test_noise_by_hand():
    """Gamma and beta under noise, batch statistics: computed by the formulas."""
    model, data = make_model(), make_data(20)
    noise = torch.rand(2, 6, generator=torch.Generator().manual_seed(5)) - 0.5
    maps = model.network.conv((data.images - model.mean) / model.std)
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, unbiased=False)
    gamma = (model.network.norm.weight * (1 + noise[0])).view(1, -1, 1, 1)
    beta = (model.network.norm.bias * (1 + noise[1])).view(1, -1, 1, 1)
    features = F.relu(gamma * (maps - mean) / (var + model.network.norm.eps).sqrt() + beta)
    expected = model.network.head(features)
    assert torch.allclose(train_under_noise(model, data.images, noise, form="relative"), expected, atol=1e-5)


def test_running_statistics_come_from_the_clean_pass():
    model, data = make_model().train(), make_data(20)
    model.requires_grad_(True)
    twin = copy.deepcopy(model)
    BANFineTuning(noise_steps=3).loss(model, data.images, data.labels, torch.Generator().manual_seed(0))
    FineTuning().loss(twin, data.images, data.labels, torch.Generator().manual_seed(0))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model.network.norm, name), getattr(twin.network.norm, name))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("clip", "radius"), [(True, 0.3), (False, 0.6)])
def test_noise_grows_the_loss_within_its_radius(clip, radius):
    model, data = make_model().train().requires_grad_(True), make_data(40)
    method = BANFineTuning(clip=clip, noise_steps=5)
    with torch.no_grad():
        model.network.norm.bias.fill_(0.3)
    noise = method._worst_noise(model, data.images, data.labels, torch.Generator().manual_seed(0), clip=method.clip)
    assert float(noise.abs().max()) <= radius + 1e-6
    with torch.no_grad():
        losses = [
            float(F.cross_entropy(train_under_noise(model, data.images, value, form="relative"), data.labels))
            for value in (torch.zeros_like(noise), noise)
        ]
    assert losses[1] > losses[0]


def test_augmentation_is_chosen_on_the_model():
    data = make_data(90)
    model = FineTuning(epochs=10, learning_rate=0.05)(make_model(), data, flips=False, max_drop=1.0).model
    assert not choose_augmentation(model, data, flips=None, meter=Meter()).flips  # left and right are two classes
    symmetric = CleanData(data.images + data.images.flip(3), data.labels * 0, data.class_names)
    assert choose_augmentation(model, symmetric, flips=None, meter=Meter()).flips
    assert choose_augmentation(model, data, flips=True, meter=Meter()) == Augmentation(1, True)


def test_augmentation_is_chosen_on_images_of_all_classes():
    """Images come sorted by class, and of the first class mirroring may change nothing."""
    data = make_data(1500)
    model = FineTuning(epochs=3, learning_rate=0.05)(make_model(), data, flips=False, max_drop=1.0).model
    middle_first = (data.labels != 1).to(torch.uint8).argsort(stable=True)
    assert not choose_augmentation(model, data.subset(middle_first), flips=None, meter=Meter()).flips


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_a_constant_on_the_last_layer_changes_no_repair(scale):
    model, data = make_model(), make_data(120)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled.network.linear.weight.mul_(scale)
        scaled.network.linear.bias.mul_(scale)
    scaled.logit_scale = 1 / scale
    method = FineTuning(epochs=3, learning_rate=0.05)
    plain, found = (method(item, data, flips=False, max_drop=1.0).model for item in (model, scaled))
    assert found.logit_scale == 1 / scale
    for name, tensor in plain.network.state_dict().items():
        factor = scale if name.startswith("linear") else 1.0
        assert torch.allclose(found.network.state_dict()[name].double(), factor * tensor.double(), rtol=1e-3, atol=1e-5)


def test_no_batch_is_of_one_image():
    """BatchNorm has no spread there."""
    repaired = FineTuning(epochs=1, batch_size=1)(make_model(), make_data(9), flips=False, max_drop=1.0)
    assert math.isfinite(repaired.epochs[0].loss)


def test_random_crop_shifts():
    images = torch.arange(2 * 36.0).view(2, 1, 6, 6) + 1
    generator = torch.Generator().manual_seed(0)
    changed = [random_crop(images, 1, False, generator) for _ in range(20)]
    padded = F.pad(images, (1,) * 4)
    windows = [padded[:, :, row : row + 6, column : column + 6] for row in range(3) for column in range(3)]
    for result in changed:
        assert all(any(torch.equal(result[k], window[k]) for window in windows) for k in range(2))
    mirrored = random_crop(images, 0, True, generator)
    assert all(torch.equal(mirrored[k], images[k]) or torch.equal(mirrored[k], images[k].flip(2)) for k in range(2))
    assert math.isclose(float(mirrored.sum()), float(images.sum()))


def test_learning_rate_falls_as_half_a_cosine():
    schedule = Schedule(epochs=4, batch_size=8, learning_rate=0.2, anneal=True, momentum=0.9, weight_decay=0.0)
    assert [round(schedule.rate(done), 6) for done in (0, 0.5, 1)] == [0.2, 0.1, 0.0]
    assert replace(schedule, anneal=False).rate(0.9) == 0.2
