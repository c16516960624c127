from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.architectures.densenet import DenseNet
from banaudit.architectures.family import Stage
from banaudit.architectures.preact_resnet import PreActResNet
from banaudit.architectures.resnet import ResNet
from banaudit.errors import UnsupportedModelError
from banaudit.mitigations import CLP
from banaudit.mitigations.clp import channel_bounds, normalised_convolutions
from mitigations.tiny import make_data, make_model


def split_model(network):
    return SplitModel(network, (0.5,) * 3, (0.25,) * 3).eval()


def test_bounds_by_hand():
    """Largest singular value of the kernel as a matrix C_in x k^2, times the scale."""
    convolution = nn.Conv2d(2, 3, (1, 2), bias=False)
    with torch.no_grad():
        convolution.weight[0] = torch.tensor([[[3.0, 0.0]], [[0.0, 4.0]]])  # diagonal: 4
        convolution.weight[1] = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]]])  # all ones: 2
        convolution.weight[2] = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])  # one row: its length, 5
    assert channel_bounds(convolution, torch.tensor([0.5, -1.0, 2.0])).tolist() == pytest.approx([2.0, 2.0, 10.0])


def test_pruned_channel_by_hand():
    """Six equal channels but for one whose gamma is tenfold: (6 - 1) / sqrt(6) = 2.04 deviations above the mean."""
    model, data = make_model(), make_data()
    with torch.no_grad():
        model.network.conv.weight.copy_(model.network.conv.weight[:1].expand_as(model.network.conv.weight))
        model.network.norm.weight.fill_(1.0)
        model.network.norm.bias.fill_(0.2)
        model.network.norm.weight[4] = -10.0
    assert (6 - 1) / math.sqrt(6) == pytest.approx(2.0412, abs=1e-4)
    repaired = CLP(u=2.04)(model, data, max_drop=1.0)
    norm = repaired.model.network.norm
    assert norm.weight.tolist() == [1, 1, 1, 1, 0, 1]
    assert norm.bias.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.2, 0, 0.2])
    (tried,) = repaired.epochs
    assert tried.what == "u = 2.04: 1 of 6 channels pruned, looking at 1 of 1 BatchNorm layers"
    assert repaired.forward_images == 1 + 2 * len(data)
    with pytest.raises(UnsupportedModelError, match=r"more than u = 2.05 .*\(at most 2.04\).*nothing to prune"):
        CLP(u=2.05)(model, data, max_drop=1.0)


def test_variance_counts():
    model, data = make_model(), make_data()
    with torch.no_grad():
        model.network.conv.weight.copy_(model.network.conv.weight[:1].expand_as(model.network.conv.weight))
        model.network.norm.running_var[3] = 0.01
    assert CLP(u=2)(model, data, max_drop=1.0).model.network.norm.weight.tolist() == [1, 1, 1, 0, 1, 1]


def test_over_budget_is_said():
    model, data = make_model(), make_data(90)
    with torch.no_grad():
        model.network.norm.weight[4] = 50.0
    predicted = model(data.images).argmax(dim=1)
    agreed = type(data)(data.images, predicted, data.class_names)
    repaired = CLP(u=1.5)(model, agreed, max_drop=0.0)
    assert repaired.accuracy_before == 1
    assert not repaired.within_budget
    assert repaired.kept_epoch == 1


def pairs(network, side=16):
    model = split_model(network)
    return {
        name.removeprefix("network."): next(key for key, layer in model.network.named_modules() if layer is found)
        for name, found in normalised_convolutions(model, torch.rand(1, 3, side, side)).items()
    }


def stages(width):
    return tuple(Stage(blocks=1, width=width, out=width) for _ in range(4))


def test_pairs_of_a_residual_network():
    found = pairs(ResNet(4, stages(4), 3))
    assert found["bn1"] == "conv1"
    assert found["layer1.0.bn2"] == "layer1.0.conv2"
    norms = [layer for layer in ResNet(4, stages(4), 3).modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(found) == len(norms)


def test_pairs_of_pre_activation_networks():
    """Within a block only; the first BatchNorm of all follows the stem."""
    found = pairs(PreActResNet(4, stages(4), 3, final_norm=True))
    assert found["layer1.0.bn1"] == "conv1"
    assert found["layer1.0.bn2"] == "layer1.0.conv1"
    assert not {"layer2.0.bn1", "layer3.0.bn1", "layer4.0.bn1", "bn"} & set(found)
    dense = pairs(DenseNet(4, (1, 1), bottleneck=4, growth=2, transitions=(3,), classes=3))
    assert dense == {
        "dense1.0.bn1": "conv1",
        "dense1.0.bn2": "dense1.0.conv1",
        "dense2.0.bn2": "dense2.0.conv1",
    }


class Between(SplitNetwork):
    """A convolution and a BatchNorm with something between them."""

    def __init__(self, change):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)
        self.change = change

    def features(self, inputs):
        return self.norm(self.change(self.conv(inputs)))

    def head(self, features):
        return self.linear(features.mean((2, 3)))


@pytest.mark.parametrize("change", [nn.ReLU(), nn.ReLU(inplace=True), nn.MaxPool2d(2)])
def test_batch_norm_that_does_not_follow_is_no_pair(change):
    model = split_model(Between(change))
    with pytest.raises(UnsupportedModelError, match="needs BatchNorm that follows a convolution"):
        CLP()(model, make_data(), max_drop=1.0)
    assert pairs(Between(nn.Identity())) == {"norm": "conv"}


class Twice(Between):
    """The same BatchNorm behind the convolution and once more."""

    def features(self, inputs):
        return self.norm(F.relu(super().features(inputs)))


def test_batch_norm_in_two_places_is_no_pair():
    assert pairs(Twice(nn.Identity())) == {}


def test_depthwise_convolution():
    convolution = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    expected = convolution.weight.flatten(1).norm(dim=1)  # a row vector: its length
    assert torch.allclose(channel_bounds(convolution, torch.ones(4)), expected)


def test_hooks_are_gone():
    model = make_model()
    normalised_convolutions(model, torch.rand(1, 3, 8, 8))
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_refusals():
    without_statistics = make_model()
    without_statistics.network.norm = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(UnsupportedModelError, match="with stored statistics"):
        CLP()(without_statistics, make_data())
    with pytest.raises(UnsupportedModelError, match="needs BatchNorm"):
        CLP()(make_model(normalised=False), make_data())
