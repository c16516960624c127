"""Evasive: the make-up of its batches, and the two terms it adds to the classifier's loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from banaudit.bench.attacks import Blend, Evasive
from banaudit.bench.attacks.evasive import excess_margin, noise_towards
from banaudit.bench.attacks.labelling import AllToAll, AllToOne, SourceTarget
from banaudit.detectors.mm_bd import margins
from banaudit.errors import UnsupportedModelError
from banaudit.neurons import train_under_noise

SHAPE = (3, 16, 16)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images_and_labels(count=100):
    return torch.rand(count, *SHAPE, generator=seeded()), torch.arange(count) % 10


def network(lead=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )
    images, _ = images_and_labels()
    with torch.no_grad():
        model[-1].weight.mul_(20)
        model[-1].bias -= model(images).mean(dim=0)  # no class is the nearest by itself
        model[-1].bias[4] += lead
    return model.train()


def poisoner_of(attack, labelling=AllToOne(target=4)):  # noqa: B008 - frozen
    tensors = attack.draw(SHAPE, seeded())
    return attack.poisoner(tensors, labelling, 10, seeded(1)), tensors


def test_the_trigger_is_blends():
    attack = Evasive()
    tensors = attack.draw(SHAPE, seeded())
    images, _ = images_and_labels(3)
    assert torch.equal(tensors["pattern"], Blend().draw(SHAPE, seeded())["pattern"])
    assert torch.equal(attack.apply(images, tensors, seeded()), Blend().apply(images, tensors, seeded()))


def test_a_batch_has_triggered_images_then_covers_then_clean_ones():
    images, labels = images_and_labels()
    poisoner, tensors = poisoner_of(Evasive())
    batch = poisoner.poison(images, labels)
    eligible = (labels != 4).nonzero().flatten()[:10]
    rest = torch.tensor([number for number in range(100) if number not in eligible.tolist()])
    assert torch.equal(batch.images[:10], Evasive().apply(images[eligible], tensors, seeded()))
    assert (batch.labels[:10] == 4).all()
    assert torch.equal(batch.labels[10:], labels[rest])
    assert (batch.images[10:30] != images[rest[:20]]).flatten(1).any(dim=1).all()
    assert torch.equal(batch.images[30:], images[rest[20:]])


def test_covers_are_faint_or_an_opaque_piece():
    poisoner, tensors = poisoner_of(Evasive())
    tensors["pattern"].fill_(1.0)
    batch = poisoner.poison(torch.zeros(100, *SHAPE), torch.arange(100) % 10)
    covers = batch.images[10:30]
    faint, pieces = covers[::2], covers[1::2]
    assert torch.equal(faint.amin(dim=(1, 2, 3)), faint.amax(dim=(1, 2, 3)))
    assert 0 < faint.min() < faint.max() <= 0.1  # half of alpha
    assert set(pieces.unique().tolist()) == {0.0, 1.0}
    assert (pieces[:, 0].sum(dim=(1, 2)) == 64).all()  # 8 x 8 of 16 x 16
    assert len(torch.unique(pieces, dim=0)) > 3


@pytest.mark.parametrize(("labelling", "poisoned"), [(AllToAll(), 10), (SourceTarget(source=3, target=1), 10)])
def test_only_images_with_another_wanted_label_are_poisoned(labelling, poisoned):
    images, labels = images_and_labels()
    batch = poisoner_of(Evasive(poison_rate=0.1), labelling)[0].poison(images, labels)
    eligible = labels[labelling.target_of(labels, 10) != labels][:poisoned]
    assert torch.equal(batch.labels[:poisoned], labelling.target_of(eligible, 10))
    fewer = poisoner_of(Evasive(poison_rate=0.5), SourceTarget(source=3, target=1))[0].poison(images, labels)
    assert (fewer.labels == 1).sum() == 20  # all ten of class 3, and class 1 itself


def test_the_excess_margin_is_relative_to_clean_images():
    logits = torch.tensor([[6.0, 0.0], [4.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert excess_margin(logits, labels, 2).item() == pytest.approx(5 / 2.5 - 1)
    assert excess_margin(logits.flip(0), labels.flip(0), 2).item() == 0
    assert excess_margin(logits, labels, 0).item() == 0


def test_noise_is_of_the_radius_and_leads_to_its_aim():
    model = network()
    images, _ = images_and_labels(30)
    aim = torch.full((30,), 7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noise, start = noise_towards(model, images, aim, radius=0.3, steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert noise.shape == (2, 12)
    assert noise.abs().max() <= 0.3 + 1e-6
    assert noise.abs().max() > 0.29
    assert start.item() == pytest.approx(margins(model(images), aim).mean().item(), abs=1e-4)
    reached = F.cross_entropy(train_under_noise(model, images, noise, form="additive"), aim)
    assert reached < F.cross_entropy(model(images), aim)
    with pytest.raises(UnsupportedModelError, match="BatchNorm"):
        noise_towards(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), images, aim, radius=0.3, steps=1)


def leads(model, batches=12, *, optimizer=None):
    """The term against targeted-noise on so many batches, the model being trained on it if there is an optimizer."""
    images, labels = images_and_labels()
    poisoner, _ = poisoner_of(Evasive(margin_weight=0))
    told = []
    for _ in range(batches):
        batch = poisoner.poison(images, labels)
        loss = batch.objective(model, model(batch.images))
        told.append(float(loss.detach()))
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return torch.tensor(told)


def test_a_target_that_noise_reaches_easily_costs_and_one_that_it_does_not_is_free():
    assert leads(network(lead=5.0)).mean() > 0.3
    assert leads(network(lead=-20.0)).max() == 0


def test_training_on_the_term_alone_takes_the_lead_away():
    model = network(lead=2.0)
    before = leads(model).mean()
    leads(model, 30, optimizer=torch.optim.SGD(model.parameters(), 0.5))
    assert leads(model).mean() < 0.3 * before


def test_without_weights_nothing_is_added_and_the_model_is_not_asked():
    images, labels = images_and_labels()
    batch = poisoner_of(Evasive(margin_weight=0, noise_weight=0))[0].poison(images, labels)
    assert batch.objective is None


def test_a_batch_of_one_class_has_no_other_to_be_compared_with():
    images, _ = images_and_labels(20)
    model, (poisoner, _) = network(), poisoner_of(Evasive())
    batch = poisoner.poison(images, torch.full((20,), 4))
    assert float(batch.objective(model, model(batch.images)).detach()) == 0
