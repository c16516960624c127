"""One table over all attacks: what every one of them must do."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from banaudit.bench.attacks import ATTACKS, IAD, SSDT, AnyAttack
from banaudit.bench.attacks.base import Attack, DataPoisoning, TrainingControl, TrainingSet
from banaudit.bench.attacks.labelling import AllToOne, SourceTarget
from banaudit.bench.datasets import to_float

SHAPES = [(3, 32, 32), (1, 28, 28)]
NUM_CLASSES = 4
SMALL = {
    "iad": {"width": 4, "mask_epochs": 1},
    "ssdt": {"width": 4, "mask_epochs": 1},
    "grond": {"search_steps": 2},
    "label-consistent": {"steps": 2},
    "adap-blend": {"poison_rate": 0.1, "cover_rate": 0.1},
    "adap-patch": {"poison_rate": 0.1, "cover_rate": 0.1},
}


def table(family):
    members = [attack for attack in ATTACKS if issubclass(attack, family)]
    return pytest.mark.parametrize("attack_type", members, ids=lambda attack: attack().name)


everyone = table(Attack)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["colour", "grey"])


def small(attack_type):
    return attack_type(**SMALL.get(attack_type().name, {}))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def training_set(shape, labelling):
    pixels = torch.randint(256, (80, *shape), generator=seeded(), dtype=torch.uint8)
    labels = torch.arange(80) % NUM_CLASSES

    def surrogate():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(shape[0] * shape[1] * shape[2], NUM_CLASSES))

    return TrainingSet(pixels, labels, labelling, NUM_CLASSES, surrogate)


def labelling_for(attack):
    return SourceTarget(source=1, target=2) if isinstance(attack, SSDT) else AllToOne(target=2)


@everyone
def test_defaults_make_an_attack_whose_json_reads_back(attack_type):
    attack = attack_type()
    assert TypeAdapter(AnyAttack).validate_json(attack.model_dump_json()) == attack


@everyone
def test_settings_are_frozen_and_know_their_fields(attack_type):
    with pytest.raises(ValidationError):
        attack_type().name = "other"
    with pytest.raises(ValidationError):
        attack_type(no_such_setting=1)


@everyone
@shapes
def test_apply_keeps_shape_and_range_and_leaves_its_input_alone(attack_type, shape):
    attack = small(attack_type)
    images = torch.rand(5, *shape, generator=seeded())
    before = images.clone()
    tensors = attack.draw(shape, seeded())
    triggered = attack.apply(images, tensors, seeded())
    assert triggered.shape == images.shape
    assert triggered.dtype == images.dtype
    assert triggered.min() >= 0
    assert triggered.max() <= 1 + 1e-6
    assert torch.equal(images, before)


@everyone
def test_the_same_seed_draws_the_same_trigger_and_global_state_is_untouched(attack_type):
    attack = small(attack_type)
    images = torch.rand(5, 3, 32, 32, generator=seeded())
    state = torch.get_rng_state()
    first = attack.apply(images, attack.draw((3, 32, 32), seeded(7)), seeded(1))
    second = attack.apply(images, attack.draw((3, 32, 32), seeded(7)), seeded(1))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@everyone
def test_a_trigger_does_not_depend_on_the_rest_of_the_batch(attack_type):
    attack = small(attack_type)
    images = torch.rand(6, 3, 32, 32, generator=seeded())
    tensors = attack.draw((3, 32, 32), seeded())
    together = attack.apply(images, tensors, seeded())
    alone = torch.cat([attack.apply(images[i : i + 1], tensors, seeded()) for i in range(len(images))])
    assert torch.allclose(together, alone, atol=1e-5)


@table(DataPoisoning)
@shapes
def test_poisoning_data_replaces_a_share_and_changes_nothing_it_was_given(attack_type, shape):
    attack = small(attack_type)
    data = training_set(shape, labelling_for(attack))
    pixels, labels = data.pixels.clone(), data.labels.clone()
    poison = attack.poison(data, attack.draw(shape, seeded()), seeded(3))
    assert torch.equal(data.pixels, pixels)
    assert torch.equal(data.labels, labels)
    assert 0 < len(poison.index) < len(labels)
    assert len(poison.index.unique()) == len(poison.index)
    assert poison.images.shape == (len(poison.index), *shape)
    assert poison.images.min() >= 0
    assert poison.images.max() <= 1 + 1e-6
    assert not torch.equal(poison.images, to_float(pixels[poison.index]))
    allowed = (poison.labels == labels[poison.index]) | (poison.labels == 2)
    assert allowed.all()


@table(TrainingControl)
@shapes
def test_poisoning_batches_keeps_their_size_and_is_deterministic(attack_type, shape):
    attack = small(attack_type)
    data = training_set(shape, labelling_for(attack))
    images = to_float(data.pixels[:40])

    def batches():
        generator = seeded(5)
        poisoner = attack.poisoner(attack.draw(shape, generator), data.labelling, NUM_CLASSES, generator)
        poisoner.prepare(data.pixels)
        return poisoner.poison(images, data.labels[:40]), poisoner

    batch, poisoner = batches()
    again, _ = batches()
    assert batch.images.shape == images.shape
    assert batch.labels.shape == (40,)
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1 + 1e-6
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.labels, again.labels)
    assert all(torch.isfinite(tensor).all() for tensor in poisoner.tensors().values())


@pytest.mark.parametrize("attack_type", [IAD, SSDT])
def test_a_learned_trigger_gets_a_gradient_and_moves(attack_type):
    attack = small(attack_type)
    data = training_set((3, 32, 32), labelling_for(attack))
    generator = seeded(5)
    poisoner = attack.poisoner(attack.draw((3, 32, 32), generator), data.labelling, NUM_CLASSES, generator)
    poisoner.prepare(data.pixels)
    before = poisoner.tensors()
    batch = poisoner.poison(to_float(data.pixels), data.labels)
    (batch.images.pow(2).mean() + batch.penalty).backward()
    poisoner.step()
    after = poisoner.tensors()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("pattern.") for key in moved)
    # The mask generator is frozen once it was trained alone.
    assert not any(key.startswith("mask.") for key in moved)
