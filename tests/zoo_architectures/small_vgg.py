"""Six convolutions with BatchNorm and ELU, one linear layer, for 32x32 images (models of the I-BAU paper)."""

from __future__ import annotations

from torch import Tensor, nn

GROUPS = ((32, 0.3), (64, 0.4), (128, 0.4))
"""Width of each group's two convolutions and the dropout after it."""


class SmallVGG(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels_in = 3
        for width, dropout in GROUPS:
            for _ in range(2):
                layers += [nn.Conv2d(channels_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
                channels_in = width
            layers += [nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(128 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def factory(num_classes: int = 10) -> nn.Module:
    return SmallVGG(num_classes)


def gtsrb() -> nn.Module:
    """The same for 43 traffic signs, for callers that know no class count."""
    return SmallVGG(43)
