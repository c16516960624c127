import copy
import math
from dataclasses import replace

import pytest
import torch
from toys import TARGET

from banaudit.detectors.base import freeze
from banaudit.detectors.feature_inversion import bounded_loss, shortfall
from banaudit.detectors.inversion import MASK_START, field_size, images_of_other_classes
from banaudit.detectors.unet import UNet
from banaudit.detectors.unicorn import Batch, Inversions, Look, Unicorn, entropies, generated_by, ssim
from banaudit.errors import DataError
from banaudit.meter import Meter
from banaudit.results import Verdict


def ramp(side=12):
    return (torch.arange(side * side, dtype=torch.float) / side**2).view(1, 1, side, side)


def test_ssim_of_an_image_with_itself_is_one():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert ssim(images, images).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_of_flat_images_compares_their_brightness():
    dark, bright = torch.full((1, 3, 12, 12), 0.2), torch.full((1, 3, 12, 12), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(dark, bright)) == pytest.approx(expected, rel=1e-4)


def test_ssim_of_opposite_patterns_is_negative_and_of_a_small_image_has_a_small_window():
    assert float(ssim(ramp(), 1 - ramp())) < 0
    board = ((torch.arange(4)[:, None] + torch.arange(4)) % 2).float().view(1, 1, 4, 4)
    # A window of 3: weights a for the edges and b for the middle, of which e = exp(-1 / (2 * 1.5^2)) is the ratio.
    edge = math.exp(-1 / 4.5)
    even = (4 * edge**2 + 1) / (1 + 2 * edge) ** 2  # share of the window on squares like its middle
    variance = even * (1 - even)
    means = (2 * even * (1 - even) + 1e-4) / (even**2 + (1 - even) ** 2 + 1e-4)
    expected = means * (9e-4 - 2 * variance) / (9e-4 + 2 * variance)
    assert float(ssim(board, 1 - board)) == pytest.approx(expected, rel=1e-4)


def test_entropies_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, -1.0]]])
    expected = [math.log(2), (math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2]
    assert entropies(logits, torch.tensor([0, 1])).tolist() == pytest.approx(expected)


def test_bounded_loss_counts_what_is_violated_and_more_what_was():
    assert shortfall(torch.tensor([0.45, 0.95]), 0.9).tolist() == pytest.approx([0.5, 0.0])
    violations = torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.1, 0.0]])
    before = torch.tensor([[0.5, 9.0], [9.0, 1.0], [0.25, 9.0]])
    bounded = torch.tensor([[2.0, 0.1], [0.1, 0.3]])
    losses = bounded_loss(torch.tensor([0.7, 0.8]), bounded, violations, before)
    assert losses.tolist() == pytest.approx([1.25 * 0.7 + 10 * 1.5 * 2.0, 10 * 2.0 * 0.3])


def looked(*, like, change, spread):
    """Two classes of whose two images one and both are where they should be."""
    return Look(
        logits=torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
        like=torch.tensor(like),
        change=torch.tensor(change),
        spread=torch.tensor(spread),
        value=torch.zeros(2),
        moved=torch.zeros(2, 2, 1),
    )


def test_generator_loss_by_hand():
    detector = Unicorn(ssim_bound=0.1, spread_bound=0.5, success=0.9, likeness_weight=2.0)
    now = looked(like=[0.4, -0.2], change=[0.05, 0.2], spread=[0.25, 0.75])
    before = torch.tensor([[3.0, 0.5], [3.0, 0.25], [1.0, 3.0]])
    losses, violations = detector.generator_loss(now, torch.tensor([0, 1]), before, floor=0.0)
    assert violations.flatten().tolist() == pytest.approx([0.0, 0.5, 0.0, 1.0, 1 - 0.5 / 0.9, 0.0])
    entropy = (math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2
    expected = [2 * 0.4 + 2 * entropy, 10 * (1.5 * 0.75 + 1.25 * 0.2)]
    assert losses.tolist() == pytest.approx(expected)
    below, _ = detector.generator_loss(now, torch.tensor([0, 1]), before, floor=0.5)
    assert below.tolist() == pytest.approx([2 * entropy, expected[1]])


def test_mask_loss_counts_the_norm_above_its_bound_only():
    logits, masks = torch.zeros(2, 3, 2), torch.tensor([[0.5, 0.5], [0.5, 0.0]])
    losses = Unicorn(mask_bound=0.3).mask_loss(logits, torch.tensor([0, 1]), masks)
    assert losses.tolist() == pytest.approx([math.log(2) + 1, math.log(2)])


def test_value_takes_every_excess_off_the_success():
    detector = Unicorn(ssim_bound=0.1, spread_bound=0.5, mask_bound=0.01, input_bound=0.2)
    within = {
        "change": torch.tensor(0.1),
        "spread_now": torch.tensor(0.5),
        "feature_share": torch.tensor(0.01),
        "input_share": torch.tensor(0.2),
    }
    assert float(detector.value(torch.tensor(0.95), **within)) == pytest.approx(0.95)
    for name, bound in within.items():
        assert float(detector.value(torch.tensor(0.95), **{**within, name: bound * 1.25})) == pytest.approx(0.7)
    assert float(detector.value(torch.tensor(math.nan), **within)) == -1e6


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(3, width=4, depth=1)


def start(network, classes=3):
    return Inversions.start(classes, network, network, torch.rand(3, 8, 8), torch.rand(5))


def test_every_class_starts_from_the_same_generators(network):
    field, images = start(network), torch.rand(3, 2, 3, 8, 8)
    expected = network(images.flatten(0, 1)).view(images.shape)
    torch.testing.assert_close(generated_by(network, field.encoders, images), expected)
    assert field.raw_masks.shape == field.raw_patterns.shape == (3, 3, 8, 8)
    assert field.raw_feature_masks.tolist() == [[1.0] * 5] * 3
    share = math.tanh(MASK_START) / 2 + 0.5
    torch.testing.assert_close(field.triggers().masks, torch.full((3, 3, 8, 8), share))


def test_each_class_has_generators_of_its_own(network):
    field, images = start(network), torch.rand(1, 2, 3, 8, 8).expand(3, -1, -1, -1, -1)
    field.encoders["last.bias"][1] += 1.0
    generated = generated_by(network, field.encoders, images)
    assert torch.equal(generated[0], generated[2])
    assert bool((generated[1] > generated[0]).all())


def test_classes_are_taken_joined_and_mixed(network):
    field = start(network)
    field.raw_patterns.copy_(torch.arange(3.0).view(3, 1, 1, 1))
    other = field.take(torch.tensor([0, 1, 2]))
    other.raw_patterns.add_(10.0)
    assert field.raw_patterns[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    mixed = field.where(torch.tensor([True, False, True]), other)
    assert mixed.raw_patterns[:, 0, 0, 0].tolist() == [0.0, 11.0, 2.0]
    joined = Inversions.combined([field.take(torch.tensor([2])), other.take(torch.tensor([0]))], torch.cat)
    assert joined.labels.tolist() == [2, 0]
    assert joined.raw_patterns[:, 0, 0, 0].tolist() == [2.0, 10.0]
    assert set(joined.encoders) == {name for name, _ in network.named_parameters()}


def test_the_field_is_halved_until_the_finalists_are_left():
    assert [field_size(step, 10, finalists=3, rung=5) for step in (0, 4, 5, 10, 15, 99)] == [10, 10, 5, 3, 3, 3]
    assert field_size(50, 2, finalists=3, rung=5) == 2
    detector = Unicorn(steps=22, rung=5, finalists=3)
    assert detector.stages(10) == [(5, 10), (5, 5), (12, 3)]
    assert detector.stages(3) == [(22, 3)]


def test_searches_use_no_image_of_the_class(tiled_data):
    weights, fewest = images_of_other_classes(tiled_data)
    assert weights.shape == (6, len(tiled_data))
    assert fewest == 200
    assert not (weights[torch.arange(6) == TARGET, tiled_data.labels == TARGET]).any()
    alone = tiled_data.subset((tiled_data.labels == 1).nonzero().flatten())
    with pytest.raises(DataError, match="at least two classes, found one"):
        images_of_other_classes(alone)


def test_the_warm_up_makes_the_generators_inverse_without_the_audited_network():
    torch.manual_seed(0)
    encoder, decoder = (UNet(3, width=4, depth=1) for _ in range(2))
    images = torch.rand(16, 3, 8, 8)

    @torch.no_grad()
    def error():
        return float((decoder(encoder(images)) - images).square().mean())

    with torch.no_grad():
        encoder.last.bias.fill_(1.0)
    before = error()
    Unicorn(warm_up=20, learning_rate=1e-2).warm(encoder, decoder, images, torch.Generator().manual_seed(0))
    assert error() < before / 2


def test_what_is_measured_of_a_class_does_not_depend_on_those_beside_it(tinted, tiled_data):
    torch.manual_seed(0)
    network = UNet(3, width=4, depth=1)
    features = tinted.features(tiled_data.images)
    field = Inversions.start(6, network, network, tiled_data.images[0], features[0])
    images, generated = tiled_data.images[:16].view(2, 8, 3, 12, 12), torch.rand(2, 8, 3, 12, 12)
    reference, masks = features[16:32].view(2, 8, 7), torch.rand(2, 7)

    def looked_at(*positions):
        chosen = torch.tensor(positions)
        batch = Batch(chosen + 1, images[chosen], reference[chosen], features[chosen])
        trigger = field.take(chosen + 1).triggers()
        return Unicorn().look(tinted, batch, generated[chosen], trigger, masks[chosen])

    with torch.no_grad():
        pair, alone = looked_at(0, 1), looked_at(1)
    for name in ("logits", "like", "change", "spread", "value", "moved"):
        torch.testing.assert_close(getattr(pair, name)[1:], getattr(alone, name))


SMALL = Unicorn(
    steps=30,
    rung=10,
    mask_steps=4,
    learning_rate=1e-2,
    batch_size=8,
    width=4,
    depth=1,
    mask_bound=0.2,
    spread_bound=5.0,
)


def test_finds_the_planted_backdoor(tinted, tiled_data):
    triggers = []
    meter = Meter()
    finding = SMALL(tinted, tiled_data, meter=meter, triggers=triggers.append)
    assert finding.verdict is Verdict.BACKDOORED
    assert finding.evidence[0].target == TARGET
    assert meter.forward_images == SMALL.planned_images(6, len(tiled_data)) - 100
    assert [trigger.facts.target for trigger in triggers] == [TARGET]


def test_does_not_accuse_the_clean_twin(untinted, tiled_data):
    assert SMALL(untinted, tiled_data).verdict is Verdict.NO_EVIDENCE


def improved(settings, tinted, clean, rounds):
    """Two classes after some rounds: how they are kept, and their values."""
    torch.manual_seed(0)
    network = UNet(3, width=4, depth=1)
    model = freeze(copy.deepcopy(tinted))
    features = model.features(clean.images)
    field = Inversions.start(6, network, network, clean.images[0], features[0]).take(torch.tensor([1, 4]))
    return settings.improve(
        model, network, field, clean, features, rounds=rounds, generator=torch.Generator().manual_seed(0), meter=Meter()
    )


def test_each_class_is_kept_as_it_was_in_its_best_round(tinted, tiled_data, monkeypatch):
    values = iter(([1.0, 3.0], [5.0, 2.0], [4.0, 2.0]))
    plain, seen = Unicorn.look, []

    def scripted(self, model, batch, generated, trigger, mask):
        seen.append(trigger.masks.detach().clone())
        return replace(plain(self, model, batch, generated, trigger, mask), value=torch.tensor(next(values)))

    monkeypatch.setattr(Unicorn, "look", scripted)
    settings = SMALL.model_copy(update={"trigger_steps": 1, "trigger_rate": 0.1})
    best, value = improved(settings, tinted, tiled_data, rounds=3)
    assert value.tolist() == [5.0, 3.0]
    kept = best.triggers().masks
    assert torch.equal(kept[0], seen[1][0])
    assert torch.equal(kept[1], seen[0][1])
    assert not torch.equal(seen[0], seen[1])


def test_a_round_takes_its_trigger_steps(tinted, tiled_data, monkeypatch):
    plain, seen = Unicorn.look, []

    def spy(self, model, batch, generated, trigger, mask):
        seen.append(trigger.masks.detach().clone())
        return plain(self, model, batch, generated, trigger, mask)

    monkeypatch.setattr(Unicorn, "look", spy)
    improved(SMALL.model_copy(update={"trigger_steps": 3}), tinted, tiled_data, rounds=1)
    assert len(seen) == 3
    assert not torch.equal(seen[1], seen[2])
