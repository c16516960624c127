"""A model to time methods on: any network after a few steps on images that differ by their colours."""

from __future__ import annotations

import torch
from torch import Tensor

from banaudit.architectures.base import SplitModel
from banaudit.bench.networks import build_network
from banaudit.bench.trainer import TrainingSettings, train
from banaudit.data import CleanData
from banaudit.shapes import Labels

SIDE = 32
"""Side of the images, pixels."""
PATCHES = 2
"""A class is a colour for each of 2 x 2 patches: one colour alone does not tell 200 classes apart."""
TRAINING_IMAGES = 1280
"""Training images, and at least :data:`IMAGES_PER_CLASS` for each class."""
IMAGES_PER_CLASS = 16
TRAINING = TrainingSettings(epochs=2, batch_size=64, learning_rate=0.05, augmentation="none")
"""Forty steps, for many classes more: enough that searches and early stops have something to work on."""
NOISE_OF_IMAGES = 40
"""Largest change of a pixel from its patch's colour, of 255."""

MODEL_NOTE = "A network after a few dozen training steps on synthetic images; early stops differ on real models"


def synthetic_images(count: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Labels]:
    """Noise around each class's colours, the classes in turn: [N, 3, 32, 32] uint8 and labels [N]."""
    size = (classes, 3, PATCHES, PATCHES)
    colours = torch.randint(NOISE_OF_IMAGES, 256 - NOISE_OF_IMAGES, size, generator=generator)
    colours = colours.repeat_interleave(SIDE // PATCHES, dim=2).repeat_interleave(SIDE // PATCHES, dim=3)
    labels = torch.arange(count) % classes
    shape = (count, 3, SIDE, SIDE)
    noise = torch.randint(-NOISE_OF_IMAGES, NOISE_OF_IMAGES + 1, shape, generator=generator)
    return (colours[labels] + noise).to(torch.uint8).contiguous(memory_format=torch.channels_last), labels


def synthetic_model(
    architecture: str, width: int, images: int, classes: int, device: torch.device, seed: int
) -> tuple[SplitModel, CleanData]:
    """A network that learned a little, and clean images that it was not trained on.

    Args:
        architecture: A key of :data:`banaudit.bench.networks.NETWORKS`.
        width: Channels of its first stage.
        images: Clean images.
        classes: Number of classes K.
        device: Where both are to be.
        seed: Of weights, images and order.
    """
    generator = torch.Generator().manual_seed(seed)
    training = max(TRAINING_IMAGES, IMAGES_PER_CLASS * classes)
    pixels, labels = synthetic_images(training + images, classes, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(architecture, width, 3, classes)
    model = SplitModel(network, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(device)
    train(
        model,
        pixels[:training].to(device),
        labels[:training].to(device),
        TRAINING,
        flips=False,
        poisoner=None,
        generator=generator,
    )
    names = tuple(str(label) for label in range(classes))
    clean = CleanData(pixels[training:].float().div(255), labels[training:], names)
    return model, clean.to(device)
