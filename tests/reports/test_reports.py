from __future__ import annotations

import io
import json
import re

import jsonschema
import pytest
import samples
from rich.console import Console

from banaudit.reports import inspection, json_text, markdown, scan, terminal
from banaudit.reports.document import position, span
from banaudit.reports.escaping import markdown as escape_markdown
from banaudit.reports.escaping import printable
from banaudit.results import Reading, Verdict


def screen(width: int, *, terminal: bool) -> Console:
    return Console(
        file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"),
        width=width,
        force_terminal=terminal,
        color_system="truecolor" if terminal else None,
        no_color=False,
    )


def plain(record, width: int = 100) -> str:
    document = scan.document(record) if record.kind == "scan" else inspection.document(record)
    return terminal.render(document, screen(width, terminal=False))


@pytest.mark.parametrize("width", [40, 80, 120, 300])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_lines_fit(width, verdict):
    text = plain(samples.report(verdict, permuted=True), width)
    assert max(map(len, text.splitlines())) <= min(width, terminal.MAX_WIDTH)
    assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("width", [1, 2, 39])
def test_a_console_too_narrow_for_anything_gets_lines_of_the_least_length(width, is_terminal):
    document = scan.document(samples.report(permuted=True))
    text = terminal.render(document, screen(width, terminal=is_terminal))
    assert text == terminal.render(document, screen(terminal.MIN_WIDTH, terminal=is_terminal))


def test_hash_is_on_one_line_of_80_columns():
    assert "ab" * 32 in plain(samples.report(), 80)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_verdict_comes_first_and_no_text_says_safe(verdict):
    record = samples.report(verdict)
    shown = [
        plain(record),
        markdown.render(scan.document(record)),
        terminal.render(scan.summary(record), screen(80, terminal=False)),
    ]
    for text in shown:
        assert verdict.value.upper() in "".join(text.splitlines()[:3])
        assert not re.search(r"\bsafe\b", text, re.IGNORECASE)


def test_terminal_is_coloured_by_verdict():
    colours = {Verdict.BACKDOORED: "31", Verdict.INCONCLUSIVE: "33", Verdict.NO_EVIDENCE: "36"}
    for verdict, colour in colours.items():
        text = terminal.render(scan.document(samples.report(verdict)), screen(80, terminal=True))
        assert f"\x1b[1;{colour}m{verdict.value.upper()}" in text


def test_no_color_keeps_the_bars():
    console = Console(file=io.StringIO(), width=80, force_terminal=True, no_color=True, color_system="standard")
    text = terminal.render(scan.document(samples.report()), console)
    assert "█" in text
    assert not re.search(r"\x1b\[[\d;]*3\d", text)


def test_target_score_threshold_and_reading_are_told():
    text = plain(samples.report())
    assert 'Suspected target: class 7 "horse"' in text
    assert re.search(r"all-to-one FIRED +#+\|#+ 0.91, above 0.3 -> 7 \(horse\)", text)
    assert re.search(r"all-to-all +#+\.+\|\.+ 0.31, not above 0.5", text)


def test_every_class_has_a_bar_up_to_twenty_and_the_rest_is_counted():
    few = plain(samples.report())
    assert all(re.search(rf"^ {label} {name} .*\d$", few, re.MULTILINE) for label, name in enumerate(samples.NAMES))
    many = plain(samples.report(Verdict.NO_EVIDENCE, classes=43))
    assert "33 more classes are hidden, none above 0.03" in many


def test_clean_accuracy_is_commented():
    assert "94.5 % of 500 clean images (floor 50.0 %)" in plain(samples.report())
    assert "low: check" not in plain(samples.report())
    assert "low: check" in plain(samples.report(accuracy=0.55))
    wrong = plain(samples.report(Verdict.INCONCLUSIVE, accuracy=0.1, permuted=True))
    assert "below the floor" in wrong
    report = samples.report()
    uneven = report.model_copy(
        update={"clean_accuracy": report.clean_accuracy.model_copy(update={"balanced_accuracy": 0.4})}
    )
    assert "94.5 % of 500 clean images, 40.0 % averaged over the classes (floor 50.0 %)" in plain(uneven)
    assert re.search(r"class order +looks wrong: with 0 \(plane\) -> 1 \(car\), 1 \(car\) -> 0 \(plane\) the", wrong)


def test_all_to_all_mapping_is_spelled_out():
    record = samples.report().model_copy(
        update={"reading": Reading.ALL_TO_ALL, "target": None, "target_name": None, "mapping": {0: 1, 1: 2}}
    )
    text = plain(record)
    assert "without a single target class" in text
    assert "0 (plane) -> 1 (car), 1 (car) -> 2 (bird)" in text


def test_inspection():
    assert "LOADABLE" in plain(samples.inspection())
    assert "conv1.weight  [16, 3, 3, 3] float32" in plain(samples.inspection())
    unsafe = plain(samples.inspection(unsafe=True))
    assert "UNSAFE TO LOAD" in unsafe
    assert "os.system" in unsafe


@pytest.mark.parametrize("verdict", list(Verdict))
def test_json_follows_its_schema_and_round_trips(verdict):
    record = samples.report(verdict, permuted=True)
    text = json_text.render(record)
    jsonschema.validate(json.loads(text), json_text.schema("report"))
    assert type(record).model_validate_json(text) == record


def test_json_has_no_infinities():
    endless = samples.report().model_copy(update={"seconds": float("inf")})
    assert json.loads(json_text.render(endless))["seconds"] is None


def test_json_of_undecodable_names_is_ascii():
    record = samples.report(path="a\udcff\x9b.pt")
    assert json_text.render(record).isascii()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_hostile_names_are_shown_as_text(is_terminal):
    names = tuple(f"{number}{samples.HOSTILE}" for number in range(10))
    hostile = (
        scan.document(samples.report(names=names, path=samples.HOSTILE)),
        inspection.document(samples.inspection(path=samples.HOSTILE, key=samples.HOSTILE)),
    )
    for document in hostile:
        text = terminal.render(document, screen(120, terminal=is_terminal))
        ours = re.sub(r"\x1b\[[\d;]*m", "", text) if is_terminal else text
        assert not {"\x1b", "\x9b", "\u202e"} & set(ours)
        assert r"\x1b[31m" in ours
        assert "[bold]x[/bold]" in ours.replace("\n", "") or "..." in ours


def test_hostile_names_stay_text_in_markdown():
    names = tuple(f"{number}{samples.HOSTILE}" for number in range(10))
    text = markdown.render(scan.document(samples.report(names=names, path=samples.HOSTILE)))
    assert not re.search(r"<(?!br>)|(?<!\\)\[|(?<!\\)`|://|www\.|@|[\x1b\x9b\u202e]", text)
    assert not re.search(r"^# top", text, re.MULTILINE)


def test_printable():
    assert printable("a\nb\x00\u2028\udcff\U000e0041é") == r"a\nb\x00\u2028\udcff\U000e0041é"
    assert printable("x" * 1000, 10) == "xxxxxxx..."
    assert printable("\n" * 1000, 10) == r"\n\n\n\..."[:10]
    assert len(printable("\U000e0041" * 10_000_000)) == 600


def test_markdown_escapes():
    assert escape_markdown("a_b*c|d") == r"a\_b\*c\|d"
    assert escape_markdown("<i>&amp;") == "&lt;i&gt;&amp;amp;"
    assert escape_markdown("https://a.b/c WWW.a.b @me") == "https&#58;//a.b/c WWW&#46;a.b &#64;me"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("- a.pt", r"\- a.pt"),
        ("1. a.pt", r"1\. a.pt"),
        ("---", r"\---"),
        ("=== x", r"\=== x"),
        ("    a.pt", "&#32;   a.pt"),
        ("-0.5", "-0.5"),
        ("1.5 x", "1.5 x"),
    ],
)
def test_markdown_makes_no_list_rule_or_code_of_a_line(text, escaped):
    assert escape_markdown(text) == escaped


def test_positions_on_a_scale():
    assert span(2.0, float("nan"), float("inf")) == (0.0, 2.0)
    assert span(-1.0, 3.0) == (-1.0, 3.0)
    assert [position(value, 0, 2) for value in (-1, 1, 3, float("inf"), float("nan"))] == [0, 0.5, 1, 1, 0]
    assert position(1, 0, 0) == 0
