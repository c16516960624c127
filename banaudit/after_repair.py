"""What a repair is worth: what it cost, what a second scan finds, and whether the backdoor comes back."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from banaudit import audit
from banaudit.architectures import SplitModel
from banaudit.data import CleanData
from banaudit.detectors import DETECTORS, Detector
from banaudit.disguises import undisguise
from banaudit.meter import Meter
from banaudit.mitigations import Repaired
from banaudit.preflight import predictions
from banaudit.relapse import planned_images, probe_relapse
from banaudit.results import Reading, RelapseProbe, Report, UnlearnedChange, Verdict

SIGNIFICANT = 1.645
"""Standard errors by which the loss of accuracy must exceed the budget to count as missing it: 5 % by chance."""


@dataclass(frozen=True)
class Accuracies:
    """Clean accuracy before and after a repair.

    Args:
        before: Share of the images classified as labelled.
        after: The same of the repaired model, on the same images.
        drop_error: Standard error of the difference.
    """

    before: float
    after: float
    drop_error: float


@dataclass(frozen=True)
class Judgement:
    """What a repaired model is worth.

    Args:
        verdict: Of scan and relapse probe together.
        reason: One line.
        report: The scan's.
        relapse: The relapse probe; none where no backdoor was suspected.
    """

    verdict: Verdict
    reason: str
    report: Report
    relapse: RelapseProbe | None


def compare(before: SplitModel, after: SplitModel, data: CleanData, meter: Meter) -> Accuracies:
    """Clean accuracy of two models on the same images.

    Args:
        before: The model before the repair.
        after: The repaired one.
        data: Images that played no part in the repair, on the models' device.
        meter: Books the passes.
    """
    right = [(predictions(model, data.images, meter=meter) == data.labels.cpu()).double() for model in (before, after)]
    change = right[1] - right[0]
    error = float(change.std(unbiased=False)) / math.sqrt(len(data))
    return Accuracies(float(right[0].mean()), float(right[1].mean()), error)


def missed_budget(repaired: Repaired, found: Accuracies, max_drop: float) -> str:
    """Why a repair cost too much, in one line; empty: it did not.

    Args:
        repaired: The repair.
        found: Accuracies on images that played no part in it.
        max_drop: Accuracy that it may cost.
    """
    if not repaired.within_budget:
        best = max(item.accuracy for item in repaired.epochs)
        return (
            f"no epoch kept the clean accuracy: {repaired.accuracy_before:.1%} before, at best {best:.1%} after, "
            f"{max_drop:.1%} may be lost (--max-drop); nothing was written"
        )
    drop = found.before - found.after
    if drop > max_drop + SIGNIFICANT * found.drop_error:
        return (
            f"the repair cost {drop:.1%} of clean accuracy on images that played no part, "
            f"{max_drop:.1%} may be lost (--max-drop); nothing was written"
        )
    return ""


def judge_repaired(
    before: SplitModel,
    after: SplitModel,
    wanted: dict[int, int],
    reading: Reading | None,
    *,
    scan: CleanData,
    training: CleanData,
    held_out: CleanData,
    detectors: Sequence[Detector] | None = None,
    trains_against: frozenset[str] = frozenset(),
    accuracy_floor: float | None = None,
    facts: audit.Facts | None = None,
    seed: int = 0,
    meter: Meter | None = None,
) -> Judgement:
    """Scan a repaired model, and try to bring the suspected backdoor back.

    Args:
        before: The model before the repair.
        after: The repaired one.
        wanted: Source label -> suspected target; empty where no backdoor is suspected.
        reading: Kind of the suspected backdoor; none where none is.
        scan: Clean images of the scan, on the models' device.
        training: Clean images that the probe trains on.
        held_out: Clean images that the probe's shares are read from.
        detectors: Methods of the scan; none: the default ones.
        trains_against: Methods that are part of the repair; a scan by these alone does not clear its result.
        accuracy_floor: Clean accuracy below which the scan gives no verdict; none: five times chance, held between
            20 % and 60 %.
        facts: Origin of model and images.
        seed: Of scan and probe.
        meter: Counts passes, tells progress.
    """
    meter = meter if meter is not None else Meter()
    after = copy.deepcopy(after)  # its writing is changed, not its function
    facts = replace(facts if facts is not None else audit.Facts(), told=undisguise(after, scan, meter))
    report = audit.judge(
        after, scan, detectors=detectors, accuracy_floor=accuracy_floor, facts=facts, seed=seed, meter=meter
    )
    relapse = None
    if wanted and reading is not None:
        meter.planned_images = meter.forward_images + planned_images(len(held_out))
        relapse = probe_relapse(before, after, training, held_out, wanted, reading, seed=seed, meter=meter)
    verdict, reason = _verdict(report, relapse, trains_against)
    return Judgement(verdict, reason, report, relapse)


def _verdict(after: Report, relapse: RelapseProbe | None, trains_against: frozenset[str]) -> tuple[Verdict, str]:
    if after.verdict is Verdict.BACKDOORED:
        return Verdict.BACKDOORED, f"the repaired model is still accused: {after.reason}"
    if relapse is not None and relapse.fired:
        return Verdict.BACKDOORED, "the backdoor comes back after a few steps of fine-tuning"
    # A maker can bring it about that no copy is fine-tuned, to keep the probe from deciding.
    if relapse is not None and relapse.threshold is not None and not relapse.steps:
        return Verdict.INCONCLUSIVE, f"the relapse probe says nothing: {relapse.note}"
    if after.verdict is Verdict.INCONCLUSIVE:
        return Verdict.INCONCLUSIVE, f"the repaired model cannot be judged: {after.reason}"
    asked = {finding.method for finding in after.findings if finding.method in DETECTORS}
    if asked and asked <= trains_against:
        return Verdict.INCONCLUSIVE, (
            f"the repaired model was scanned by {', '.join(sorted(asked))} alone, which the repair trains against; "
            "name other methods with --scan-method, or leave it out"
        )
    return Verdict.NO_EVIDENCE, f"the scan of the repaired model finds no evidence: {after.reason}"


def too_few_to_tell(untouched: int, found: Accuracies, max_drop: float) -> tuple[str, ...]:
    """Why the untouched images leave open whether a repair kept to its budget, if they do.

    Args:
        untouched: How many they are.
        found: Accuracies on them.
        max_drop: Accuracy that the repair may cost.
    """
    drop, give = found.before - found.after, SIGNIFICANT * found.drop_error
    if drop + give <= max_drop or max(drop, give) <= max_drop:
        return ()
    return (
        f"{untouched} untouched images are too few to tell whether the repair kept to the {max_drop:.1%} of "
        f"clean accuracy that it may cost: it cost {drop:.1%} of theirs, within "
        f"{give:.1%} ({SIGNIFICANT:g} standard errors); give more images",
    )


def did_without(before: Report, after: Report | None) -> tuple[str, ...]:
    """What the second scan lacks of the first, if anything; one that stopped before any method ran says itself why.

    Args:
        before: The first scan.
        after: The second; none: there was none.
    """
    again = {finding.method for finding in after.findings} if after is not None else set()
    asked = [finding.method for finding in before.findings if finding.method in DETECTORS]  # not what they say together
    missing = [method for method in asked if method not in again] if again else []
    few = "too few of the images played no part in the repair"
    return (f"the second scan did without {', '.join(missing)}: {few}; give more images",) if missing else ()


def probed_as_trained(unlearned: Sequence[UnlearnedChange], relapse: RelapseProbe | None) -> tuple[str, ...]:
    """Why a probe that did not fire says less than its threshold promises, if it does.

    Args:
        unlearned: What the repair trained against.
        relapse: The probe; none: there was none.
    """
    if relapse is None or relapse.fired or all(change.kind != "perturbation" for change in unlearned):
        return ()
    return (
        "the repair trained against small changes of all pixels, and the relapse probe uses such a change: that the "
        "backdoor did not come back says little",
    )
