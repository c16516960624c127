"""Inspection -> document: can the file be loaded, and what is in it."""

from __future__ import annotations

from banaudit.reports.document import Document, Row, Section, Tone
from banaudit.results import Inspection

MAX_KEYS = 40
"""Keys that are listed; a large network has hundreds, all of them in the JSON."""


def document(inspection: Inspection) -> Document:
    """The whole inspection."""
    if inspection.unsafe:
        stamp, tone = "UNSAFE TO LOAD", Tone.ALARM
    elif inspection.loadable and not inspection.keys:
        stamp, tone = "READABLE, BUT AMBIGUOUS", Tone.WARNING
    elif inspection.loadable:
        stamp, tone = "LOADABLE", Tone.GOOD
    else:
        stamp, tone = "NOT LOADABLE", Tone.WARNING
    facts = [
        Row("file", (inspection.path,)),
        Row("format", (f"{inspection.format}, {inspection.bytes:,} bytes",)),
        Row("sha256", (inspection.sha256,)),
    ]
    if inspection.unsafe_globals:
        facts.append(Row("would run", inspection.unsafe_globals, Tone.ALARM))
    if inspection.architecture is not None:
        classes = "" if inspection.classes is None else f", {inspection.classes} classes"
        facts.append(Row("architecture", (f"{inspection.architecture}{classes}",)))
    if inspection.parameters:
        facts.append(Row("parameters", (f"{inspection.parameters:,}",)))
    if inspection.state_keys:
        facts.append(Row("weights under", inspection.state_keys))
    if inspection.stripped_prefixes:
        facts.append(Row("prefixes", (", ".join(inspection.stripped_prefixes),)))
    if inspection.other_entries:
        facts.append(Row("other entries", (", ".join(inspection.other_entries),)))
    sections = [Section("", tuple(facts))]
    if inspection.keys:
        sections.append(Section(f"Weights ({len(inspection.keys)} tensors)", _keys(inspection)))
    return Document(stamp, inspection.reason, tone, tuple(sections))


def _keys(inspection: Inspection) -> tuple[Row, ...]:
    shown = [
        f"{name}  [{', '.join(map(str, shape))}] {dtype.removeprefix('torch.')}"
        for name, shape, dtype in inspection.keys[:MAX_KEYS]
    ]
    hidden = len(inspection.keys) - len(shown)
    rows = [Row("tensors", tuple(shown))]
    if hidden:
        rows.append(Row("", (f"{hidden} more are in the JSON (--format json)",), Tone.FAINT))
    return tuple(rows)
