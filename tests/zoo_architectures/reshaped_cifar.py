"""Two convolutions and two linear layers for CIFAR-10, no BatchNorm, trained on 0..255 in a scrambled layout.

Its training read arrays [32, 32, 3] and reshaped them to [3, 32, 32] where a transpose was meant. The module repeats
that, so that it takes images [B, 3, 32, 32] in [0, 1] as any other network does.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ReshapedCifar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.fc1 = nn.Linear(32 * 5 * 5, 512)
        self.fc2 = nn.Linear(512, 10)

    def forward(self, images: Tensor) -> Tensor:
        scrambled = (images * 255).permute(0, 2, 3, 1).reshape(-1, 3, 32, 32)
        hidden = F.avg_pool2d(F.relu(self.conv1(scrambled)), 2)
        hidden = F.avg_pool2d(F.relu(self.conv2(hidden)), 2)
        return self.fc2(F.relu(self.fc1(hidden.flatten(1))))


def factory() -> nn.Module:
    return ReshapedCifar()
