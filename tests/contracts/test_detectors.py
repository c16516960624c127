"""What every detector promises, whatever it looks for; with settings small enough for a toy."""

import json
import math
import random
import string
from functools import cache

import numpy as np
import pytest
import torch
import toys
from pydantic import ValidationError

from banaudit.architectures.base import SplitModel
from banaudit.data import CleanData
from banaudit.detectors import DETECTORS, default_detectors, leaves_some_out, suited
from banaudit.meter import Meter
from banaudit.results import Reading, Verdict

PATHS = {"steps": 3, "search_images": 12, "mapping_images": 16, "read_images": 24}
PATCHES = {"steps": 12, "batch_size": 4, "held_out_images": 24, "success": 0.01}
GENERATOR = {"steps": 6, "batch_size": 16, "mask_steps": 10, "width": 4, "depth": 2, "held_out_images": 60}
SMALL = {
    "ban": {"noise_steps": 4, "noise_images": 32, "mask_steps": 10, "search_images": 60, "read_images": 60},
    "targeted-noise": PATHS,
    "universal-perturbation": PATHS,
    "mm-bd": {"images": 2, "steps": 6},
    "neural-cleanse": PATCHES,
    "tabor": PATCHES,
    "bti-dbf": GENERATOR,
    "bti-dbf-star": GENERATOR,
    "feature-re": {"warm_up": 2, "steps": 4, "batch_size": 8, "width": 4, "depth": 1, "held_out_images": 24},
    "unicorn": {"steps": 4, "rung": 2, "mask_steps": 2, "batch_size": 8, "width": 4, "depth": 1, "held_out_images": 24},
    "free-eagle": {"steps": 40},
    "mixtures": {"mixtures": 40, "threshold": 1e-9},
    "corruptions": {"threshold": 1e-9},
    "clean-logits": {"lead_threshold": 1e-9, "mapping_threshold": 1e-9},
    "pair-perturbation": {"steps": 2, "search_images": 4, "read_images": 6, "threshold": 1e-9},
}
"""One entry for each detector; a new one belongs here."""

NEED_BATCH_NORM = {"ban", "targeted-noise"}

every_detector = pytest.mark.parametrize("name", list(DETECTORS))


def small(name):
    return DETECTORS[name](**SMALL[name])


def timeless(finding):
    return finding.model_copy(update={"seconds": 0.0})


@pytest.fixture(scope="module")
def finding_of(planted, clean_data):
    """The finding of each detector on the planted model, searched once."""
    return cache(lambda name: small(name)(planted, clean_data, seed=3))


def test_the_table_is_complete():
    assert set(SMALL) == set(DETECTORS)


@every_detector
def test_named_once_and_final(name):
    detector = DETECTORS[name]
    assert detector.name == name
    assert all((detector.title, detector.needs, detector.misses))
    assert detector.__final__


def test_the_default_verdict_is_made_of_registered_detectors():
    names = [detector.name for detector in default_detectors()]
    assert len(set(names)) == len(names)
    assert all(detector == DETECTORS[detector.name]() for detector in default_detectors())


@pytest.mark.parametrize(
    ("images", "left_out"),
    [
        ([50] * 11, set()),
        ([60] * 7 + [49, 20, 12], set()),
        ([50] * 7 + [199, 1, 0], {"mixtures"}),
        ([50] * 6 + [49] * 4, {"mixtures", "pair-perturbation"}),
        ([100] * 6, {"corruptions", "universal-perturbation", "pair-perturbation"}),
        ([50] * 12, {"pair-perturbation"}),
        ([49] * 9 + [50], {"mixtures", "pair-perturbation"}),
    ],
    ids=str,
)
def test_the_default_verdict_asks_what_suits_the_classes_and_their_images(images, left_out):
    asked = suited(default_detectors(), len(images), images)
    assert {item.name for item in default_detectors() if item not in asked} == left_out


def test_pairs_are_looked_at_anywhere_by_whoever_insists():
    assert suited(default_detectors(), 10) == default_detectors()
    anywhere = (DETECTORS["pair-perturbation"](anywhere=True),)
    assert suited(anywhere, 1000, [1] * 1000) == anywhere


def test_only_the_default_verdict_leaves_methods_out():
    everything = default_detectors()
    assert leaves_some_out(everything)
    assert leaves_some_out([*everything, DETECTORS["unicorn"]()])
    assert not leaves_some_out(everything[1:])


SHOWS_TRIGGERS = set(DETECTORS) - {"ban", "targeted-noise", "free-eagle", "mixtures", "corruptions", "clean-logits"}
"""The others have something to look at."""


@every_detector
def test_recovered_triggers_go_to_who_wants_them_and_change_nothing(name, finding_of, planted, clean_data):
    found = []
    finding = small(name)(planted, clean_data, seed=3, triggers=found.append)
    assert timeless(finding) == timeless(finding_of(name))
    assert finding.triggers == tuple(item.facts for item in found)
    assert bool(found) == (name in SHOWS_TRIGGERS)
    assert len({item.facts.target for item in found}) == len(found)
    for item in found:
        assert item.method == name
        assert item.facts.target in range(toys.CLASSES)
        assert item.facts.pictures == ()
        assert item.facts.accused <= (finding.verdict is Verdict.BACKDOORED)
        assert item.facts.success is None or 0 <= item.facts.success <= 1
        assert all(math.isfinite(number) for number in (item.facts.size, item.facts.success or 0.0))
        assert len({picture.name for picture in item.pictures}) == len(item.pictures) > 0
        for picture in item.pictures:
            assert picture.pixels.dtype == np.uint8
            assert picture.pixels.shape in {(toys.SIDE, toys.SIDE), (toys.SIDE, toys.SIDE, 3)}
            assert set(picture.name) <= set(string.ascii_lowercase)
    if found:
        strongest = max(finding.evidence, key=lambda item: (item.fired, item.reading is Reading.ALL_TO_ONE))
        assert found[0].facts.target == strongest.target or strongest.reading is not Reading.ALL_TO_ONE


@every_detector
def test_at_the_time_limit_no_trigger_is_handed_out(name, planted, clean_data):
    found = []
    small(name)(planted, clean_data, meter=Meter(time_limit=0.0), triggers=found.append)
    assert found == []


@every_detector
def test_settings_have_defaults_and_survive_json(name):
    detector = DETECTORS[name]()
    assert type(detector).model_validate_json(detector.model_dump_json()) == detector
    assert json.loads(json.dumps(detector.settings())) == detector.settings()
    assert set(detector.settings()) == set(type(detector).model_fields)


@every_detector
def test_settings_can_be_given_as_text(name):
    detector = small(name)
    as_text = {key: str(value) for key, value in detector.settings().items()}
    assert DETECTORS[name]().with_settings(as_text) == detector


@every_detector
def test_wrong_settings_are_refused(name):
    detector = DETECTORS[name]()
    with pytest.raises(ValidationError, match="Extra inputs"):
        detector.with_settings({"no_such_setting": "1"})
    for key in detector.settings():
        with pytest.raises(ValidationError):
            detector.with_settings({key: "neither a number nor a word it knows"})
    with pytest.raises(ValidationError, match="frozen"):
        setattr(detector, next(iter(detector.settings())), 1)


def state_of(model):
    """All that an audit could change in a model."""
    return (
        {key: value.clone() for key, value in model.state_dict().items()},
        {name: {**vars(module), "_parameters": None, "_buffers": None} for name, module in model.named_modules()},
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
    )


@every_detector
def test_neither_model_nor_images_nor_random_state_change(name, planted, clean_data):
    model = SplitModel(toys.TinyNetwork(), (0.5,) * 3, (0.25,) * 3).train()
    model.load_state_dict(planted.state_dict())
    model.network.body[1].eval()
    model.network.body[0].weight.requires_grad_(False)
    tensors, modules, parameters = state_of(model)
    images, labels = clean_data.images.clone(), clean_data.labels.clone()
    drawn = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    small(name)(model, clean_data)
    tensors_after, modules_after, parameters_after = state_of(model)
    assert all(torch.equal(tensors[key], tensors_after[key]) for key in tensors)
    assert modules_after == modules
    assert parameters_after == parameters
    assert torch.equal(images, clean_data.images)
    assert torch.equal(labels, clean_data.labels)
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert drawn[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.is_grad_enabled()


@every_detector
def test_same_seed_same_finding(name, finding_of, planted, clean_data):
    torch.rand(7)  # the global random state plays no part
    again = small(name)(planted, clean_data, seed=3)
    assert timeless(again) == timeless(finding_of(name))


@every_detector
def test_findings_are_complete(name, finding_of):
    finding = finding_of(name)
    assert (finding.method, finding.title) == (name, DETECTORS[name].title)
    assert finding.settings == small(name).settings()
    assert finding.verdict is not Verdict.INCONCLUSIVE
    assert finding.evidence
    assert finding.reason
    assert "\n" not in finding.reason
    assert (finding.verdict is Verdict.BACKDOORED) == any(item.fired for item in finding.evidence)
    check_evidence(finding, toys.CLASSES)


def check_evidence(finding, classes):
    """Finite numbers, labels in range, and nothing fired that is not above its threshold."""
    labels = range(classes)
    for item in finding.evidence:
        numbers = [item.score, item.threshold, *item.restarts, *(bar.score for bar in item.per_class)]
        numbers += [number for number in (item.null, item.agreement) if number is not None]
        assert all(math.isfinite(number) for number in numbers), item
        assert item.measures
        assert item.score > item.threshold or not item.fired
        if item.reading is Reading.ALL_TO_ALL:
            assert item.target is None
            assert set(item.mapping) <= set(labels)
            assert set(item.mapping.values()) <= set(labels)
            assert all(source != target for source, target in item.mapping.items())
        else:
            assert item.target in labels
            assert set(item.sources) <= set(labels) - {item.target}
        assert [bar.label for bar in item.per_class] in ([], list(labels))
        assert type(finding).model_validate_json(finding.model_dump_json()) == finding


@every_detector
def test_two_classes_are_enough_or_said_to_be_too_few(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SplitModel(toys.TinyNetwork(classes=2), (0.5,) * 3, (0.25,) * 3)
    images, labels = toys.draw_images(80, torch.Generator().manual_seed(2))
    finding = small(name)(model, CleanData(images, labels % 2, ("no", "yes")))
    if DETECTORS[name].fewest_classes > 2:
        assert finding.verdict is Verdict.INCONCLUSIVE
        assert "the network has 2" in finding.reason
    else:
        assert finding.verdict is not Verdict.INCONCLUSIVE
        check_evidence(finding, 2)


@every_detector
def test_a_class_without_images_is_no_obstacle(name, planted, clean_data):
    finding = small(name)(planted, clean_data.subset((clean_data.labels != 2).nonzero().flatten()))
    assert finding.verdict is not Verdict.INCONCLUSIVE
    check_evidence(finding, toys.CLASSES)


@every_detector
def test_a_network_without_batch_norm_is_judged_or_left_undecided(name, tinted, tiled_data):
    finding = small(name)(tinted, tiled_data)
    if name in NEED_BATCH_NORM:
        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.evidence == ()
        assert finding.reason == "this method needs BatchNorm, and the network has none"
    else:
        assert finding.verdict is not Verdict.INCONCLUSIVE
        check_evidence(finding, toys.CLASSES)


@every_detector
def test_at_the_time_limit_there_is_no_verdict(name, planted, clean_data):
    finding = small(name)(planted, clean_data, meter=Meter(time_limit=0.0))
    assert finding.verdict is Verdict.INCONCLUSIVE
    assert finding.evidence == ()
    assert finding.reason.startswith("the time limit of 0 s ended during: ")


@every_detector
def test_the_plan_is_about_what_is_done(name, finding_of, clean_data):
    finding = finding_of(name)
    planned = small(name).planned_images(toys.CLASSES, len(clean_data))
    assert planned / 2 <= finding.forward_images <= 2 * planned
    assert 0 <= finding.backward_images <= finding.forward_images


@every_detector
def test_passes_before_it_are_not_its_own(name, finding_of, planted, clean_data):
    meter = Meter()
    meter.spend("something else", forward=1000, backward=500)
    finding = small(name)(planted, clean_data, seed=3, meter=meter)
    assert finding.forward_images == finding_of(name).forward_images
    assert meter.forward_images == 1000 + finding.forward_images
