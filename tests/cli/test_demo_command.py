from __future__ import annotations

import sys

import pytest
import samples

from banaudit.results import Verdict


@pytest.fixture
def truthful(audit, monkeypatch):
    asked = []

    def scan(subject, **settings):
        asked.append((subject.model.name, subject.data.name, subject.mean, subject.std))
        return samples.report(Verdict.BACKDOORED if subject.model.stem == "backdoored" else Verdict.NO_EVIDENCE)

    monkeypatch.setattr(sys.modules["banaudit.audit"], "scan", scan)
    return asked


def test_both_verdicts_right(truthful, run):
    done = run("demo", "--quiet")
    assert (done.code, done.err) == (0, "")
    half = (0.5, 0.5, 0.5)
    assert truthful == [("backdoored.safetensors", "images", half, half), ("clean.safetensors", "images", half, half)]
    assert "not a measurement" in done.out
    assert [line.split()[-1] for line in done.out.splitlines() if " truth: " in line] == ["right", "right"]


@pytest.mark.parametrize(
    "wrong", [samples.report(Verdict.INCONCLUSIVE), samples.report().model_copy(update={"target": 3})]
)
def test_a_wrong_verdict_is_an_error(audit, run, wrong):
    audit.report = wrong
    done = run("demo", "--quiet")
    assert done.code == 2
    assert done.err.startswith("banaudit: demo: a verdict differs from the truth")
    assert "WRONG" in done.out
