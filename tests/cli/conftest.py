"""A stand-in for the audit, so that the command line is tested by itself and without importing torch."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import banaudit
from banaudit.cli import main
from banaudit.results import Inspection, Report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reports"))
import samples


@dataclass
class StubAudit:
    """Answers what it is told to, and remembers what it was asked."""

    report: Report = field(default_factory=samples.report)
    inspection: Inspection = field(default_factory=samples.inspection)
    problem: BaseException | None = None
    asked: dict[str, object] = field(default_factory=dict)

    def scan(self, subject: types.SimpleNamespace, **settings: object) -> Report:
        self.asked = {**vars(subject), **settings}
        if self.problem is not None:
            raise self.problem
        return self.report

    def inspect(self, model: Path, *, state_key: str | None = None) -> Inspection:
        self.asked = {"model": model, "state_key": state_key}
        if isinstance(self.problem, OSError):
            raise self.problem
        return self.inspection


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> StubAudit:
    stub = StubAudit()
    module = types.ModuleType("banaudit.audit")
    module.scan, module.inspect = stub.scan, stub.inspect  # type: ignore[attr-defined]
    module.Subject = types.SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "banaudit.audit", module)
    monkeypatch.setattr(banaudit, "audit", module, raising=False)
    return stub


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Outcome]]:
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str | Path) -> Outcome:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call
