"""What aimed and unaimed neuron noise say together."""

from __future__ import annotations

import pytest

from banaudit.agreement import noise_agreement
from banaudit.detectors.ban import BAN, NOISE_ALONE
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.results import Evidence, Finding, Reading, Verdict


def found(method, score, target, label="", verdict=Verdict.NO_EVIDENCE):
    evidence = Evidence(
        reading=Reading.ALL_TO_ONE, measures="", label=label, score=score, threshold=2.0, fired=False, target=target
    )
    other = evidence.model_copy(update={"label": "negative mask", "target": 9, "score": 100.0})
    return Finding(method=method, title="", verdict=verdict, reason="", evidence=(other, evidence))


def both(aimed, unaimed):
    return found(TargetedNoise.name, *aimed), found(BAN.name, *unaimed, NOISE_ALONE)


@pytest.mark.parametrize(
    ("aimed", "unaimed", "score", "target", "verdict"),
    [
        ((1.6, 3), (1.2, 3), 0.6, 3, Verdict.BACKDOORED),
        ((9.0, 3), (1.0, 3), 0.5, 3, Verdict.NO_EVIDENCE),  # the weaker one decides
        ((1.6, 3), (1.6, 4), 0.0, None, Verdict.NO_EVIDENCE),
    ],
)
def test_half_of_both_thresholds_is_enough_where_one_class_is_named(aimed, unaimed, score, target, verdict):
    finding = noise_agreement(both(aimed, unaimed))
    assert finding.verdict is verdict
    assert finding.evidence[0].score == pytest.approx(score)
    assert finding.evidence[0].target == target


@pytest.mark.parametrize("missing", [0, 1])
def test_one_alone_agrees_with_nobody(missing):
    findings = list(both((1.6, 3), (1.2, 3)))
    undecided = findings[missing].model_copy(update={"verdict": Verdict.INCONCLUSIVE})
    assert noise_agreement([findings[1 - missing]]) is None
    assert noise_agreement([findings[1 - missing], undecided]) is None


@pytest.mark.parametrize("doubtful", [0, 1])
def test_restarts_that_differ_name_no_class(doubtful):
    findings = list(both((1.6, 3), (1.6, 3)))
    evidence = tuple(item.model_copy(update={"agreement": 0.5}) for item in findings[doubtful].evidence)
    findings[doubtful] = findings[doubtful].model_copy(update={"evidence": evidence})
    finding = noise_agreement(findings)
    assert (finding.verdict, finding.evidence[0].score) == (Verdict.NO_EVIDENCE, 0.0)
