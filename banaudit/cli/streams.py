"""Where reports go: standard output, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from rich.console import Console

from banaudit.errors import UsageError
from banaudit.reports import inspection, json_text, markdown, repair, scan, terminal
from banaudit.reports.document import Document
from banaudit.results import Inspection, Repair, Report
from banaudit.whole_files import is_same_file, try_writing, write_whole

ScreenFormat = Literal["text", "json"]
"""What standard output can carry."""
FileFormat = Literal["text", "json", "markdown"]
"""What a file can hold."""

_STANDARD = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")


@dataclass(frozen=True)
class Output:
    """A report that is to be written to a file.

    Args:
        format: How.
        path: Where to. Links to files are followed; the name of a device, a pipe or an open file is as it was given.
    """

    format: FileFormat
    path: Path


def parse_outputs(texts: Sequence[str], inputs: Sequence[Path]) -> tuple[Output, ...]:
    """Read ``--output FORMAT=PATH`` and make sure that each file can be written, before any work is done.

    Args:
        texts: One for each output.
        inputs: Files that must not be overwritten.

    Raises:
        UsageError: An unknown format, two outputs to one file, an input as output, or a path that cannot be written.
    """
    outputs: list[Output] = []
    for text in texts:
        word, equals, name = text.partition("=")
        known = [known for known in get_args(FileFormat) if known == word]
        if not (known and equals and name):
            raise UsageError(f"--output {text}: expected FORMAT=PATH, FORMAT one of {', '.join(get_args(FileFormat))}")
        path = _place(name)
        if any(path == other.path for other in outputs):
            raise UsageError(f"--output {text}: another output goes to the same file; give each a path of its own")
        refuse_inputs(path, inputs, f"--output {text}")
        _try(path, text)
        outputs.append(Output(known[0], path))
    return tuple(outputs)


def refuse_inputs(path: Path, inputs: Sequence[Path], option: str) -> None:
    """Make sure that what is written goes to no file that is read.

    Args:
        path: What is to be written.
        inputs: What is read.
        option: What the user gave, for the message.

    Raises:
        UsageError: It is an input.
    """
    for other in inputs:
        if is_same_file(path, other):
            raise UsageError(f"{option}: would overwrite an input, {other}; give another path")
        if other.resolve() in path.resolve().parents and _may_be_read(path):
            raise UsageError(f"{option}: would be an input, a file in {other}; give another path")


def _may_be_read(path: Path) -> bool:
    """Whether a file among the images is one that a command reads: reports and checkpoints may well lie there too."""
    from banaudit.data.labels import CLASS_FILES
    from banaudit.data.layouts import IMAGE_SUFFIXES, TABLE_SUFFIXES

    return path.name in CLASS_FILES or path.suffix.lower() in IMAGE_SUFFIXES | TABLE_SUFFIXES


def _place(name: str) -> Path:
    """Where an output goes: the file that links lead to, so that they stay links.

    Not so for devices, pipes and open files: links lead from ``/dev/stdout`` to the file behind it, which must not be
    replaced while the other report goes there, or to the made-up name of a pipe.
    """
    given = Path(os.path.abspath(name))
    return given if _is_special(given) else Path(os.path.realpath(name))


@contextlib.contextmanager
def reports_alone() -> Iterator[None]:
    """Standard output is for reports: what a user's ``--arch`` file prints inside goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def write_stdout(text: str) -> None:
    """Write to standard output; that nobody reads it any more changes neither the work nor the exit code.

    Raises:
        UsageError: It takes no more, e.g. as the disk behind it is full.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise _stdout_refused(error) from None


def _stdout_refused(error: OSError) -> UsageError:
    return UsageError(f"standard output cannot be written ({error.strerror or error})")


def render(record: Report | Inspection | Repair, form: FileFormat, console: Console, beside: Path | None = None) -> str:
    """A record as text, JSON or Markdown.

    Args:
        record: What to show.
        form: How.
        console: Decides width and colours of text.
        beside: Folder that it will lie in, for links to pictures; none: the current one.
    """
    match form:
        case "json":
            return json_text.render(record)
        case "markdown":
            return markdown.render(as_document(record), beside)
        case "text":
            return terminal.render(as_document(record), console)


def as_document(record: Report | Inspection | Repair) -> Document:
    """A record in words."""
    match record:
        case Report():
            return scan.document(record)
        case Repair():
            return repair.document(record)
        case Inspection():
            return inspection.document(record)


def deliver(record: Report | Inspection | Repair, screen: ScreenFormat, outputs: Sequence[Output] = ()) -> None:
    """Write a record to standard output, then to its files; one that fails keeps it from none of the others.

    Raises:
        UsageError: Somewhere it cannot be written; the first such place is named.
    """
    failures: list[UsageError] = []
    try:
        write_stdout(render(record, screen, Console()))
    except UsageError as failure:
        failures.append(failure)
    except OSError as error:  # an unbuffered stream may refuse the nothing that rich writes to it while it renders
        failures.append(_stdout_refused(error))
    for output in outputs:
        try:
            beside = None if _is_special(output.path) else output.path.parent
            _write(output.path, render(record, output.format, terminal.plain_console(), beside))
        except UsageError as failure:
            failures.append(failure)
    if failures:
        raise failures[0]


def _is_special(path: Path) -> bool:
    """Whether the path is a device, a pipe or an open file, which must be written to and never replaced."""
    return _descriptor(path) is not None or (path.exists() and not stat.S_ISREG(path.stat().st_mode))


def _descriptor(path: Path) -> int | None:
    """Number of the process's own open file that the path stands for; none: of none."""
    match = _DESCRIPTOR.fullmatch(str(path))
    return int(match[1]) if match else _STANDARD.get(str(path))


def _open_special(path: Path) -> BinaryIO:
    number = _descriptor(path)
    # Opened by its name, a file would be written from its beginning on, over what is there already.
    return path.open("wb") if number is None else os.fdopen(os.dup(number), "wb")


def _try(path: Path, text: str) -> None:
    try:
        if path.is_dir():
            raise UsageError(f"--output {text}: is a folder; name a file in it")
        number = _descriptor(path)
        if number is not None:
            os.fstat(number)  # fails where nothing is open
        elif not _is_special(path):
            try_writing(path)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(
            f"--output {text}: cannot be written ({reason}); choose a folder that exists and is writable"
        ) from None


def _write(path: Path, text: str) -> None:
    """Write beside the path, then rename: a reader sees the old file or the whole new one."""
    content = text.encode("utf-8", errors="backslashreplace")
    try:
        if _is_special(path):
            with _open_special(path) as stream:
                stream.write(content)
            return
        write_whole(path, content)
    except OSError as error:
        raise UsageError(f"{path}: the report cannot be written ({error.strerror or error})") from None
