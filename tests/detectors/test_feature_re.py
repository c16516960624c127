import copy
import math

import pytest
import torch
from toys import TARGET

from banaudit.data import CleanData
from banaudit.detectors import feature_re
from banaudit.detectors.base import freeze
from banaudit.detectors.feature_inversion import class_mean, likeness, mixed, spread, violation
from banaudit.detectors.feature_re import FeatureRE
from banaudit.detectors.unet import UNet
from banaudit.meter import Meter
from banaudit.results import Verdict


def test_terms_by_hand():
    features, mask = torch.tensor([[0.0, 2.0], [4.0, 2.0]]), torch.tensor([0.5, 0.25])
    assert mixed(features, torch.ones(2, 2), mask).tolist() == [[0.5, 1.25], [2.5, 1.25]]
    assert float(spread(features, mask)) == pytest.approx(0.5 * 2 / 0.75)
    assert float(likeness(features, torch.tensor([1.0, 0.0]))) == pytest.approx(math.sqrt(0.5))
    assert float(violation(torch.tensor(3.0), 2.0)) == 0.5
    assert float(violation(torch.tensor(1.0), 2.0)) == 0.0


def test_mean_of_a_class_without_images_is_zero():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert class_mean(features, torch.tensor([0, 0]), 0).tolist() == [2.0, 3.0]
    assert class_mean(features, torch.tensor([0, 0]), 1).tolist() == [0.0, 0.0]


def test_generator_loss_by_hand():
    detector = FeatureRE(pixel_bound=0.01, spread_bound=1.0, success=0.5)
    logits, targets = torch.zeros(4, 3), torch.ones(4, dtype=torch.long)  # success 0: argmax is class 0
    loss, violations = detector.generator_loss(
        logits,
        targets,
        like=torch.tensor(0.5),
        pixels=torch.tensor(0.02),
        spread_now=torch.tensor(0.5),
        before=torch.tensor([9.0, 0.5, 0.25]),
    )
    assert violations.tolist() == pytest.approx([0.0, 1.0, 1.0])
    assert float(loss) == pytest.approx(5 * 0.5 + 1.25 * math.log(3) + 10 * 1.5 * 0.02)


def test_mask_loss_counts_the_norm_above_its_bound_only():
    detector, targets = FeatureRE(mask_bound=0.3), torch.zeros(1, dtype=torch.long)
    logits = torch.zeros(1, 2)
    assert float(detector.mask_loss(logits, targets, torch.tensor([0.5, 0.5]))) == pytest.approx(math.log(2) + 1)
    assert float(detector.mask_loss(logits, targets, torch.tensor([0.5, 0.0]))) == pytest.approx(math.log(2))


def test_value_by_hand():
    detector = FeatureRE(pixel_bound=0.01, spread_bound=1.0, mask_bound=0.5, success=0.9)
    moved, mask = torch.tensor([[0.0], [4.0]]), torch.tensor([0.75])
    value = detector.value(torch.tensor(0.1), torch.tensor(0.9), torch.tensor(0.02), moved, mask)
    assert float(value) == pytest.approx(0.1 - 0.9 + 1.0 + 1.0 + 0.5 + 0.0)


SMALL = FeatureRE(
    warm_up=30, steps=60, learning_rate=1e-2, mask_bound=0.2, width=4, depth=1, batch_size=8, pixel_bound=0.03
)


def test_finds_the_planted_backdoor(tinted, tiled_data):
    finding = SMALL(tinted, tiled_data)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET


def test_does_not_accuse_the_clean_twin(untinted, tiled_data):
    assert SMALL(untinted, tiled_data).verdict is Verdict.NO_EVIDENCE


def test_searches_use_no_image_of_the_class(tinted, tiled_data, monkeypatch):
    seen = []

    class Recording(UNet):
        def forward(self, images):
            seen.append(images.detach().clone())
            return super().forward(images)

    monkeypatch.setattr(feature_re, "UNet", Recording)
    data = tiled_data.subset(torch.arange(60))
    marked = data.images.clone()
    marked[data.labels == 2] = 0.123
    marked = CleanData(marked, data.labels, data.class_names)
    settings, model = FeatureRE(warm_up=3, steps=3, width=4, depth=1), freeze(copy.deepcopy(tinted))
    features = model.features(marked.images)
    settings.invert(model, marked, features, 2, generator=torch.Generator().manual_seed(0), meter=Meter())
    assert len(seen) == 6
    assert not any((images == 0.123).flatten(1).all(1).any() for images in seen)


def test_the_warm_up_stays_near_the_images(tinted, tiled_data):
    model = freeze(copy.deepcopy(tinted))
    features = model.features(tiled_data.images)

    def change(bound):
        torch.manual_seed(0)
        settings = FeatureRE(warm_up=60, steps=1, width=4, depth=1, learning_rate=1e-2, pixel_bound=bound)
        network, _ = settings.invert(
            model, tiled_data, features, TARGET, generator=torch.Generator().manual_seed(0), meter=Meter()
        )
        with torch.no_grad():
            return float((network(tiled_data.images) - tiled_data.images).square().mean())

    assert change(1e-6) < change(1e6) / 2
