"""What several methods say together: joint evidence, and the class that most of many methods put first."""

from __future__ import annotations

import pytest

from banaudit.agreement import (
    COMMON_SUSPECT,
    JOINT_EVIDENCE,
    TOGETHER,
    VOTERS,
    common_suspect,
    joint_evidence,
    rests_on_joint_evidence,
    says_most,
    together,
)
from banaudit.detectors.ban import BAN, NOISE_ALONE
from banaudit.detectors.corruptions import Corruptions
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.neural_cleanse import NeuralCleanse
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.results import ClassScore, Evidence, Finding, Reading, Verdict


def found(method, score, target, label="", verdict=Verdict.NO_EVIDENCE):
    evidence = Evidence(
        reading=Reading.ALL_TO_ONE, measures="", label=label, score=score, threshold=2.0, fired=False, target=target
    )
    other = evidence.model_copy(update={"label": "negative mask", "target": 9, "score": 100.0})
    return Finding(method=method, title="", verdict=verdict, reason="", evidence=(other, evidence))


@pytest.mark.parametrize(("null", "counts"), [(None, True), (0.4, True), (1.0, True), (1.2, False), (1.9, False)])
def test_mistakes_that_random_noise_makes_as_well_speak_against_no_class(null, counts):
    findings = [witness(TargetedNoise.name, [1.2, 0.0, 0.0]), witness(BAN.name, [1.11, 0.0, 0.5], label=NOISE_ALONE)]
    (evidence,) = findings[1].evidence
    findings[1] = findings[1].model_copy(update={"evidence": (evidence.model_copy(update={"null": null}),)})
    alone, both = 0.6, (0.6**2 + 0.555**2) ** 0.5
    assert joint_evidence(findings).evidence[0].score == pytest.approx(both if counts else alone)


def witness(method, scores, *, threshold=2.0, label="", verdict=Verdict.NO_EVIDENCE):
    best = max(range(len(scores)), key=scores.__getitem__)
    evidence = Evidence(
        reading=Reading.ALL_TO_ONE,
        measures="",
        label=label,
        score=scores[best],
        threshold=threshold,
        fired=False,
        target=best,
        per_class=tuple(ClassScore(label=k, name=f"n{k}", score=score) for k, score in enumerate(scores)),
    )
    return Finding(method=method, title="", verdict=verdict, reason="", evidence=(evidence,))


def test_a_reading_that_did_not_fire_accuses_nobody_alone():
    lacking = witness(TargetedNoise.name, [2.4, 0.0, 0.0])
    (item,) = lacking.evidence
    lacking = lacking.model_copy(update={"evidence": (item.model_copy(update={"fired": False}),)})
    found = joint_evidence([lacking, witness(MMBD.name, [0.0, 0.0, 0.0])])
    assert (found.verdict, found.evidence[0].score) == (Verdict.NO_EVIDENCE, 0.9)


def test_no_reading_counts_more_than_its_weakest_restart():
    # Its score is that of its weakest restart; what it holds against each class is a mean, and may be above.
    mean = witness(TargetedNoise.name, [2.4, 0.0, 0.0])
    for agreement, score in ((None, 0.75), (1.0, 0.75), (0.5, 0.0)):  # those that differ name no class
        weakest = mean.evidence[0].model_copy(update={"score": 1.5, "fired": False, "agreement": agreement})
        found = joint_evidence([mean.model_copy(update={"evidence": (weakest,)}), witness(MMBD.name, [0.0, 0.0, 0.0])])
        assert found.evidence[0].score == score


def test_suspicions_of_one_class_add_up_and_those_of_others_do_not():
    found = joint_evidence(
        [
            witness(MMBD.name, [1.2, 0.0, -4.0]),  # 0.6 of its threshold for class 0
            witness(NeuralCleanse.name, [1.6 / 1.475, 1.44, 0.0]),  # by its weight 0.8 for class 0, and 0.9 for class 1
            witness(BAN.name, [0.0, 0.0, 1.0], label="negative mask"),  # no witness
        ]
    )
    (evidence,) = found.evidence
    assert (found.method, found.verdict, evidence.target) == (JOINT_EVIDENCE, Verdict.NO_EVIDENCE, 0)
    assert [item.score for item in evidence.per_class] == pytest.approx([1.0, 0.9, 0.0])
    assert evidence.note == "class 0: mm-bd 0.60, neural-cleanse 0.80"
    assert evidence.per_class[1].name == "n1"


def test_joint_evidence_accuses_where_no_method_does():
    two = [witness(TargetedNoise.name, [0.0, 1.7]), witness(NeuralCleanse.name, [0.0, 1.9])]
    found = joint_evidence(two)
    (evidence,) = found.evidence
    assert (found.verdict, evidence.fired, evidence.target) == (Verdict.NO_EVIDENCE, False, 1)
    assert evidence.score == pytest.approx((0.85**2 + 0.9**2) ** 0.5)  # a reading that has not fired counts 0.9 at most
    found = joint_evidence([*two, witness(Corruptions.name, [0.0, 1.6])])
    (evidence,) = found.evidence
    assert (found.verdict, evidence.fired, evidence.target) == (Verdict.BACKDOORED, True, 1)
    assert evidence.score == pytest.approx((0.85**2 + 0.9**2 + 0.8**2) ** 0.5)


def test_of_many_classes_less_joint_evidence_is_enough():
    for classes, verdict in ((39, Verdict.NO_EVIDENCE), (40, Verdict.BACKDOORED)):
        rest = [0.0] * (classes - 1)
        found = joint_evidence([witness(TargetedNoise.name, [1.7, *rest]), witness(NeuralCleanse.name, [1.9, *rest])])
        assert found.verdict is verdict
        assert found.evidence[0].score == pytest.approx((0.85**2 + 0.9**2) ** 0.5)


def test_margins_count_less_where_they_do_not_accuse():
    # Of clean networks for digits MM-BD names the same class, most of the time.
    found = joint_evidence([witness(MMBD.name, [1.9, 0.0]), witness(TargetedNoise.name, [1.4, 0.0])])
    assert found.evidence[0].score == pytest.approx((0.6**2 + 0.7**2) ** 0.5)


def test_a_reading_that_was_held_back_accuses_only_with_others():
    alone = [witness(MMBD.name, [0.2, 0.0]), witness(NeuralCleanse.name, [9.0, 0.0])]  # its patch works on no others
    assert joint_evidence(alone).evidence[0].score == pytest.approx((0.1**2 + 0.9**2) ** 0.5)
    seconded = [witness(MMBD.name, [1.2, 0.0]), witness(TargetedNoise.name, [1.9, 0.0]), alone[1]]
    assert joint_evidence(seconded).verdict is Verdict.BACKDOORED


def test_what_is_natural_is_taken_off_in_squares_and_another_class_may_lead_then():
    findings = [witness(TargetedNoise.name, [1.7, 1.6]), witness(NeuralCleanse.name, [1.44, 0.0])]
    raw = [(0.85**2 + 0.9**2) ** 0.5, 0.8]
    (evidence,) = joint_evidence(findings, (0.5, 0.0)).evidence
    assert [item.score for item in evidence.per_class] == pytest.approx([(raw[0] ** 2 - 0.25) ** 0.5, 0.8])
    assert (evidence.target, evidence.null) == (0, 0.5)
    assert evidence.note == "class 0: targeted-noise 0.85, neural-cleanse 0.90; by nature 0.50"
    (evidence,) = joint_evidence(findings, (1.3, 0.1)).evidence  # more than class 0 has
    assert [item.score for item in evidence.per_class] == pytest.approx([0.0, (0.8**2 - 0.01) ** 0.5])
    assert (evidence.target, evidence.null) == (1, 0.1)
    assert joint_evidence(findings).evidence[0].null is None


def test_whether_joint_evidence_alone_accuses():
    def fired(*findings):
        return [
            item.model_copy(update={"evidence": tuple(e.model_copy(update={"fired": True}) for e in item.evidence)})
            for item in findings
        ]

    joint = joint_evidence([witness(TargetedNoise.name, [0.0, 1.7]), witness(NeuralCleanse.name, [0.0, 1.9])])
    assert not rests_on_joint_evidence([joint])
    assert rests_on_joint_evidence([witness(MMBD.name, [1.0, 0.0]), *fired(joint)])
    assert not rests_on_joint_evidence(fired(witness(MMBD.name, [3.0, 0.0]), joint))


def test_joint_evidence_takes_two_witnesses_that_could_judge():
    one = witness(MMBD.name, [0.0, 1.7])
    undecided = witness(NeuralCleanse.name, [0.0, 9.0], verdict=Verdict.INCONCLUSIVE)
    assert joint_evidence([one, undecided]) is None
    assert together([one]) == ()


def test_together_gives_every_joint_finding():
    two = [witness(TargetedNoise.name, [0.0, 1.2]), witness(BAN.name, [0.0, 1.2], label=NOISE_ALONE)]
    assert [found.method for found in together(two)] == [JOINT_EVIDENCE]
    assert {found.method for found in together(voters(*(7,) * 7))} == TOGETHER


def first(method, target, classes=43, label="", verdict=Verdict.NO_EVIDENCE):
    """A method that puts a class first with next to nothing against it."""
    scores = tuple(ClassScore(label=item, name=str(item), score=0.01 * (item == target)) for item in range(classes))
    finding = found(method, 0.01, target, label, verdict)
    return finding.model_copy(
        update={"evidence": tuple(item.model_copy(update={"per_class": scores}) for item in finding.evidence)}
    )


def voters(*targets, classes=43):
    return [first(voter.method, target, classes, voter.label) for voter, target in zip(VOTERS, targets, strict=False)]


@pytest.mark.parametrize(
    ("targets", "verdict", "votes", "null"),
    [
        ((7, 7, 2, 7, 7, 2, 7), Verdict.BACKDOORED, 5, 2),
        ((7, 7, 2, 7, 7, 4, 5), Verdict.NO_EVIDENCE, 4, 1),
        ((7,) * 5, Verdict.BACKDOORED, 5, 0),
    ],
)
def test_of_many_classes_one_that_most_methods_put_first_is_suspect(targets, verdict, votes, null):
    finding = common_suspect(voters(*targets))
    (evidence,) = finding.evidence
    assert (finding.method, finding.verdict, evidence.fired) == (COMMON_SUSPECT, verdict, verdict is Verdict.BACKDOORED)
    assert (evidence.score, evidence.target, evidence.null) == (votes, 7, null)
    assert finding.reason == f"{votes} of {len(targets)} put class 7 first: score {votes}, threshold 4"


def test_a_reading_that_holds_nothing_against_a_class_or_names_several_has_no_vote():
    for change, per_class in (
        ({"agreement": 0.5}, {}),
        ({}, {"score": 0.0}),
        ({}, {"score": -0.1}),
    ):
        findings = voters(*(7,) * 5)
        evidence = findings[0].evidence[-1]
        scores = tuple(item.model_copy(update=per_class) for item in evidence.per_class)
        silent = evidence.model_copy(update={**change, "per_class": scores})
        findings[0] = findings[0].model_copy(update={"evidence": (silent,)})
        (counted,) = common_suspect(findings).evidence
        assert (counted.score, counted.fired) == (4, False)
    nobody = [
        item.model_copy(update={"evidence": tuple(e.model_copy(update={"agreement": 0.5}) for e in item.evidence)})
        for item in voters(*(7,) * 5)
    ]
    finding = common_suspect(nobody)
    assert (finding.evidence[0].score, finding.evidence[0].target) == (0, None)
    assert finding.reason.startswith("none of them puts one class first")


def test_of_few_classes_or_few_methods_no_class_is_a_common_suspect():
    assert common_suspect(voters(*(7,) * 7, classes=39)) is None
    assert common_suspect(voters(*(7,) * 4)) is None
    undecided = voters(*(7,) * 5)
    undecided[0] = undecided[0].model_copy(update={"verdict": Verdict.INCONCLUSIVE})
    assert common_suspect(undecided) is None


def reading(kind, score, target=None):
    return Evidence(reading=kind, measures="", score=score, threshold=1.0, fired=True, target=target)


ONE = reading(Reading.ALL_TO_ONE, 3.0, 4)
PAIR, OTHER_PAIR = reading(Reading.SOURCE_TARGET, 1.1, 4), reading(Reading.SOURCE_TARGET, 1.1, 5)
MAP, SURER_MAP = reading(Reading.ALL_TO_ALL, 1.05), reading(Reading.ALL_TO_ALL, 3.5)


@pytest.mark.parametrize(
    ("fired", "wanted"),
    [
        ((), None),
        ((ONE, reading(Reading.ALL_TO_ONE, 2.0, 1)), ONE),
        ((ONE, PAIR), PAIR),
        ((ONE, OTHER_PAIR), ONE),
        ((MAP, ONE), ONE),
        ((MAP, ONE, PAIR), PAIR),
        ((ONE, SURER_MAP, PAIR), SURER_MAP),
    ],
)
def test_the_furthest_above_says_most_or_a_source_of_the_same_target(fired, wanted):
    assert says_most(fired, lambda item: item.score) is wanted
