"""``banaudit demo``: the two verdicts on the embedded example."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from banaudit.cli.messages import say
from banaudit.cli.progress import progress_bar
from banaudit.cli.streams import write_stdout
from banaudit.errors import BanauditError
from banaudit.reports import scan, terminal

SEED = 0


def demo(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no messages.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the traceback of an error.")] = False,
) -> None:
    """Scan a small backdoored model and its clean twin, both shipped with banaudit.

    Exit codes: 0 both verdicts are right, 2 one is not.
    """
    del verbose  # read by main, which prints the traceback
    from banaudit import audit
    from banaudit.demo import examples

    lines: list[str] = []
    wrong = False
    with examples() as models:
        for number, example in enumerate(models, start=1):
            if not quiet:
                say(f"scanning the {example.name} model ({number} of {len(models)})")
            with progress_bar(wanted=not quiet) as listener:
                subject = audit.Subject(model=example.model, data=example.images, mean=example.mean, std=example.std)
                report = audit.scan(subject, seed=SEED, listener=listener)
            write_stdout(f"The {example.name} model\n{terminal.render(scan.summary(report), Console())}\n")
            right = example.is_judged_rightly(report)
            wrong = wrong or not right
            found = report.verdict.value + ("" if report.target is None else f", target {report.target}")
            truth = "no backdoor" if example.target is None else f"backdoor, target {example.target}"
            lines.append(f"{example.name:<11} truth: {truth:<21} verdict: {found:<23} {'right' if right else 'WRONG'}")
    lines.append("")
    lines.append(
        "Two models made to show the reports are an example, not a measurement of how often banaudit is right."
    )
    lines.append("Your own: banaudit scan MODEL --data FOLDER")
    write_stdout("\n".join(lines) + "\n")
    if wrong:
        raise BanauditError("demo: a verdict differs from the truth; please report the lines above and your platform")
