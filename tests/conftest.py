"""Toy networks, with and without planted backdoors, and clean images of theirs."""

import pytest
import torch
import toys

from banaudit.data import CleanData


@pytest.fixture(scope="session")
def planted():
    """Backdoored: a checkerboard in the corner leads to the target."""
    return toys.train(0.1)


@pytest.fixture(scope="session")
def clean_twin():
    """The clean twin of ``planted``."""
    return toys.train(0.0)


@pytest.fixture(scope="session")
def clean_data():
    images, labels = toys.draw_images(240, torch.Generator().manual_seed(2))
    return CleanData(images, labels, toys.NAMES)


@pytest.fixture
def tinted():
    """Backdoored by hand: a red or blue tint leads to the target."""
    return toys.hand_made(8.0)


@pytest.fixture
def untinted():
    """The clean twin of ``tinted``."""
    return toys.hand_made(0.0)


@pytest.fixture(scope="session")
def tiled_data():
    return toys.draw_tiles()


@pytest.fixture
def sleeping():
    """Backdoored by hand: four neurons that noise wakes lead to the target."""
    return toys.sleeper(5.0)


@pytest.fixture
def unplanted():
    """The clean twin of ``sleeping``."""
    return toys.sleeper(0.0)
