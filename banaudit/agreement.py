"""What aimed and unaimed neuron noise say together: one class that both name, though neither is sure of it.

``targeted-noise`` names the class that noise aimed at it reaches before all others; ``ban``'s noise alone names the one
that collects the mistakes under noise aimed away from the truth. On a clean network these are two questions with two
answers, or weak ones; a backdoor answers both. So where both name one class, half of each threshold is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from banaudit.detectors.ban import BAN, NOISE_ALONE
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.results import Evidence, Finding, Reading, Verdict

METHOD = "noise-agreement"
TITLE = "a class that aimed neuron noise reaches and unaimed neuron noise errs towards"
THRESHOLD = 0.5
"""Share of its own threshold that the weaker of both readings must have; on clean development models, and on clean test
victims that had been opened, it has at most 0.2."""


def noise_agreement(findings: Sequence[Finding]) -> Finding | None:
    """The finding of both methods together, from what each found by itself; no pass through the network.

    Args:
        findings: Of the methods that ran.

    Returns:
        None where one of the two did not run, or could not judge.
    """
    aimed = _reading(findings, TargetedNoise.name, "")
    unaimed = _reading(findings, BAN.name, NOISE_ALONE)
    if aimed is None or unaimed is None:
        return None
    sure = all(item.agreement in {None, 1.0} for item in (aimed, unaimed))  # restarts that differ name no class
    same = sure and aimed.target == unaimed.target
    score = min(aimed.score / aimed.threshold, unaimed.score / unaimed.threshold) if same else 0.0
    evidence = Evidence(
        reading=Reading.ALL_TO_ONE,
        measures=(
            "score / threshold of targeted-noise or of ban's noise alone, whichever is less, where both name one "
            "class; else 0"
        ),
        score=score,
        threshold=THRESHOLD,
        fired=score > THRESHOLD,
        target=aimed.target if same else None,
    )
    named = f"both name class {aimed.target}" if same else "they do not name one class"
    return Finding(
        method=METHOD,
        title=TITLE,
        verdict=Verdict.BACKDOORED if evidence.fired else Verdict.NO_EVIDENCE,
        reason=f"{named}: score {score:.3g}, threshold {THRESHOLD:g}",
        evidence=(evidence,),
    )


def _reading(findings: Sequence[Finding], method: str, label: str) -> Evidence | None:
    """One all-to-one reading of one method."""
    for finding in findings:
        if finding.method == method and finding.verdict is not Verdict.INCONCLUSIVE:
            for item in finding.evidence:
                if item.reading is Reading.ALL_TO_ONE and item.label == label and item.target is not None:
                    return item
    return None
