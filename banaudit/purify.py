"""From a checkpoint and clean images to a repaired checkpoint, and a judgement of what it is worth.

``purify`` works on files; on a model in memory, call a mitigation of :mod:`banaudit.mitigations`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import banaudit
from banaudit import audit
from banaudit.after_repair import (
    Accuracies,
    compare,
    did_without,
    judge_repaired,
    missed_budget,
    probed_as_trained,
    too_few_to_tell,
)
from banaudit.architectures import SplitModel
from banaudit.checkpoints.writer import Rewritten, as_stored, check_out, rewrite, state_of, write_checkpoint
from banaudit.data import CleanData
from banaudit.data.images import MIN_PER_CLASS
from banaudit.detectors import Detector, default_detectors, leaves_some_out
from banaudit.detectors.reference import LEAST_EACH
from banaudit.errors import CheckpointError, DataError, UnsupportedModelError, UsageError
from banaudit.meter import Listener, Meter
from banaudit.mitigations import DEFAULT, MITIGATIONS, Mitigation, Repaired, TargetedMitigation
from banaudit.mitigations.base import MAX_DROP
from banaudit.relapse import wanted_labels
from banaudit.reports import json_text
from banaudit.results import CheckpointFacts, Reading, Repair, RepairSettings, Report, Verdict
from banaudit.shapes import Weights

UNTOUCHED_SHARE = 0.25
"""Share of the images that play no part in the repair: accuracy is measured on them, and the second scan uses them."""

MIN_SCAN_IMAGES = 250
"""With fewer untouched images than this the second scan uses all images."""

MAX_SCAN_IMAGES = 1000
"""Images a scan uses at most, unless the classes need more."""

SEEN_IMAGES = "the second scan used images that the repair used too, as there were few; give more images"

_SCAN, _REPAIR, _RESCAN = (0.0, 0.2), (0.2, 0.75), (0.75, 1.0)
"""Parts of the progress bar."""


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
                *((SEEN_IMAGES,) if self.scanned.rescanned_seen else ()),
                *too_few_to_tell(len(self.scanned.parts.untouched), self.accuracies, self.max_drop),
                *did_without(self.scanned.before, more.get("after")),
                *probed_as_trained(self.repaired.unlearned, more.get("relapse")),
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
