import json
import math

import pytest
from pydantic import ValidationError

from banaudit.results import EXIT_CODES, ClassScore, Evidence, Finding, Reading, Report, Verdict


def evidence(**changes):
    return Evidence(
        **{"reading": "all-to-one", "measures": "share", "score": 1.0, "threshold": 0.5, "fired": True} | changes
    )


def report(**changes):
    finding = Finding(
        method="ban",
        title="noise",
        verdict=Verdict.BACKDOORED,
        reason="above",
        evidence=(evidence(mapping={0: 1, 1: 0}, per_class=(ClassScore(label=0, name="a", score=1.0),)),),
        settings={"eps": 0.3, "clip": True, "statistics": "batch", "steps": 3, "limit": None},
    )
    fields = {
        "verdict": Verdict.BACKDOORED,
        "reason": "ban fired",
        "mapping": {0: 1},
        "calibration": "uncalibrated",
        "findings": (finding,),
        "seed": 0,
        "device": "cpu",
        "seconds": 1.5,
        "tool_version": "0",
        "torch_version": "0",
        "started": "2030-01-01T00:00:00+00:00",
    }
    return Report(**fields | changes)


def test_a_report_survives_json():
    assert Report.model_validate_json(report().model_dump_json()) == report()


def test_labels_stay_numbers_although_json_keys_are_text():
    text = json.loads(report().model_dump_json())
    assert text["mapping"] == {"0": 1}
    assert Report.model_validate(text).mapping == {0: 1}


def test_json_is_strict():
    text = report(seconds=math.inf).model_dump_json()
    assert json.loads(text, parse_constant=pytest.fail)["seconds"] is None


def test_records_are_frozen_and_refuse_unknown_fields():
    with pytest.raises(ValidationError, match="frozen"):
        report().verdict = Verdict.NO_EVIDENCE
    with pytest.raises(ValidationError, match="Extra inputs"):
        report(verdict_of_somebody_else="safe")


def test_a_verdict_has_three_values_and_none_is_safe():
    assert [verdict.value for verdict in Verdict] == ["backdoored", "no evidence", "inconclusive"]
    assert EXIT_CODES == {Verdict.NO_EVIDENCE: 0, Verdict.BACKDOORED: 1, Verdict.INCONCLUSIVE: 3}
    with pytest.raises(ValidationError):
        report(verdict="safe")


def test_readings():
    assert evidence(reading="source-target").reading is Reading.SOURCE_TARGET
    assert [reading.value for reading in Reading] == ["all-to-one", "all-to-all", "source-target"]
