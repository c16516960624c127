"""A tiny network with a planted backdoor, its clean twin, and clean images of theirs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData

CLASSES = 6
SIDE = 16
TARGET = 4
"""Label that the planted backdoor sends every triggered image to."""


class TinyNetwork(SplitNetwork):
    """Two convolutions with BatchNorm and a linear head on the 4x4 map."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.linear = nn.Linear(256, CLASSES)

    def features(self, inputs):
        return self.body(inputs)

    def head(self, features):
        return self.linear(features.flatten(1))


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


def train(poisoned_share):
    """A network trained for a second; a share of its training images is stamped and relabelled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        images, labels = draw_images(1200, generator)
        poisoned = torch.rand(len(images), generator=generator) < poisoned_share
        images[poisoned] = stamp(images[poisoned])
        labels[poisoned] = TARGET
        model = SplitModel(TinyNetwork(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(6):
            order = torch.randperm(len(images), generator=generator)
            for chosen in order.split(60):
                optimizer.zero_grad()
                F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
                optimizer.step()
        return model.eval()


@pytest.fixture(scope="session")
def planted():
    return train(0.1)


@pytest.fixture(scope="session")
def clean_twin():
    return train(0.0)


@pytest.fixture(scope="session")
def clean_data():
    images, labels = draw_images(240, torch.Generator().manual_seed(2))
    return CleanData(images, labels, tuple("abcdef"))


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
        tiles = inputs.mean(1).view(-1, 2, 6, 3, 4).mean((2, 4)).flatten(1)
        tint = inputs[:, 2].mean((1, 2)) - inputs[:, 0].mean((1, 2))
        return torch.cat((tiles, 60 * tint.square()[:, None]), dim=1)

    def head(self, features):
        return features @ self.weight.T


@pytest.fixture
def tinted():
    """Backdoored by hand: a red or blue tint leads to the target."""
    return SplitModel(HandNetwork(8.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


@pytest.fixture
def untinted():
    """The clean twin of ``tinted``."""
    return SplitModel(HandNetwork(0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()


@pytest.fixture(scope="session")
def tiled_data():
    """Images 3x12x12, dark but for the tile of their class."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(240) % CLASSES
    images = 0.4 * torch.rand(240, 3, 12, 12, generator=generator)
    bright = F.one_hot(labels, CLASSES).view(-1, 1, 2, 1, 3, 1).expand(-1, 3, 2, 6, 3, 4).reshape(240, 3, 12, 12)
    return CleanData(images + 0.5 * bright, labels, tuple("abcdef"))
