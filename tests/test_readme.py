"""The README says what the tool does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def help_text() -> str:
    """What ``banaudit --help`` prints on 100 columns, without trailing blanks."""
    printed = subprocess.run(
        [sys.executable, "-c", "import sys; from banaudit.cli import main; sys.exit(main(['--help']))"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
    ).stdout
    return "\n".join(line.rstrip() for line in printed.strip("\n ").splitlines()).strip()


def test_the_help_block_is_what_the_tool_prints():
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert block.group(1).strip() == help_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_two_commands_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install . && banaudit demo" in text
    assert "pip install '.[dev]' && pytest" in text
