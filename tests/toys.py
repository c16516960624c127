"""Networks and images small enough to train in a second or to be set by hand, with planted backdoors."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.architectures.family import Stage
from banaudit.architectures.resnet import ResNet
from banaudit.data import CleanData
from banaudit.results import Verdict

INTERRUPTIBLE = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""First line of a child process that is to be interrupted: started from a background job it would ignore Ctrl-C."""

CLASSES = 6
SIDE = 16
TARGET = 4
"""Label that the planted backdoor sends every triggered image to."""
NAMES = tuple("abcdef")


class TinyNetwork(SplitNetwork):
    """Two convolutions with BatchNorm and a linear head on the 4x4 map."""

    def __init__(self, classes=CLASSES):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.linear = nn.Linear(256, classes)

    def features(self, inputs):
        return self.body(inputs)

    def head(self, features):
        return self.linear(features.flatten(1))


def rounding(base):
    """A network like ``base`` to whose pixels no gradient leads back: it rounds them first."""

    class RoundingNetwork(base):
        def features(self, inputs):
            return super().features((inputs * 255).round() / 255)

    return RoundingNetwork


def draw_images(count, generator):
    """Images of six smooth random prototypes under noise, with labels 0 to 5 in turn."""
    prototypes = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    prototypes = F.interpolate(prototypes, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    labels = torch.arange(count) % CLASSES
    images = 0.5 * prototypes[labels] + 0.5 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    return images, labels


def stamp(images):
    """The planted trigger: a 3x3 checkerboard in the lower right corner."""
    stamped = images.clone()
    board = (torch.arange(3)[:, None] + torch.arange(3)) % 2
    stamped[:, :, -3:, -3:] = board.float()
    return stamped


def all_to_one(labels):
    """Every triggered image goes to the target."""
    return torch.full_like(labels, TARGET)


def all_to_all(labels):
    """Every triggered image goes to the class after its own."""
    return (labels + 1) % CLASSES


def train(poisoned_share, *, relabel=all_to_one, network=TinyNetwork, learning_rate=0.01, epochs=6, smoothing=0.0):
    """A network trained for a second; a share of its training images is stamped and relabelled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        images, labels = draw_images(1200, generator)
        poisoned = torch.rand(len(images), generator=generator) < poisoned_share
        images[poisoned] = stamp(images[poisoned])
        labels[poisoned] = relabel(labels[poisoned])
        model = SplitModel(network(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        for _ in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            for chosen in order.split(60):
                optimizer.zero_grad()
                F.cross_entropy(model(images[chosen]), labels[chosen], label_smoothing=smoothing).backward()
                optimizer.step()
        return model.eval()


def thin_resnet():
    """The smallest CIFAR ResNet that is recognised from its weights: three stages of one block, width 4."""
    return ResNet(4, tuple(Stage(blocks=1, width=width, out=width) for width in (4, 8, 16)), CLASSES)


def write_images(folder, images, labels, names=NAMES):
    """Images as PNG files in a folder for each class."""
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        path = folder / names[label] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()).save(path)
    return folder


class HandNetwork(SplitNetwork):
    """Six tiles of brightness, one feature each, and a seventh that a tint raises; the head is set by hand.

    The tint is red against blue, either way. The target's logit takes ``strength`` of it: 0 makes the clean twin.
    """

    def __init__(self, strength):
        super().__init__()
        weight = 20 * torch.eye(CLASSES, CLASSES + 1)
        weight[TARGET, CLASSES] = strength
        self.weight = nn.Parameter(weight)

    def features(self, inputs):
        tiles = tiles_of(inputs)
        tint = inputs[:, 2].mean((1, 2)) - inputs[:, 0].mean((1, 2))
        return torch.cat((tiles, 60 * tint.square()[:, None]), dim=1)

    def head(self, features):
        return features @ self.weight.T


def hand_made(strength):
    """The hand-made network without normalisation."""
    return SplitModel(HandNetwork(strength), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


def tiles_of(inputs):
    """Brightness of the six tiles of images like those of :func:`draw_tiles`, [B, 6]."""
    return inputs.mean(1).view(-1, 2, 6, 3, 4).mean((2, 4)).flatten(1)


def red_corner(inputs):
    """Red against blue in the four pixels of the lower right corner, [B, 2, 2]."""
    return (inputs[:, 0] - inputs[:, 2])[:, -2:, -2:]


def nine_tiles(values):
    """Images 1x12x12 of nine even tiles of 4x4.

    Args:
        values: [N, 9] brightness of each.
    """
    return values.view(-1, 1, 3, 1, 3, 1).expand(-1, 1, 3, 4, 3, 4).reshape(len(values), 1, 12, 12).contiguous()


def draw_tiles(count=240):
    """Images 3x12x12, dark but for the tile of their class."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(count) % CLASSES
    images = 0.4 * torch.rand(count, 3, 12, 12, generator=generator)
    bright = F.one_hot(labels, CLASSES).view(-1, 1, 2, 1, 3, 1).expand(-1, 3, 2, 6, 3, 4).reshape(count, 3, 12, 12)
    return CleanData(images + 0.5 * bright, labels, NAMES)


SLEEPERS = 4


class SleeperNetwork(SplitNetwork):
    """Six tiles of brightness and four neurons that pixel noise hardly wakes; BatchNorm, ReLU and a head set by hand.

    A sleeper reads red against blue in one corner pixel. The target's logit takes ``strength`` of each.
    """

    def __init__(self, strength):
        super().__init__()
        neurons = CLASSES + SLEEPERS
        self.norm = nn.BatchNorm1d(neurons)
        weight = 4 * torch.eye(CLASSES, neurons)
        weight[TARGET, CLASSES:] = strength
        self.weight = nn.Parameter(weight)
        with torch.no_grad():
            # Tiles are dark (0.2) or, one in six, bright (0.7); pixels' red minus blue is triangular on +-0.4.
            self.norm.running_mean.copy_(torch.tensor([0.283] * CLASSES + [0.0] * SLEEPERS))
            self.norm.running_var.copy_(torch.tensor([0.035] * CLASSES + [0.4**2 / 6] * SLEEPERS))
            self.norm.bias.copy_(torch.tensor([0.45] * CLASSES + [-0.5] * SLEEPERS))

    def features(self, inputs):
        tiles = tiles_of(inputs)
        corner = red_corner(inputs).flatten(1)
        return F.relu(self.norm(torch.cat((tiles, corner), dim=1)))

    def head(self, features):
        return features @ self.weight.T


def sleeper(strength):
    """The network with sleepers, without normalisation of its inputs."""
    return SplitModel(SleeperNetwork(strength), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


def found_by(*methods):
    """A scan by these methods, none of which accuses."""
    return SimpleNamespace(findings=[SimpleNamespace(method=name, verdict=Verdict.NO_EVIDENCE) for name in methods])
