"""The generator that feature-space trigger inversion trains: a small U-Net that starts near the identity."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from banaudit.shapes import Images

EDGE = 1e-3
"""Pixels are pulled this far inside [0, 1] before their inverse sigmoid, so that black and white stay finite."""

FIRST_WEIGHT = 0.02
"""Standard deviation of the last layer's weights at the start: pixels change by about 0.01."""

MAX_GROUPS = 8
"""Groups of channels that are normalised together, at most."""


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Two convolutions, each normalised over groups of channels: no statistics pass from image to image."""
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [
            nn.Conv2d(channels, channels_out, 3, padding=1, bias=False),
            nn.GroupNorm(min(MAX_GROUPS, channels_out), channels_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


@final
class UNet(nn.Module):
    """A U-Net from images in [0, 1] to images in [0, 1]: sigmoid(inverse sigmoid(x) + residual(x)).

    The last layer starts small, so an untrained network nearly returns its input. Nearly: a loss that rewards distance
    from the input has no gradient at the input itself.

    Args:
        channels: Image channels C.
        width: Channels at full size; doubled at each halving. A multiple of 8, or below it.
        depth: Number of halvings; images need at least 2^depth pixels a side.
    """

    def __init__(self, channels: int, *, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_block(*pair) for pair in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(_block(3 * narrow, narrow) for narrow in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, channels, 1)
        nn.init.normal_(self.last.weight, std=FIRST_WEIGHT)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, images: Images) -> Images:
        """Images [B, C, H, W] in (0, 1)."""
        skips: list[Tensor] = []
        maps = images * 2 - 1
        for level, block in enumerate(self.down):
            maps = block(F.max_pool2d(maps, 2) if level else maps)
            skips.append(maps)
        skips.pop()
        for block in self.up:
            skip = skips.pop()
            maps = block(torch.cat((F.interpolate(maps, size=skip.shape[2:]), skip), dim=1))
        return torch.sigmoid(torch.logit(images, EDGE) + self.last(maps))


def largest_depth(images: Images, wanted: int) -> int:
    """``wanted`` halvings, or as many as leave images [B, C, H, W] two pixels a side."""
    side = min(images.shape[2:])
    return max(1, min(wanted, side.bit_length() - 2))
