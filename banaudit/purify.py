"""From a checkpoint and clean images to a repaired checkpoint, and a judgement of what it is worth.

``purify`` works on files; on a model in memory, call a mitigation of :mod:`banaudit.mitigations`.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import banaudit
from banaudit import audit
from banaudit.architectures import SplitModel
from banaudit.checkpoints.writer import Rewritten, as_stored, check_out, rewrite, state_of, write_checkpoint
from banaudit.data import CleanData
from banaudit.data.images import MIN_PER_CLASS
from banaudit.detectors import DETECTORS, Detector, default_detectors, leaves_some_out
from banaudit.detectors.reference import LEAST_EACH
from banaudit.disguises import undisguise
from banaudit.errors import CheckpointError, DataError, UnsupportedModelError, UsageError
from banaudit.meter import Listener, Meter
from banaudit.mitigations import DEFAULT, MITIGATIONS, Mitigation, Repaired, TargetedMitigation
from banaudit.mitigations.base import MAX_DROP
from banaudit.preflight import predictions
from banaudit.relapse import planned_images, probe_relapse, wanted_labels
from banaudit.reports import json_text
from banaudit.results import (
    CheckpointFacts,
    Reading,
    RelapseProbe,
    Repair,
    RepairSettings,
    Report,
    UnlearnedChange,
    Verdict,
)
from banaudit.shapes import Weights

UNTOUCHED_SHARE = 0.25
"""Share of the images that play no part in the repair: accuracy is measured on them, and the second scan uses them."""

MIN_SCAN_IMAGES = 250
"""With fewer untouched images than this the second scan uses all images."""

MAX_SCAN_IMAGES = 1000
"""Images a scan uses at most, unless the classes need more."""

SIGNIFICANT = 1.645
"""Standard errors by which the loss of accuracy must exceed the budget to count as missing it: 5 % by chance."""

SEEN_IMAGES = "the second scan used images that the repair used too, as there were few; give more images"

_SCAN, _REPAIR, _RESCAN = (0.0, 0.2), (0.2, 0.75), (0.75, 1.0)
"""Parts of the progress bar."""


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


@dataclass(frozen=True)
class _Parts:
    """Clean images by their use.

    The model as it came is scanned on ``scan``, drawn from all images; the repaired one on ``rescan``, which are among
    the untouched ones where those are enough (:func:`_scanned_again`).
    """

    repair: CleanData
    untouched: CleanData
    scan: CleanData
    rescan: CleanData


def purify(
    subject: audit.Subject,
    out: Path,
    *,
    mitigation: Mitigation | None = None,
    detectors: Sequence[Detector] | None = None,
    max_drop: float = MAX_DROP,
    flips: bool | None = None,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    listener: Listener | None = None,
) -> Repair:
    """Scan a checkpoint, repair it, scan the repaired one, and write it in the form of the one that came in.

    An interrupted call leaves a state file beside ``out``; the same call again goes on after the last whole epoch (a
    repair that trains nothing starts over).

    Args:
        subject: Checkpoint and clean images. A repair gains from a larger ``max_images`` than a scan's default: the
            paper's uses 2,500 images, and ``UNTOUCHED_SHARE`` of those given here plays no part in it.
        out: Where the repaired checkpoint goes; the record goes beside it, as ``out`` and ``.json``.
        mitigation: How to repair; none: :class:`~banaudit.mitigations.DEFAULT`.
        detectors: Methods of both scans; none: the default ones.
        max_drop: Clean accuracy that the repair may cost, 0 to 1.
        flips: Whether training images are mirrored; none: found out on the model.
        force: Replace an existing ``out``, and repair a model that the scan finds no evidence against or cannot judge.
        seed: Same seed, same repair on the same machine.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        listener: Told of progress.

    Returns:
        The record; nothing was written if the repair cost more accuracy than allowed.

    Raises:
        UsageError: ``out`` exists or cannot be written; or, without ``force``, there is no evidence against the model,
            or no method could look for any.
        DataError: The images are too few, the network does not do its job on them, or their class order is another.
        UnsupportedModelError: The mitigation does not fit the network.
        BanauditError: Whatever else is wrong with file, images or arguments, in one line.
    """
    started = datetime.now(UTC)
    check_out(subject.model, out, force=force)
    mitigation = mitigation if mitigation is not None else DEFAULT()
    meter = Meter(listener=_part(listener, *_SCAN))
    scanned = _scan(subject, mitigation, detectors, force=force, seed=seed, device=device, meter=meter)
    prepared, parts = scanned.prepared, scanned.parts
    mitigation = _aimed(mitigation, scanned, force=force)
    meter = _next(meter, _part(listener, *_REPAIR))
    state = state_of(out)
    repaired = mitigation(
        prepared.model, parts.repair, max_drop=max_drop, flips=flips, seed=seed, meter=meter, state=state
    )
    with _no_way_on(state):
        weights = _as_stored(prepared, repaired)
    accuracies = compare(prepared.model, repaired.model, parts.untouched, meter)
    account = _Account(started, scanned, mitigation, repaired, accuracies, max_drop, seed)
    missed = missed_budget(repaired, accuracies, max_drop)
    if missed:
        state.unlink(missing_ok=True)
        return account.record(Verdict.INCONCLUSIVE, missed, meter, written=False)
    meter = _next(meter, _part(listener, *_RESCAN))
    with _no_way_on(state):
        rewritten = rewrite(
            subject.model,
            prepared.checkpoint,
            weights,
            state_key=subject.state_key,
            provenance=account.provenance(),
        )
    judged = judge_repaired(
        prepared.model,
        repaired.model,
        *_suspected(scanned.before),
        scan=scanned.again,
        training=parts.repair,
        held_out=parts.untouched,
        detectors=detectors,
        trains_against=mitigation.trains_against,
        accuracy_floor=subject.accuracy_floor,
        facts=scanned.facts,
        seed=seed,
        meter=meter,
    )
    result = account.record(
        judged.verdict,
        judged.reason,
        meter,
        written=True,
        path=str(out),
        sha256=rewritten.sha256,
        replaced=rewritten.replaced,
        dropped=rewritten.dropped,
        after=judged.report.model_copy(update={"checkpoint": _written_facts(prepared, out, rewritten)}),
        relapse=judged.relapse,
    )
    write_checkpoint(out, rewritten, json_text.render(result), force=force)
    state.unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class _Scanned:
    """A checkpoint ready to be repaired, and what the scan says of it."""

    prepared: audit.Prepared
    facts: audit.Facts
    parts: _Parts
    before: Report
    again: CleanData
    """Images for the scan of the repaired model."""

    @property
    def rescanned_seen(self) -> bool:
        """Whether the repair may have been trained on these."""
        return self.again is self.parts.scan


def _scan(
    subject: audit.Subject,
    mitigation: Mitigation,
    detectors: Sequence[Detector] | None,
    *,
    force: bool,
    seed: int,
    device: str,
    meter: Meter,
) -> _Scanned:
    """Prepare a checkpoint and scan it; refuse what cannot be repaired or, without force, need not be."""
    prepared = audit.prepare(subject, seed=seed, device=device, meter=meter)
    _require_usable(prepared, subject.data)
    _require_fit(mitigation, prepared.model, prepared.checkpoint.facts.path)
    facts = audit.facts_of(prepared)
    parts = _part_images(prepared.clean, seed)
    if mitigation.trains:
        _require_enough(parts, subject.data)
    before = audit.judge(
        prepared.model,
        parts.scan,
        detectors=detectors,
        accuracy_floor=subject.accuracy_floor,
        facts=facts,
        seed=seed,
        meter=meter,
    )
    if not force:
        _require_suspicion(before, prepared.checkpoint.facts.path)
    again = _scanned_again(parts, before, detectors if detectors is not None else default_detectors())
    return _Scanned(prepared, facts, parts, before, again)


def _aimed(mitigation: Mitigation, scanned: _Scanned, *, force: bool) -> Mitigation:
    """A mitigation of one class's backdoor, aimed at the class that the scan accuses; any other as it is."""
    before = scanned.before
    if not isinstance(mitigation, TargetedMitigation):
        return mitigation
    if before.target is None and before.mapping is not None and mitigation.target is None and not force:
        raise UsageError(
            f"{scanned.prepared.checkpoint.facts.path}: {mitigation.name} repairs a backdoor that leads to one class, "
            f"and the scan accuses one with a target for each; use another method, or name a class with --set "
            f"{mitigation.name}.target"
        )
    return mitigation if before.target is None else mitigation.aimed_at(before.target)


@dataclass(frozen=True)
class _Account:
    """What a record says whatever the repair led to."""

    started: datetime
    scanned: _Scanned
    mitigation: Mitigation
    repaired: Repaired
    accuracies: Accuracies
    max_drop: float
    seed: int

    @property
    def made(self) -> RepairSettings:
        """How the repair was made."""
        return RepairSettings(
            method=self.mitigation.name,
            title=self.mitigation.title,
            settings=self.mitigation.settings(),
            augmentation=str(self.repaired.augmentation),
            training_images=self.repaired.training_images,
            selection_images=self.repaired.selection_images,
            untouched_images=len(self.scanned.parts.untouched),
            max_drop=self.max_drop,
            attempts=self.repaired.attempts,
            unlearned=self.repaired.unlearned,
        )

    def provenance(self) -> dict[str, Any]:
        """What goes into the file itself, where its format has a place for it."""
        return {
            "parent_sha256": self.scanned.prepared.checkpoint.facts.sha256,
            "tool": f"banaudit {banaudit.__version__}",
            "method": self.made.method,
            "settings": self.made.settings,
            "attempts": self.made.attempts,
            "unlearned": [change.model_dump() for change in self.made.unlearned],
            "seed": self.seed,
            "accuracy_before": self.accuracies.before,
            "accuracy_after": self.accuracies.after,
        }

    def record(self, verdict: Verdict, reason: str, meter: Meter, **more: Any) -> Repair:
        """The whole record.

        Args:
            verdict: On the repaired model.
            reason: One line.
            meter: Has counted all passes so far.
            more: The fields that only a written file has.
        """
        seconds = self.repaired.earlier_seconds + (datetime.now(UTC) - self.started).total_seconds()
        return Repair(
            verdict=verdict,
            reason=reason,
            parent=self.scanned.prepared.checkpoint.facts,
            accuracy_before=self.accuracies.before,
            accuracy_after=self.accuracies.after,
            accuracy_drop_error=self.accuracies.drop_error,
            epochs=self.repaired.epochs,
            kept_epoch=self.repaired.kept_epoch,
            made=self.made,
            before=self.scanned.before,
            caveats=(
                *_caveats(
                    len(self.scanned.parts.untouched), self.scanned.rescanned_seen, self.accuracies, self.max_drop
                ),
                *_did_without(self.scanned.before, more.get("after")),
                *_probed_as_trained(self.repaired.unlearned, more.get("relapse")),
            ),
            seed=self.seed,
            device=str(self.scanned.prepared.device),
            tool_version=banaudit.__version__,
            torch_version=str(torch.__version__),
            started=self.started.isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            forward_images=meter.forward_images,
            backward_images=meter.backward_images,
            **more,
        )


@contextlib.contextmanager
def _no_way_on(state: Path) -> Iterator[None]:
    """Discards the state of a repair whose weights the file cannot hold: to go on would only lead there again."""
    try:
        yield
    except CheckpointError:
        state.unlink(missing_ok=True)
        raise


def _require_usable(prepared: audit.Prepared, data: Path) -> None:
    shortfall = prepared.images.shortfall()
    if shortfall is not None:
        raise DataError(f"{data}: {shortfall}, and a repair as many; give more images")
    if prepared.misread:
        raise DataError(f"{data}: training on these images would ruin the network: {prepared.misread}")


def _require_enough(parts: _Parts, data: Path) -> None:
    if int(torch.bincount(parts.repair.labels.cpu()).max()) < MIN_PER_CLASS:
        total = len(parts.repair) + len(parts.untouched)
        raise DataError(
            f"{data}: {total} images of {parts.repair.num_classes} classes are too few for a repair, which trains on "
            "some of a class, chooses by others and is measured on others still; it needs three images of a class at "
            "least (with --max-images: of each)"
        )


def _require_fit(mitigation: Mitigation, model: SplitModel, path: str) -> None:
    """Refuse a network that the mitigation cannot repair, and name those that can."""
    problem = _misfit(mitigation, model)
    if problem is not None:
        others = [name for name, kind in MITIGATIONS.items() if _misfit(kind(), model) is None]
        advice = f"; of --method, these fit: {', '.join(others)}" if others else ""
        raise UnsupportedModelError(f"{path}: {mitigation.name}: {problem}{advice}")


def _misfit(mitigation: Mitigation, model: SplitModel) -> UnsupportedModelError | None:
    try:
        mitigation.check(model)
    except UnsupportedModelError as problem:
        return problem
    return None


def _require_suspicion(before: Report, model: str) -> None:
    """Nothing is repaired, without force, that no method speaks against: it could only become worse."""
    if before.verdict is Verdict.NO_EVIDENCE:
        raise UsageError(
            f"{model}: the scan finds no evidence of a backdoor ({before.reason}), so nothing was repaired; "
            "--scan-method names other methods, --force repairs it all the same"
        )
    if not any(finding.verdict is Verdict.BACKDOORED for finding in before.findings):
        raise UsageError(
            f"{model}: no method speaks against the model, and not all could judge it ({before.reason}), so nothing "
            "was repaired; --force repairs it all the same"
        )


def _caveats(untouched: int, rescanned_seen: bool, found: Accuracies, max_drop: float) -> tuple[str, ...]:
    seen = (SEEN_IMAGES,) if rescanned_seen else ()
    drop, give = found.before - found.after, SIGNIFICANT * found.drop_error
    if drop + give <= max_drop or max(drop, give) <= max_drop:
        return seen
    return (
        *seen,
        f"{untouched} untouched images are too few to tell whether the repair kept to the {max_drop:.1%} of "
        f"clean accuracy that it may cost: it cost {drop:.1%} of theirs, within "
        f"{give:.1%} ({SIGNIFICANT:g} standard errors); give more images",
    )


def _did_without(before: Report, after: Report | None) -> tuple[str, ...]:
    """What the second scan lacks of the first; one that stopped before any method ran says itself why."""
    again = {finding.method for finding in after.findings} if after is not None else set()
    asked = [finding.method for finding in before.findings if finding.method in DETECTORS]  # not what they say together
    missing = [method for method in asked if method not in again] if again else []
    few = "too few of the images played no part in the repair"
    return (f"the second scan did without {', '.join(missing)}: {few}; give more images",) if missing else ()


def _probed_as_trained(unlearned: Sequence[UnlearnedChange], relapse: RelapseProbe | None) -> tuple[str, ...]:
    """Why a probe that did not fire says less than its threshold promises, if it does."""
    if relapse is None or relapse.fired or all(change.kind != "perturbation" for change in unlearned):
        return ()
    return (
        "the repair trained against small changes of all pixels, and the relapse probe uses such a change: that the "
        "backdoor did not come back says little",
    )


def _part_images(clean: CleanData, seed: int) -> _Parts:
    generator = torch.Generator().manual_seed(seed)
    untouched, repair = clean.split(UNTOUCHED_SHARE, generator)
    most = max(MAX_SCAN_IMAGES, LEAST_EACH * clean.num_classes)
    rescan, scan = (data.subset(data.in_turn(generator)[:most]) for data in (untouched, clean))
    return _Parts(repair, untouched, scan, rescan)


def _suspected(before: Report) -> tuple[dict[int, int], Reading | None]:
    """What the scan's backdoor wants, source label -> label, and the kind of it, for the relapse probe.

    Where readings of all classes and of one speak of the same target, the scan names the one; the probe takes them all,
    since only then it has a threshold.
    """
    sources, reading = before.sources, before.reading
    fired = [item for finding in before.findings for item in finding.evidence if item.fired]
    if any(item.reading is Reading.ALL_TO_ONE and item.target == before.target for item in fired):
        sources, reading = (), Reading.ALL_TO_ONE
    return wanted_labels(len(before.class_names), before.target, sources, before.mapping), reading


def _scanned_again(parts: _Parts, before: Report, detectors: Sequence[Detector]) -> CleanData:
    """What the repaired model is scanned on: untouched images where a scan of them says enough, else those of before.

    There have to be two of every class and not too few in all, and no method that accused may be left out; none at all
    where the methods are the user's choice.
    """
    few, classes, sizes = parts.rescan, parts.rescan.num_classes, parts.rescan.class_sizes
    chosen = not leaves_some_out(detectors)
    needed = {finding.method for finding in before.findings if chosen or finding.verdict is Verdict.BACKDOORED}
    enough = (
        len(few) >= max(MIN_SCAN_IMAGES, MIN_PER_CLASS * classes)
        and min((size for size in sizes if size), default=0) >= MIN_PER_CLASS
        and not any(detector.name in needed and detector.lacks_images(classes, sizes) for detector in detectors)
    )
    return few if enough else parts.scan


def _as_stored(prepared: audit.Prepared, repaired: Repaired) -> Weights:
    """The weights as the file will hold them; the repaired model gets them too, so that it is them that are judged."""
    state = repaired.model.network.state_dict()
    keys = prepared.loaded.keys
    stored = as_stored(prepared.checkpoint, {name: state[keys[name]] for name in prepared.checkpoint.weights})
    with torch.no_grad():
        for name, tensor in stored.items():
            state[keys[name]].copy_(tensor)
    return stored


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


def _written_facts(prepared: audit.Prepared, out: Path, rewritten: Rewritten) -> CheckpointFacts:
    update = {"path": str(out), "sha256": rewritten.sha256, "bytes": len(rewritten.content)}
    return prepared.checkpoint.facts.model_copy(update=update)


def _next(meter: Meter, listener: Listener | None) -> Meter:
    """A meter for the next part of the work that counts on."""
    return Meter(listener=listener, forward_images=meter.forward_images, backward_images=meter.backward_images)


def _part(listener: Listener | None, begin: float, end: float) -> Listener | None:
    """A listener for a part of the work, told shares of that part."""
    if listener is None:
        return None

    def listen(what: str, share: float) -> None:
        listener(what, begin + share * (end - begin))

    return listen
