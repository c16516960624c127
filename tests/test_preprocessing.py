from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from banaudit import preprocessing
from banaudit.architectures.base import SplitNetwork
from banaudit.data import ImageSet, read_clean_folder
from banaudit.errors import UnsupportedModelError, UsageError
from banaudit.meter import Meter
from banaudit.preflight import judge_predictions, predictions
from banaudit.preprocessing import PRESETS, Preprocessing, candidates, choose, named

LEVELS = (40, 90, 130, 200)
"""Brightness that makes a class, 0 to 255."""


class _Brightness(SplitNetwork):
    """Right only for inputs normalised as it was made for: it answers with the nearest of its classes' means."""

    def __init__(
        self, made_for: Preprocessing, *, fixed_size: bool = False, refusal: type[Exception] = RuntimeError
    ) -> None:
        super().__init__()
        self.fixed_size = fixed_size
        self.refusal = refusal
        levels = torch.tensor(LEVELS) / 255
        mean, std = torch.tensor(made_for.mean), torch.tensor(made_for.std)
        centres = (levels.unsqueeze(1) - mean) / std
        self.size = made_for.size
        self.classify = nn.Linear(len(mean), len(LEVELS))
        with torch.no_grad():  # nearest centre: |x|^2 is common to all classes
            self.classify.weight.copy_(2 * centres)
            self.classify.bias.copy_(-centres.square().sum(dim=1))

    def features(self, inputs):
        if self.fixed_size and inputs.shape[-1] != self.size:
            raise self.refusal("mat1 and mat2 shapes cannot be multiplied\n(1x2 and 3x4)")
        return inputs

    def head(self, features):
        return self.classify(features.mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, level in enumerate(LEVELS):
        (root / str(label)).mkdir()
        for index in range(40):
            pixels = np.clip(rng.normal(level + rng.normal(0, 12), 5, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / str(label) / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def images(folder) -> ImageSet:
    return read_clean_folder(folder, classes=len(LEVELS), limit=None, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", ["cifar10", "none", "half", "mnist", "0-255"])
def test_the_right_normalisation_is_chosen(images, preset, channels):
    network = _Brightness(named(preset, size=12, channels=channels))
    meter = Meter()
    chosen, facts = choose(network, images, channels=channels, meter=meter)
    assert facts.tried[chosen.name] == max(facts.tried.values())
    assert facts.tried[preset] == pytest.approx(facts.tried[chosen.name], abs=0.02)
    assert facts.tried[preset] > 0.9
    if preset in {"none", "half", "mnist", "0-255"}:
        assert chosen.name == preset
    assert set(facts.tried) == set(PRESETS)
    assert facts.source == "chosen by clean accuracy"
    assert (facts.size, facts.mean, facts.std) == (12, chosen.mean, chosen.std)
    assert meter.forward_images < len(PRESETS) * len(images)


def test_of_equals_the_more_usual_is_taken(images):
    blind = _Brightness(named("none", size=12, channels=3))
    nn.init.zeros_(blind.classify.weight)
    chosen, facts = choose(blind, images, channels=3)
    assert set(facts.tried.values()) == {0.25}
    assert chosen.name == "cifar10"


def test_what_is_given_is_not_tried(images):
    network = _Brightness(named("none", size=12, channels=3))
    meter = Meter()
    chosen, facts = choose(network, images, channels=3, preset="imagenet", meter=meter)
    assert chosen == named("imagenet", size=12, channels=3)
    assert (facts.source, facts.tried, meter.forward_images) == ("given", {}, 1)  # one image, to see that it fits
    chosen, facts = choose(network, images, channels=3, mean=(0.1,), std=(0.2, 0.3, 0.4), size=20)
    assert chosen == Preprocessing(20, 3, (0.1, 0.1, 0.1), (0.2, 0.3, 0.4), "custom")


@pytest.mark.parametrize("refusal", [RuntimeError, AssertionError])
def test_the_size_that_fits_is_chosen(images, refusal):
    """Vision transformers check their size with an assertion."""
    network = _Brightness(named("half", size=16, channels=3), fixed_size=True, refusal=refusal)
    chosen, facts = choose(network, images, channels=3, size_hint=16)
    assert (chosen.name, chosen.size) == ("half", 16)
    assert all(name.endswith(" at 16") for name in facts.tried)


def test_labels_in_a_wrong_order_do_not_choose_a_wrong_normalisation(folder, tmp_path):
    for file in folder.rglob("*.png"):
        label = len(LEVELS) - 1 - int(file.parent.name)
        target = tmp_path / str(label) / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    turned = read_clean_folder(tmp_path, classes=len(LEVELS), limit=None, seed=0)
    for wanted in ("imagenet", "half", "none"):
        chosen, facts = choose(_Brightness(named(wanted, size=12, channels=3)), turned, channels=3)
        assert facts.tried[chosen.name] < 0.6
        found = judge_predictions(
            predictions(chosen.model(_Brightness(named(wanted, size=12, channels=3))), turned.decode(12, 3).images),
            turned.decode(12, 3),
        )
        assert found.permuted_accuracy > 0.95


def test_a_poor_network_is_not_read_in_another_order_for_one_exchanged_pair(monkeypatch, images):
    answers = {named("half", size=12, channels=3): 0.54, named("none", size=12, channels=3): 0.53}
    monkeypatch.setattr(preprocessing, "_right_if_renamed", lambda *_: {named("none", size=12, channels=3): 0.53})
    monkeypatch.setattr(
        preprocessing,
        "_count_hits",
        lambda found, labels: {one: int(len(labels) * answers.get(one, 0.1)) for one in found},
    )
    chosen, _ = choose(_Brightness(named("half", size=12, channels=3)), images, channels=3)
    assert chosen.name == "half"


def test_a_network_that_refuses_other_pixels(images):
    class Strict(_Brightness):
        def features(self, inputs):
            assert inputs.min() >= 0, "pixels below 0"
            return inputs

    for wanted in ("none", "imagenet"):
        chosen, facts = choose(Strict(named("none", size=12, channels=3)), images, channels=3, size_hint=12)
        assert chosen.name == "none"
        assert wanted not in facts.tried or wanted == "none"
    short_of_memory = _Brightness(named("half", size=16, channels=3), fixed_size=True, refusal=MemoryError)
    with pytest.raises(MemoryError):
        choose(short_of_memory, images, channels=3, size_hint=16)


def test_a_given_preset_still_leaves_the_size_open(images):
    network = _Brightness(named("half", size=12, channels=3))
    chosen, facts = choose(network, images, channels=3, preset="half", size_hint=16)
    assert chosen.size == 16
    assert set(facts.tried) == {"half at 16", "half at 12"}


def test_images_of_mixed_sizes_are_brought_to_the_nearest_common_one(folder, tmp_path):
    for file in folder.rglob("*.png"):
        target = tmp_path / file.relative_to(folder)
        target.parent.mkdir(exist_ok=True)
        Image.open(file).resize((70, 50)).save(target)
    mixed = read_clean_folder(tmp_path, classes=len(LEVELS), limit=None, seed=0)
    network = _Brightness(named("none", size=64, channels=3))
    chosen, _ = choose(network, mixed, channels=3)
    assert (chosen.name, chosen.size) == ("none", 64)


def test_a_network_that_takes_no_size(images):
    network = _Brightness(named("none", size=99, channels=3), fixed_size=True)
    with pytest.raises(UnsupportedModelError, match=r"^the network takes no images of the sizes tried \(12: .*--size$"):
        choose(network, images, channels=3)


def test_the_network_is_left_alone(images):
    network = _Brightness(named("none", size=12, channels=3)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    choose(network, images, channels=3)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"preset": "cifar"}, "preset 'cifar' is unknown; there are cifar10,"),
        ({"preset": "half", "mean": (0.5,)}, "give one or the other"),
        ({"mean": (0.5,)}, "belong together"),
        ({"std": (0.5,)}, "belong together"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "mean has 2 numbers; the network takes 3 channels"),
        ({"mean": (123.7, 116.3, 103.5), "std": (0.5,)}, "divide it by 255"),
        ({"mean": (0.5,), "std": (0.0,)}, "not above zero"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "finite"),
        ({"size": 0}, "not a positive number"),
    ],
)
def test_contradictions(images, given, complaint):
    with pytest.raises(UsageError) as caught:
        choose(_Brightness(named("none", size=12, channels=3)), images, channels=3, **given)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_presets_for_other_numbers_of_channels():
    assert named("mnist", size=28, channels=3).mean == (0.1307,) * 3
    grey = named("imagenet", size=28, channels=1)
    assert grey.mean == pytest.approx((0.299 * 0.485 + 0.587 * 0.456 + 0.114 * 0.406,), abs=1e-4)
    assert candidates(1, [28])[0].name == "mnist"
    assert [candidate.size for candidate in candidates(3, [32, 64])] == [32] * len(PRESETS) + [64] * len(PRESETS)
    assert all(len(candidate.mean) == len(candidate.std) == 3 for candidate in candidates(3, [32]))


@pytest.mark.parametrize("hint", [None, 100_000, -5])
def test_neither_large_photographs_nor_a_hint_decide_the_memory(folder, tmp_path, hint):
    for label in range(len(LEVELS)):
        (tmp_path / str(label)).mkdir()
        for index in range(6):
            source = Image.open(folder / str(label) / f"{index}.png")
            source.resize((400, 400)).save(tmp_path / str(label) / f"{index}.png")
    photographs = read_clean_folder(tmp_path, classes=len(LEVELS), limit=None, seed=0)
    network = _Brightness(named("none", size=224, channels=3))
    chosen, _ = choose(network, photographs, channels=3, preset="none", size_hint=hint)
    assert chosen.size == 224


def test_the_usual_size_of_an_architecture_is_tried_where_photographs_differ_in_size(folder, tmp_path):
    for label in range(len(LEVELS)):
        (tmp_path / str(label)).mkdir()
        for index in range(6):
            with Image.open(folder / str(label) / f"{index}.png") as source:
                source.resize((30 + index, 34)).save(tmp_path / str(label) / f"{index}.png")
    photographs = read_clean_folder(tmp_path, classes=len(LEVELS), limit=None, seed=0)
    network = _Brightness(named("none", size=48, channels=3))
    chosen, facts = choose(network, photographs, channels=3, preset="none", usual_size=48)
    assert set(facts.tried) == {"none at 48", "none at 32"}
    assert chosen.size == 48  # of equals the usual one


def test_images_of_one_size_outweigh_the_usual_one(images):
    chosen, _ = choose(
        _Brightness(named("none", size=12, channels=3)), images, channels=3, preset="none", usual_size=48
    )
    assert chosen.size == 12


class _OfOneSize(_Brightness):
    """Right on images 24 pixels wide only."""

    def features(self, inputs):
        return inputs if inputs.shape[-1] == 24 else torch.zeros_like(inputs)


class _TakesOneSize(_Brightness):
    """Blind, and takes images 12 pixels wide only."""

    def features(self, inputs):
        if inputs.shape[-1] != 12:
            raise RuntimeError("expected 12 pixels")
        return torch.zeros_like(inputs)


def test_a_network_that_does_poorly_and_does_not_take_the_usual_size_is_read_at_its_own(images):
    chosen, facts = choose(_TakesOneSize(named("none", size=12, channels=3)), images, channels=3, usual_size=24)
    assert chosen.size == 12
    assert not any("at 24" in name for name in facts.tried)


@pytest.mark.parametrize("preset", [None, "none"])
def test_the_usual_size_is_tried_where_the_images_own_does_poorly(images, preset):
    network = _OfOneSize(named("none", size=12, channels=3))
    chosen, facts = choose(network, images, channels=3, preset=preset, usual_size=24)
    assert (chosen.name, chosen.size) == ("none", 24)
    assert "none at 12" in facts.tried
