"""Document -> Markdown, for job summaries and comments."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from banaudit.reports.document import Block, Chart, Document, Gallery, Row, Section
from banaudit.reports.escaping import markdown

BAR_LENGTH = 20
"""Characters of a full bar."""


def render(document: Document, beside: Path | None = None) -> str:
    """The document as GitHub-flavoured Markdown; every text from outside is escaped.

    Args:
        document: What to show.
        beside: Folder that it will lie in; links to pictures are relative to it; none: the current one.
    """
    lines = [f"# {markdown(document.stamp)}", "", markdown(document.subtitle)]
    for section in document.sections:
        lines += _section(section, beside if beside is not None else Path.cwd())
    return "\n".join(lines) + "\n"


def _section(section: Section, beside: Path) -> list[str]:
    lines = ["", f"## {markdown(section.title)}"] if section.title else []
    previous: type[Block] | None = None
    for block in section.blocks:
        if isinstance(block, Chart):
            lines += _chart(block)
        elif isinstance(block, Gallery):
            lines += _gallery(block, beside)
        else:
            if previous is not Row:
                lines += ["", "| | |", "|---|---|"]
            lines.append(f"| {markdown(block.label)} | {'<br>'.join(markdown(text) for text in block.texts)} |")
        previous = type(block)
    return lines


def _chart(chart: Chart) -> list[str]:
    lines = ["", f"| {markdown(chart.title)} | | |", "|---|---|---|"]
    for bar in chart.bars:
        drawn = "█" * round(bar.share * BAR_LENGTH)
        lines.append(f"| {markdown(bar.label)} | {drawn} | {markdown(bar.caption)} |")
    return [*lines, "", markdown(chart.footnote)] if chart.footnote else lines


def _gallery(gallery: Gallery, beside: Path) -> list[str]:
    captions = [markdown(picture.caption) for picture in gallery.pictures]
    links = [
        quote(Path(os.path.relpath(os.path.realpath(picture.path), os.path.realpath(beside))).as_posix())
        for picture in gallery.pictures
    ]
    drawn = [f"![{caption}]({link})" for caption, link in zip(captions, links, strict=True)]
    rule = "|---" * len(captions) + "|"
    return ["", markdown(gallery.title), "", f"| {' | '.join(captions)} |", rule, f"| {' | '.join(drawn)} |"]
