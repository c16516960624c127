"""From facts to text: a report or an inspection as terminal output, plain text, Markdown or JSON.

A record becomes a :class:`~banaudit.reports.document.Document` once (``scan.py``, ``inspection.py``), which each
renderer lays out; JSON is written from the record itself.
"""
