from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jsonschema
import pytest
import samples
from toys import INTERRUPTIBLE

from banaudit import __version__

STUB = f"""
import sys, time, types
sys.path.insert(0, {str(Path(samples.__file__).parent)!r})
def put(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module
def wait(*arguments, **settings):
    print("scanning", file=sys.stderr, flush=True)
    time.sleep(60)
def answer(*arguments, **settings):
    import samples
    return samples.report()
"""


def program(script: str) -> str:
    run = "from banaudit.cli import main\nsys.exit(main(sys.argv[1:]))"
    return f"{INTERRUPTIBLE}{STUB}\n{textwrap.dedent(script)}\n{run}"


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    code = (
        f"{INTERRUPTIBLE}{STUB}\n{textwrap.dedent(script)}\nfrom banaudit.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_interrupt_of_a_scan(tmp_path):
    script = """
        import banaudit
        put("banaudit.audit", scan=wait, Subject=types.SimpleNamespace)
        banaudit.audit = sys.modules["banaudit.audit"]
    """
    process = start(script, "scan", "model.pt", "-d", "clean", "--output", f"json={tmp_path / 'report.json'}")
    assert process.stderr is not None
    assert process.stderr.readline() == "scanning\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "banaudit: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_that_an_import_turns_into_another_error():
    script = """
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "banaudit.audit":
                    try:
                        wait()
                    except KeyboardInterrupt:
                        raise ImportError("initialization failed")
        sys.meta_path.insert(0, Finder())
    """
    process = start(script, "scan", "model.pt", "-d", "clean")
    assert process.stderr is not None
    assert process.stderr.readline() == "scanning\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "banaudit: interrupted\n")


def test_nobody_reads_the_report():
    script = """
        import banaudit
        put("banaudit.audit", scan=answer, Subject=types.SimpleNamespace)
        banaudit.audit = sys.modules["banaudit.audit"]
    """
    process = start(script, "scan", "model.pt", "-d", "clean")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=20) == 1


SCAN = """
    import banaudit
    put("banaudit.audit", scan=answer, Subject=types.SimpleNamespace)
    banaudit.audit = sys.modules["banaudit.audit"]
"""


@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_streams(tmp_path, closed):
    code = (
        f"{INTERRUPTIBLE}{STUB}\n{textwrap.dedent(SCAN)}\nfrom banaudit.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    report = tmp_path / "report.json"
    command = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", sys.executable, "-c", code]
    command += ["scan", "model.pt", "-d", "clean", "--output", f"json={report}", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(report.read_text())["verdict"] == "backdoored"
    if closed == "2":  # nothing meant for standard error ends up among the JSON
        assert json.loads(done.stdout)["verdict"] == "backdoored"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [("scan", "model.pt", "-d", "clean"), ("schema",)])
def test_full_standard_output(tmp_path, arguments):
    code = (
        f"{INTERRUPTIBLE}{STUB}\n{textwrap.dedent(SCAN)}\nfrom banaudit.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    report = tmp_path / "report.json"
    outputs = ("--output", f"json={report}") if arguments[0] == "scan" else ()
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code, *arguments, *outputs]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "banaudit: standard output cannot be written (No space left on device)\n"
    assert report.exists() == bool(outputs)


@pytest.mark.parametrize(("verdict", "code"), [("no evidence", 0), ("backdoored", 1), ("inconclusive", 3)])
def test_nobody_reads_the_report_or_the_messages(tmp_path, verdict, code):
    script = f"""
        from banaudit.results import Verdict
        answer = lambda *_, **__: __import__("samples").report(Verdict({verdict!r}))
    """
    command = [sys.executable, "-c", program(textwrap.dedent(script) + textwrap.dedent(SCAN))]
    report = tmp_path / "report.json"
    command += ["scan", "model.pt", "-d", "clean", "--output", f"json={report}"]
    with unread_pipe() as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=pipe, check=False, timeout=60)
    assert done.returncode == code
    assert json.loads(report.read_text())["verdict"] == verdict


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("scan", "--what"),
        ("scan", "model.pt", "-d", "clean", "--output", "pdf=a"),
        ("scan", "model.pt", "-d", "clean", "--output", "pdf=a", "--verbose"),
    ],
    ids=" ".join,
)
def test_nobody_reads_help_or_mistakes_and_no_model_is_accused(arguments):
    command = [sys.executable, "-c", program(SCAN), *arguments]
    with unread_pipe() as pipe:
        assert subprocess.run(command, stdout=pipe, stderr=pipe, check=False, timeout=60).returncode in {0, 2}


@pytest.mark.parametrize("arguments", [("--help",), ("scan", "--help")], ids=" ".join)
def test_help_of_which_only_the_first_lines_are_read_ends_quietly(arguments):
    command = [sys.executable, "-c", program(SCAN), *arguments]
    with unread_pipe() as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.stderr == b""


@contextlib.contextmanager
def unread_pipe():
    """A pipe whose reader has gone, as behind ``head``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@pytest.mark.parametrize("into", ["pipe", "file"])
def test_two_reports_on_standard_output(tmp_path, into):
    command = [sys.executable, "-c", program(SCAN), "scan", "model.pt", "-d", "clean", "--output", "json=/dev/stdout"]
    if into == "pipe":
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60)
        text = done.stdout.decode()
    else:
        with (tmp_path / "both.txt").open("wb") as stream:
            done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False, timeout=60)
        text = (tmp_path / "both.txt").read_text()
    assert done.returncode == 1
    shown, brace, rest = text.partition("\n{")
    assert "BACKDOORED" in shown
    record, end = json.JSONDecoder().raw_decode(brace.strip() + rest)
    assert record["verdict"] == "backdoored"
    assert (brace.strip() + rest)[end:].strip() == "banaudit: wrote json to /dev/stdout"


def test_light_commands_do_not_import_torch():
    script = "import sys; from banaudit.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    environment = {**os.environ, "COLUMNS": "80"}
    for arguments in (("--help",), ("--version",), ("schema",), ("scan", "--help")):
        command = [sys.executable, "-c", f"{script}; sys.exit(code)", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "banaudit", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"banaudit {__version__}\n")


def test_version(run):
    assert run("--version").out == f"banaudit {__version__}\n"


@pytest.mark.parametrize("kind", ["report", "inspection"])
def test_schema(run, kind):
    done = run("schema", kind)
    assert done.code == 0
    schema = json.loads(done.out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["schema_version"] == "1.2"
    record = samples.report() if kind == "report" else samples.inspection()
    jsonschema.validate(record.model_dump(mode="json"), schema)


@pytest.mark.parametrize("form", ["text", "json"])
def test_inspect(audit, run, form):
    done = run("inspect", "model.pt", "--format", form)
    assert (done.code, done.err) == (0, "")
    assert "resnet18" in done.out
    audit.inspection = samples.inspection(unsafe=True)
    done = run("inspect", "model.pt", "--format", form)
    assert done.code == 1
    assert "os.system" in done.out
    audit.inspection = samples.inspection().model_copy(update={"loadable": False})
    assert run("inspect", "model.pt", "--format", form).code == 2


def test_inspect_of_several_sets_of_weights(audit, run):
    several = {"keys": (), "state_keys": ("model", "model_ema"), "reason": "2 sets of weights", "parameters": 0}
    audit.inspection = samples.inspection().model_copy(update=several)
    done = run("inspect", "model.pt")
    assert done.code == 0
    assert "READABLE, BUT AMBIGUOUS" in done.out
    assert "model_ema" in done.out
    run("inspect", "model.pt", "--state-key", "model_ema")
    assert audit.asked == {"model": Path("model.pt"), "state_key": "model_ema"}
