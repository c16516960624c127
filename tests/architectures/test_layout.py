"""The memory layout of a model: channels last where the network takes it, and never at the price of an answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from banaudit.architectures.base import SplitModel, SplitNetwork


class Flattening(SplitNetwork):
    """A network that views a feature map as a vector, which only works on contiguous ones."""

    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4 * 8 * 8, 3)
        self._strict = strict

    def features(self, inputs: Tensor) -> Tensor:
        found = self.convolution(inputs).relu()
        return found.view(len(found), -1) if self._strict else found.flatten(1)

    def head(self, features: Tensor) -> Tensor:
        return self.linear(features)


@pytest.mark.parametrize(("strict", "layout"), [(True, torch.contiguous_format), (False, torch.channels_last)])
def test_the_layout_is_one_that_the_network_takes(strict, layout):
    torch.manual_seed(0)
    model = SplitModel(Flattening(strict=strict), (0.5,) * 3, (0.25,) * 3).eval()
    images = torch.rand(5, 3, 8, 8)
    before = model(images)
    laid_out = copy.deepcopy(model).lay_out_fast(images)
    assert laid_out.network.convolution.weight.is_contiguous(memory_format=layout)
    for layout_of_images in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(laid_out(images.contiguous(memory_format=layout_of_images)), before)
    torch.testing.assert_close(laid_out.lay_out(torch.contiguous_format)(images), before)


@pytest.mark.parametrize(("threads", "layout"), [(1, torch.channels_last), (2, torch.contiguous_format)])
def test_several_threads_train_in_the_plain_layout(monkeypatch, threads, layout):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = SplitModel(Flattening(strict=False), (0.5,) * 3, (0.25,) * 3).eval()
    model.lay_out_for_training(torch.rand(2, 3, 8, 8))
    assert model.network.convolution.weight.is_contiguous(memory_format=layout)
