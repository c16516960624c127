"""A tiny network with BatchNorm and images that it can tell apart, for tests of repairs."""

import torch
import torch.nn.functional as F
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.data import CleanData
from banaudit.meter import Meter
from banaudit.mitigations import RepairJob
from banaudit.resume import Progress
from banaudit.training import UNCHANGED

SIDE, CLASSES = 8, 3


class Tiny(SplitNetwork):
    def __init__(self, *, normalised=True, dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(6) if normalised else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(6 * 16, CLASSES)

    def features(self, inputs):
        return F.relu(self.norm(self.conv(inputs)))

    def head(self, features):
        return self.linear(self.dropout(features.flatten(1)))


def make_model(**settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SplitModel(Tiny(**settings), (0.5,) * 3, (0.25,) * 3).eval()


def make_data(count=60, classes=CLASSES):
    """The left, the middle or the right third is bright."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    images = 0.5 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    for label in range(classes):
        images[labels == label, :, :, 3 * label : 3 * label + 2] += 0.5
    return CleanData(images, labels, tuple("abc"[:classes]))


def make_job(model=None, data=None, *, seed=0, state=None):
    """What a mitigation gets to work with; the same images train and choose."""
    data = data if data is not None else make_data()
    meter = Meter()
    return RepairJob(
        model=model if model is not None else make_model(),
        training=data,
        selection=data,
        augmentation=UNCHANGED,
        max_drop=1.0,
        seed=seed,
        meter=meter,
        progress=Progress(state, "this", meter),
    )


def snapshot(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
    )


def same_weights(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)
