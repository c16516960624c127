import torch

from banaudit.detectors.unet import UNet, largest_depth


def test_starts_near_the_identity_but_not_at_it():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 20, 12)
    change = (UNet(3, width=16, depth=2)(images) - images).abs().mean()
    assert 1e-3 < change < 0.03


def test_keeps_odd_sizes():
    assert UNet(1, width=4, depth=2)(torch.rand(1, 1, 29, 31)).shape == (1, 1, 29, 31)


def test_every_layer_learns_from_the_first_step():
    network = UNet(3, width=8, depth=2)
    network(torch.rand(2, 3, 16, 16)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_depth_follows_the_image():
    assert [largest_depth(torch.zeros(1, 3, side, side), 4) for side in (4, 8, 16, 28, 64)] == [1, 2, 3, 3, 4]
