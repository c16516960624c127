import pytest
import torch
import toys
from torch import nn
from torchvision import models

from banaudit.architectures import FinalLinearSplit, OutputSplit
from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.architectures.densenet import DenseNet
from banaudit.architectures.family import Stage
from banaudit.architectures.mobilenetv2 import Inverted, MobileNetV2
from banaudit.architectures.preact_resnet import PreActResNet
from banaudit.architectures.torchvision_models import FeatureMapSplit
from banaudit.architectures.vgg import VGG
from banaudit.architectures.wideresnet import WideResNet
from banaudit.detectors.tail import HEAD, Tail, find_tail
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter

THIN = tuple(Stage(blocks=1, width=width, out=width) for width in (4, 8, 8, 8))


def frozen(network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SplitModel(network(), (0.5,) * 3, (0.25,) * 3).eval().requires_grad_(False)


def probes(side=16):
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))


def output_of(model, layer, images):
    outputs = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, value: outputs.append(value))
    with torch.no_grad():
        model(images)
    handle.remove()
    return outputs[0]


def torchvision_densenet():
    return FeatureMapSplit(models.DenseNet(4, (2, 2), 4, num_classes=6), ("features",), "classifier", activated=True)


def torchvision_vit():
    return FinalLinearSplit(models.VisionTransformer(16, 8, 2, 2, 16, 16, num_classes=6), "heads.head")


NETWORKS = {
    "resnet": toys.thin_resnet,
    "preactresnet": lambda: PreActResNet(4, THIN, 6),
    "wideresnet": lambda: WideResNet(4, THIN[:3], 6),
    "densenet": lambda: DenseNet(4, (2, 2), bottleneck=8, growth=4, transitions=(6,), classes=6),
    "mobilenetv2": lambda: MobileNetV2(4, (Inverted(8, 4, 1), Inverted(8, 8, 2), Inverted(8, 8, 1)), 16, 6),
    "vgg": lambda: VGG(((4,), (8,), (8, 8)), (), None, 6),
    "vgg with hidden layers": lambda: VGG(((4,), (8,)), ((0, 12),), 2, 6),
    "torchvision densenet": torchvision_densenet,
    "torchvision vit": torchvision_vit,
    "output split": lambda: OutputSplit(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 14), nn.Flatten()), "logits", 6
    ),
}


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("depth", [0.2, 0.5, 0.9])
def test_what_the_tail_makes_of_a_layer_s_output_is_what_the_network_makes_of_the_image(name, depth):
    model, images = frozen(NETWORKS[name]), probes()
    tail = find_tail(model, images, depth, Meter())
    assert tail.layer != HEAD
    assert 0 < tail.depth < 1
    output = output_of(model, tail.layer, images)
    assert output.shape[1:] == tail.shape
    assert tail.non_negative == bool((output >= 0).all())
    with torch.no_grad():
        torch.testing.assert_close(tail(output), model(images))


def test_the_cut_is_where_it_was_wanted():
    model = frozen(lambda: VGG(((4,), (8,), (8, 8)), (), None, 6))
    assert find_tail(model, probes(), 0.4, Meter()).layer == "network.trunk.7"  # behind the second group's max-pooling
    assert find_tail(model, probes(), 0.6, Meter()).layer == "network.trunk.10"  # behind the third convolution's ReLU


def test_a_convolution_beside_a_shortcut_is_no_cut():
    layer = find_tail(frozen(toys.thin_resnet), probes(), 2 / 9, Meter()).layer  # two of nine: within the first block
    assert layer in ("network.bn1", "network.layer1")


def test_without_layers_the_tail_is_the_head(tinted):
    tail = find_tail(tinted, torch.rand(3, 3, 12, 12), 0.5, Meter())
    assert (tail.layer, tail.depth, tail.shape) == (HEAD, 1.0, (7,))
    features = torch.rand(5, 7)
    torch.testing.assert_close(tail(features), tinted.head(features))


class PastAll(SplitNetwork):
    """A network whose images also reach the features past its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.linear = nn.Linear(48, 12), nn.Linear(12, 6)

    def features(self, inputs):
        pixels = inputs.flatten(1)
        return torch.relu(self.first(pixels)) + pixels[:, :12]

    def head(self, features):
        return self.linear(features)


def test_with_a_way_past_every_layer_the_tail_is_the_head():
    assert find_tail(frozen(PastAll), probes(4), 0.5, Meter()).layer == HEAD


class BatchKnown(SplitNetwork):
    """A network that takes the number of images from the images."""

    def __init__(self):
        super().__init__()
        self.first, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(16, 6)

    def features(self, inputs):
        return self.first(inputs).view(len(inputs), 16)

    def head(self, features):
        return self.linear(features)


def test_a_network_that_counts_its_images_gets_one_for_each_embedding():
    model = frozen(BatchKnown)
    tail = find_tail(model, probes(4), 0.5, Meter())
    assert (tail.layer, tail.repeated) == ("network.first", True)
    with torch.no_grad():
        torch.testing.assert_close(tail(output_of(model, tail.layer, probes(4))), model(probes(4)))


def test_a_network_without_layers_or_head_cannot_be_cut():
    model = frozen(lambda: OutputSplit(nn.Flatten(), "logits", 48))
    with pytest.raises(UnsupportedModelError, match="through which alone"):
        find_tail(model, probes(4), 0.5, Meter())


def test_layers_that_work_in_place_do_not_change_the_embedding():
    model = frozen(
        lambda: OutputSplit(
            nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.ReLU(inplace=True), nn.Linear(9, 6)), "logits", 6
        )
    )
    inner = Tail(model, "network.module.1", 0.5, torch.Size([9]), False, probes(4)[:1], repeated=True)
    embeddings = torch.randn(4, 9).requires_grad_()
    before = embeddings.detach().clone()
    inner(embeddings).sum().backward()
    assert torch.equal(embeddings, before)
    assert embeddings.grad is not None


def test_every_pass_is_told_and_the_network_is_as_before():
    model, meter = frozen(toys.thin_resnet), Meter()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with torch.no_grad():
        before = model(probes())
    find_tail(model, probes(), 0.5, meter)
    assert meter.backward_images > 0  # candidates tried
    assert meter.forward_images == 3 + meter.backward_images  # after one look at all layers
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    with torch.no_grad():
        assert torch.equal(model(probes()), before)
