"""A network that tells classes apart by brightness, its images, and a detector that says what it is told to."""

from __future__ import annotations

from typing import ClassVar, final

import numpy as np
import torch
from PIL import Image
from torch import nn

from banaudit.architectures.base import SplitNetwork
from banaudit.detectors.base import Detector, Found
from banaudit.results import Evidence, Reading

CLASSES = 10
SIDE = 8


class BrightnessNetwork(SplitNetwork):
    """The class whose brightness (k + 1/2) / 10 is nearest to the image's mean."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, CLASSES)
        centres = (torch.arange(CLASSES) + 0.5) / CLASSES
        with torch.no_grad():
            self.linear.weight.copy_((2 * centres / 3)[:, None].expand(-1, 3))
            self.linear.bias.copy_(-(centres**2))
        self.eval()

    def features(self, inputs):
        return self.norm(inputs)

    def head(self, features):
        return 100 * self.linear(features.mean(dim=(2, 3)))


FACTORY = """
from torch import nn

class Brightness(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3, 10)

    def forward(self, images):
        return self.linear(self.norm(images).mean(dim=(2, 3)))

def factory():
    return Brightness()
"""


def bright_pixels(per_class, side=SIDE):
    """[N, side, side, 3] uint8, nearly constant, and labels [N]."""
    labels = np.arange(CLASSES * per_class) % CLASSES
    noise = np.random.default_rng(0).integers(-5, 6, (len(labels), side, side, 3))
    return (25.5 * (labels + 0.5)[:, None, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def write_images(folder, per_class):
    """The same as PNG files in class folders."""
    pixels, labels = bright_pixels(per_class)
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number}.png")


@final
class Accuser(Detector):
    """Accuses one class, or nobody where the threshold is above one."""

    name: ClassVar[str] = "accuser"
    title: ClassVar[str] = "accuses"
    misses: ClassVar[str] = "everything"
    target: int = 3
    threshold: float = 0.5

    def planned_images(self, num_classes, images):
        return images

    def search(self, model, samples, generator, meter):
        meter.spend("accusing", forward=len(samples.held_out), backward=2)
        fired = self.threshold < 1
        return Found(
            [
                Evidence(
                    reading=Reading.ALL_TO_ONE,
                    measures="certainty",
                    score=1.0,
                    threshold=self.threshold,
                    fired=fired,
                    target=self.target,
                    per_class=samples.per_class(torch.arange(samples.num_classes) / 7),
                ),
                Evidence(
                    reading=Reading.ALL_TO_ONE, measures="doubt", score=1 / 3, threshold=2.0, fired=False, target=1
                ),
            ]
        )
