"""What a repair is worth: cost, second scan and relapse probe together."""

import copy
from types import SimpleNamespace

import pytest
import torch
import toys
from toys import found_by

from banaudit import audit
from banaudit.after_repair import (
    SIGNIFICANT,
    Accuracies,
    did_without,
    judge_repaired,
    probed_as_trained,
    too_few_to_tell,
)
from banaudit.detectors import MMBD
from banaudit.disguises import Told
from banaudit.relapse import wanted_labels
from banaudit.results import Reading, UnlearnedChange, Verdict

pytestmark = pytest.mark.usefixtures("short_probe")


@pytest.mark.parametrize(
    ("drop", "error", "max_drop", "told"),
    [
        (0.08, 0.038, 0.02, True),
        (0.0, 0.02, 0.02, True),
        (-0.1, 0.04, 0.02, False),
        (0.01, 0.005, 0.02, False),
        (0.0, 0.0, 0.02, False),
    ],
)
def test_too_few_untouched_images_for_the_budget_are_a_caveat(drop, error, max_drop, told):
    found = too_few_to_tell(300, Accuracies(0.9, 0.9 - drop, error), max_drop)
    assert len(found) == told
    assert all(text.startswith("300 untouched images are too few to tell whether") for text in found)


@pytest.mark.parametrize(("drop", "give", "told"), [(0.049, 0.02, True), (0.02, 0.02, False), (0.0, 0.05, True)])
def test_a_loss_that_may_be_over_the_budget_is_told(drop, give, told):
    found = SimpleNamespace(before=0.95, after=0.95 - drop, drop_error=give / SIGNIFICANT)
    assert bool(too_few_to_tell(1000, found, 0.03)) is told


def test_what_the_second_scan_did_without_is_a_caveat():
    before = found_by("mm-bd", "pair-perturbation")
    assert did_without(before, before) == did_without(before, None) == did_without(before, found_by()) == ()
    assert did_without(found_by("mm-bd", "joint-evidence"), found_by("mm-bd")) == ()  # a finding, and no method
    (text,) = did_without(before, found_by("mm-bd"))
    assert text.startswith("the second scan did without pair-perturbation: too few of the images played no part")


def test_a_probe_by_what_the_repair_trained_against_is_a_caveat():
    patch, shift = UnlearnedChange(kind="patch", target=1), UnlearnedChange(kind="perturbation", target=1)
    quiet, fired = SimpleNamespace(fired=False), SimpleNamespace(fired=True)
    (text,) = probed_as_trained((patch, shift), quiet)
    assert text.endswith("that the backdoor did not come back says little")
    for unlearned, probe in (((patch,), quiet), ((), quiet), ((shift,), fired), ((shift,), None)):
        assert probed_as_trained(unlearned, probe) == ()


def test_the_repaired_network_is_freed_of_disguises_by_itself(planted, clean_data):
    repaired = copy.deepcopy(planted)
    with torch.no_grad():
        repaired.network.linear.weight *= 1e6
        repaired.network.linear.bias *= 1e6
    before = repaired.state_dict()
    facts = audit.Facts(told=Told(("of the network that came in",), ("a reason of its own",)))
    parts = {"scan": clean_data, "training": clean_data, "held_out": clean_data}
    found = judge_repaired(planted, repaired, {}, None, detectors=(MMBD(steps=1, threshold=1e9),), facts=facts, **parts)
    assert found.verdict is Verdict.NO_EVIDENCE
    assert any("logits were multiplied" in caveat for caveat in found.report.caveats)
    assert not any("came in" in caveat for caveat in found.report.caveats)
    assert repaired.logit_scale == 1.0
    assert all(torch.equal(before[name], value) for name, value in repaired.state_dict().items())


def test_a_copy_that_every_step_spoils_lets_the_probe_decide_nothing(planted, clean_data, monkeypatch):
    monkeypatch.setattr("banaudit.relapse.LEARNING_RATES", (1e9,))
    monkeypatch.setattr("banaudit.relapse.THRESHOLDS", {Reading.ALL_TO_ONE: 2.0})

    def judged(reading):
        wanted = wanted_labels(toys.CLASSES, toys.TARGET, (), None)
        detectors = (MMBD(steps=1, threshold=1e9),)
        parts = {"scan": clean_data, "training": clean_data, "held_out": clean_data}
        return judge_repaired(planted, planted, wanted, reading, detectors=detectors, **parts)

    found = judged(Reading.ALL_TO_ONE)
    assert found.relapse.steps == 0
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "spoils the copy" in found.reason
    assert judged(Reading.SOURCE_TARGET).verdict is Verdict.NO_EVIDENCE  # there it decides nothing anyway
