from __future__ import annotations

import torch

from banaudit.bench.synthetic import IMAGES_PER_CLASS, NOISE_OF_IMAGES, synthetic_images, synthetic_model
from banaudit.preflight import clean_accuracy


def test_each_class_has_colours_of_its_own():
    pixels, labels = synthetic_images(12, 3, torch.Generator().manual_seed(0))
    assert pixels.shape == (12, 3, 32, 32)
    assert labels.tolist() == [0, 1, 2] * 4
    for label in range(3):
        patch = pixels[labels == label][:, 0, :16, 16:].int()
        assert patch.max() - patch.min() <= 2 * NOISE_OF_IMAGES
    assert IMAGES_PER_CLASS * 3 < 1280


def test_the_model_learns_enough_to_be_scanned_and_repeats():
    device, classes = torch.device("cpu"), 12
    state = torch.get_rng_state()
    model, clean = synthetic_model("vgg11", 4, 60, classes, device, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (len(clean), clean.num_classes) == (60, classes)
    accuracy = clean_accuracy(model, clean)
    assert accuracy.accuracy >= accuracy.floor
    again, _ = synthetic_model("vgg11", 4, 60, classes, device, 0)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
