"""One module with a network for MNIST and one for CIFAR-10, no BatchNorm; the one for MNIST is used."""

from __future__ import annotations

from torch import Tensor, nn


def _block(channels_in: int, channels_out: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(channels_in, channels_out, 5, padding=padding), nn.ReLU(), nn.AvgPool2d(2)]


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._encoder_mnist = nn.Sequential(*_block(1, 16, 0), *_block(16, 32, 0))
        self._classifier_mnist = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        self._encoder_cifar = nn.Sequential(*_block(3, 32, 2), *_block(32, 32, 2), *_block(32, 64, 2))
        self._classifier_cifar = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self._classifier_mnist(self._encoder_mnist(images).flatten(1))


def factory() -> nn.Module:
    return TwoHeads()
