from __future__ import annotations

import json

import pytest

from banaudit import purify as pipeline
from banaudit.errors import UsageError
from banaudit.mitigations import BANDistillation, FineTuning
from banaudit.reports import json_text
from banaudit.results import (
    CheckpointFacts,
    Repair,
    RepairEpoch,
    RepairSettings,
    Verdict,
)

BASE = ("purify", "model.pt", "--data", "clean", "-o", "out.pt")


@pytest.fixture
def asked(audit, monkeypatch):
    """What the library was asked; ``verdict`` in it decides the answer."""
    asked = {"verdict": Verdict.NO_EVIDENCE}

    def stub(subject, out, **settings):
        asked.update(vars(subject), out=out, **settings)
        if "problem" in asked:
            raise asked["problem"]
        verdict = asked["verdict"]
        return Repair(
            verdict=verdict,
            reason="because",
            written=verdict is not Verdict.INCONCLUSIVE,
            parent=CheckpointFacts(
                path="model.pt", sha256="ab" * 32, bytes=1, format="torch zip", tensors=1, parameters=1
            ),
            accuracy_before=0.9,
            accuracy_after=0.89,
            accuracy_drop_error=0.01,
            epochs=(RepairEpoch(epoch=1, loss=0.5, accuracy=0.9, seconds=1.0),),
            kept_epoch=1,
            made=RepairSettings(
                method="ban",
                title="t",
                settings={},
                augmentation="none",
                training_images=5,
                selection_images=2,
                untouched_images=3,
                max_drop=0.02,
            ),
            before=audit.report,
            forward_images=1,
            backward_images=1,
            seed=0,
            device="cpu",
            seconds=1.0,
            tool_version="0",
            torch_version="0",
            started="2026-01-01T00:00:00+00:00",
        )

    monkeypatch.setattr(pipeline, "purify", stub)
    return asked


@pytest.mark.parametrize(
    ("verdict", "code"), [(Verdict.NO_EVIDENCE, 0), (Verdict.BACKDOORED, 1), (Verdict.INCONCLUSIVE, 3)]
)
def test_exit_codes(asked, run, verdict, code):
    asked["verdict"] = verdict
    done = run(*BASE)
    assert done.code == code
    assert done.err == ("banaudit: wrote nothing\n" if code == 3 else "banaudit: wrote out.pt and out.pt.json\n")
    assert "90.0 % before, 89.0 % after: lost 1.0 points" in " ".join(done.out.split())


def test_defaults_and_options(asked, run):
    run(*BASE)
    assert asked["mitigation"] == BANDistillation()
    assert (asked["max_drop"], asked["flips"], asked["force"], asked["max_images"]) == (0.02, None, False, 4000)
    run(
        *(*BASE, "--method", "fine-tuning", "--epochs", "3", "--set", "fine-tuning.batch_size=32"),
        *("--no-flip", "--force", "--max-drop", "0.5", "--mean", "0.5", "--std", "0.2", "--classes", "c.txt"),
    )
    assert asked["mitigation"] == FineTuning(epochs=3, batch_size=32)
    assert (asked["max_drop"], asked["flips"], asked["force"], asked["mean"]) == (0.005, False, True, (0.5,))


def test_json_is_the_record(asked, run):
    done = run(*BASE, "--format", "json", "--quiet")
    assert done.err == ""
    assert Repair.model_validate_json(done.out).verdict is Verdict.NO_EVIDENCE
    assert json.loads(done.out)["kind"] == "repair"
    assert json.loads(run("schema", "repair").out) == json_text.schema("repair")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (("--method", "magic"), "--method magic: no such method; there are anp, ban, "),
        (
            ("--set", "fine-tuning.epochs=2"),
            "--set fine-tuning.epochs: fine-tuning does not run, ban-distillation does",
        ),
        (("--method", "ban", "--set", "ban.magic=2"), "--set ban.magic: no such setting"),
        (("--set", "ban-distillation.epochs=2", "--epochs", "3"), "--epochs is given too"),
        (("--max-drop", "-1"), "--max-drop"),
    ],
)
def test_usage_errors(asked, run, more, expected):
    done = run(*BASE, *more)
    assert done.code == 2
    assert expected in done.err
    assert "model" not in asked


def test_expected_errors_are_one_line(asked, run):
    asked["problem"] = UsageError("out.pt: exists already")
    assert run(*BASE).err == "banaudit: out.pt: exists already\n"


@pytest.mark.parametrize("out", [".", "/"])
def test_an_output_without_a_name_is_refused(asked, run, out):
    done = run("purify", "model.pt", "--data", "clean", "-o", out)
    assert (done.code, done.err) == (2, f"banaudit: --output {out}: is a folder; name a file in it\n")


@pytest.mark.parametrize("out", ["list.csv", "order", "order.json", "nets.py", "model.pt"])
def test_neither_checkpoint_nor_account_overwrites_an_input(asked, run, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    inputs = [tmp_path / file for file in ("model.pt", "list.csv", "order.json", "nets.py")]
    for file in inputs:
        file.write_text(file.name)
    base = ("purify", "model.pt", "--data", "list.csv", "--classes", "order.json", "--arch", "nets.py:factory")
    done = run(*base, "-o", out, "--force")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"banaudit: --output {out}: would overwrite an input, ")
    assert [file.read_text() for file in inputs] == [file.name for file in inputs]
    assert "model" not in asked
