"""The command line. ``main`` is the only place where failures become exit codes.

Next to nothing but the standard library is imported before ``main`` runs, so that Ctrl-C is handled from the start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from banaudit.cli.messages import say, write_stderr

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the signal's number, as shells have it."""
ERROR = 2
UNSAFE = 1


class _Interrupts:
    """Turns the first Ctrl-C into ``KeyboardInterrupt`` and remembers it; ends the process at the second.

    Remembering matters: interrupted inside the import of an extension module, the exception may surface as another.
    """

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            os._exit(INTERRUPTED)
        self.seen = True
        raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What follows the program's name; none: the process's own arguments.

    Returns:
        The exit code: 0 no evidence, 1 backdoored or unsafe to load, 2 usage or error, 3 inconclusive, 130 interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait for each other by spinning lose more than they gain as soon as anything else runs beside them:
    # on two busy cores a scan took several times as long. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _replace_closed_streams()
    interrupts = _Interrupts()
    # A shell that starts a job in the background has it ignore Ctrl-C; that stays so.
    handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles:
        signal.signal(signal.SIGINT, interrupts)
    try:
        code = _run(given)
    except BaseException as problem:
        if interrupts.seen or isinstance(problem, KeyboardInterrupt):
            code = INTERRUPTED
        elif isinstance(problem, SystemExit):
            # Not a command's, but typer's own, after help or a mistake; no other code of its is one of banaudit's.
            code = 0 if problem.code in (0, None) else INTERRUPTED if problem.code == INTERRUPTED else ERROR
        elif isinstance(problem, Exception):
            # Read from the arguments: the failure may lie before or within their parsing.
            code = _report(problem, verbose="--verbose" in given)
        else:
            raise
    if interrupts.seen or code == INTERRUPTED:
        code = INTERRUPTED
        say("interrupted")
    _flush()
    if handles:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return code


def _run(arguments: list[str]) -> int:
    from banaudit.cli.app import Ended, build

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal's encoding lacks must not end a scan
            stream.reconfigure(errors="backslashreplace")
    try:
        build()(args=arguments, prog_name="banaudit")
    except Ended as ended:
        return ended.code
    return 0


def _report(problem: Exception, *, verbose: bool) -> int:
    from banaudit.errors import BanauditError, UnsafeCheckpointError

    if verbose:
        import traceback

        write_stderr("".join(traceback.format_exception(problem)))
    if isinstance(problem, BanauditError):
        line = str(problem)
    else:
        line = f"unexpected {type(problem).__name__}: {problem}"
        line += "" if verbose else "; run again with --verbose for the traceback"
    say(line)
    return UNSAFE if isinstance(problem, UnsafeCheckpointError) else ERROR


def _replace_closed_streams() -> None:
    """Python has None for a stream that the shell closed (``>&-``): what would go there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open as long as the process


def _flush() -> None:
    """Flush now: what fails at the interpreter's exit would print a traceback and change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):  # one that is closed for good has no number
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
