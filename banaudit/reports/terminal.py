"""Document -> text for people: coloured, with drawn bars, on a terminal; plain ASCII marks everywhere else."""

from __future__ import annotations

import io

from rich.box import HEAVY
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from banaudit.reports.document import Bar, Block, Chart, Document, Gallery, Row, Section, Tone
from banaudit.reports.escaping import printable

LABEL_WIDTH = 14
"""Columns of a row's label; a longer one has a line to itself. With the indent and a gap, a SHA-256 fits behind it on
80 columns."""
MIN_WIDTH = 40
"""A console that is narrower, or says so, gets lines of this length: there is no room for bars and words below."""
MAX_WIDTH = 120
"""Lines are not drawn longer than this: longer ones are hard to read."""
PLAIN_WIDTH = 100
"""Columns of a text file."""
BAR_LABEL_WIDTH = 22
BAR_SHARE = 0.34
"""Length of a full bar as a share of the line."""

_STYLES = {
    Tone.PLAIN: "",
    Tone.FAINT: "dim",
    Tone.GOOD: "bold cyan",
    Tone.WARNING: "bold yellow",
    Tone.ALARM: "bold red",
}


def plain_console() -> Console:
    """A console that draws no colours and no boxes, for text that goes to a file."""
    return Console(file=io.StringIO(), width=PLAIN_WIDTH, color_system=None, force_terminal=False)


def render(document: Document, console: Console) -> str:
    """The document as the console would show it.

    Args:
        document: What to show.
        console: Decides width, colours and whether bars can be drawn; nothing is written to it. It is widened to
            :data:`MIN_WIDTH` if it is narrower.
    """
    console.width = max(console.width, MIN_WIDTH)
    width = min(console.width, MAX_WIDTH)
    drawn = console.is_terminal and not console.options.ascii_only
    with console.capture() as capture:
        _stamp(document, console, width, drawn)
        for section in document.sections:
            _section(section, console, width, drawn)
    lines = capture.get().splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _stamp(document: Document, console: Console, width: int, drawn: bool) -> None:
    style = _STYLES[document.tone]
    stamp, subtitle = Text(document.stamp, style=style), Text(printable(document.subtitle))
    if drawn:
        panel = Panel(Text.assemble(stamp, "\n", subtitle), box=HEAVY, border_style=style, padding=(1, 2), width=width)
        console.print(panel)
        return
    rule = "=" * width
    for line in (Text(rule), Text(f" {document.stamp}"), Padding(subtitle, (0, 0, 0, 1)), Text(rule)):
        console.print(line, width=width)


def _section(section: Section, console: Console, width: int, drawn: bool) -> None:
    console.print()
    if section.title:
        console.print(Text(printable(section.title), style="bold underline" if drawn else ""), width=width)
        if not drawn:
            console.print(Text("-" * min(width, len(printable(section.title)))))
    before: Block | None = None
    for block in section.blocks:
        if before is not None and (isinstance(block, Chart) or isinstance(before, Chart)):
            console.print()
        if isinstance(block, Chart):
            _chart(block, console, width, drawn)
        else:
            console.print(_row(_files(block) if isinstance(block, Gallery) else block), width=width)
        before = block


def _files(gallery: Gallery) -> Row:
    return Row("pictures", (gallery.title, *(picture.path for picture in gallery.pictures)))


def _row(row: Row) -> RenderableType:
    label = printable(row.label)
    above = [Text(f" {label}", style="dim")] if len(label) > LABEL_WIDTH else []
    grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column(width=LABEL_WIDTH + 1, no_wrap=True)
    grid.add_column(overflow="fold")
    for index, text in enumerate(row.texts):
        beside = f" {label}" if index == 0 and not above else ""
        grid.add_row(Text(beside, style="dim"), Text(printable(text), style=_STYLES[row.tone]))
    return Group(*above, grid)


def _chart(chart: Chart, console: Console, width: int, drawn: bool) -> None:
    title = f"{chart.title}; the mark is {chart.mark}" if chart.mark else chart.title
    console.print(Padding(Text(printable(title), style="dim"), (0, 0, 0, 1)), width=width)
    length = int(width * BAR_SHARE)
    grid = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column(width=BAR_LABEL_WIDTH + 1, no_wrap=True)
    grid.add_column(width=length, no_wrap=True)
    grid.add_column(overflow="fold")
    for bar in chart.bars:
        style = _STYLES[bar.tone]
        label = Text(f" {printable(bar.label, BAR_LABEL_WIDTH)}", style=style)
        grid.add_row(label, Text(_line(bar, length, drawn), style=style), Text(printable(bar.caption), style=style))
    console.print(grid, width=width)
    if chart.footnote:
        console.print(Padding(Text(printable(chart.footnote), style="dim"), (0, 0, 0, 1)), width=width)


def _line(bar: Bar, length: int, drawn: bool) -> str:
    full, empty, mark = ("█", "░", "┃") if drawn else ("#", ".", "|")
    cells = [full if cell < round(bar.share * length) else empty for cell in range(length)]
    if bar.marker is not None:
        cells[min(length - 1, int(bar.marker * length))] = mark
    return "".join(cells)
