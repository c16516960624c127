"""From a checkpoint and clean images to a report: the whole audit, as functions that return data.

``scan`` works on files, ``judge`` on a model and images already in memory; ``prepare`` is the part before the first
detector, which a repair needs as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

import banaudit
from banaudit import calibration
from banaudit.agreement import JOINT_EVIDENCE, joint_evidence, rests_on_joint_evidence, says_most, together
from banaudit.architectures import LoadedNetwork, SplitModel, load_network, recognise, torchvision_models
from banaudit.checkpoints import Checkpoint, inspect_checkpoint, read_checkpoint
from banaudit.data import CleanData, ImageSet, read_clean_folder
from banaudit.data.images import MIN_PER_CLASS
from banaudit.detectors import Detector, default_detectors, leaves_some_out
from banaudit.detectors.base import cannot_judge
from banaudit.detectors.reference import few_images
from banaudit.disguises import Told, undisguise
from banaudit.errors import ArchitectureError, CheckpointError, TimeLimitReached, UnsupportedModelError, UsageError
from banaudit.meter import Listener, Meter
from banaudit.natural_leaning import natural_leaning
from banaudit.preflight import UNEVEN, judge_predictions, misreading, predictions
from banaudit.preprocessing import choose
from banaudit.results import (
    ArchitectureFacts,
    CheckpointFacts,
    CleanAccuracy,
    DataFacts,
    Evidence,
    Finding,
    Inspection,
    PreprocessingFacts,
    Reading,
    Report,
    Verdict,
)
from banaudit.triggers import TriggerSink

FEW_IMAGES = 5
"""Images of the smallest class below which a report carries a caveat."""

MAX_CLASSES = 50_000
"""More than any data set of images has; what a file of a few kilobytes may claim has no end."""

NOTED = "; note "
"""Stands between the reason against any verdict and what was found all the same."""

NOT_CHECKED = (
    "backdoors made to survive this kind of audit, or that wake only after fine-tuning, pruning or quantisation",
    "images beyond those given, and anything but the network's answers: privacy, bias, robustness, licences",
)


@dataclass(frozen=True)
class Subject:
    """What is to be judged, and what is known of how to read it; what is left out is recognised.

    Args:
        model: Checkpoint; never changed.
        data: Folder or CSV of clean images.
        arch: Name, or ``file.py:factory`` (trusted code); none: recognised from the weights.
        state_key: Where in the file the weights are; none: found.
        class_map: ``classes.txt`` or ``classes.json``; none: one beside the images, else numbers or sorted order.
        preset: Normalisation by name.
        mean: Of each channel.
        std: Of each channel.
        size: Side of the network's input, pixels.
        max_images: Most images used, though two for each class are never too many; none: all.
        accuracy_floor: Clean accuracy below which no verdict is given; none: five times chance, held between 20 % and
            60 %.
    """

    model: Path
    data: Path
    _: KW_ONLY
    arch: str | None = None
    state_key: str | None = None
    class_map: Path | None = None
    preset: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None
    max_images: int | None = 1000
    accuracy_floor: float | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything that is settled before the first detector runs.

    Args:
        model: Normalisation inside, eval mode, on ``device``.
        clean: Clean images on the same device.
        checkpoint: The file's weights, with the way back to its own keys.
        loaded: The network as loaded, with its key map.
        images: The clean images as read.
        preprocessing: How images become inputs.
        accuracy: Clean accuracy on ``clean``.
        misread: Why the images say nothing about the network, by its answers to them; empty: they do.
        told: What was done about the way in which the network is written.
        device: Where to compute.
    """

    model: SplitModel
    clean: CleanData
    checkpoint: Checkpoint
    loaded: LoadedNetwork
    images: ImageSet
    preprocessing: PreprocessingFacts
    accuracy: CleanAccuracy
    misread: str
    told: Told
    device: torch.device


@dataclass(frozen=True)
class Facts:
    """What a report says of the model's and the images' origin; all absent for a model that came from memory."""

    checkpoint: CheckpointFacts | None = None
    architecture: ArchitectureFacts | None = None
    preprocessing: PreprocessingFacts | None = None
    data: DataFacts | None = None
    caveats: tuple[str, ...] = ()
    inconclusive: tuple[str, ...] = field(default=())
    """Reasons for which no verdict can be given, whatever the detectors say."""
    told: Told = field(default=Told())
    """What was done about the way in which the network is written; another one after a repair."""


def pick_device(name: str) -> torch.device:
    """The device to compute on.

    Args:
        name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device; use --device cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return device


def prepare(
    subject: Subject,
    *,
    checkpoint: Checkpoint | None = None,
    seed: int = 0,
    device: str = "auto",
    meter: Meter | None = None,
) -> Prepared:
    """Read the checkpoint and the clean images, settle architecture and preprocessing, measure clean accuracy.

    Args:
        subject: Checkpoint and clean images.
        checkpoint: The subject's, where it has been read already.
        seed: Of the drawing of images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        meter: Counts passes, keeps the time limit.

    Raises:
        BanauditError: Whatever is wrong with file, images or arguments, in one line.
    """
    where = pick_device(device)
    if checkpoint is None:
        checkpoint = read_checkpoint(subject.model, state_key=subject.state_key)
    with _about(checkpoint.facts.path):
        loaded = load_network(checkpoint.weights, arch=subject.arch, size=subject.size)
        if loaded.facts.channels not in (1, 3):
            raise UnsupportedModelError(
                f"the network takes images of {loaded.facts.channels} channels; expected 1 or 3"
            )
        if loaded.facts.classes > MAX_CLASSES:
            raise UnsupportedModelError(
                f"the network has {loaded.facts.classes} classes; expected {MAX_CLASSES} at most"
            )
    images = read_clean_folder(
        subject.data,
        classes=loaded.facts.classes,
        limit=None if subject.max_images is None else max(subject.max_images, MIN_PER_CLASS * loaded.facts.classes),
        seed=seed,
        class_map=subject.class_map,
        meter=meter,
    )
    network = loaded.network.to(where)
    hint = checkpoint.hints.get("img_size")
    from_torchvision = loaded.facts.name.startswith(torchvision_models.PREFIX)
    with _about(checkpoint.facts.path):
        preprocessing, facts = choose(
            network,
            images,
            channels=loaded.facts.channels,
            preset=subject.preset,
            mean=subject.mean,
            std=subject.std,
            size=subject.size,
            size_hint=hint if isinstance(hint, int) else None,
            usual_size=torchvision_models.USUAL_SIZE if from_torchvision else None,
            meter=meter,
        )
    split = preprocessing.model(network).to(where).eval()
    clean = images.decode(preprocessing.size, preprocessing.channels).to(where)
    split.lay_out_fast(clean.images)
    told = undisguise(split, clean, meter if meter is not None else Meter())
    predicted = predictions(split, clean.images, meter=meter)
    accuracy = judge_predictions(predicted, clean, subject.accuracy_floor)
    return Prepared(
        model=split,
        clean=clean,
        checkpoint=checkpoint,
        loaded=loaded,
        images=images,
        preprocessing=facts,
        accuracy=accuracy,
        misread=misreading(accuracy, clean.class_names, predicted),
        told=told,
        device=where,
    )


@contextlib.contextmanager
def _about(path: str) -> Iterator[None]:
    """Puts the file's name before what is wrong with the network in it."""
    try:
        yield
    except (ArchitectureError, UnsupportedModelError) as problem:
        problem.args = (f"{path}: {problem}",)
        raise


def scan(
    subject: Subject,
    *,
    detectors: Sequence[Detector] | None = None,
    seed: int = 0,
    device: str = "auto",
    time_limit: float | None = None,
    listener: Listener | None = None,
    triggers: TriggerSink | None = None,
) -> Report:
    """Judge a checkpoint file.

    Args:
        subject: Checkpoint and clean images.
        detectors: Methods to run; none: the default ones.
        seed: Same seed, same report on the same machine.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        time_limit: Seconds after which the audit ends as inconclusive.
        listener: Told of progress.
        triggers: Given each trigger that a method recovered, with its pictures, e.g. ``list.append``.

    Raises:
        UnsafeCheckpointError: Loading the file would run code; a finding of its own.
        BanauditError: Whatever is wrong with file, images or arguments, in one line.
    """
    started = datetime.now(UTC)
    detectors = tuple(detectors) if detectors is not None else default_detectors()
    meter = Meter(time_limit=time_limit, listener=listener)
    where = str(pick_device(device))
    checkpoint = read_checkpoint(subject.model, state_key=subject.state_key)
    try:
        prepared = prepare(subject, checkpoint=checkpoint, seed=seed, device=where, meter=meter)
    except TimeLimitReached as problem:
        facts = Facts(checkpoint=checkpoint.facts)
        return _report(
            Verdict.INCONCLUSIVE, str(problem), facts, (), None, (), seed=seed, device=where, started=started
        )
    return judge(
        prepared.model,
        prepared.clean,
        detectors=detectors,
        accuracy=prepared.accuracy,
        facts=facts_of(prepared),
        seed=seed,
        meter=meter,
        started=started,
        triggers=triggers,
    )


def facts_of(prepared: Prepared) -> Facts:
    """What a report says of what was prepared, and reasons for which there can be no verdict."""
    architecture, data = prepared.loaded.facts, prepared.images.facts
    caveats: list[str] = []
    inconclusive: list[str] = []
    if prepared.misread:
        inconclusive.append(prepared.misread)
    if architecture.classes < Detector.fewest_classes:
        inconclusive.append(
            f"the network has {architecture.classes} classes, and all methods compare classes with each other: they "
            f"need at least {Detector.fewest_classes}"
        )
    shortfall = prepared.images.shortfall()
    if shortfall is not None:
        inconclusive.append(shortfall)
    if not prepared.loaded.deterministic:
        inconclusive.append("the network answers differently to the same images: its answers cannot be compared")
    present = architecture.classes - len(data.missing_classes)
    if present < max(3, architecture.classes / 2) and architecture.classes > present:
        inconclusive.append(
            f"only {present} of {architecture.classes} classes have clean images; give some of the others"
        )
    if data.per_class_min < FEW_IMAGES:
        caveats.append(f"the smallest class has only {data.per_class_min} clean images")
    if architecture.outputs != "logits":
        caveats.append(f"the network returns {architecture.outputs}; the scores before them were used")
    if data.unreadable:
        names = ", ".join(f"{item.name} ({item.reason})" for item in prepared.images.unreadable[:3])
        caveats.append(f"{data.unreadable} images could not be read and were left out: {names}")
    if data.missing_classes:
        missing = ", ".join(map(str, data.missing_classes[:10])) + (", ..." if len(data.missing_classes) > 10 else "")
        caveats.append(f"{len(data.missing_classes)} classes have no clean images: {missing}")
    return Facts(
        checkpoint=prepared.checkpoint.facts,
        architecture=architecture,
        preprocessing=prepared.preprocessing,
        data=data,
        caveats=tuple(caveats),
        inconclusive=tuple(inconclusive),
        told=prepared.told,
    )


def _accuracy_caveats(found: CleanAccuracy) -> list[str]:
    caveats: list[str] = []
    if found.is_low:
        caveats.append(
            f"clean accuracy is only {found.accuracy:.1%}: check preprocessing and labels before trusting this"
        )
    if abs(found.accuracy - found.averaged) >= UNEVEN:
        caveats.append(
            f"clean accuracy is {found.accuracy:.1%} over all images but {found.averaged:.1%} averaged over the "
            "classes: some classes are read much worse than others"
        )
    if found.unanswered:
        caveats.append(
            f"the outputs of {found.unanswered} of {found.images} clean images are no finite numbers; they count as "
            "mistakes, and no sound network gives such"
        )
    return caveats


def judge(
    model: SplitModel,
    clean: CleanData,
    *,
    detectors: Sequence[Detector] | None = None,
    accuracy: CleanAccuracy | None = None,
    accuracy_floor: float | None = None,
    facts: Facts | None = None,
    seed: int = 0,
    meter: Meter | None = None,
    started: datetime | None = None,
    triggers: TriggerSink | None = None,
) -> Report:
    """Judge a model in memory.

    Args:
        model: Normalisation inside; neither it nor any global random state is changed.
        clean: Clean images with labels, on the model's device.
        detectors: Methods to run; none: the default ones. Of the default ones and more, those that leave such a network
            or so few images to the others do not run; among fewer they are inconclusive.
        accuracy: Clean accuracy, if known already.
        accuracy_floor: Clean accuracy below which no verdict is given, where ``accuracy`` is not known; none: five
            times chance, held between 20 % and 60 %.
        facts: Origin of model and images; reasons for which there can be no verdict.
        seed: Of every method.
        meter: Counts passes, tells progress, keeps the time limit.
        started: When the audit began, for the report.
        triggers: Given each trigger that a method recovered, with its pictures.

    Returns:
        The report. Detectors do not run on a model whose clean accuracy is below its floor, or whose class order is
        another than the images'; then it says so.
    """
    started = started if started is not None else datetime.now(UTC)
    asked = tuple(detectors) if detectors is not None else default_detectors()
    unsuited = {item: why for item in asked if (why := item.unsuited(clean.num_classes, clean.class_sizes))}
    detectors = tuple(item for item in asked if item not in unsuited)
    unasked = unsuited if leaves_some_out(asked) else {}
    overlooked = [f"{item.name} overlooks {what}" for item in detectors if (what := item.overlooks(clean.class_sizes))]
    meter = meter if meter is not None else Meter()
    facts = facts if facts is not None else Facts()
    predicted = None
    if accuracy is None:
        predicted = predictions(model, clean.images, meter=meter)
        accuracy = judge_predictions(predicted, clean, accuracy_floor)
    misread = misreading(accuracy, clean.class_names, predicted)
    against = (*facts.inconclusive, *facts.told.inconclusive, *((misread,) if misread else ()))
    findings: tuple[Finding, ...] = ()
    if not misread:
        facts = replace(
            facts,
            caveats=(
                *_accuracy_caveats(accuracy),
                *facts.caveats,
                *_image_caveats(unasked, clean),
                *(f"{what}; give more" for what in overlooked),
            ),
        )
        for number, detector in enumerate(detectors):
            # Planned anew each time: a method that had done earlier than planned brings the end nearer.
            meter.planned_images = meter.forward_images + sum(
                other.planned_images(clean.num_classes, len(clean)) for other in detectors[number:]
            )
            findings = (*findings, detector(model, clean, seed=seed, meter=meter, triggers=triggers))
        findings = (*findings, *together(findings))
        if not against and rests_on_joint_evidence(findings):
            joint = _beyond_nature(findings, clean, detectors, seed, meter)
            facts = replace(facts, caveats=(*facts.caveats, *_nature_caveats(findings, joint)))
            findings = tuple(joint if item.method == JOINT_EVIDENCE else item for item in findings)
        findings += tuple(_unsuited(item, why) for item, why in unsuited.items() if item not in unasked)
    verdict, reason, strongest = combine(findings, against)
    strength = calibration.strength(item for finding in findings for item in finding.evidence)
    far = calibration.distance(
        findings,
        detectors,
        classes=clean.num_classes,
        present=clean.num_present,
        side=clean.images.shape[-1],
        images=len(clean),
        accuracy=accuracy.accuracy,
        network=facts.architecture.name if facts.architecture is not None else None,
        parameters=facts.architecture.parameters if facts.architecture is not None else None,
    )
    far = ", ".join((*filter(None, (far,)), *overlooked))
    return _report(
        verdict,
        reason,
        facts,
        findings,
        accuracy,
        clean.class_names,
        missed={detector.name: detector.misses for detector in detectors},
        unasked=[f"{detector.name} was not asked: {why}" for detector, why in unasked.items()],
        strongest=strongest,
        calibrated=calibration.statement("no verdict" if against else far),
        p_value=None if far or against else calibration.p_value(strength),
        seed=seed,
        device=str(clean.images.device),
        started=started,
    )


def _beyond_nature(
    findings: Sequence[Finding], clean: CleanData, detectors: Sequence[Detector], seed: int, meter: Meter
) -> Finding:
    """Joint evidence that accuses alone, held against what the clean images lean to by themselves.

    Where that cannot be known from these images it stands, and says so; where the time runs out, nothing can be said.
    """
    (joint,) = (item for item in findings if item.method == JOINT_EVIDENCE)
    unknown = few_images(clean.class_sizes)
    started = time.monotonic()
    if not unknown:
        judged = {item.method for item in findings if item.verdict is not Verdict.INCONCLUSIVE}
        asked = tuple(detector for detector in detectors if detector.name in judged)
        try:
            natural = natural_leaning(clean, asked, seed=seed, meter=meter)
        except Exception as problem:
            meter.stopped |= isinstance(problem, TimeLimitReached)
            undecided = {"verdict": Verdict.INCONCLUSIVE, "reason": cannot_judge(problem), "evidence": ()}
            return joint.model_copy(update={**undecided, "seconds": _since(started)})
        held = joint_evidence(findings, natural)
        if natural and held is not None:
            return held.model_copy(update={"seconds": _since(started)})
        unknown = "no method could judge networks trained on the clean images alone, or these know too little of them"
    (evidence,) = joint.evidence
    noted = evidence.model_copy(update={"note": f"{evidence.note}; not held against what is natural: {unknown}"})
    return joint.model_copy(update={"evidence": (noted,), "seconds": _since(started)})


def _nature_caveats(findings: Sequence[Finding], held: Finding) -> tuple[str, ...]:
    """That an accusation was taken back: a backdoor may aim at a class to which the data lean anyway."""
    (before,) = (item for finding in findings if finding.method == JOINT_EVIDENCE for item in finding.evidence)
    scores = {item.label: item.score for evidence in held.evidence for item in evidence.per_class}
    left = scores.get(before.target) if before.target is not None else None
    if left is None or left > before.threshold:
        return ()
    return (
        f"several methods at once suspect class {before.target} ({before.score:.2f}, threshold "
        f"{before.threshold:g}), but networks trained on the clean images alone lean to it as well ({left:.2f} is "
        "left): a backdoor aimed at it would look much the same; clean images of another origin would tell more",
    )


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _image_caveats(unasked: Mapping[Detector, str], clean: CleanData) -> tuple[str, ...]:
    """What more images would cure, of the methods that were not asked, method -> why."""
    wanted = "give more images of each class, or raise --max-images if there are more"
    return tuple(
        f"not asked was {item.name}, as {why}; {wanted}"
        for item, why in unasked.items()
        if item.lacks_images(clean.num_classes, clean.class_sizes)
    )


def _unsuited(detector: Detector, why: str) -> Finding:
    """The finding of a method that somebody chose for a network, or images, that do not suit it."""
    reason = f"{why}; --set {detector.name}.{detector.insists} asks it all the same" if detector.insists else why
    return Finding(method=detector.name, title=detector.title, verdict=Verdict.INCONCLUSIVE, reason=reason)


def combine(
    findings: Sequence[Finding], inconclusive: Sequence[str] = ()
) -> tuple[Verdict, str, tuple[Finding, Evidence] | None]:
    """One verdict from all findings.

    A reason for which no verdict can be given outweighs everything; then one fired reading is enough to accuse, since
    the methods look for unlike backdoors and each is silent about the others'; then a method that could not judge makes
    the whole inconclusive, since what it would have found is unknown.

    Args:
        findings: Of all methods that ran.
        inconclusive: Reasons against any verdict.

    Returns:
        Verdict, reason in one line, and the fired evidence that says most (:func:`~banaudit.agreement.says_most`), with
        its finding.
    """
    strongest = _says_most([(finding, item) for finding in findings for item in finding.evidence if item.fired])
    accusation = "" if strongest is None else _accusation(*strongest)
    if inconclusive or not findings:
        reason = inconclusive[0] if inconclusive else "no method ran"
        return Verdict.INCONCLUSIVE, reason + (f"{NOTED}{accusation}" if accusation else ""), strongest
    if strongest is not None:
        return Verdict.BACKDOORED, accusation, strongest
    unjudged = [finding for finding in findings if finding.verdict is Verdict.INCONCLUSIVE]
    if unjudged:
        return Verdict.INCONCLUSIVE, undecided(unjudged[0].method, unjudged[0].reason), None
    return Verdict.NO_EVIDENCE, f"no reading of {', '.join(finding.method for finding in findings)} fired", None


def _says_most(fired: Sequence[tuple[Finding, Evidence]]) -> tuple[Finding, Evidence] | None:
    strongest = says_most([item for _, item in fired], lambda item: item.score / item.threshold)
    return next(((finding, item) for finding, item in fired if item is strongest), None)


def undecided(method: str, reason: str) -> str:
    """Why a method could not judge, as the reason of a whole scan.

    Args:
        method: Its name.
        reason: Of its finding.
    """
    return f"{method}: {reason}"


def _accusation(finding: Finding, item: Evidence) -> str:
    text = f"{finding.method}, {item.reading.value}: score {item.score:.3g} above threshold {item.threshold:.3g}"
    return f"{text} ({item.note})" if finding.method == JOINT_EVIDENCE else text  # who suspects the class, and how much


def _report(
    verdict: Verdict,
    reason: str,
    facts: Facts,
    findings: tuple[Finding, ...],
    accuracy: CleanAccuracy | None,
    class_names: tuple[str, ...],
    *,
    seed: int,
    device: str,
    started: datetime,
    missed: Mapping[str, str] | None = None,
    unasked: Sequence[str] = (),
    strongest: tuple[Finding, Evidence] | None = None,
    calibrated: str = "uncalibrated: no method ran",
    p_value: float | None = None,
) -> Report:
    accused = strongest[1] if strongest is not None and verdict is Verdict.BACKDOORED else None
    fired = [item for finding in findings for item in finding.evidence if item.fired]
    named = {item.target for item in fired if item.target is not None}
    caveats = [*facts.caveats, *facts.told.caveats]
    if len(named) > 1:
        caveats.append(f"fired readings name different targets: {', '.join(map(str, sorted(named)))}")
    if accused is not None and accused.reading is Reading.SOURCE_TARGET:
        # By both, a backdoor of one class looks like one of all classes that one of them triggers most easily.
        others = [item for item in fired if item.reading is Reading.ALL_TO_ONE and item.target == accused.target]
        if others:
            caveats.append(
                f"what looks at all classes at once accuses class {accused.target} too: images of other classes than "
                f"{', '.join(map(str, accused.sources))} may trigger the backdoor as well"
            )
    judged = [finding for finding in findings if finding.verdict is not Verdict.INCONCLUSIVE]
    unjudged = tuple(undecided(f.method, f.reason) for f in findings if f.verdict is Verdict.INCONCLUSIVE)
    missed = {} if missed is None else missed
    known = tuple(f"known to be missed by {f.method}: {missed[f.method]}" for f in judged if f.method in missed)
    target = accused.target if accused is not None else None
    return Report(
        verdict=verdict,
        reason=reason,
        target=target,
        target_name=class_names[target] if target is not None else None,
        reading=accused.reading if accused is not None else None,
        sources=accused.sources if accused is not None else (),
        mapping=accused.mapping if accused is not None else None,
        calibration=calibrated,
        p_value=p_value,
        clean_accuracy=accuracy,
        findings=findings,
        checked=tuple(f"{finding.method}: {finding.title}" for finding in judged),
        not_checked=(*unjudged, *unasked, *known, *NOT_CHECKED),
        caveats=tuple(caveats),
        checkpoint=facts.checkpoint,
        architecture=facts.architecture,
        preprocessing=facts.preprocessing,
        data=facts.data,
        class_names=class_names,
        seed=seed,
        device=device,
        seconds=round((datetime.now(UTC) - started).total_seconds(), 3),
        tool_version=banaudit.__version__,
        torch_version=str(torch.__version__),
        started=started.isoformat(timespec="seconds"),
    )


def inspect(model: Path, *, state_key: str | None = None) -> Inspection:
    """Say what is in a file, running nothing from it: format, keys, unsafe globals, architecture and classes.

    Args:
        model: The file.
        state_key: Where in the file the weights are; none: found, or listed where there are several.

    Raises:
        CheckpointError: The file cannot be read at all (missing, a folder, no permission).
    """
    found = inspect_checkpoint(model, state_key=state_key)
    if not found.keys:
        return found
    try:
        recognition = recognise(read_checkpoint(model, state_key=state_key).weights)
    except CheckpointError as problem:
        return found.model_copy(update={"reason": f"{found.reason}; {problem}"})
    return found.model_copy(update={"architecture": recognition.name, "classes": recognition.classes})
