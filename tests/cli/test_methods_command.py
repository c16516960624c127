"""The list of methods, and its copy in the documents."""

from __future__ import annotations

import json
from pathlib import Path

from banaudit.detectors import DETECTORS
from banaudit.mitigations import MITIGATIONS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_the_table_in_the_documents_is_what_the_tool_prints(run):
    printed = run("methods", "--format", "markdown").out
    assert printed.strip() in DOCUMENT.read_text(encoding="utf-8"), (
        "put what `banaudit methods --format markdown` prints into docs/methods.md"
    )


def test_every_format_lists_every_method(run):
    for form in ("text", "json", "markdown"):
        done = run("methods", "--format", form)
        assert (done.code, done.err) == (0, "")
        assert all(name in done.out for name in DETECTORS)
    entries = json.loads(run("methods", "--format", "json").out)
    assert [entry["name"] for entry in entries] == list(DETECTORS)
    assert all(entry["settings"] and entry["passes"] > 0 for entry in entries)


def test_the_markdown_is_one_table(run):
    rows = run("methods", "--format", "markdown").out.splitlines()
    assert len(rows) == 2 + len(DETECTORS)
    assert {row.count(" |") for row in rows if not row.startswith("|---")} == {7}


def test_repairs_are_listed_with_their_settings(run):
    for form in ("text", "json", "markdown"):
        done = run("methods", "--repairs", "--format", form)
        assert (done.code, done.err) == (0, "")
        assert all(name in done.out for name in MITIGATIONS)
    entries = json.loads(run("methods", "--repairs", "--format", "json").out)
    assert [entry["name"] for entry in entries if entry["default"]] == ["ban-distillation"]
    assert next(entry for entry in entries if entry["name"] == "clp")["settings"] == {"u": 3.0}
