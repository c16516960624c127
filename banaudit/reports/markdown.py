"""Document -> Markdown, for job summaries and comments."""

from __future__ import annotations

from banaudit.reports.document import Chart, Document, Row, Section
from banaudit.reports.escaping import markdown

BAR_LENGTH = 20
"""Characters of a full bar."""


def render(document: Document) -> str:
    """The document as GitHub-flavoured Markdown; every text from outside is escaped."""
    lines = [f"# {markdown(document.stamp)}", "", markdown(document.subtitle)]
    for section in document.sections:
        lines += _section(section)
    return "\n".join(lines) + "\n"


def _section(section: Section) -> list[str]:
    lines = ["", f"## {markdown(section.title)}"] if section.title else []
    previous: type[Row | Chart] | None = None
    for block in section.blocks:
        if isinstance(block, Chart):
            lines += _chart(block)
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
