"""torchvision's classifiers, with the class count of the file.

The classes are torchvision's own, built without downloaded weights. Where the network ends in global average pooling
and one linear layer the split is at the last feature map, else at the input of the last linear layer; SqueezeNet has
none and is split at its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.architectures.base import SplitNetwork, WrappedNetwork
from banaudit.architectures.family import Family, Recognition, shape
from banaudit.architectures.final_linear import FinalLinearSplit, OutputSplit
from banaudit.shapes import COUNTER, Features, Logits, Weights

PREFIX = "torchvision:"
"""In front of torchvision's own name, so that it cannot be taken for the CIFAR variant's."""
USUAL_SIZE = 224
"""Side of the images that these networks were made for, pixels."""
IMAGENET_CLASSES = 1000
_AUXILIARY = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}
"""Networks with auxiliary heads that a file may lack -> prefix of their keys."""


@dataclass(frozen=True)
class _Series:
    """Models that share their keys.

    Args:
        marker: A key that these models have and no others.
        head: Key of the last layer's weight [K, ...].
        names: How the models' names begin.
        trunk: Submodules that lead to the last feature map, where pooling and one linear layer follow it.
        activated: Whether a ReLU follows the trunk.
    """

    marker: str
    head: str
    names: tuple[str, ...]
    trunk: tuple[str, ...] = ()
    activated: bool = False


_SERIES = (
    _Series(
        "layer1.0.conv1.weight",
        "fc.weight",
        ("resnet", "resnext", "wide_resnet"),
        ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    ),
    _Series("features.conv0.weight", "classifier.weight", ("densenet",), ("features",), activated=True),
    _Series("features.1.conv.0.0.weight", "classifier.1.weight", ("mobilenet_v2",), ("features",)),
    _Series("features.1.block.0.0.weight", "classifier.3.weight", ("mobilenet_v3",)),
    _Series("features.1.0.block.0.0.weight", "classifier.1.weight", ("efficientnet",), ("features",)),
    _Series("layers.8.0.layers.0.weight", "classifier.1.weight", ("mnasnet",), ("layers",)),
    _Series("trunk_output.block1.block1-0.proj.0.weight", "fc.weight", ("regnet",), ("stem", "trunk_output")),
    _Series(
        "stage2.0.branch1.0.weight",
        "fc.weight",
        ("shufflenet",),
        ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    ),
    _Series("features.3.squeeze.weight", "classifier.1.weight", ("squeezenet",)),
    _Series("inception3a.branch1.conv.weight", "fc.weight", ("googlenet",)),
    _Series("Mixed_5b.branch1x1.conv.weight", "fc.weight", ("inception_v3",)),
    _Series("features.1.0.layer_scale", "classifier.2.weight", ("convnext",)),
    _Series("features.1.0.attn.qkv.weight", "head.weight", ("swin",)),
    _Series("stem.1.0.weight", "classifier.5.weight", ("maxvit",)),
    _Series("conv_proj.weight", "heads.head.weight", ("vit",)),
    _Series("classifier.6.weight", "classifier.6.weight", ("vgg", "alexnet")),
)

_TENSORS = {
    "alexnet": 16,
    "convnext_base": 344,
    "convnext_large": 344,
    "convnext_small": 344,
    "convnext_tiny": 182,
    "densenet121": 606,
    "densenet161": 806,
    "densenet169": 846,
    "densenet201": 1006,
    "efficientnet_b0": 311,
    "efficientnet_b1": 439,
    "efficientnet_b2": 439,
    "efficientnet_b3": 496,
    "efficientnet_b4": 610,
    "efficientnet_b5": 738,
    "efficientnet_b6": 852,
    "efficientnet_b7": 1037,
    "efficientnet_v2_l": 1331,
    "efficientnet_v2_m": 963,
    "efficientnet_v2_s": 672,
    "googlenet": 305,
    "inception_v3": 484,
    "maxvit_t": 548,
    "mnasnet0_5": 262,
    "mnasnet0_75": 262,
    "mnasnet1_0": 262,
    "mnasnet1_3": 262,
    "mobilenet_v2": 262,
    "mobilenet_v3_large": 266,
    "mobilenet_v3_small": 210,
    "regnet_x_16gf": 357,
    "regnet_x_1_6gf": 297,
    "regnet_x_32gf": 372,
    "regnet_x_3_2gf": 402,
    "regnet_x_400mf": 357,
    "regnet_x_800mf": 267,
    "regnet_x_8gf": 372,
    "regnet_y_128gf": 540,
    "regnet_y_16gf": 369,
    "regnet_y_1_6gf": 540,
    "regnet_y_32gf": 407,
    "regnet_y_3_2gf": 426,
    "regnet_y_400mf": 331,
    "regnet_y_800mf": 293,
    "regnet_y_8gf": 350,
    "resnet101": 522,
    "resnet152": 777,
    "resnet18": 102,
    "resnet34": 182,
    "resnet50": 267,
    "resnext101_32x8d": 522,
    "resnext101_64x4d": 522,
    "resnext50_32x4d": 267,
    "shufflenet_v2_x0_5": 282,
    "shufflenet_v2_x1_0": 282,
    "shufflenet_v2_x1_5": 282,
    "shufflenet_v2_x2_0": 282,
    "squeezenet1_0": 52,
    "squeezenet1_1": 52,
    "swin_b": 353,
    "swin_s": 353,
    "swin_t": 185,
    "swin_v2_b": 449,
    "swin_v2_s": 449,
    "swin_v2_t": 233,
    "vgg11": 22,
    "vgg11_bn": 54,
    "vgg13": 26,
    "vgg13_bn": 66,
    "vgg16": 32,
    "vgg16_bn": 84,
    "vgg19": 38,
    "vgg19_bn": 102,
    "vit_b_16": 152,
    "vit_b_32": 152,
    "vit_h_14": 392,
    "vit_l_16": 296,
    "vit_l_32": 296,
    "wide_resnet101_2": 522,
    "wide_resnet50_2": 267,
}
"""Tensors in each model's state dict, ``num_batches_tracked`` not counted: most models are ruled out without building
them, which takes up to half a second each."""


@final
class FeatureMapSplit(WrappedNetwork):
    """A torchvision classifier split at its last feature map, which global pooling and one linear layer follow.

    Args:
        module: The whole classifier.
        trunk: Submodules that lead to the feature map, in order.
        classifier: Submodule after pooling: dropout at most and the linear layer.
        activated: Whether a ReLU follows the trunk.
    """

    def __init__(self, module: nn.Module, trunk: tuple[str, ...], classifier: str, *, activated: bool) -> None:
        super().__init__(module)
        self.trunk = trunk
        self.classifier = classifier
        self.activated = activated

    def features(self, inputs: Tensor) -> Features:
        """Last feature map [B, D, H', W']."""
        hidden = inputs
        for name in self.trunk:
            hidden = self.module.get_submodule(name)(hidden)
        return F.relu(hidden) if self.activated else hidden

    def head(self, features: Features) -> Logits:
        """Logits [B, K] of the feature map."""
        pooled = F.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Logits = self.module.get_submodule(self.classifier)(pooled)
        return logits


def _builder(name: str, series: _Series, weights: Weights, classes: int) -> Callable[[], SplitNetwork]:
    settings: dict[str, int | bool] = {"num_classes": classes}
    if name in _AUXILIARY:
        # torchvision's slow initialisation is of no use where every weight is about to be replaced.
        auxiliary = any(key.startswith(_AUXILIARY[name]) for key in weights)
        settings |= {"init_weights": False, "aux_logits": auxiliary, "transform_input": False}
    positions = shape(weights, "encoder.pos_embedding")
    patch = shape(weights, "conv_proj.weight")
    if series.names == ("vit",) and len(positions) == 3 and len(patch) == 4:
        settings["image_size"] = math.isqrt(positions[1] - 1) * patch[-1]

    def build() -> SplitNetwork:
        from torchvision import models  # takes seconds, and only these networks need it

        module = models.get_model(name, weights=None, **settings)
        if series.trunk:
            classifier = series.head.partition(".")[0]
            return FeatureMapSplit(module, series.trunk, classifier, activated=series.activated)
        linear = series.head.removesuffix(".weight")
        if isinstance(module.get_submodule(linear), nn.Linear):
            return FinalLinearSplit(module, linear)
        return OutputSplit(module, "logits", classes)

    return build


def _propose(weights: Weights) -> Iterator[Recognition]:
    series = next((series for series in _SERIES if series.marker in weights), None)
    if series is None:
        return
    head = shape(weights, series.head)
    classes = head[0] if head else IMAGENET_CLASSES
    tensors = sum(not key.endswith(COUNTER) for key in weights)
    names = [name for name in _TENSORS if name.startswith(series.names)]
    distances = {name: abs(_TENSORS[name] - tensors) for name in names}
    nearest = min(distances.values())
    for name in names:
        if distances[name] == nearest:
            yield Recognition(
                name=PREFIX + name,
                description=f"torchvision's {name}",
                classes=classes,
                channels=3,
                build=_builder(name, series, weights, classes),
            )


FAMILY = Family(tuple(PREFIX + name for name in _TENSORS), _propose)
