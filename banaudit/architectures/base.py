"""The one form in which detectors meet a network: split into features and a head, images in [0, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn

from banaudit.shapes import Features, Images, Logits


class SplitNetwork(nn.Module, ABC):
    """A classifier f = head ∘ features, where ``head`` is pooling and the final linear layer (BAN, Section 3.3).

    Inputs are what the network itself expects (normalised); :class:`SplitModel` puts the normalisation in front.
    """

    @abstractmethod
    def features(self, inputs: Tensor) -> Features:
        """Latent feature g(x): the last feature map before global pooling, [B, D, H', W'] or [B, D]."""

    @abstractmethod
    def head(self, features: Features) -> Logits:
        """Logits [B, K] of features as :meth:`features` returns them."""

    def forward(self, inputs: Tensor) -> Logits:
        """Logits [B, K]."""
        return self.head(self.features(inputs))


class WrappedNetwork(SplitNetwork, ABC):
    """A split network around a module whose own forward does the work.

    Args:
        module: The whole classifier; its keys are those of the file, here under ``module.``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class SplitModel(nn.Module):
    """A split network with its normalisation inside: images [B, C, H, W] in [0, 1] -> logits [B, K].

    Args:
        network: The classifier.
        mean: Mean of each channel, C numbers.
        std: Standard deviation of each channel, C numbers.
        logit_scale: Constant that the logits are multiplied by; predictions do not depend on it, searches do.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: SplitNetwork, mean: tuple[float, ...], std: tuple[float, ...], logit_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.network = network
        self.logit_scale = logit_scale
        self.full_precision = False
        """Whether methods must not round: see :mod:`banaudit.disguises`."""
        self._layout: torch.memory_format = torch.contiguous_format
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def lay_out(self, layout: torch.memory_format) -> Self:
        """Keep weights and inputs in this memory layout from now on."""
        self._layout = layout
        return self.to(memory_format=layout)

    def lay_out_fast(self, images: Images) -> Self:
        """Keep weights and inputs channels last, which convolutions are fastest with, if the network works with it.

        Code that calls ``view`` on a feature map does not. The model has to be in evaluation mode: in training mode the
        trial would enter the running statistics.

        Args:
            images: [B, C, H, W]; two of them are tried.
        """
        self.lay_out(torch.channels_last)
        try:
            with torch.no_grad():
                self(images[:2])
        except Exception:  # whatever a user's network raises
            self.lay_out(torch.contiguous_format)
        return self

    def lay_out_for_training(self, images: Images) -> Self:
        """The fastest layout in which the weights' gradients are right.

        On the CPU, torch 2.15 corrupts memory in the weights' gradients of narrow channels-last convolutions once it
        has two threads.

        Args:
            images: As in :meth:`lay_out_fast`.
        """
        if images.device.type == "cpu" and torch.get_num_threads() > 1:
            return self.lay_out(torch.contiguous_format)
        return self.lay_out_fast(images)

    def features(self, images: Images) -> Features:
        """Latent feature g(x) of images in [0, 1]."""
        return self.network.features(((images - self.mean) / self.std).contiguous(memory_format=self._layout))

    def head(self, features: Features) -> Logits:
        """Logits [B, K] of features."""
        return self.network.head(features) * self.logit_scale

    def forward(self, images: Images) -> Logits:
        """Logits [B, K] of images in [0, 1]."""
        return self.head(self.features(images))
