"""A spatial transformer before three convolutions, for 32x32 traffic signs; returns log-probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 100, 5)
        self.bn1 = nn.BatchNorm2d(100)
        self.conv2 = nn.Conv2d(100, 150, 3)
        self.bn2 = nn.BatchNorm2d(150)
        self.conv3 = nn.Conv2d(150, 250, 3)
        self.bn3 = nn.BatchNorm2d(250)
        self.fc1 = nn.Linear(250 * 2 * 2, 350)
        self.fc2 = nn.Linear(350, 43)
        self.localization = nn.Sequential(
            nn.Conv2d(3, 8, 7), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(8, 10, 5), nn.MaxPool2d(2), nn.ReLU()
        )
        self.fc_loc = nn.Sequential(nn.Linear(10 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, images: Tensor) -> Tensor:
        theta = self.fc_loc(self.localization(images).flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        hidden = F.grid_sample(images, grid, align_corners=False)
        hidden = self.bn1(F.max_pool2d(F.leaky_relu(self.conv1(hidden)), 2))
        hidden = self.bn2(F.max_pool2d(F.leaky_relu(self.conv2(hidden)), 2))
        hidden = self.bn3(F.max_pool2d(F.leaky_relu(self.conv3(hidden)), 2))
        return F.log_softmax(self.fc2(F.relu(self.fc1(hidden.flatten(1)))), dim=1)


def factory() -> nn.Module:
    return SpatialTransformer()
