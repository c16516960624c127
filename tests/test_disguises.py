"""Other writings of the same function: they are undone or told, and ordinary networks stay as they are."""

import copy

import pytest
import torch

from banaudit.architectures import SplitModel
from banaudit.data import batching
from banaudit.disguises import (
    SCALED_MARGIN,
    finite_rows,
    fit_statistics,
    logits_of,
    needs_full_precision,
    twin_outputs,
    undisguise,
    usual_scale,
)
from banaudit.meter import Meter
from banaudit.neurons import batch_norms
from banaudit.precision import fast_precision, full_precision

CPU = torch.device("cpu")


def finite_logits(model, clean):
    return finite_rows(logits_of(model, clean, Meter()))


@pytest.mark.parametrize(("factor", "scaled"), [(1.0, False), (1e-9, True), (5.0, True), (1e30, True)])
def test_a_constant_on_the_last_layer_hides_nothing(planted, clean_data, factor, scaled):
    with torch.no_grad():
        best = planted(clean_data.images[:256]).topk(2, dim=1).values
    margin = float((best[:, 0] - best[:, 1]).median())
    quiet = SplitModel(planted.network, (0.5,) * 3, (0.25,) * 3, logit_scale=SCALED_MARGIN / margin * factor).eval()
    scale = usual_scale(finite_logits(quiet, clean_data))
    assert scale == (pytest.approx(1 / factor, rel=1e-3) if scaled else 1.0)


def test_ordinary_networks_stay_as_they_are(planted, clean_data):
    before = copy.deepcopy(planted.state_dict())
    assert not fit_statistics(planted, clean_data, Meter())
    assert not needs_full_precision(planted, clean_data, logits_of(planted, clean_data, Meter()), Meter())
    assert twin_outputs(finite_logits(planted, clean_data)) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in planted.state_dict().items())


def test_statistics_that_mislead_are_brought_to_those_of_the_images(planted, clean_data):
    misled = copy.deepcopy(planted)
    with torch.no_grad():
        for layer in batch_norms(misled).values():
            shift = 3 * layer.running_var.sqrt()
            layer.bias += layer.weight / (layer.running_var + layer.eps).sqrt() * shift
            layer.running_mean += shift
        wanted = planted(clean_data.images)
        assert torch.allclose(misled(clean_data.images), wanted, atol=1e-3)
        assert not torch.allclose(
            copy.deepcopy(misled).train()(clean_data.images), copy.deepcopy(planted).train()(clean_data.images), atol=1
        )
        assert fit_statistics(misled, clean_data, Meter())
        assert torch.allclose(misled(clean_data.images), wanted, atol=1e-3)
        assert torch.allclose(copy.deepcopy(misled).train()(clean_data.images), wanted, atol=0.5)
    assert not fit_statistics(misled, clean_data, Meter())


@pytest.fixture
def rounding(monkeypatch):
    """A processor that multiplies bfloat16 natively, whatever this one does."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


@pytest.mark.usefixtures("rounding")
def test_what_rounding_would_lose_is_computed_in_full(planted, clean_data):
    faint, shifted = copy.deepcopy(planted), copy.deepcopy(planted)
    first, *_ = batch_norms(faint).values()
    with torch.no_grad():
        first.weight[0] *= 1e6
        linear = next(layer for layer in shifted.modules() if isinstance(layer, torch.nn.Linear))
        linear.bias += 5000.0
    assert needs_full_precision(faint, clean_data, logits_of(faint, clean_data, Meter()), Meter())
    assert needs_full_precision(shifted, clean_data, logits_of(shifted, clean_data, Meter()), Meter())
    assert not needs_full_precision(planted, clean_data, logits_of(planted, clean_data, Meter()), Meter())


@pytest.mark.usefixtures("rounding")
def test_full_precision_ends_where_it_was_asked_for():
    def rounds():
        with fast_precision(CPU):
            return torch.is_autocast_enabled("cpu")

    with full_precision(True):
        assert not rounds()
        with full_precision(False):
            assert rounds()
        assert not rounds()
    assert rounds()


def test_large_images_are_looked_at_in_parts(planted, clean_data, monkeypatch):
    def fitted():
        misled = copy.deepcopy(planted)
        with torch.no_grad():
            next(iter(batch_norms(misled).values())).running_mean += 9.0
        meter = Meter()
        told = undisguise(misled, clean_data, meter)
        return misled, told, meter.forward_images

    whole, told, spent = fitted()
    monkeypatch.setattr(batching, "PASS_PIXELS", 50 * 16 * 16)
    parted, told_again, spent_again = fitted()
    assert told == told_again
    assert spent == spent_again > 0
    for ours, theirs in zip(batch_norms(whole).values(), batch_norms(parted).values(), strict=True):
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        torch.testing.assert_close(ours.weight, theirs.weight)


class Copied(torch.nn.Module):
    """One more output, which follows that of a class a little lower."""

    def __init__(self, network, label):
        super().__init__()
        self.network, self.label = network, label

    def features(self, inputs):
        return self.network.features(inputs)

    def head(self, features):
        logits = self.network.head(features)
        return torch.cat((logits, logits[:, self.label :][:, :1] - 0.001), dim=1)


def test_a_copy_of_an_output_is_told(planted, clean_data):
    copied = SplitModel(Copied(planted.network, 2), (0.5,) * 3, (0.25,) * 3).eval()
    assert twin_outputs(finite_logits(copied, clean_data)) == (2, clean_data.num_classes)


def test_many_copies_do_not_hide_each_other(planted, clean_data):
    logits = finite_logits(planted, clean_data)
    crowd = torch.cat((logits, *(logits[:, 2:3] - 0.001 * number for number in range(1, 9))), dim=1)
    assert twin_outputs(crowd) is not None


def test_a_copy_is_found_among_thousands(monkeypatch):
    logits = torch.randn(50, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert twin_outputs(logits) is None
    logits[:, 3500] = logits[:, 17] - 0.001
    assert twin_outputs(logits) == (17, 3500)


def test_an_image_that_overflows_switches_nothing_off(planted, clean_data):
    class Overflowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = planted.network

        def features(self, inputs):
            return self.network.features(inputs)

        def head(self, features):
            logits = self.network.head(features)
            logits[0] = torch.inf
            return logits

    model = SplitModel(Overflowing(), (0.5,) * 3, (0.25,) * 3).eval()
    logits = finite_logits(model, clean_data)
    assert logits.isfinite().all()
    assert usual_scale(100 * logits) < 1


def test_a_channel_that_sleeps_keeps_its_weight(planted, clean_data):
    misled = copy.deepcopy(planted)
    first, *_ = batch_norms(misled).values()
    convolution = next(layer for layer in misled.modules() if isinstance(layer, torch.nn.Conv2d))
    with torch.no_grad():
        convolution.weight[0] = 0
        first.running_mean += 3 * first.running_var.sqrt()
        before = misled(clean_data.images)
        weight = first.weight[0].abs().item()
        assert fit_statistics(misled, clean_data, Meter())
        assert torch.allclose(misled(clean_data.images), before, atol=1e-2)
    assert first.weight[0].abs() > 0.05 * weight
