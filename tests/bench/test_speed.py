from __future__ import annotations

import pytest
import torch
from stand_ins import Accuser

from banaudit.architectures.base import SplitModel
from banaudit.bench.networks import build_network
from banaudit.bench.speed import EPS, _noise_steps, compare, plain_released
from banaudit.bench.synthetic import synthetic_images
from banaudit.data import CleanData
from banaudit.errors import UsageError

PASSES = 128 * (400 + 600)


@pytest.fixture
def small():
    generator = torch.Generator().manual_seed(0)
    pixels, labels = synthetic_images(40, 4, generator)
    clean = CleanData(pixels.float().div(255)[:, :, ::4, ::4], labels, tuple("abcd"))
    model = SplitModel(build_network("resnet18", 2, 3, 4), (0.5,) * 3, (0.25,) * 3)
    return model, clean


def test_the_plain_procedure_counts_all_its_passes_and_times_a_share(small):
    model, clean = small
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    times = plain_released(model, clean, share=0.004)
    assert (times.forward_images, times.backward_images) == (PASSES + 80, PASSES)
    assert times.timed_share == pytest.approx(0.004)
    assert times.timed_forward_images == 4 * 128 + 80
    assert times.seconds > times.timed_seconds
    assert int(times.histogram.sum()) == 40
    drifted = [name for name, tensor in model.named_buffers() if not torch.equal(tensor, before[name])]
    assert any(name.endswith("running_mean") for name in drifted)  # training mode, as the authors run it


def test_noise_may_leave_its_radius_and_is_drawn_anew(small):
    model, clean = small

    def batch():
        return clean.images, clean.labels

    model.train()
    after_30 = _noise_steps(model, batch, 30, torch.Generator().manual_seed(0))
    largest = max(float(tensor.abs().max()) for tensor in after_30.values())
    assert EPS < largest <= 2 * EPS + 1e-6
    after_31 = _noise_steps(model, batch, 31, torch.Generator().manual_seed(0))
    assert max(float(tensor.abs().max()) for tensor in after_31.values()) <= EPS * (1 + 1 / 30) + 1e-6
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "weight" in name)


def test_shares_outside_their_range_are_refused(small):
    for share in (0.0, 1.5):
        with pytest.raises(UsageError, match="--plain-share"):
            plain_released(*small, share=share)


def test_both_sides_are_timed_on_one_model():
    told = []
    result = compare(
        width=4,
        classes=3,
        images=60,
        device="cpu",
        plain_share=0.004,
        detectors=[Accuser(target=1)],
        progress=told.append,
    )
    assert result.plain.extrapolated
    assert result.plain.forward_images == PASSES + 120
    assert result.ratio == pytest.approx(result.plain.seconds / result.scan.seconds, rel=0.05)
    assert [method.method for method in result.methods] == ["accuser"]
    assert min(result.plain.peak_bytes, result.scan.peak_bytes) > 2**20
    assert len(told) == 5
    assert {item.name for item in result.economies} >= {"weights frozen", "features computed once"}
    assert all(item.without > 0 and item.with_it > 0 for item in result.economies if "shortlist" not in item.name)
