from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from banaudit.mitigations import FTSAM, FineTuning
from banaudit.mitigations.ft_sam import adaptive_ascent
from mitigations.tiny import make_data, make_model


def test_ascent_by_hand():
    """w = (1, -2), v = (3); g = (2, 1), (-1): |w| g = (2, 2), (-3), of length sqrt(17)."""
    weights = {"w": torch.tensor([1.0, -2.0]), "v": torch.tensor([3.0])}
    gradients = {"w": torch.tensor([2.0, 1.0]), "v": torch.tensor([-1.0])}
    moved = adaptive_ascent(weights, gradients, 0.5)
    length = 0.5 / 17**0.5
    assert moved["w"].tolist() == pytest.approx([1 + 2 * length, -2 + 4 * length])
    assert moved["v"].tolist() == pytest.approx([3 - 9 * length])
    relative = torch.cat([(moved[name] - weights[name]) / weights[name].abs() for name in ("w", "v")])
    assert float(relative.norm()) == pytest.approx(0.5)


def test_weights_without_gradient_and_zero_gradients_stay():
    weights = {"w": torch.tensor([1.0]), "idle": torch.tensor([2.0])}
    moved = adaptive_ascent(weights, {"w": torch.zeros(1)}, 2.0)
    assert (moved["w"].tolist(), moved["idle"].tolist()) == ([1.0], [2.0])


def test_pruned_weights_are_not_moved():
    moved = adaptive_ascent({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([5.0, 5.0])}, 2.0)
    assert float(moved["w"][0]) == 0


def test_gradient_is_that_of_the_changed_network():
    """The two passes by hand, on a copy whose weights really are moved."""
    data, method = make_data(24), FTSAM(rho=0.5)
    model = make_model().requires_grad_(True).train()
    moved = copy.deepcopy(model)
    loss = method.loss(model, data.images, data.labels, torch.Generator())
    gradients = torch.autograd.grad(loss, list(model.parameters()))

    def cross_entropy():
        return F.cross_entropy(moved(data.images), data.labels, label_smoothing=0.1)

    first = torch.autograd.grad(cross_entropy(), list(moved.parameters()))
    length = sum(
        ((weight.abs() * gradient) ** 2).sum() for weight, gradient in zip(moved.parameters(), first, strict=True)
    ).sqrt()
    with torch.no_grad():
        for weight, gradient in zip(moved.parameters(), first, strict=True):
            weight.add_(0.5 * weight**2 * gradient / length)
    second = cross_entropy()
    assert loss.item() == pytest.approx(second.item(), rel=1e-5)
    for got, expected in zip(gradients, torch.autograd.grad(second, list(moved.parameters())), strict=True):
        assert torch.allclose(got, expected, atol=1e-5)


def test_running_statistics_come_from_the_first_pass_and_no_gradient_is_left():
    data = make_data(24)
    model = make_model().requires_grad_(True).train()
    twin = copy.deepcopy(model)
    FTSAM().loss(model, data.images, data.labels, torch.Generator())
    FineTuning().loss(twin, data.images, data.labels, torch.Generator())
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(model.network.norm, name), getattr(twin.network.norm, name))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_that_the_output_does_not_use():
    model = make_model()
    model.network.spare = nn.Linear(2, 2)
    repaired = FTSAM(epochs=1, weight_decay=0.0)(model, make_data(), max_drop=1.0).model
    assert torch.equal(repaired.network.spare.weight, model.network.spare.weight)


def test_it_learns():
    data = make_data()
    repaired = FTSAM(epochs=10, batch_size=16, learning_rate=0.05, rho=0.2)(
        make_model(), data, max_drop=1.0, flips=False
    )
    assert float((repaired.model(data.images).argmax(dim=1) == data.labels).double().mean()) > 0.9
