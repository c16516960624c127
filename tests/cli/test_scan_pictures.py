"""``banaudit scan --triggers``: pictures beside the report, all of them or none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import samples
from PIL import Image

from banaudit.errors import DataError, UnsafeCheckpointError
from banaudit.reports import json_text
from banaudit.results import TriggerFacts
from banaudit.triggers import RecoveredTrigger, TriggerPicture

BASE = ("scan", "model.pt", "--data", "clean")
NAMES = ["targeted_noise-class-3-mask.png", "targeted_noise-class-7-mask.png", "targeted_noise-class-7-pattern.png"]


def trigger(target, *pictures):
    facts = TriggerFacts(
        target=target,
        accused=target == 7,
        what="patch",
        size=4.5,
        size_of="L1 norm of the mask, in pixels",
        success=0.9,
    )
    return RecoveredTrigger(
        "targeted_noise", facts, tuple(TriggerPicture(name, name, array) for name, array in pictures)
    )


@pytest.fixture
def found(audit):
    """The stub's scan recovers two triggers, where somebody wants them."""
    colour = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    recovered = (trigger(7, ("pattern", colour), ("mask", colour[..., 0])), trigger(3, ("mask", colour[..., 1])))
    facts = tuple(item.facts for item in recovered)
    first, *rest = audit.report.findings
    findings = (first.model_copy(update={"triggers": facts}), *rest)
    audit.report = audit.report.model_copy(update={"findings": findings})
    plain = audit.scan

    def scan(subject, *, triggers, **settings):
        report = plain(subject, **settings)
        for item in recovered if triggers is not None else ():
            triggers(item)
        return report

    import banaudit

    banaudit.audit.scan = scan
    return recovered


def test_pictures_are_written_and_named_in_every_report(audit, run, tmp_path, found):
    folder = tmp_path / "of last (scan)"
    reports = [tmp_path / "report.json", tmp_path / "sub" / "report.md"]
    reports[1].parent.mkdir()
    outputs = ("--output", f"json={reports[0]}", "--output", f"markdown={reports[1]}")
    done = run(*BASE, "--triggers", folder, *outputs)
    assert done.code == 1
    assert done.err.splitlines()[-1] == f"banaudit: wrote pictures to {folder}"
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    for name, picture in zip((NAMES[2], NAMES[1]), found[0].pictures, strict=True):
        with Image.open(folder / name) as kept:
            assert np.array_equal(np.asarray(kept), picture.pixels)
    written = json.loads(reports[0].read_text(encoding="utf-8"))
    jsonschema.validate(written, json_text.schema("report"))
    first, second = written["findings"][0]["triggers"]
    assert (first["target"], first["accused"], first["size"], first["success"]) == (7, True, 4.5, 0.9)
    assert [item["path"] for item in first["pictures"]] == [str(folder / NAMES[2]), str(folder / NAMES[1])]
    assert (second["accused"], len(second["pictures"])) == (False, 1)
    text = reports[1].read_text(encoding="utf-8")
    assert "patch towards class 7 (horse): 4.5 (L1 norm of the mask, in pixels), moves 90% of held-out images" in text
    assert f"![mask](../of%20last%20%28scan%29/{NAMES[1]})" in text
    assert NAMES[0] in done.out.replace("\n", "").replace(" ", "")


def test_without_the_option_no_picture_is_asked_for(audit, run, found):
    done = run(*BASE, "--format", "json")
    assert json.loads(done.out)["findings"][0]["triggers"][0]["pictures"] == []


def test_an_empty_folder_will_do_and_a_scan_that_recovers_nothing_makes_none(audit, run, tmp_path):
    done = run(*BASE, "--triggers", tmp_path / "none")
    assert done.code == 1
    assert done.err == "banaudit: no trigger was recovered, so no picture\n"
    assert not (tmp_path / "none").exists()


def test_pictures_do_not_go_among_the_clean_images(run, found):
    done = run(*BASE, "--triggers", "clean/pictures")
    assert done.code == 2
    assert "--triggers clean/pictures: is among the clean images" in done.err


def test_an_empty_folder_is_filled(run, tmp_path, found):
    assert run(*BASE, "--triggers", tmp_path).code == 1
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("full", "is not empty; give a new folder, or empty this one"),
        ("full/old.png", "is a file; expected a folder"),
        ("no/such", "cannot be written (No such file or directory)"),
        ("report.json", "an output goes to a file of that name"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_before_the_scan(audit, run, tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/old.png").touch()
    done = run(*BASE, "--triggers", name, "--output", "json=report.json")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"banaudit: --triggers {name}: {expected}")
    assert done.err.count("\n") == 1
    assert audit.asked == {}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "old.png"]


@pytest.mark.parametrize("problem", [DataError("clean: holds no images"), UnsafeCheckpointError("bad", ("os.system",))])
def test_a_refused_scan_leaves_no_folder(audit, run, tmp_path, found, problem):
    audit.problem = problem
    audit.inspection = samples.inspection(unsafe=True)
    run(*BASE, "--triggers", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def fail_at_the_second_file(monkeypatch, problem):
    plain, calls = os.fsync, []

    def fsync(number):
        calls.append(number)
        if len(calls) == 2:
            raise problem
        plain(number)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("there", [False, True])
def test_interrupted_while_writing_nothing_is_left(run, tmp_path, monkeypatch, found, there):
    folder = tmp_path / "new"
    if there:
        folder.mkdir()
    fail_at_the_second_file(monkeypatch, KeyboardInterrupt())
    assert run(*BASE, "--triggers", folder, "--output", f"json={tmp_path / 'report.json'}").code == 130
    assert list(tmp_path.rglob("*")) == ([folder] if there else [])


def test_a_disk_that_is_full_does_not_cost_the_report(run, tmp_path, monkeypatch, found):
    fail_at_the_second_file(monkeypatch, OSError(28, "No space left on device"))
    done = run(*BASE, "--triggers", tmp_path / "new", "--output", f"json={tmp_path / 'report.json'}")
    assert done.code == 2
    assert "BACKDOORED" in done.out
    assert done.err.startswith(f"banaudit: --triggers {tmp_path / 'new'}: cannot be written (No space left on device)")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
