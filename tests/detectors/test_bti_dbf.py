import copy
import math

import pytest
import torch
from torch import nn
from toys import TARGET

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.detectors.base import freeze
from banaudit.detectors.bti_dbf import BTIDBF, BTIDBFStar, generator_loss
from banaudit.meter import Meter
from banaudit.neurons import decoupling_loss
from banaudit.results import Verdict


class Identity(SplitNetwork):
    """Two features that are the two logits."""

    def features(self, inputs):
        return inputs.mean((2, 3))

    def head(self, features):
        return features


def identity():
    return SplitModel(Identity(), (0.0, 0.0), (1.0, 1.0))


def softplus(value):
    return math.log1p(math.exp(value))


@pytest.mark.parametrize("weight", [0.0, 0.75])
def test_decoupling_loss_by_hand(weight):
    features, mask = torch.tensor([[2.0, 1.0]]), torch.tensor([0.5, 0.25])
    loss = decoupling_loss(identity(), features, torch.tensor([0]), mask, weight)
    # kept: logits (1, 0.25); removed: logits (1, 0.75); the penalty's value is its weight
    assert float(loss) == pytest.approx(softplus(-0.75) - softplus(-0.25) + weight)


def test_penalty_pulls_every_entry_alike():
    mask = torch.tensor([0.5, 0.25], requires_grad=True)
    loss = decoupling_loss(identity(), torch.zeros(1, 2), torch.tensor([0]), mask, 0.75)
    loss.backward()
    assert mask.grad.tolist() == pytest.approx([1.0, 1.0])  # weight / |m|_1


def test_generator_loss_by_hand():
    images, near, far = torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 2), 0.1), torch.full((1, 1, 1, 2), 0.2)
    features, moved, mask = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([1.0, 0.0])

    def loss(generated, most):
        return float(generator_loss(images, generated, features, moved, mask, bound=0.02, most=most))

    assert loss(near, 1.0) == pytest.approx(0.01 * 0.5 - 2.0)
    assert loss(far, 1.0) == pytest.approx(0.04)  # too far in pixels
    assert loss(near, 0.4) == pytest.approx(0.01)  # too far in benign features


SMALL = {"width": 8, "depth": 2, "learning_rate": 5e-3, "steps": 80, "batch_size": 16, "mask_rate": 0.05}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_star_finds_the_planted_backdoor(seed, tinted, tiled_data):
    finding = BTIDBFStar(**SMALL)(tinted, tiled_data, seed=seed)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET
    assert finding.forward_images == BTIDBFStar(**SMALL).planned_images(6, len(tiled_data))


def test_original_finds_the_planted_backdoor_by_luck(tinted, tiled_data):
    # Clean images say nothing of the tint's feature; without a penalty its mask stays where the seed put it
    findings = [BTIDBF(**SMALL)(tinted, tiled_data, seed=seed) for seed in (0, 2)]
    assert [finding.verdict for finding in findings] == [Verdict.NO_EVIDENCE, Verdict.BACKDOORED]
    assert findings[1].evidence[0].target == TARGET


@pytest.mark.parametrize("method", [BTIDBF, BTIDBFStar])
def test_does_not_accuse_the_clean_twin(method, untinted, tiled_data):
    assert method(**SMALL)(untinted, tiled_data).verdict is Verdict.NO_EVIDENCE


class ManyFeatures(SplitNetwork):
    """Two hundred features of which a class needs a few; the rest are noise."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(200, 2, bias=False)
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.weight[0, :10] = 1.0
            self.linear.weight[1, 10:20] = 1.0

    def features(self, inputs):
        return inputs.flatten(1)

    def head(self, features):
        return self.linear(features)


def test_the_penalty_shrinks_the_mask():
    model = SplitModel(ManyFeatures(), (0.0, 0.0), (1.0, 1.0)).requires_grad_(False)
    labels = torch.arange(40) % 2
    features = torch.zeros(40, 200)
    features[labels == 0, :10] = 1.0
    features[labels == 1, 10:20] = 1.0
    means = {
        method.name: float(
            method(mask_rate=0.1).fit_mask(model, features, labels, torch.Generator().manual_seed(0))[20:].mean()
        )
        for method in (BTIDBF, BTIDBFStar)
    }
    assert means["bti-dbf-star"] < 0.1 < 0.4 < means["bti-dbf"]


def test_shares_are_of_images_of_other_classes():
    # Three of class 0, one of class 1; the generator leaves all as they are, and the network says class 1 to three.
    images = torch.zeros(4, 2, 1, 1)
    images[:, 1] = torch.tensor([1.0, 1.0, -1.0, 1.0]).view(4, 1, 1)
    held_out = CleanData(images, torch.tensor([0, 0, 0, 1]), ("a", "b"))
    shares = BTIDBF().shares(identity(), nn.Identity(), held_out, Meter())
    assert shares.tolist() == pytest.approx([0.0, 2 / 3])


def test_a_named_target_is_what_generated_images_reach(untinted, tiled_data):
    settings = BTIDBF(**SMALL | {"pixel_bound": 1.0})
    features = untinted.features(tiled_data.images).detach()
    model = freeze(copy.deepcopy(untinted))

    def shares(target):
        torch.manual_seed(0)
        network = settings.fit_generator(
            model,
            tiled_data,
            features,
            torch.ones(features.shape[1:]),
            generator=torch.Generator().manual_seed(0),
            meter=Meter(),
            target=target,
        )
        return settings.shares(model, network, tiled_data, Meter())

    without = shares(None)
    for target in (0, 3):
        assert shares(target)[target] > without[target] + 0.2
