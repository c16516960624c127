from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toys import CLASSES, NAMES, TARGET, HandNetwork, draw_tiles, thin_resnet

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.architectures.densenet import DenseNet
from banaudit.architectures.final_linear import split_module
from banaudit.errors import DataError, UnsupportedModelError, UsageError
from banaudit.meter import Meter
from banaudit.mitigations import FeatureFlip
from banaudit.mitigations.feature_flip import gentlest_first, scale_channels
from mitigations.tiny import make_data, make_model, same_weights

FAST = {"warm_up": 2, "steps": 4, "batch_size": 8, "width": 4, "depth": 1}


def split_model(network):
    return SplitModel(network, (0.5,) * 3, (0.25,) * 3).eval()


def test_weights_by_hand():
    """Channels of two positions each: their columns are scaled alike, and the shift stays."""

    class Flat(SplitNetwork):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)
            with torch.no_grad():
                self.linear.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))

        def features(self, inputs):
            return inputs

        def head(self, features):
            return self.linear(features.flatten(1))

    model = split_model(Flat())
    changed = scale_channels(model, torch.rand(5, 2, 1, 2), torch.tensor([-1.0, 0.5]))
    assert {name: weight.tolist() for name, weight in changed.items()} == {"network.linear.weight": [[-1, -2, 1.5, 2]]}


def wrapped_module():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return split_module(module, torch.rand(4, 3, 16, 16))


def densenet():
    return DenseNet(8, (1, 1), bottleneck=8, growth=4, transitions=(6,), classes=5)


@pytest.mark.parametrize("make", [thin_resnet, densenet, wrapped_module])
def test_the_fold_is_exact(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, images = split_model(make()), torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        features = model.features(images)
        factors = 1 - 2 * torch.rand(features.shape[1], generator=torch.Generator().manual_seed(1))
        wanted = model.head(factors.view(-1, *(1 for _ in features.shape[2:])) * features)
        changed = scale_channels(model, features, factors)
        assert not torch.allclose(model(images), wanted, atol=1e-2)
        model.load_state_dict({**model.state_dict(), **changed})
        assert torch.allclose(model(images), wanted, atol=1e-5)


class Mixing(SplitNetwork):
    """A head that adds channels up before its linear layer, or has none."""

    def __init__(self, *, linear):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 3)
        self.used = linear

    def features(self, inputs):
        return self.conv(inputs)

    def head(self, features):
        pooled = features.mean((2, 3)).cumsum(1)
        return self.linear(pooled) if self.used else pooled


@pytest.mark.parametrize(("linear", "said"), [(True, "mixes or rectifies them"), (False, "has none there")])
def test_what_cannot_be_folded_is_refused(linear, said):
    features = torch.rand(5, 4, 6, 6)
    with pytest.raises(UnsupportedModelError, match=said):
        scale_channels(split_model(Mixing(linear=linear)), features, torch.tensor([1.0, -1.0, 1.0, 1.0]))
    with pytest.raises(UnsupportedModelError, match="needs a linear layer"):
        FeatureFlip()(SplitModel(HandNetwork(8.0), (0.0,) * 3, (1.0,) * 3), draw_tiles())


def test_a_computed_weight_cannot_be_changed():
    normed = make_model()
    nn.utils.parametrizations.weight_norm(normed.network.linear)
    with pytest.raises(UnsupportedModelError, match="plain weights"):
        FeatureFlip()(normed, make_data())


def test_too_few_images_are_told():
    with pytest.raises(DataError, match="two images of some class, found 3 images"):
        FeatureFlip(target=1)(make_model(), make_data(3))


def test_factors_by_hand():
    offered = gentlest_first(torch.tensor([0.1, 0.4]))
    assert [factors.tolist() for _, factors in offered] == [
        pytest.approx([0.9, 0.6]),
        pytest.approx([0.8, 0.2]),
        pytest.approx([0.5, -1.0]),
    ]


def test_only_the_linear_weight_changes_and_all_strengths_are_tried():
    model, data, meter = make_model(), make_data(), Meter()
    repaired = FeatureFlip(**FAST, target=1)(model, data, max_drop=1.0, meter=meter)
    before, after = model.state_dict(), repaired.model.state_dict()
    weight = "network.linear.weight"
    assert not torch.equal(before.pop(weight), after.pop(weight))
    assert same_weights(before, after)
    tried = [item.what.removeprefix("features of class 1 ") for item in repaired.epochs]
    assert tried == ["zeroed", "flipped", "flipped in full"]
    assert repaired.kept_epoch == 3
    assert meter.forward_images <= meter.planned_images


def test_the_target_must_exist():
    with pytest.raises(UsageError, match=r"--set feature-flip.target=9: expected a label from 0 to 2"):
        FeatureFlip(**FAST, target=9)(make_model(), make_data())


class TintedNetwork(HandNetwork):
    """The hand-made network with a linear layer that a repair can reach."""

    def __init__(self, strength):
        super().__init__(strength)
        weight = self.weight.detach()
        del self.weight
        self.linear = nn.Linear(weight.shape[1], CLASSES)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.zero_()

    def head(self, features):
        return self.linear(features)


def tint(images):
    """The trigger: more blue, less red."""
    return (images + torch.tensor([-0.35, 0.0, 0.35]).view(3, 1, 1)).clamp(0, 1)


INVERSION = {
    "warm_up": 30,
    "steps": 60,
    "learning_rate": 1e-2,
    "mask_bound": 0.2,
    "width": 4,
    "depth": 1,
    "batch_size": 8,
    "pixel_bound": 0.03,
}


@pytest.mark.parametrize("target", [None, TARGET])
def test_removes_a_planted_backdoor(target):
    data = draw_tiles()
    model = SplitModel(TintedNetwork(8.0), (0.0,) * 3, (1.0,) * 3).eval()
    repaired = FeatureFlip(**INVERSION, target=target)(model, data)
    assert repaired.within_budget
    others = data.labels != TARGET

    def rate(network):
        with torch.no_grad():
            return float((network(tint(data.images)).argmax(1) == TARGET)[others].double().mean())

    assert rate(model) > 0.9
    assert rate(repaired.model) < 0.1
    assert f"class {TARGET}" in repaired.epochs[0].what
    assert data.class_names == NAMES


def test_nothing_is_changed_where_no_trigger_is_recognised():
    clean = SplitModel(TintedNetwork(0.0), (0.0,) * 3, (1.0,) * 3).eval()
    with pytest.raises(UnsupportedModelError, match=r"no trigger was recognised .* --set feature-flip.target"):
        FeatureFlip(**INVERSION)(clean, draw_tiles())


def test_the_mask_is_one_for_all_positions_of_a_channel():
    model, data = make_model(), make_data(30)
    mask = (
        FeatureFlip(**FAST)
        .recover(model, data, data, [0], generator=torch.Generator().manual_seed(0), meter=Meter())[0]
        .mask
    )
    assert mask.shape == model.features(data.images).shape[1:]
    assert torch.equal(mask, mask[:, :1, :1].expand_as(mask))
    assert F.relu(mask).equal(mask)
