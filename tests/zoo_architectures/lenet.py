"""Two convolutions and two linear layers for 28x28 digits, no BatchNorm; returns probabilities."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.fc1 = nn.Sequential(nn.Linear(32 * 4 * 4, 512), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(512, 10), nn.Softmax(dim=1))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc2(self.fc1(self.conv2(self.conv1(images)).flatten(1)))


def factory() -> nn.Module:
    return LeNet()
