"""The relapse probe: stand-in, fine-tuning, and when it decides nothing."""

import copy

import pytest
import torch
import toys

from banaudit.architectures import SplitModel, load_network
from banaudit.checkpoints import read_checkpoint
from banaudit.data import CleanData
from banaudit.demo import examples
from banaudit.relapse import THRESHOLDS, probe_relapse, wanted_labels
from banaudit.results import Reading

pytestmark = pytest.mark.usefixtures("short_probe")


@pytest.fixture
def demo():
    with examples() as models:
        yield models[0]


def test_relapse_probe(demo, monkeypatch):
    checkpoint = read_checkpoint(demo.model)
    model = SplitModel(load_network(checkpoint.weights).network, demo.mean, demo.std).eval()
    generator = torch.Generator().manual_seed(0)
    data = CleanData(torch.rand(60, 3, 32, 32, generator=generator), torch.arange(60) % 10, tuple("abcdefghij"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    wanted = wanted_labels(10, demo.target, (), None)
    probe = probe_relapse(model, model, data, data, wanted, Reading.ALL_TO_ONE)
    assert probe == probe_relapse(model, model, data, data, wanted, Reading.ALL_TO_ONE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.random.get_rng_state())
    assert probe.before_repair == probe.after_repair
    assert probe.threshold == THRESHOLDS[Reading.ALL_TO_ONE]
    assert probe.fired == (probe.relapsed > probe.threshold)
    assert "21 models without a backdoor" in probe.note
    monkeypatch.setattr("banaudit.relapse.THRESHOLDS", {Reading.ALL_TO_ONE: -1.0})
    assert probe_relapse(model, model, data, data, wanted, Reading.ALL_TO_ONE).fired
    of_one_class = probe_relapse(model, model, data, data, {3: 1}, Reading.SOURCE_TARGET)
    assert (of_one_class.threshold, of_one_class.fired) == (None, False)
    assert "decides nothing" in of_one_class.note
    few = data.subset(torch.cat([(data.labels != 3).nonzero().flatten(), (data.labels == 3).nonzero().flatten()[:2]]))
    assert probe_relapse(model, model, few, data, {3: 1}, Reading.SOURCE_TARGET).images == 2


def test_the_probe_is_not_blinded_by_how_layers_are_scaled(planted, clean_data):
    wanted = wanted_labels(toys.CLASSES, toys.TARGET, (), None)
    plain = probe_relapse(planted, planted, clean_data, clean_data, wanted, Reading.ALL_TO_ONE)
    stretched = copy.deepcopy(planted)
    with torch.no_grad():  # the same answers, but steps of the usual size throw the last layer about
        stretched.network.body[4].weight *= 1000
        stretched.network.body[4].bias *= 1000
        stretched.network.linear.weight /= 1000
    probe = probe_relapse(stretched, stretched, clean_data, clean_data, wanted, Reading.ALL_TO_ONE)
    assert probe.after_repair == pytest.approx(plain.after_repair, abs=0.02)
    assert probe.relapsed >= probe.after_repair


def test_a_copy_that_answers_the_most_frequent_class_is_spoiled(planted, clean_data, monkeypatch):
    """Where that class has most of the images, such a copy keeps more than half of the accuracy."""
    one_answer = copy.deepcopy(planted)
    with torch.no_grad():
        one_answer.network.linear.weight.zero_()
        one_answer.network.linear.bias.copy_(torch.nn.functional.one_hot(torch.tensor(0), toys.CLASSES))
    monkeypatch.setattr("banaudit.relapse._tune", lambda *_, **__: one_answer)
    monkeypatch.setattr("banaudit.relapse.THRESHOLDS", {Reading.ALL_TO_ONE: 2.0})
    mostly_first = clean_data.subset((clean_data.labels <= 1).nonzero().flatten())
    wanted = wanted_labels(toys.CLASSES, toys.TARGET, (), None)
    probe = probe_relapse(planted, planted, mostly_first, mostly_first, wanted, Reading.ALL_TO_ONE)
    assert probe.steps == 0
    assert "spoils the copy" in probe.note


def test_without_a_gradient_there_is_no_stand_in_and_nothing_is_decided(clean_data):
    torch.manual_seed(0)
    rounded = SplitModel(toys.rounding(toys.TinyNetwork)(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).eval()
    wanted = wanted_labels(toys.CLASSES, toys.TARGET, (), None)
    probe = probe_relapse(rounded, rounded, clean_data, clean_data, wanted, Reading.ALL_TO_ONE)
    assert (probe.steps, probe.fired, probe.control) == (0, False, None)
    assert "no gradient reaches the pixels" in probe.note


def test_wanted_labels():
    assert wanted_labels(3, 1, (), None) == {0: 1, 2: 1}
    assert wanted_labels(4, 1, (3,), None) == {3: 1}
    assert wanted_labels(3, None, (), {0: 1, 1: 1, 2: 0}) == {0: 1, 2: 0}
    assert wanted_labels(3, None, (), None) == {}
