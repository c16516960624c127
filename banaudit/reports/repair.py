"""Repair -> document: is the file that was written worth anything, and what did it cost."""

from __future__ import annotations

from banaudit.reports import scan
from banaudit.reports.document import Document, Row, Section, Tone, percent
from banaudit.results import Evidence, RelapseProbe, Repair, RepairEpoch, Report, UnlearnedChange, Verdict

_SUBTITLES = {
    Verdict.NO_EVIDENCE: "The scan of the repaired model found no sign of a backdoor. This does not prove that "
    "there is none.",
    Verdict.BACKDOORED: "The repaired model still looks backdoored. Do not use it.",
    Verdict.INCONCLUSIVE: "The repaired model cannot be judged.",
}
_NOT_WRITTEN = "The repair cost more clean accuracy than allowed, and no file was written."


def document(repair: Repair) -> Document:
    """The whole record."""
    if not repair.written:
        stamp, subtitle = "NOT REPAIRED", _NOT_WRITTEN
    else:
        stamp, subtitle = f"REPAIRED: {repair.verdict.upper()}", _SUBTITLES[repair.verdict]
    sections = (_answer(repair), _judgement(repair), _making(repair))
    return Document(
        stamp, subtitle, scan.TONES[repair.verdict], tuple(section for section in sections if section.blocks)
    )


def _answer(repair: Repair) -> Section:
    drop = repair.accuracy_before - repair.accuracy_after
    change = f"lost {100 * drop:.1f}" if drop >= 0 else f"gained {-100 * drop:.1f}"
    rows = [
        Row("why", (repair.reason,)),
        Row(
            "clean accuracy",
            (
                f"{percent(repair.accuracy_before)} before, {percent(repair.accuracy_after)} after: {change} points, "
                f"standard error {100 * repair.accuracy_drop_error:.1f} (up to {100 * repair.made.max_drop:g} allowed)",
                f"on {repair.made.untouched_images} images that played no part in the repair",
            ),
        ),
    ]
    if repair.path is not None and repair.sha256 is not None:
        rows += [Row("written to", (repair.path,)), Row("sha256", (repair.sha256,))]
    copies = [f"replaced: {place}" for place in repair.replaced] + [f"dropped: {place}" for place in repair.dropped]
    if copies:
        rows.append(Row("other copies", tuple(copies)))
    caveats = _caveats(repair)
    if caveats:
        rows.append(Row("caveats", caveats, Tone.WARNING))
    return Section("", tuple(rows))


def _caveats(repair: Repair) -> tuple[str, ...]:
    """Those of the repair and of both scans; what both scans say, once."""
    first, second = ((report.caveats if report is not None else ()) for report in (repair.before, repair.after))
    new = [caveat for caveat in second if caveat not in first]
    return (
        *repair.caveats,
        *(f"scan before: {caveat}" for caveat in first),
        *(f"scan after: {caveat}" for caveat in new),
    )


def _judgement(repair: Repair) -> Section:
    rows = [Row("before", _scanned(repair.before))]
    if repair.after is not None:
        rows.append(Row("after", _scanned(repair.after), scan.TONES[repair.after.verdict]))
        rows += _readings(repair.before, repair.after)
    if repair.relapse is not None:
        rows.append(_relapse(repair.before, repair.relapse))
    return Section("The tool on its own work", tuple(rows))


def _scanned(report: Report) -> tuple[str, ...]:
    named = "" if report.target is None else f", target {scan.class_name(report, report.target)}"
    return (f"{report.verdict.value}{named}: {report.reason}",)


def _readings(before: Report, after: Report) -> list[Row]:
    """Each reading's score before and after, against its threshold."""
    rows: list[Row] = []
    # A repair that ruined the network leaves nothing to find: below the accuracy floor no method runs.
    again = {new.method: new.evidence for new in after.findings}
    for old in before.findings:
        found = {item.measures: item for item in again.get(old.method, ())}
        texts = tuple(
            f"{scan.reading_name(item)}: {_score(item)} before, {_score(found[item.measures])} after "
            f"(threshold {item.threshold:.3g})"
            for item in old.evidence
            if item.measures in found
        )
        if texts:
            rows.append(Row(old.method, texts, Tone.FAINT))
    return rows


def _score(item: Evidence) -> str:
    if item.fired:
        return f"{item.score:.3g} (fired)"
    # Above its threshold a reading may lack something else that it asks, as its own row in a scan's report says.
    return f"{item.score:.3g}" + (" (does not count)" if item.score > item.threshold else "")


def _relapse(before: Report, probe: RelapseProbe) -> Row:
    targets = sorted(set(probe.wanted.values()))
    aim = scan.class_name(before, targets[0]) if len(targets) == 1 else "its own target for each class"
    beside = [] if probe.threshold is None else [f"threshold {percent(probe.threshold)}"]
    beside += [] if probe.control is None else [f"for a class nobody suspects: {percent(probe.control)}"]
    texts = [
        f"a small change of all pixels aimed at {aim} moves {percent(probe.before_repair)} of the images before, "
        f"{percent(probe.after_repair)} after the repair",
        f"after {probe.steps} steps of fine-tuning with {probe.images} such images: {percent(probe.relapsed)}"
        + (f" ({'; '.join(beside)})" if beside else ""),
    ]
    return Row(
        "relapse", (*texts, probe.note) if probe.note else tuple(texts), Tone.ALARM if probe.fired else Tone.PLAIN
    )


def _making(repair: Repair) -> Section:
    made = repair.made
    settings = ", ".join(f"{name}={value}" for name, value in made.settings.items())
    history = tuple(_tried(item) + (" (kept)" if item.epoch == repair.kept_epoch else "") for item in repair.epochs)
    cost = f"{repair.forward_images:,} images passed forward, {repair.backward_images:,} backward, scans included"
    unlearned = tuple(_unlearned(repair.before, item) for item in made.unlearned)
    rows = (
        Row("method", (f"{made.method}: {made.title}", settings)),
        *([Row("attempts", made.attempts)] if made.attempts else []),
        *([Row("unlearned", unlearned)] if unlearned else []),
        Row(
            "images",
            (
                f"{made.training_images} trained on, {made.selection_images} chose what is kept, "
                f"{made.untouched_images} untouched",
                f"augmentation: {made.augmentation}",
            ),
        ),
        Row("tried" if any(item.what for item in repair.epochs) else "epochs", history, Tone.FAINT),
        Row("parent", (repair.parent.path, repair.parent.sha256)),
        Row(
            "run",
            (
                f"{repair.seconds:.1f} s on {repair.device}, seed {repair.seed}; {cost}",
                f"banaudit {repair.tool_version}, torch {repair.torch_version}, record {repair.schema_version}",
                repair.started,
            ),
            Tone.FAINT,
        ),
    )
    return Section("How it was made", rows)


def _unlearned(before: Report, item: UnlearnedChange) -> str:
    name = scan.class_name(before, item.target)
    if item.kind == "patch":
        return f"a patch that leads to {name}, its mask far smaller than any for another class"
    return f"small changes of all pixels that lead to {name}, far sooner than to any other class"


def _tried(item: RepairEpoch) -> str:
    loss = "" if item.loss is None else f"loss {item.loss:.3f}, "
    earlier = ", before an interruption" if item.earlier else ""
    return f"{item.what or f'epoch {item.epoch}'}: {loss}accuracy {percent(item.accuracy)}{earlier}"
