"""The generator of input-aware triggers: a small encoder and decoder, one for the pattern and one for the mask.

Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, appendix (layout of the generators).
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from banaudit.bench.attacks.base import Shape
from banaudit.shapes import Images, Weights

MASK_SLOPE, MASK_SHIFT = 20.0, 10.0
"""The mask is tanh(20 m - 10), moved to [0, 1]: close to a step at m = 1/2."""
EPS = 1e-7
"""Keeps tanh inside the open unit interval and a ratio of distances finite."""
STEPS = 3
"""Halvings of the resolution, where the image's height and width allow it."""

Part = tuple[str, int]
"""A generator's name, and the channels it makes."""


@final
class TriggerGenerator(nn.Module):
    """Image [B, C, H, W] -> image [B, out, H, W] in [0, 1].

    Args:
        shape: C, H, W of the images.
        width: Channels after the first layer; they double with each halving of the resolution.
        out: Channels of the output.
    """

    def __init__(self, shape: Shape, width: int, out: int) -> None:
        super().__init__()
        channels, height, pixels = shape
        steps = max(step for step in range(STEPS + 1) if height % 2**step == 0 and pixels % 2**step == 0)
        layers: list[nn.Module] = []
        current = channels
        for step in range(steps):
            layers += [_convolution(current, width * 2**step), _convolution(width * 2**step, width * 2**step)]
            layers.append(nn.MaxPool2d(2))
            current = width * 2**step
        layers.append(_convolution(current, current))
        for step in reversed(range(steps)):
            layers += [
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                _convolution(current, current),
            ]
            following = width * 2 ** (step - 1) if step else out
            layers.append(_convolution(current, following, active=step > 0))
            current = following
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Images) -> Tensor:
        """[B, out, H, W] in [0, 1]."""
        return torch.tanh(self.layers(images).float()) / (2 + EPS) + 0.5


def _convolution(channels_in: int, channels_out: int, *, active: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out, momentum=0.05)]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


def draw_generators(shape: Shape, width: int, generator: torch.Generator) -> Weights:
    """Fresh weights of both generators, prefixed ``pattern.`` and ``mask.``; global random state is left as it was."""
    seed = int(torch.randint(2**31, (1,), generator=generator))
    weights: Weights = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, out in _parts(shape[0]):
            state = TriggerGenerator(shape, width, out).state_dict()
            weights |= {f"{name}.{key}": tensor for key, tensor in state.items()}
    return weights


def build_generators(weights: Weights, shape: Shape, width: int) -> tuple[TriggerGenerator, TriggerGenerator]:
    """Trainable generators of pattern and mask with copies of these weights, on the weights' device."""
    built = []
    for name, out in _parts(shape[0]):
        generator = TriggerGenerator(shape, width, out)
        generator.load_state_dict(_part(weights, name))
        built.append(generator.to(next(iter(weights.values())).device))
    return built[0], built[1]


def read_generators(pattern: TriggerGenerator, mask: TriggerGenerator) -> Weights:
    """Copies of both generators' weights, as :func:`draw_generators` names them."""
    return {
        f"{name}.{key}": tensor.detach().clone()
        for name, generator in (("pattern", pattern), ("mask", mask))
        for key, tensor in generator.state_dict().items()
    }


@torch.no_grad()
def apply_generators(images: Images, weights: Weights, width: int) -> Images:
    """Triggers made for each image and put on it, with generators in evaluation mode."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    made = []
    for name, out in _parts(shape[0]):
        with torch.device("meta"):
            generator = TriggerGenerator(shape, width, out).eval()
        made.append(functional_call(generator, _part(weights, name), (images,)))
    return stamp(images, made[0], harden(made[1]))


def harden(mask: Tensor) -> Tensor:
    """A mask in [0, 1] pushed towards 0 and 1."""
    return torch.tanh(MASK_SLOPE * mask - MASK_SHIFT) / (2 + EPS) + 0.5


def stamp(images: Images, patterns: Tensor, masks: Tensor) -> Images:
    """Images with the pattern where the mask is 1: x + m (p - x)."""
    return images + masks * (patterns - images)


def diversity_penalty(images: Images, others: Images, made: Tensor, made_of_others: Tensor) -> Tensor:
    """How much more two images differ than what was made for them, mean over pairs (IAD, Equation 5).

    Args:
        images: [B, C, H, W], first of each pair.
        others: [B, C, H, W], second of each pair.
        made: [B, out, H, W], pattern or mask of the first.
        made_of_others: [B, out, H, W], pattern or mask of the second.
    """
    between_images = _distance(images, others)
    between_made = _distance(made, made_of_others)
    return (between_images / (between_made + EPS)).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    # The square root has no gradient at zero, and two equal masks are zero apart.
    return (F.mse_loss(first, second, reduction="none").mean(dim=(1, 2, 3)) + EPS).sqrt()


def _parts(channels: int) -> tuple[Part, Part]:
    return ("pattern", channels), ("mask", 1)


def _part(weights: Weights, name: str) -> Weights:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
