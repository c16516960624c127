"""Noise on two BatchNorm neurons, every number by hand."""

import math

import pytest
import torch
import toys
from torch import nn

from banaudit.architectures.base import SplitModel, SplitNetwork
from banaudit.errors import UnsupportedModelError
from banaudit.meter import Meter
from banaudit.neurons import (
    NoisyModel,
    batch_norms,
    count_neurons,
    fit_feature_mask,
    initial_mask,
    require_batch_norm,
    train_under_noise,
)

GAMMA, BETA = (2.0, -1.0), (0.5, 0.0)


class TwoNeurons(SplitNetwork):
    """Two pixels through BatchNorm with stored mean (1, 2) and variance (4, 9); the head multiplies by 3."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, eps=1e-12)
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor(GAMMA))
            self.norm.bias.copy_(torch.tensor(BETA))
            self.norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
            self.norm.running_var.copy_(torch.tensor([4.0, 9.0]))

    def features(self, inputs):
        return self.norm(inputs.flatten(1))

    def head(self, features):
        return 3 * features


@pytest.fixture
def two_neurons():
    return SplitModel(TwoNeurons(), (0.0,), (1.0,)).eval()


def pixels(*pairs):
    return torch.tensor(pairs).view(-1, 1, 1, 2)


ONE = pixels((3.0, 5.0))  # normalised by the stored statistics: (1, 1)
TWO = pixels((1.0, 2.0), (5.0, 8.0))  # mean (3, 5), deviation (2, 3): normalised (-1, -1) and (1, 1)
NOISE = torch.tensor([[0.1, 0.2], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("relative", (2 * 1.1 + 0.5 * 2, -1 * 1.2 + 0 * 2)),
        ("additive", (2 * 1.1 + 0.5 + 1 * 2, -1 * 1.2 + 0 + 1 * 1)),  # shifts in units of |gamma|
    ],
)
def test_noise_on_scales_and_shifts(two_neurons, form, expected):
    noisy = NoisyModel(two_neurons, form=form, statistics="running")
    torch.testing.assert_close(noisy.features(ONE, NOISE), torch.tensor([expected]))
    torch.testing.assert_close(noisy.logits(ONE, NOISE), 3 * torch.tensor([expected]))


def test_no_noise_is_the_model_itself(two_neurons):
    before = two_neurons(ONE)
    noisy = NoisyModel(two_neurons, form="relative", statistics="running")
    assert torch.equal(noisy.logits(ONE, noisy.no_noise()), before)


def test_statistics_of_the_batch(two_neurons):
    noisy = NoisyModel(two_neurons, form="relative", statistics="batch")
    expected = torch.tensor([[-2 + 0.5, 1.0], [2 + 0.5, -1.0]])
    torch.testing.assert_close(noisy.features(TWO, noisy.no_noise()), expected)


def test_momentum_zero_leaves_the_stored_statistics(two_neurons):
    noisy = NoisyModel(two_neurons, form="relative", statistics="batch", momentum=0.0)
    noisy.logits(TWO, NOISE)
    norm = two_neurons.network.norm
    assert norm.running_mean.tolist() == [1.0, 2.0]
    assert norm.running_var.tolist() == [4.0, 9.0]


def test_with_momentum_the_statistics_drift_and_are_used_when_asked(two_neurons):
    noisy = NoisyModel(two_neurons, form="relative", statistics="batch", momentum=0.5)
    noisy.features(TWO, NOISE)
    norm = two_neurons.network.norm
    assert norm.running_mean.tolist() == [2.0, 3.5]
    assert norm.running_var.tolist() == pytest.approx([(4 + 8) / 2, (9 + 18) / 2])  # the batch's, unbiased: 8 and 18
    noisy.use_running_statistics()
    first = (3 - 2) / math.sqrt(6) * 2 + 0.5
    assert noisy.features(ONE, noisy.no_noise())[0, 0].item() == pytest.approx(first)
    assert norm.running_mean.tolist() == [2.0, 3.5]


def test_parameters_stay_and_passes_are_counted(two_neurons):
    meter = Meter()
    noisy = NoisyModel(two_neurons, form="additive", meter=meter)
    noisy.ascend(TWO, torch.tensor([0, 1]), NOISE, step=0.1, radius=2.0, what="noise")
    noisy.features(TWO, NOISE)
    assert two_neurons.network.norm.weight.tolist() == list(GAMMA)
    assert two_neurons.network.norm.bias.tolist() == list(BETA)
    assert (meter.forward_images, meter.backward_images) == (4, 2)


@pytest.mark.parametrize(
    ("form", "step", "expected"),
    [
        # Label 0: the loss falls in z_0 = 2 (1 + d0) + ..., and rises in z_1 = -(1 + d1) + ...
        ("relative", 0.1, [[-0.1, -0.1], [-0.1, 0.0]]),  # a shift of zero cannot be moved
        ("additive", 0.1, [[-0.1, -0.1], [-0.1, 0.1]]),
        ("additive", -0.1, [[0.1, 0.1], [0.1, -0.1]]),
        ("additive", 9.0, [[-0.3, -0.3], [-0.3, 0.3]]),  # clipped to the radius
    ],
)
def test_a_step_up_the_loss(two_neurons, form, step, expected):
    noisy = NoisyModel(two_neurons, form=form, statistics="running")
    moved = noisy.ascend(ONE, torch.tensor([0]), noisy.no_noise(), step=step, radius=0.3, what="noise")
    torch.testing.assert_close(moved, torch.tensor(expected))
    assert not moved.requires_grad


def test_random_noise_is_seeded_and_within_its_size(two_neurons):
    noisy = NoisyModel(two_neurons, form="relative")

    def generator():
        return torch.Generator().manual_seed(3)

    uniform, signs = noisy.random_noise(0.3, generator()), noisy.random_signs(0.3, generator())
    assert torch.equal(uniform, noisy.random_noise(0.3, generator()))
    assert uniform.shape == signs.shape == (2, noisy.neurons) == (2, 2)
    assert uniform.abs().max() <= 0.3
    torch.testing.assert_close(signs.abs(), torch.full((2, 2), 0.3))


def test_training_under_noise_is_the_same_function_with_gradients_for_the_weights(two_neurons):
    two_neurons.train()
    logits = train_under_noise(two_neurons, TWO, NOISE, form="relative")
    logits[0, 0].backward()
    norm = two_neurons.network.norm
    # 3 (gamma (1 + 0.1) xhat + beta (1 + 1)) with xhat = -1
    torch.testing.assert_close(norm.weight.grad, torch.tensor([-3.3, 0.0]))
    torch.testing.assert_close(norm.bias.grad, torch.tensor([6.0, 0.0]))
    assert (norm.training, norm.track_running_stats) == (True, True)
    assert norm.running_mean.tolist() == [1.0, 2.0]
    noisy = NoisyModel(two_neurons, form="relative", statistics="batch")
    torch.testing.assert_close(logits.detach(), noisy.logits(TWO, NOISE))


def test_which_layers_have_neurons():
    network = toys.TinyNetwork()
    network.body.append(nn.BatchNorm2d(16, affine=False))  # neither scale nor shift: nothing to perturb
    model = SplitModel(network, (0.0,) * 3, (1.0,) * 3)
    assert list(batch_norms(model)) == ["network.body.1", "network.body.4"]
    assert count_neurons(model) == 8 + 16


def test_a_network_without_batch_norm_is_refused(untinted):
    with pytest.raises(UnsupportedModelError, match="needs BatchNorm"):
        require_batch_norm(untinted)
    with pytest.raises(UnsupportedModelError, match="needs BatchNorm"):
        NoisyModel(untinted, form="relative")


class OneFeature(SplitNetwork):
    """Logits: the sum of the features times ``slope``, and zero."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def features(self, inputs):
        return inputs.flatten(1)

    def head(self, features):
        total = self.slope * features.sum(1)
        return torch.stack((total, torch.zeros_like(total)), dim=1)


def fit(slope, features, *, steps=1, rate=0.1, weight=0.75, clamp_late=False):
    return fit_feature_mask(
        SplitModel(OneFeature(slope), (0.0,), (1.0,)),
        features,
        torch.zeros(len(features), dtype=torch.long),
        steps=steps,
        learning_rate=rate,
        mask_weight=weight,
        batch_size=4,
        clamp_late=clamp_late,
        generator=torch.Generator().manual_seed(5),
    )


@pytest.fixture
def plain_descent(monkeypatch):
    """Plain gradient descent in Adam's place, so that the gradient's size shows."""
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)


def start(features):
    return initial_mask(features, torch.Generator().manual_seed(5))


@pytest.mark.usefixtures("plain_descent")
def test_the_penalty_is_divided_by_its_own_value():
    features = torch.rand(4, 50)
    before = start(features)
    # With a head that answers nothing only the penalty pulls: lambda_1 / |m|_1 on every entry, however many there are.
    torch.testing.assert_close(fit(0.0, features), before - 0.1 * 0.75 / before.sum())


@pytest.mark.usefixtures("plain_descent")
def test_the_gradient_of_both_cross_entropies():
    features = torch.full((4, 1), 2.0)
    before = float(start(features))

    def sigmoid(value):
        return 1 / (1 + math.exp(-value))

    # loss = softplus(-2 m) - softplus(-2 (1 - m)) + lambda_1 |m| / sg(|m|)
    gradient = -2 * sigmoid(-2 * before) - 2 * sigmoid(-2 * (1 - before)) + 0.75 / before
    assert fit(1.0, features, rate=0.01).item() == pytest.approx(before - 0.01 * gradient, rel=1e-5)


@pytest.mark.usefixtures("plain_descent")
@pytest.mark.parametrize(("clamp_late", "inside"), [(False, True), (True, False)])
def test_clamped_late_the_mask_ends_one_step_outside(clamp_late, inside):
    mask = fit(0.0, torch.rand(4, 5), rate=50.0, clamp_late=clamp_late)
    assert bool((mask >= 0).all()) is inside


def test_the_mask_keeps_what_the_label_needs():
    mask = fit(1.0, torch.full((4, 3), 2.0), steps=100, rate=0.05, weight=0.1)
    torch.testing.assert_close(mask, torch.ones(3))
    mask = fit(-1.0, torch.full((4, 3), 2.0), steps=100, rate=0.05, weight=0.1)
    torch.testing.assert_close(mask, torch.zeros(3))


def test_training_under_noise_leaves_all_statistics_alone():
    """Layers without a scale and a shift get no noise, but see what it does to others."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train_under_noise(network.train(), torch.rand(8, 3, 4, 4), torch.full((2, 4), 0.5), form="relative")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(layer.training and layer.track_running_stats for layer in network[1:])
