from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import jsonschema
import pytest
import samples

from banaudit.cli import main
from banaudit.errors import CheckpointError, DataError, UnsafeCheckpointError, UsageError
from banaudit.reports import json_text
from banaudit.results import Verdict

CODES = {Verdict.NO_EVIDENCE: 0, Verdict.BACKDOORED: 1, Verdict.INCONCLUSIVE: 3}
BASE = ("scan", "model.pt", "--data", "clean")


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("file_form", [None, "text", "json", "markdown"])
def test_exit_code_depends_on_the_verdict_alone(audit, run, tmp_path, verdict, form, file_form):
    audit.report = samples.report(verdict)
    output = () if file_form is None else ("--output", f"{file_form}={tmp_path / 'report'}")
    done = run(*BASE, "--format", form, *output)
    assert done.code == CODES[verdict]
    assert verdict.value in done.out.lower()
    if output:
        assert verdict.value in (tmp_path / "report").read_text(encoding="utf-8").lower()
        assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("verdict", list(Verdict))
def test_exit_zero_keeps_the_report(audit, run, verdict):
    audit.report = samples.report(verdict)
    done = run(*BASE, "--exit-zero")
    assert done.code == 0
    assert verdict.value.upper() in done.out


def test_json_on_stdout_is_the_record(audit, run):
    done = run(*BASE, "--format", "json")
    jsonschema.validate(json.loads(done.out), json_text.schema("report"))
    assert type(audit.report).model_validate_json(done.out) == audit.report
    assert done.err == ""


@pytest.mark.parametrize("form", ["text", "json"])
def test_unsafe_checkpoint_is_a_finding(audit, run, tmp_path, form):
    audit.problem = UnsafeCheckpointError("model.pt: would call os.system", ("os.system",))
    audit.inspection = samples.inspection(unsafe=True)
    file = tmp_path / "report.json"
    done = run(*BASE, "--format", form, "--output", f"json={file}")
    assert done.code == 1
    assert done.err.splitlines()[0] == "banaudit: model.pt: would call os.system"
    assert "os.system" in done.out
    for text in [file.read_text(encoding="utf-8")] + ([done.out] if form == "json" else []):
        found = json.loads(text)
        jsonschema.validate(found, json_text.schema("inspection"))
        assert (found["kind"], found["loadable"], found["unsafe_globals"]) == ("inspection", False, ["os.system"])
    assert run(*BASE, "--exit-zero").code == 0


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "problem", [DataError("clean: holds no images"), CheckpointError("bad"), UsageError("no such")]
)
def test_expected_errors_are_one_line(audit, run, tmp_path, problem, form):
    audit.problem = problem
    done = run(*BASE, "--format", form, "--exit-zero", "--output", f"json={tmp_path / 'report.json'}")
    assert (done.code, done.out, done.err) == (2, "", f"banaudit: {problem}\n")
    assert list(tmp_path.iterdir()) == []


def test_unexpected_errors_are_one_line_unless_verbose(audit, run):
    audit.problem = RuntimeError("first\nsecond\x1b[2J")
    done = run(*BASE)
    assert (done.code, done.out) == (2, "")
    expected = r"unexpected RuntimeError: first\nsecond\x1b[2J; run again with --verbose for the traceback"
    assert done.err == f"banaudit: {expected}\n"
    told = run(*BASE, "--verbose")
    assert told.code == 2
    assert "Traceback" in told.err


def test_verbose_shows_the_traceback_of_expected_errors(audit, run):
    audit.problem = DataError("clean: holds no images")
    done = run(*BASE, "--verbose")
    assert done.code == 2
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == "banaudit: clean: holds no images"


def test_interrupt_leaves_no_file(audit, run, tmp_path):
    audit.problem = KeyboardInterrupt()
    done = run(*BASE, "--output", f"json={tmp_path / 'report.json'}")
    assert (done.code, done.out, done.err) == (130, "", "banaudit: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_writing_leaves_the_old_file(audit, run, tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    file.write_text("old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    assert run(*BASE, "--output", f"json={file}").code == 130
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("json", "expected FORMAT=PATH"),
        ("pdf=a.pdf", "expected FORMAT=PATH"),
        ("json=", "expected FORMAT=PATH"),
        ("json=no/such/folder/a.json", "cannot be written (No such file or directory)"),
        ("json=.", "is a folder"),
        ("json=/dev/fd/977", "cannot be written (Bad file descriptor)"),
        ("json=model.pt", "would overwrite an input"),
    ],
)
def test_output_that_cannot_be_written_is_refused_before_the_scan(audit, run, tmp_path, monkeypatch, output, expected):
    monkeypatch.chdir(tmp_path)
    done = run(*BASE, "--output", output)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"banaudit: --output {output}: ")
    assert expected in done.err
    assert done.err.count("\n") == 1
    assert audit.asked == {}


@pytest.mark.parametrize("name", ["list.csv", "order.json", "nets.py", "link", "hard"])
def test_an_output_overwrites_no_input(audit, run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    inputs = [tmp_path / file for file in ("model.pt", "list.csv", "order.json", "nets.py")]
    for file in inputs:
        file.write_text(file.name)
    (tmp_path / "link").symlink_to("order.json")
    os.link("order.json", "hard")
    base = ("scan", "model.pt", "--data", "list.csv", "--classes", "order.json", "--arch", "nets.py:factory")
    done = run(*base, "--output", f"json={name}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"banaudit: --output json={name}: would overwrite an input, ")
    assert [file.read_text() for file in inputs] == [file.name for file in inputs]
    assert audit.asked == {}


@pytest.mark.parametrize(
    ("kind", "name", "refused"),
    [
        ("text", "classes.txt", True),
        ("text", "labels.csv", True),
        ("json", "a/one.PNG", True),
        ("json", "report.json", False),
        ("text", "new.csv", True),  # the next scan would read it
        ("text", "new.txt", False),
    ],
)
def test_an_output_is_no_file_among_the_images(audit, run, tmp_path, kind, name, refused):
    (tmp_path / "clean" / "a").mkdir(parents=True)
    for file in ("classes.txt", "labels.csv", "a/one.PNG", "report.json"):
        (tmp_path / "clean" / file).write_text(file)
    data = tmp_path / "clean"
    done = run("scan", "model.pt", "--data", str(data), "--output", f"{kind}={data / name}")
    assert ("would be an input, a file in" in done.err) == refused
    if refused:
        assert (done.code, audit.asked) == (2, {})
        assert not (data / name).exists() or (data / name).read_text() == name


def test_what_a_users_code_prints_is_no_part_of_the_report(audit, run, monkeypatch):
    def scan(subject, **settings):
        print("hello from the factory")
        return audit.scan(subject, **settings)

    monkeypatch.setattr(sys.modules["banaudit.audit"], "scan", scan)
    done = run(*BASE, "--format", "json")
    assert json.loads(done.out)["verdict"]
    assert "hello from the factory" in done.err


def test_two_outputs_to_one_file_are_refused(audit, run, tmp_path):
    done = run(*BASE, "--output", f"json={tmp_path / 'a'}", "--output", f"text={tmp_path / '.' / 'a'}")
    assert done.code == 2
    assert "same file" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_read_only_folder_is_refused_before_the_scan(audit, run, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = run(*BASE, "--output", f"json={tmp_path / 'a.json'}")
    tmp_path.chmod(stat.S_IRWXU)
    assert done.code == 2
    assert "cannot be written (Permission denied)" in done.err
    assert audit.asked == {}


def test_devices_are_written_to_and_stay(audit, run):
    assert run(*BASE, "--output", f"json={os.devnull}").code == 1
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_links_are_followed(audit, run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(*BASE, "--output", f"text={tmp_path / 'link'}")
    assert (tmp_path / "link").is_symlink()
    assert "BACKDOORED" in (tmp_path / "real").read_text(encoding="utf-8")


def test_piped_output_is_plain(audit, run):
    out = run(*BASE).out
    assert out.isascii()
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_hostile_names_reach_no_stream_raw(audit, run, tmp_path):
    names = tuple(f"{samples.HOSTILE}{number}" for number in range(10))
    audit.report = samples.report(names=names, path=f"/tmp/{samples.HOSTILE}.pt")
    for form in ("text", "json"):
        done = run(*BASE, "--format", form, "--output", f"markdown={tmp_path / 'r.md'}")
        shown = done.out + done.err + (tmp_path / "r.md").read_text(encoding="utf-8")
        assert not {"\x1b", "\x9b", "\u202e"} & set(shown)
        assert "<b " not in (tmp_path / "r.md").read_text(encoding="utf-8")


def test_quiet_and_messages(audit, run, tmp_path):
    output = ("--output", f"json={tmp_path / 'a.json'}")
    assert run(*BASE, *output).err == f"banaudit: wrote json to {tmp_path / 'a.json'}\n"
    quiet = run(*BASE, *output, "--quiet")
    assert quiet.err == ""
    assert "BACKDOORED" in quiet.out


def test_options_reach_the_audit(audit, run):
    run(
        *(*BASE, "--arch", "resnet18", "--state-key", "netC", "--classes", "classes.txt", "--preset", "cifar10"),
        *("--mean", "0.5,0.4,0.3", "--std", "0.2", "--size", "32", "--max-images", "50", "--accuracy-floor", "0.3"),
        *("--seed", "4", "--device", "cpu", "--time-limit", "60"),
    )
    asked = {key: str(value) if key in {"model", "data", "class_map"} else value for key, value in audit.asked.items()}
    assert asked == {
        "model": "model.pt",
        "data": "clean",
        "detectors": None,
        "arch": "resnet18",
        "state_key": "netC",
        "class_map": "classes.txt",
        "preset": "cifar10",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2,),
        "size": 32,
        "max_images": 50,
        "accuracy_floor": 0.3,
        "seed": 4,
        "device": "cpu",
        "time_limit": 60.0,
        "listener": None,
        "triggers": None,
    }


@pytest.mark.parametrize("numbers", ["a", "0.1,0.2", "0.1,,0.2", "nan", ""])
def test_channel_numbers_are_checked(audit, run, numbers):
    done = run(*BASE, "--mean", numbers)
    assert done.code == 2
    assert done.err.startswith(f"banaudit: --mean {numbers}: expected one number or three")


@pytest.mark.parametrize(
    "arguments",
    [("scan",), ("scan", "model.pt"), (*BASE, "--format", "xml"), (*BASE, "--seed", "x"), (*BASE, "--what"), ("what",)],
)
def test_usage_errors_exit_2(run, arguments):
    done = run(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage" in done.err
    assert "Traceback" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_output_that_fails_costs_none_of_the_others(audit, run, tmp_path):
    last = tmp_path / "report.md"
    done = run(*BASE, "--output", "json=/dev/full", "--output", f"markdown={last}")
    assert done.code == 2
    assert done.err == "banaudit: /dev/full: the report cannot be written (No space left on device)\n"
    assert "BACKDOORED" in done.out
    assert "BACKDOORED" in last.read_text().upper()


@pytest.mark.parametrize("code", [0, 1, None, "two\nlines"])
def test_code_that_ends_the_process_has_no_say_in_the_exit_code(audit, run, code):
    audit.problem = SystemExit(code)
    done = run(*BASE)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("banaudit: code from outside banaudit ended the process (SystemExit")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--seed", "--size"])
def test_numbers_beyond_what_can_be_computed_are_usage_errors(audit, run, option):
    most = {"--seed": 2**32 - 1, "--size": 4096}[option]
    assert run(*BASE, option, str(most)).code == 1
    audit.asked = {}
    for command in (BASE, ("purify", *BASE[1:], "-o", "out.pt")):
        for number in (most + 1, 99999999999999999999):
            done = run(*command, option, str(number))
            assert (done.code, done.out) == (2, "")
            assert "Usage" in done.err
            assert str(most) in done.err
    assert audit.asked == {}


def test_seeds_of_the_benchmark_have_the_same_limit(run):
    done = run("bench", "run", "--split", "development", "--seed", str(2**32))
    assert done.code == 2
    assert str(2**32 - 1) in done.err


def test_a_console_of_two_columns_costs_no_report(audit, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "2")
    assert main(list(BASE)) == 1
    assert "BACKDOORED" in capsys.readouterr().out
