"""The list of methods, and its copy in the documents."""

from __future__ import annotations

import json
from pathlib import Path

from banaudit.detectors import DETECTORS

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
    assert {row.count(" |") for row in rows if not row.startswith("|---")} == {6}
