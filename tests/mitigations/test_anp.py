from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from banaudit.errors import BanauditError, UnsupportedModelError
from banaudit.mitigations import ANP, FineTuning
from banaudit.mitigations.anp import mask_as_noise, pruned_scales
from banaudit.neurons import train_under_noise
from mitigations.tiny import make_data, make_job, make_model, same_weights, snapshot


def forward_by_hand(model, images, scale, shift):
    """Logits with batch statistics and a given scale and shift of the one BatchNorm layer."""
    maps = model.network.conv((images - model.mean) / model.std)
    mean, var = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, unbiased=False)
    normal = (maps - mean) / (var + model.network.norm.eps).sqrt()
    return model.network.head(F.relu(scale.view(1, -1, 1, 1) * normal + shift.view(1, -1, 1, 1)))


def test_mask_and_noise_enter_as_in_the_paper():
    """((m + delta) gamma, (1 + xi) beta)"""
    model, data = make_model(), make_data(20)
    generator = torch.Generator().manual_seed(5)
    norm = model.network.norm
    with torch.no_grad():
        norm.weight.copy_(torch.rand(6, generator=generator) + 0.5)
        norm.bias.copy_(torch.rand(6, generator=generator) - 0.5)
    mask, noise = torch.rand(6, generator=generator), torch.rand(2, 6, generator=generator) - 0.5
    got = train_under_noise(model, data.images, mask_as_noise(mask) + noise, form="relative")
    expected = forward_by_hand(model, data.images, (mask + noise[0]) * norm.weight, (1 + noise[1]) * norm.bias)
    assert torch.allclose(got, expected, atol=1e-5)


def test_loss_by_hand():
    """alpha CE without noise and 1 - alpha CE with one sign step of eps from the random start."""
    model, data = make_model().requires_grad_(False), make_data(20)
    with torch.no_grad():
        model.network.norm.bias.fill_(0.3)
    norm, mask = model.network.norm, torch.linspace(0.2, 1, 6)

    def cross_entropy(noise):
        logits = forward_by_hand(model, data.images, (mask + noise[0]) * norm.weight, (1 + noise[1]) * norm.bias)
        return F.cross_entropy(logits, data.labels)

    start = (0.4 * (torch.rand(2, 6, generator=torch.Generator().manual_seed(7)) * 2 - 1)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy(start), start)
    noise = start.detach() + 0.4 * gradient.sign()
    expected = 0.2 * cross_entropy(torch.zeros(2, 6)) + 0.8 * cross_entropy(noise)
    got = ANP().loss(model, data.images, data.labels, mask, torch.Generator().manual_seed(7))
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


def test_thresholds():
    assert ANP().thresholds() == [round(0.05 * number, 2) for number in range(19)]
    assert ANP(largest_threshold=0.3, threshold_step=0.1).thresholds() == [0, 0.1, 0.2, 0.3]


def test_candidates_prune_more_and_more():
    model = make_model()
    mask = torch.tensor([0.0, 0.05, 0.3, 1.0, 0.31, 0.92])
    found = list(ANP().candidates(model, mask))
    assert [what.split(": ") for what, _ in found] == [
        ["mask at most 0", "1 of 6 neurons pruned"],
        ["mask at most 0.05", "2 of 6 neurons pruned"],
        ["mask at most 0.3", "3 of 6 neurons pruned"],
        ["mask at most 0.35", "4 of 6 neurons pruned"],
    ]
    assert found[1][1]["network.norm.weight"].tolist() == [0, 0, 1, 1, 1, 1]
    assert all(changes.keys() == {"network.norm.weight"} for _, changes in found)


def test_layers_without_a_pruned_neuron_are_left_alone():
    assert pruned_scales(make_model(), torch.zeros(6, dtype=torch.bool)) == {}


def test_pruned_scales_are_zero_and_nothing_else_changes():
    model = make_model()
    method = ANP(iterations=20, batch_size=16, learning_rate=1, largest_threshold=0.99, threshold_step=0.01)
    repaired = method(model, make_data(), max_drop=1.0).model
    before, after = model.state_dict(), repaired.state_dict()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed == ["network.norm.weight"]
    different = before["network.norm.weight"] != after["network.norm.weight"]
    assert bool((after["network.norm.weight"][different] == 0).all())


def test_the_budget_decides_the_threshold(monkeypatch):
    """Neuron after neuron goes; the last pruning that keeps the accuracy is taken, and no trigger is asked."""
    data = make_data(300)
    model = FineTuning(epochs=15, batch_size=32, learning_rate=0.05)(
        make_model(), data, max_drop=1.0, flips=False
    ).model
    monkeypatch.setattr(ANP, "learn_mask", lambda self, job: torch.linspace(0.1, 0.6, 6))
    repaired = ANP()(model, data, max_drop=0.1, flips=False)
    assert repaired.accuracy_before > 0.9
    lowest = repaired.accuracy_before - 0.1 - 1e-6
    affordable = [item.epoch for item in repaired.epochs if item.accuracy >= lowest]
    assert 0 < len(affordable) < len(repaired.epochs)
    assert repaired.kept_epoch == affordable[-1]
    assert repaired.within_budget


def test_mask_stays_within_bounds_and_the_model_as_it_is():
    job = make_job()
    before = snapshot(job.model)
    mask = ANP(iterations=10, batch_size=16, learning_rate=5.0).learn_mask(job)
    assert 0 <= float(mask.min()) < float(mask.max()) <= 1
    assert same_weights(before[0], snapshot(job.model)[0])
    assert job.meter.forward_images == job.meter.backward_images == 10 * 3 * 16


def test_the_seed_matters_to_the_mask():
    masks = [ANP(iterations=3, batch_size=16).learn_mask(make_job(seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_refusals():
    with pytest.raises(UnsupportedModelError, match="needs BatchNorm"):
        ANP()(make_model(normalised=False), make_data())
    with pytest.raises(UnsupportedModelError, match=r"no neuron's mask is at most 0 .*: nothing to prune"):
        ANP(iterations=1, learning_rate=1e-9, largest_threshold=0)(make_model(), make_data())
    model = make_model()
    with torch.no_grad():
        model.network.linear.weight.fill_(float("inf"))
    with pytest.raises(BanauditError, match="the mask diverged at step 1"):
        ANP(iterations=2)(model, make_data(), flips=False)
