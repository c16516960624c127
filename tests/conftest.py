"""Toy networks, with and without planted backdoors, and clean images of theirs."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toys

from banaudit import relapse
from banaudit.data import CleanData

torch.set_num_threads(1)  # the networks are tiny, and on a busy machine threads that wait for each other take minutes


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


@dataclass(frozen=True)
class Subject:
    """What a user has: a checkpoint and a folder of clean images, and the normalisation on a piece of paper.

    Args:
        checkpoint: A bare state dict of a thin ResNet for six classes.
        images: Thirty PNG files in a folder for each class.
    """

    checkpoint: Path
    images: Path
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)


@pytest.fixture(scope="session")
def subject(tmp_path_factory):
    """A clean network on disk; nobody may change its files."""
    folder = tmp_path_factory.mktemp("subject")
    model = toys.train(0.0, network=toys.thin_resnet, learning_rate=0.02, epochs=3)
    torch.save(model.network.state_dict(), folder / "model.pt")
    images, labels = toys.draw_images(180, torch.Generator().manual_seed(3))
    return Subject(folder / "model.pt", toys.write_images(folder / "images", images, labels))


@pytest.fixture
def sleeping():
    """Backdoored by hand: four neurons that noise wakes lead to the target."""
    return toys.sleeper(5.0)


@pytest.fixture
def unplanted():
    """The clean twin of ``sleeping``."""
    return toys.sleeper(0.0)


@pytest.fixture
def short_probe(monkeypatch):
    """A relapse probe of a few steps."""
    for name, value in {"MAX_STEPS": 2, "TUNING_STEPS": 2, "SEARCH_IMAGES": 20, "READ_IMAGES": 20}.items():
        monkeypatch.setattr(relapse, name, value)
