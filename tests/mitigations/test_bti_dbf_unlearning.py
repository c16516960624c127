from __future__ import annotations

import math

import pytest
import torch
from toys import NAMES, TARGET, draw_images, stamp, train

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.errors import UsageError
from banaudit.meter import Meter
from banaudit.mitigations import BTIDBFUnlearning, FineTuning
from banaudit.mitigations.bti_dbf_unlearning import InvertedTrigger, triggered_images, unlearning_loss
from mitigations.tiny import make_data, make_job, make_model, same_weights

FAST = {"epochs": 2, "batch_size": 16, "generator_steps": 2, "generator_batch": 8, "mask_steps": 2, "width": 4}


class MeanOfChannels(SplitNetwork):
    """Two features that are the two logits."""

    def features(self, inputs):
        return inputs.mean((2, 3))

    def head(self, features):
        return features


@pytest.mark.parametrize(("count", "share", "expected"), [(128, 0.1, 13), (9, 0.1, 1), (20, 0.1, 3), (4, 1.0, 4)])
def test_a_share_and_one_more(count, share, expected):
    assert triggered_images(count, share) == expected


def test_loss_by_hand():
    model = SplitModel(MeanOfChannels(), (0.0, 0.0), (1.0, 1.0))
    clean = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    changed = torch.tensor([[0.0, 2.0], [0.0, 1.0]]).view(2, 2, 1, 1)
    loss = unlearning_loss(model, clean, changed, torch.tensor([0, 1]), 0.5)
    entropy = (math.log1p(math.exp(2)) + math.log1p(math.exp(-1))) / 2  # of the changed images, with the true labels
    assert float(loss) == pytest.approx(entropy + 0.5 * (1 + 4) / 4)


def test_only_the_first_images_are_generated():
    model, data = make_model(), make_data(30)
    trigger = InvertedTrigger(BTIDBFUnlearning(**FAST), make_job(model, data))
    trigger.before_epoch(1, model)
    images = data.images[:20].clone().requires_grad_()
    stamped = trigger.stamp(images)
    assert torch.equal(stamped[3:], images[3:])
    assert not torch.equal(stamped[:3], images[:3])
    assert bool(((stamped >= 0) & (stamped <= 1)).all())


@pytest.mark.parametrize(
    ("epochs", "rounds", "begun"), [(6, 3, {1, 3, 5}), (5, 2, {1, 3}), (2, 5, {1, 2}), (4, 1, {1})]
)
def test_rounds_are_spread_over_the_epochs(epochs, rounds, begun):
    model, data = make_model(), make_data(30)
    method = BTIDBFUnlearning(**{**FAST, "epochs": epochs}, rounds=rounds)
    work = make_job(model, data)
    trigger, spent = InvertedTrigger(method, work), []
    for epoch in range(1, epochs + 1):
        before = work.meter.forward_images
        trigger.before_epoch(epoch, model)
        spent.append(work.meter.forward_images > before)
    assert {epoch for epoch, was in enumerate(spent, start=1) if was} == begun
    assert not model.training


def test_inversion_leaves_the_model_and_is_repeated_exactly():
    model, data = make_model().train(), make_data(30)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    triggers = [InvertedTrigger(BTIDBFUnlearning(**FAST), make_job(model, data)) for _ in range(2)]
    for trigger in triggers:
        trigger.before_epoch(1, model)
    assert same_weights(before, model.state_dict())
    assert model.training
    assert torch.equal(triggers[0].stamp(data.images), triggers[1].stamp(data.images))
    restored = InvertedTrigger(BTIDBFUnlearning(**FAST), make_job(model, data))
    restored.restore(triggers[0].dump())
    assert torch.equal(restored.stamp(data.images), triggers[0].stamp(data.images))
    assert restored.target == triggers[0].target is not None


def test_given_target_is_kept_and_must_exist():
    model, data = make_model(), make_data(30)
    trigger = InvertedTrigger(BTIDBFUnlearning(**FAST, target=1), make_job(model, data))
    trigger.before_epoch(1, model)
    assert trigger.target == 1
    with pytest.raises(UsageError, match=r"--set bti-dbf-unlearning.target=3: expected a label from 0 to 2"):
        BTIDBFUnlearning(**FAST, target=3)(model, data, max_drop=1.0)


@pytest.mark.parametrize("target", [None, 1])
def test_passes_are_planned(target):
    method, data, meter = BTIDBFUnlearning(**FAST, target=target), make_data(), Meter()
    method(make_model(), data, max_drop=1.0, meter=meter, flips=False)
    assert meter.forward_images == meter.planned_images


def success(model):
    """Share of the images of other classes that the planted trigger sends to its target."""
    images, labels = draw_images(300, torch.Generator().manual_seed(9))
    with torch.no_grad():
        hits = model(stamp(images)).argmax(1) == TARGET
    return float(hits[labels != TARGET].double().mean())


def test_removes_a_planted_backdoor_that_fine_tuning_leaves():
    backdoored = train(0.1)
    data = CleanData(*draw_images(300, torch.Generator().manual_seed(2)), NAMES)
    schedule = {"epochs": 6, "learning_rate": 0.02, "batch_size": 32}
    inversion = {"generator_steps": 30, "generator_batch": 16, "generator_rate": 1e-2, "width": 8, "depth": 2}
    unlearning = BTIDBFUnlearning(**schedule, **inversion, rounds=2, mask_steps=200, mask_weight=0.75)
    tuned, repaired = (
        method(backdoored, data, max_drop=0.05, flips=False) for method in (FineTuning(**schedule), unlearning)
    )
    assert repaired.within_budget
    assert success(backdoored) > 0.9
    assert success(tuned.model) > 0.1
    assert success(repaired.model) < 0.05
