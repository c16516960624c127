"""Checkpoints of strangers: recognised or built from a small file, with the clean accuracy measured on them."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from banaudit.architectures import LoadedNetwork, SplitModel, load_network
from banaudit.checkpoints import read_checkpoint

SHARED = Path(__file__).resolve().parents[3] / "shared"
FACTORIES = Path(__file__).resolve().parents[1] / "zoo_architectures"
ARCHIVES = {"CIFAR-10": "cifar10", "GTSRB": "gtsrb32", "MNIST": "mnist"}
IMAGES = 300
TOLERANCE = 0.08
"""About three standard errors of an accuracy of 80 % on 300 images: finds a wrong activation, pooling or shortcut."""

pytestmark = pytest.mark.skipif(not (SHARED / "zoo").is_dir(), reason="the zoo of checkpoints is not here")

RECOGNISED = {
    "third_party/cifar10/nad_wrn16-1_badnets_t5.pth.tar": "wrn-16-1",
    "third_party/cifar10/nad_wrn16-1_teacher_clean.pth.tar": "wrn-16-1",
    "third_party/cifar10/nad_wrn16-1_erased_t5.tar": "wrn-16-1",
    "third_party/cifar10/akamaster_resnet20-12fca82f.th": "resnet20",
    "third_party/cifar10/akamaster_resnet32-d509ac18.th": "resnet32",
    "third_party/cifar10/lth_resnet20_rgb_t0_dense_baseline.pth": "resnet20",
    "trained/badnets_t3_s1.pt": "resnet18",
    "trained/clean_s1.safetensors": "resnet18",
    "trained/blend_t5_s1.pth.tar": "resnet18",
}
FROM_FILE = {
    "third_party/cifar10/ibau_smallvgg_badnets_t8.pth": ("small_vgg.py", "logits", 6),
    "third_party/gtsrb/ibau_smallvgg_gtsrb_badnets_t8.pth": ("small_vgg.py", "logits", 6),
    "third_party/gtsrb/poojahira_stn_gtsrb_clean.pth": ("spatial_transformer.py", "log-probabilities", 3),
    "third_party/cifar10/tzannetos_badnet_cifar_single.pth": ("reshaped_cifar.py", "logits", 0),
    "third_party/mnist/verazuo_badnet_mnist_t1.pth": ("lenet.py", "probabilities", 0),
    "third_party/mnist/coldchair_badnet_mnist_4to7.pth": ("lenet.py", "probabilities", 0),
    "third_party/mnist/wxr1998_MNIST_1110_225542_c.pt": ("two_heads.py", "logits", 0),
}


def entry(file: str) -> dict[str, Any]:
    manifests = ("third_party.json", "trained.json")
    entries = (found for name in manifests for found in json.loads((SHARED / "zoo" / name).read_text(encoding="utf-8")))
    return next(found for found in entries if found["file"] == file)


@functools.cache
def clean(archive: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Every n-th test image, [300, C, 32, 32] in [0, 1], and its label."""
    mode = "L" if archive == "mnist" else "RGB"
    with zipfile.ZipFile(SHARED / "data" / f"{archive}.zip") as members:
        names = [name for name in sorted(members.namelist()) if "test/" in name and not name.endswith("/")]
        classes = sorted({name.split("/")[-2] for name in names})
        names = names[:: len(names) // IMAGES][:IMAGES]
        images = [Image.open(io.BytesIO(members.read(name))).convert(mode) for name in names]
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    return torch.stack([pil_to_tensor(image) for image in images]).float() / 255, labels


def accuracy(loaded: LoadedNetwork, found: dict[str, Any]) -> float:
    images, labels = clean(ARCHIVES[found["dataset"].split()[0]])
    channels = loaded.facts.channels
    # The one manifest entry that gives its statistics in words only; those of MNIST.
    in_words = "sigma" in found["preprocessing"].get("scale", "")
    mean = (0.1307,) if in_words else tuple(found["preprocessing"].get("mean") or [0.0] * channels)
    std = (0.3081,) if in_words else tuple(found["preprocessing"].get("std") or [1.0] * channels)
    model = SplitModel(loaded.network, mean, std)
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


@pytest.mark.parametrize("file", RECOGNISED)
def test_recognised_without_help(file: str) -> None:
    found = entry(file)
    loaded = load_network(read_checkpoint(SHARED / "zoo" / file).weights)
    assert loaded.facts.name == RECOGNISED[file]
    assert abs(accuracy(loaded, found) - found["measured"]["clean_acc"]) < TOLERANCE


@pytest.mark.parametrize("file", FROM_FILE)
def test_built_from_a_small_file(file: str) -> None:
    source, outputs, batch_norms = FROM_FILE[file]
    found = entry(file)
    classes = 43 if found["dataset"] == "GTSRB" else 10
    weights = read_checkpoint(SHARED / "zoo" / file).weights
    loaded = load_network(weights, arch=f"{FACTORIES / source}:factory", classes=classes)
    assert (loaded.facts.outputs, loaded.facts.batch_norms) == (outputs, batch_norms)
    assert abs(accuracy(loaded, found) - found["measured"]["clean_acc"]) < TOLERANCE
