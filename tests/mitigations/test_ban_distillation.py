"""Distillation under neuron noise: the loss by hand, and what the teacher is."""

import math

import pytest
import torch
import torch.nn.functional as F

from banaudit.mitigations import BANDistillation
from banaudit.mitigations.ban_distillation import distillation_loss
from banaudit.neurons import train_under_noise, worst_noise
from mitigations.tiny import make_data, make_model


def test_distillation_by_hand():
    # At T = 2 the logits (2 ln 3, 0) become (3/4, 1/4); the student says (1/2, 1/2): KL = 3/4 ln 3/2 + 1/4 ln 1/2.
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = distillation_loss(torch.zeros(1, 2), teacher, 2.0)
    assert float(found) == pytest.approx(4 * divergence, abs=1e-6)
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0.0, abs=1e-6)


def test_the_loss_is_the_three_terms_together():
    model, data = make_model(), make_data()
    teacher = make_model().eval()
    with torch.no_grad():
        teacher.network.linear.weight.mul_(2)
    method = BANDistillation(distillation=0.25, temperature=3.0, noise_weight=0.7)
    model.train()
    found = method.loss(model, teacher, data.images, data.labels, torch.Generator().manual_seed(3))
    noise = worst_noise(
        model,
        data.images,
        data.labels,
        eps=method.eps,
        steps=1,
        clip=False,
        form="relative",
        generator=torch.Generator().manual_seed(3),
    )
    clean = model(data.images)
    expected = (
        0.75 * F.cross_entropy(clean, data.labels)
        + 0.25 * distillation_loss(clean, teacher(data.images), 3.0)
        + 0.7 * F.cross_entropy(train_under_noise(model, data.images, noise, form="relative"), data.labels)
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_the_teacher_is_the_model_as_it_came(monkeypatch):
    seen = []
    plain = BANDistillation.loss

    def spy(self, model, teacher, *rest):
        seen.append({name: tensor.clone() for name, tensor in teacher.state_dict().items()})
        return plain(self, model, teacher, *rest)

    monkeypatch.setattr(BANDistillation, "loss", spy)
    model = make_model()
    BANDistillation(epochs=2, batch_size=16)(model, make_data(), max_drop=1.0)
    assert len(seen) > 2
    for state in seen:
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
