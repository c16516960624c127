"""Report -> document: the verdict first, then why, then what it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from banaudit.reports.document import (
    Bar,
    Block,
    Chart,
    Document,
    Gallery,
    Picture,
    Row,
    Section,
    Tone,
    percent,
    position,
    span,
)
from banaudit.results import CleanAccuracy, Evidence, Finding, Reading, Report, Scalar, TriggerFacts, Verdict

ALL_BARS_UP_TO = 20
"""Classes up to which each one gets a bar, in the order of the labels; beyond, the top ones do."""
TOP_BARS = 10
MAX_PAIRS = 20
"""Pairs of labels that are spelled out."""
THRESHOLD = "the threshold"

TONES = {Verdict.BACKDOORED: Tone.ALARM, Verdict.NO_EVIDENCE: Tone.GOOD, Verdict.INCONCLUSIVE: Tone.WARNING}

_SUBTITLES = {
    Verdict.NO_EVIDENCE: "The methods that ran found no sign of a backdoor. This does not prove that there is none.",
    Verdict.INCONCLUSIVE: "No verdict can be given. This says nothing for the model and nothing against it.",
}
_READINGS = {
    Reading.ALL_TO_ONE: "every image with the trigger goes to one class",
    Reading.ALL_TO_ALL: "each class has a target of its own",
    Reading.SOURCE_TARGET: "images of the sources with the trigger go to the target",
}


def document(report: Report) -> Document:
    """The whole report."""
    findings = tuple(_finding(report, finding) for finding in report.findings)
    sections = (_answer(report), *findings, _limits(report), _subject(report), _run(report))
    return Document(
        report.verdict.upper(),
        _subtitle(report),
        TONES[report.verdict],
        tuple(section for section in sections if section.blocks),
    )


def summary(report: Report) -> Document:
    """Verdict, accuracy and the strongest readings: the report in a few lines."""
    blocks: list[Block] = [*_answer(report).blocks]
    blocks += [_readings(report, finding) for finding in report.findings if finding.evidence]
    return Document(report.verdict.upper(), _subtitle(report), TONES[report.verdict], (Section("", tuple(blocks)),))


def class_name(report: Report, label: int) -> str:
    """A class by number and name, e.g. ``7 (horse)``."""
    names = report.class_names
    known = 0 <= label < len(names) and names[label] != str(label)
    return f"{label} ({names[label]})" if known else str(label)


def _subtitle(report: Report) -> str:
    accusers = [finding.method for finding in report.findings if finding.verdict is Verdict.BACKDOORED]
    if report.verdict is Verdict.INCONCLUSIVE and accusers:
        return f"No verdict can be given, but {', '.join(accusers)} found what a backdoor looks like: see below."
    if report.verdict is not Verdict.BACKDOORED:
        return _SUBTITLES[report.verdict]
    if report.target is not None:
        name = report.target_name
        quoted = f' "{name}"' if name and name != str(report.target) else ""
        return f"The model looks backdoored. Suspected target: class {report.target}{quoted}."
    return "The model looks backdoored, without a single target class."


def _answer(report: Report) -> Section:
    rows = [Row("why", (report.reason,))]
    if report.reading is not None:
        rows.append(Row("kind", (f"{report.reading.value}: {_READINGS[report.reading]}",)))
    if report.sources:
        rows.append(Row("sources", (", ".join(class_name(report, label) for label in report.sources),)))
    if report.mapping:
        rows.append(Row("mapping", (_pairs(report, report.mapping),)))
    if report.clean_accuracy is not None:
        rows += _accuracy(report, report.clean_accuracy)
    known = "" if report.p_value is None else f"p = {report.p_value:.2g}: "
    rows.append(Row("calibration", (f"{known}{report.calibration}",)))
    return Section("", tuple(rows))


def _accuracy(report: Report, found: CleanAccuracy) -> list[Row]:
    mean = percent(found.averaged)
    apart = "" if mean == percent(found.accuracy) else f", {mean} averaged over the classes"
    texts = [f"{percent(found.accuracy)} of {found.images} clean images{apart} (floor {percent(found.floor)})"]
    tone = Tone.PLAIN
    if min(found.accuracy, found.averaged) < found.floor:
        tone = Tone.WARNING
        texts.append("below the floor, so nothing can be judged")
    elif found.is_low:
        tone = Tone.WARNING
        texts.append("low: check preprocessing and class order before the verdict is relied on")
    rows = [Row("clean accuracy", tuple(texts), tone)]
    if found.label_permutation is not None:
        moved = {label: to for label, to in found.label_permutation.items() if label != to}
        gain = "" if found.permuted_accuracy is None else f" the accuracy would be {percent(found.permuted_accuracy)}"
        rows.append(Row("class order", (f"looks wrong: with {_pairs(report, moved)}{gain}",), Tone.WARNING))
    return rows


def _finding(report: Report, finding: Finding) -> Section:
    blocks: list[Block] = [
        Row("looks for", (finding.title,)),
        Row("says", (f"{finding.verdict.value}: {finding.reason}",), TONES[finding.verdict]),
    ]
    if finding.evidence:
        blocks.append(_readings(report, finding))
    drawn = [item for item in finding.evidence if item.per_class]
    strongest = max(drawn, key=_excess, default=None)
    blocks += [_classes(item) for item in drawn if item.fired or item is strongest]
    blocks += [Row(reading_name(item), _details(report, item), Tone.FAINT) for item in finding.evidence]
    blocks += [_gallery(report, finding, trigger) for trigger in finding.triggers if trigger.pictures]
    return Section(f"Method {finding.method}", tuple(blocks))


def _gallery(report: Report, finding: Finding, trigger: TriggerFacts) -> Gallery:
    title = f"{trigger.what} towards class {class_name(report, trigger.target)}: {trigger.size:.3g} ({trigger.size_of})"
    if trigger.success is not None:
        title += f", moves {trigger.success:.0%} of held-out images"
    if not trigger.accused:
        accused = trigger.target == report.target
        title += f"; not accused by {finding.method} alone" if accused else "; not accused"
    return Gallery(title, tuple(Picture(picture.name, picture.path) for picture in trigger.pictures))


def reading_name(evidence: Evidence) -> str:
    """What a reading is called where it stands beside others."""
    return evidence.label or evidence.reading.value


def _excess(evidence: Evidence) -> tuple[bool, float]:
    """Orders evidence by strength."""
    return evidence.fired, evidence.score - evidence.threshold


def _details(report: Report, evidence: Evidence) -> tuple[str, ...]:
    texts = [evidence.measures]
    if evidence.null is not None:
        texts.append(f"null: {evidence.null:.3g}")
    if evidence.restarts:
        subject = "of the classes go to the same target in each" if evidence.mapping else "of them name the same target"
        agreed = "" if evidence.agreement is None else f"; {evidence.agreement:.0%} {subject}"
        texts.append(f"restarts: {', '.join(f'{score:.3g}' for score in evidence.restarts)}{agreed}")
    if evidence.target is not None and evidence.target != report.target:
        texts.append(f"names class {class_name(report, evidence.target)}")
    if evidence.mapping and evidence.mapping != report.mapping:
        texts.append(f"maps {_pairs(report, evidence.mapping)}")
    if evidence.note:
        texts.append(evidence.note)
    return tuple(texts)


def _readings(report: Report, finding: Finding) -> Chart:
    bars = []
    for item in finding.evidence:
        low, high = span(item.score, item.threshold * 1.25)
        caption = f"{item.score:.3g}, {'above' if item.score > item.threshold else 'not above'} {item.threshold:.3g}"
        if item.fired and item.target is not None:
            caption += f" -> {class_name(report, item.target)}"
        elif item.score > item.threshold and not item.fired:
            caption += ", not counted"
        bars.append(
            Bar(
                label=f"{reading_name(item)}{' FIRED' if item.fired else ''}",
                share=position(item.score, low, high),
                caption=caption,
                marker=position(item.threshold, low, high),
                tone=Tone.ALARM if item.fired else Tone.PLAIN,
            )
        )
    return Chart(tuple(bars), f"Scores of {finding.method}", THRESHOLD)


def _classes(evidence: Evidence) -> Chart:
    scores = evidence.per_class
    few = len(scores) <= ALL_BARS_UP_TO
    ranked = sorted(scores, key=lambda item: item.score, reverse=True)
    # Where the largest bar is the score itself, the threshold is on the bars' scale and keeps small bars small.
    comparable = math.isclose(ranked[0].score, evidence.score, rel_tol=1e-4, abs_tol=1e-6)
    low, high = span(*(item.score for item in scores), *([1.25 * evidence.threshold] if comparable else []))
    marker = position(evidence.threshold, low, high) if comparable else None
    suspected = evidence.target if evidence.fired else None
    bars = [
        Bar(
            label=str(item.label) if item.name == str(item.label) else f"{item.label} {item.name}",
            share=position(item.score, low, high),
            caption=f"{item.score:.3g}",
            marker=marker,
            tone=Tone.ALARM if item.label == suspected else Tone.PLAIN,
        )
        for item in (scores if few else ranked[:TOP_BARS])
    ]
    hidden = ranked[TOP_BARS:]
    footnote = "" if few else f"{len(hidden)} more classes are hidden, none above {hidden[0].score:.3g}"
    return Chart(tuple(bars), f"Each class, {reading_name(evidence)}", THRESHOLD if comparable else "", footnote)


def _pairs(report: Report, mapping: Mapping[int, int]) -> str:
    pairs = [f"{class_name(report, label)} -> {class_name(report, to)}" for label, to in sorted(mapping.items())]
    more = f" and {len(pairs) - MAX_PAIRS} more" if len(pairs) > MAX_PAIRS else ""
    return ", ".join(pairs[:MAX_PAIRS]) + more


def _limits(report: Report) -> Section:
    rows = [
        Row("caveats", report.caveats, Tone.WARNING),
        Row("checked", report.checked),
        Row("not checked", report.not_checked),
    ]
    return Section("What this covers", tuple(row for row in rows if row.texts))


def _subject(report: Report) -> Section:
    rows: list[Row] = []
    if report.preprocessing is not None:
        found = report.preprocessing
        numbers = f"mean {_numbers(found.mean)}, std {_numbers(found.std)}"
        colour = "grey" if found.channels == 1 else "RGB"
        texts = [f"{found.name} ({found.source}): {colour}, {found.size}x{found.size} pixels, {numbers}"]
        if found.tried:
            best_first = sorted(found.tried.items(), key=lambda item: -item[1])
            texts.append("tried: " + ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in best_first))
        rows.append(Row("preprocessing", tuple(texts)))
    if report.architecture is not None:
        network = report.architecture
        texts = [
            f"{network.name} ({network.source}): {network.description}",
            f"{network.classes} classes, {network.parameters:,} parameters, {network.batch_norms} BatchNorm layers",
        ]
        if network.outputs != "logits" or network.output_note:
            texts.append(f"outputs are {network.outputs}{'; ' if network.output_note else ''}{network.output_note}")
        if network.renamed_keys:
            texts.append(f"{network.renamed_keys} keys have other names than ours and the same meaning")
        rows.append(Row("architecture", tuple(texts)))
    if report.checkpoint is not None:
        file = report.checkpoint
        texts = [file.path, f"{file.format}, {file.bytes:,} bytes, {file.tensors} tensors, {file.parameters:,} numbers"]
        if file.state_key:
            texts.append(f"weights found under {file.state_key}")
        if file.stripped_prefixes:
            texts.append(f"prefixes stripped: {_some(file.stripped_prefixes)}")
        if file.folded:
            texts.append(f"pruned weights folded: {_some(file.folded)}")
        if file.ignored:
            texts.append(f"ignored: {_some(file.ignored)}")
        rows += [Row("checkpoint", tuple(texts)), Row("sha256", (file.sha256,))]
    if report.data is not None:
        data = report.data
        texts = [
            data.path,
            f"{data.layout}: {data.used} images used of {data.found} found, {data.unreadable} unreadable, "
            f"{data.per_class_min} to {data.per_class_max} a class",
        ]
        if data.missing_classes:
            texts.append("no images of " + _some(tuple(class_name(report, label) for label in data.missing_classes)))
        mapped = tuple(f"{name} -> {label}" for name, label in sorted(data.class_mapping.items(), key=lambda i: i[1]))
        texts.append(f"labels from {data.mapping_source}: {_some(mapped)}")
        rows += [Row("clean images", tuple(texts)), Row("sha256", (data.sha256,))]
    return Section("What was scanned", tuple(rows))


def _run(report: Report) -> Section:
    rows = [
        Row(finding.method, (_settings(finding.settings), _cost(finding)), Tone.FAINT) for finding in report.findings
    ]
    versions = f"banaudit {report.tool_version}, torch {report.torch_version}, report {report.schema_version}"
    rows.append(
        Row(
            "run",
            (f"{report.seconds:.1f} s on {report.device}, seed {report.seed}", versions, report.started),
            Tone.FAINT,
        )
    )
    return Section("Settings and cost", tuple(rows))


def _cost(finding: Finding) -> str:
    passes = f"{finding.forward_images:,} images passed forward, {finding.backward_images:,} backward"
    return f"{finding.seconds:.1f} s, {passes}"


def _settings(settings: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items()) or "no settings"


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_PAIRS} more" if len(names) > MAX_PAIRS else ""
    return ", ".join(names[:MAX_PAIRS]) + more
