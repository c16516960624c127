import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from banaudit.bench import victims
from banaudit.bench.attacks import ATTACKS, IAD, SSDT, AdapBlend, AdapPatch, BadNets, Bpp, Grond, LabelConsistent, WaNet
from banaudit.bench.attacks.labelling import AllToAll, AllToOne, SourceTarget
from banaudit.bench.trainer import TrainingSettings
from banaudit.bench.trigger import Trigger, attack_success, clean_accuracy
from banaudit.bench.victims import VictimRecipe, load_victim, surrogate_recipe, train_victim, victim_folder
from banaudit.errors import DataError, UsageError

QUICK = TrainingSettings(epochs=2, batch_size=32)


@pytest.fixture
def cache(tmp_path):
    """A cache in which CIFAR-10 is 320 grey images, darker or brighter by class."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 320), ("test", 100)):
        labels = np.arange(count) % 10
        pixels = (
            random.integers(0, 60, (count, 32, 32, 3), dtype=np.uint8)
            + (19 * labels).astype(np.uint8)[:, None, None, None]
        )
        np.savez(
            folder / f"cifar10-{split}.npz", pixels=pixels, labels=labels, names=np.array([str(n) for n in range(10)])
        )
    return tmp_path


def small(attack_type):
    if attack_type in (IAD, SSDT):
        return attack_type(width=4, mask_epochs=1)
    if attack_type in (AdapBlend, AdapPatch):
        return attack_type(poison_rate=0.1)
    if attack_type is Grond:
        return Grond(search_steps=2)
    return LabelConsistent(steps=2) if attack_type is LabelConsistent else attack_type()


@pytest.mark.parametrize("attack_type", ATTACKS, ids=lambda attack: attack().name)
def test_a_victim_is_trained_kept_and_read_back(cache, attack_type):
    labelling = SourceTarget(source=1, target=2) if attack_type is SSDT else AllToOne(target=2)
    recipe = VictimRecipe(
        architecture="vgg11", width=4, attack=small(attack_type), labelling=labelling, seed=1, training=QUICK
    )
    state = torch.get_rng_state()
    victim = train_victim(recipe, cache=cache)
    assert torch.equal(torch.get_rng_state(), state)
    assert not victim.model.training
    assert 0 <= victim.facts.attack_success <= 1
    assert victim.facts.mapping == tuple(labelling.mapping(10).tolist())
    assert (victim.facts.leak_rate is not None) == (attack_type is SSDT)
    again = load_victim(victim_folder(recipe, cache))
    assert again.facts == victim.facts
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.model(images), victim.model(images))
    assert again.trigger.attack == recipe.attack
    assert again.trigger.labelling == labelling
    assert torch.equal(again.trigger.apply(images, torch.Generator()), victim.trigger.apply(images, torch.Generator()))


def test_the_same_recipe_gives_the_same_weights(cache, tmp_path):
    recipe = VictimRecipe(architecture="vgg11", width=4, attack=BadNets(), labelling=AllToAll(), seed=3, training=QUICK)
    first = train_victim(recipe, cache=cache)
    folder = victim_folder(recipe, cache)
    folder.rename(tmp_path / "aside")
    second = train_victim(recipe, cache=cache)
    for key, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[key])


def test_a_victim_in_the_cache_is_not_trained_again(cache):
    recipe = VictimRecipe(architecture="vgg11", width=4, seed=2, training=QUICK)
    told = []
    train_victim(recipe, cache=cache, progress=told.append)
    assert len(told) == 2
    train_victim(recipe, cache=cache, progress=told.append)
    assert len(told) == 2
    assert sorted(path.name for path in (cache / "victims").iterdir()) == [recipe.key]


@pytest.mark.parametrize("attack_type", [IAD, SSDT, Grond, Bpp, WaNet, None])
@pytest.mark.parametrize("architecture", ["vgg11", "wrn-16"])
def test_an_interrupted_training_ends_as_any_other(cache, attack_type, architecture):
    recipe = VictimRecipe(
        architecture=architecture,
        width=4,
        attack=small(attack_type) if attack_type else None,
        labelling=AllToOne(target=2) if attack_type else None,
        seed=4,
        training=QUICK.model_copy(update={"epochs": 3, "augmentation": "strong"}),
    )
    whole, told = train_victim(recipe, cache=cache), []
    victim_folder(recipe, cache).rename(cache / "aside")

    def stop(text):
        told.append(text)
        if "epoch 2 of 3" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_victim(recipe, cache=cache, progress=stop)
    assert sum(path.suffix == ".state" for path in (cache / "victims").iterdir()) == 1
    again = train_victim(recipe, cache=cache, progress=told.append)
    assert [text.split(": ")[1].split(",")[0] for text in told][-2:] == ["epoch 2 of 3", "epoch 3 of 3"]
    assert not any(path.suffix == ".state" for path in (cache / "victims").iterdir())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    if attack_type:
        assert all(torch.equal(part, again.trigger.tensors[name]) for name, part in whole.trigger.tensors.items())


def test_imbalance_and_fewer_images_are_trained(cache):
    plain = VictimRecipe(architecture="vgg11", width=4, training=QUICK)
    for change in ({"imbalance": 0.1}, {"images": 100}):
        assert train_victim(plain.model_copy(update=change), cache=cache).trigger is None
    with pytest.raises(UsageError, match="asked for 5000"):
        train_victim(plain.model_copy(update={"images": 5000}), cache=cache)


def test_attack_and_labelling_belong_together():
    with pytest.raises(ValidationError, match="attack and labelling"):
        VictimRecipe(attack=BadNets())
    with pytest.raises(ValidationError, match="attack and labelling"):
        VictimRecipe(labelling=AllToOne())


def test_keys_say_what_the_victim_is_and_never_change():
    assert VictimRecipe(seed=100).key == "cifar10-resnet18w16-clean-s100-d518031f"
    recipe = VictimRecipe(attack=BadNets(), labelling=AllToOne(target=4), seed=101)
    assert recipe.key == "cifar10-resnet18w16-badnets-t4-s101-5c5cedfe"


def test_keys_differ_where_recipes_do():
    changes = [
        {},
        {"seed": 1},
        {"width": 32},
        {"imbalance": 0.5},
        {"images": 100},
        {"training": TrainingSettings(epochs=9)},
        {"attack": BadNets(), "labelling": AllToOne()},
        {"attack": BadNets(poison_rate=0.1), "labelling": AllToOne()},
        {"attack": BadNets(), "labelling": AllToAll()},
    ]
    assert len({VictimRecipe().model_copy(update=change).key for change in changes}) == len(changes)


def test_the_attackers_own_model_is_clean_and_has_its_own_seed():
    recipe = VictimRecipe(attack=Grond(), labelling=AllToOne(), seed=7, width=4)
    twin = surrogate_recipe(recipe)
    assert (twin.attack, twin.labelling, twin.width) == (None, None, 4)
    assert twin.seed != recipe.seed


def test_a_folder_without_a_victim_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no victim"):
        load_victim(tmp_path)


class CornerModel(nn.Module):
    """Says 0 where the bottom right pixel is white, else the label written in the first pixel."""

    def forward(self, images):
        told = (images[:, 0, 0, 0] * 10).round().long()
        said = torch.where(images[:, 0, -1, -1] > 0.99, 0, told)
        return nn.functional.one_hot(said, 10).float()


def written(labels):
    images = torch.zeros(len(labels), 3, 8, 8)
    images[:, :, 0, 0] = labels.view(-1, 1) / 10
    return images


def badnets_trigger(labelling):
    return Trigger(BadNets(), labelling, BadNets().draw((3, 8, 8), torch.Generator()))


def test_success_counts_images_whose_own_label_is_not_the_target():
    labels = torch.arange(50) % 10
    images = written(labels)
    assert clean_accuracy(CornerModel(), images, labels, batch_size=7) == 1
    success = attack_success(CornerModel(), badnets_trigger(AllToOne(target=0)), images, labels, 10, batch_size=7)
    assert (success.rate, success.images) == (1.0, 45)
    assert np.isnan(success.per_class[0])
    assert success.per_class[1:] == (1.0,) * 9
    missed = attack_success(CornerModel(), badnets_trigger(AllToOne(target=1)), images, labels, 10)
    assert missed.rate == 0


def test_success_of_all_to_all_asks_for_each_classs_own_target():
    labels = torch.arange(50) % 10
    success = attack_success(CornerModel(), badnets_trigger(AllToAll()), written(labels), labels, 10)
    assert success.rate == 0.1  # only class 9 goes to 0
    assert success.images == 50


def test_source_specific_success_is_of_the_source_and_the_leak_of_the_others():
    labels = torch.arange(50) % 10
    trigger = badnets_trigger(SourceTarget(source=3, target=0))
    success = attack_success(CornerModel(), trigger, written(labels), labels, 10)
    assert (success.rate, success.images, success.leak_rate) == (1.0, 5, 1.0)


def test_a_file_that_is_no_trigger_is_an_error(tmp_path):
    path = tmp_path / "trigger.safetensors"
    with pytest.raises(DataError, match="no trigger file"):
        Trigger.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no trigger file"):
        Trigger.load(path)


def test_two_processes_may_train_the_same_victim(cache):
    """Such as the surrogate of two clean-label victims: the second finds the first's in its place."""
    recipe = VictimRecipe(architecture="vgg11", width=4, seed=2, training=QUICK)
    victim = train_victim(recipe, cache=cache)
    victims._write(victim, victim_folder(recipe, cache))
    assert [path.name for path in (cache / "victims").iterdir() if path.name.startswith(".")] == []
    taken = cache / "victims" / "taken"
    taken.mkdir()
    (taken / "something else").touch()
    with pytest.raises(OSError, match="not empty"):
        victims._write(victim, taken)
