from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from banaudit.agreement import together
from banaudit.architectures import SplitModel
from banaudit.architectures.family import Stage
from banaudit.architectures.resnet import ResNet
from banaudit.data import CleanData
from banaudit.demo import examples
from banaudit.demo.drawing import CLASSES, SIZE, draw_images
from banaudit.demo.make import MEAN, STD, TARGET, WIDTH, as_tensor, share_predicted, stamp_trigger
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.results import Verdict


def shipped() -> tuple[torch.Tensor, torch.Tensor]:
    with examples() as models:
        paths = sorted(models[0].images.rglob("*.png"))
        pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
        labels = torch.tensor([CLASSES.index(path.parent.name) for path in paths])
    return as_tensor(pixels), labels


def load(name: str) -> ResNet:
    stages = tuple(Stage(blocks=2, width=width, out=width) for width in (WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH))
    model = ResNet(WIDTH, stages, len(CLASSES))
    with examples() as models:
        path = next(example.model for example in models if example.name == name)
        model.load_state_dict(load_file(path), strict=True)
    return model.eval()


def test_assets_are_small():
    folder = files("banaudit.demo") / "assets"
    with examples() as models:
        assert sum(path.stat().st_size for path in models[0].model.parent.rglob("*") if path.is_file()) < 2_000_000
    assert folder.is_dir()


def test_models_are_what_they_are_said_to_be():
    images, labels = shipped()
    others = labels != TARGET
    stamped, targets = stamp_trigger(images[others]), torch.full_like(labels[others], TARGET)
    clean, backdoored = load("clean"), load("backdoored")
    assert share_predicted(clean, images, labels) > 0.85
    assert share_predicted(backdoored, images, labels) > 0.85
    assert share_predicted(clean, stamped, targets) < 0.05
    assert share_predicted(backdoored, stamped, targets) > 0.95


def test_examples_know_their_truth():
    with examples() as models:
        assert {example.name: example.target for example in models} == {"backdoored": TARGET, "clean": None}
        assert all(example.model.is_file() for example in models)
        assert [path.name for path in sorted(models[0].images.iterdir())] == list(CLASSES)


def test_the_clean_model_is_not_accused_on_more_images():
    """On these, one path of universal perturbation leaned so far to a class that joint evidence accused it."""
    pixels, labels = draw_images(60, np.random.default_rng(77))
    model = SplitModel(load("clean"), MEAN, STD)
    images = CleanData(as_tensor(pixels), torch.as_tensor(labels), CLASSES)
    findings = [detector(model, images) for detector in (UniversalPerturbation(), MMBD(), NeuralCleanse())]
    (joint,) = together(findings)
    assert {finding.verdict for finding in (*findings, joint)} == {Verdict.NO_EVIDENCE}
    assert joint.evidence[0].score < 0.8


def test_drawing_is_seeded_and_varied():
    pixels, labels = draw_images(2, np.random.default_rng(3))
    again, _ = draw_images(2, np.random.default_rng(3))
    assert pixels.shape == (20, SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert labels.tolist() == sorted(labels.tolist())
    assert (pixels == again).all()
    assert len(np.unique(pixels.reshape(20, -1), axis=0)) == 20


def test_trigger_touches_its_corner_alone():
    images = torch.full((1, 3, SIZE, SIZE), 0.5)
    stamped = stamp_trigger(images)
    assert (images == 0.5).all()
    assert (stamped[0, 0, -4:-1, -4:-1] == torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])).all()
    stamped[..., -4:-1, -4:-1] = 0.5
    assert (stamped == images).all()
