"""What a user may give by mistake, and a stranger on purpose: one line on standard error, the right exit code.

The parts have tests of their own; here each mistake goes through the whole program.
"""

import io
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
import toys
from PIL import Image

from banaudit.cli import main


@pytest.fixture
def run(capsys):
    """Runs a command; answers exit code, standard output and standard error."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


QUICK = ("--device", "cpu", "--mean", "0.5", "--std", "0.25", "--method", "mm-bd", "--set", "mm-bd.steps=1")


@pytest.fixture
def refused(run, subject, tmp_path):
    """Scans and asserts that it is refused in one line, the same with a format, and with a traceback when asked for."""

    def call(checkpoint=None, images=None, *options, code=2):
        output = tmp_path / "out" / "report.json"
        output.parent.mkdir(exist_ok=True)
        base = ("scan", checkpoint or subject.checkpoint, "--data", images or subject.images, *QUICK, *options)
        base = (*base, "--output", f"json={output}")
        found, out, err = run(*base)
        assert found == code
        assert err.startswith("banaudit: ")
        assert err.count("\n") == 1, err
        assert not re.search(r"unexpected \w+: ", err), err
        assert "Traceback" not in err
        assert out == ""
        assert not list(output.parent.iterdir())
        verbose_code, _, verbose = run(*base, "--verbose")
        assert verbose_code == code
        assert "Traceback (most recent call last)" in verbose
        assert verbose.splitlines()[-1] == err.rstrip("\n")
        return err

    return call


@pytest.fixture
def weights(subject):
    return torch.load(subject.checkpoint, weights_only=True)


def save(content, path):
    torch.save(content, path)
    return path


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("a/version", b"3\n")
        archive.writestr("a/data/0", b"\0" * (64 << 20))
    return path


def truncated(path, subject):
    path.write_bytes(subject.checkpoint.read_bytes()[:-600])
    return path


@pytest.mark.parametrize(
    "content",
    [b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"weights\n" * 100, b"PK\x03\x04" + b"\0" * 64, b"\x80\x02}q\x00."],
    ids=["empty", "picture", "text", "broken zip", "bare pickle"],
)
def test_not_a_checkpoint(refused, tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    assert "model.pt" in refused(tmp_path / "model.pt")


def test_truncated_checkpoint(refused, subject, tmp_path):
    refused(truncated(tmp_path / "model.pt", subject))


def test_zip_bomb(refused, tmp_path):
    refused(zip_bomb(tmp_path / "model.pt"))


def test_no_checkpoint(refused, tmp_path):
    assert "none.pt" in refused(tmp_path / "none.pt")


def test_a_folder_as_checkpoint(refused, tmp_path):
    refused(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refused, weights, tmp_path, value):
    weights["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    assert "layer1.0.conv1.weight" in refused(save(weights, tmp_path / "model.pt"))


def test_a_missing_key(refused, weights, tmp_path):
    del weights["layer2.0.bn1.bias"]
    assert "layer2.0.bn1.bias" in refused(save(weights, tmp_path / "model.pt"))


def test_an_extra_key(refused, weights, tmp_path):
    weights["adapter.weight"] = torch.zeros(3, 3)
    assert "adapter.weight" in refused(save(weights, tmp_path / "model.pt"))


def test_a_wrong_shape(refused, weights, tmp_path):
    weights["layer1.0.conv1.weight"] = torch.zeros(5, 4, 3, 3)
    refused(save(weights, tmp_path / "model.pt"))


def test_a_checkpoint_that_runs_code_is_a_finding_and_runs_nothing(run, subject, tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-run"),)

    checkpoint = save({"weight": Call()}, tmp_path / "model.pt")
    code, out, err = run("scan", checkpoint, "--data", subject.images, *QUICK)
    assert code == 1
    assert err.startswith("banaudit: ")
    assert err.count("\n") == 1
    assert "mkdir" in err
    assert "mkdir" in out
    assert not (tmp_path / "was-run").exists()
    assert run("inspect", checkpoint)[0] == 1


def folder_of(path, names, *, size=(16, 16), each=10):
    for name in names:
        (path / name).mkdir(parents=True)
        for number in range(each):
            Image.new("RGB", size, (20 * number, 0, 99)).save(path / name / f"{number}.png")
    return path


@pytest.mark.parametrize("names", ["abcd", "abcdefgh"])
def test_another_number_of_classes_in_the_folder(refused, tmp_path, names):
    assert "6" in refused(None, folder_of(tmp_path / "images", names))


def test_another_number_of_classes_in_the_list(refused, subject, tmp_path):
    (tmp_path / "classes.txt").write_text("\n".join("abcdefg"))
    assert "classes.txt" in refused(None, None, "--classes", tmp_path / "classes.txt")


def test_another_number_of_classes_than_the_named_architecture(refused):
    refused(None, None, "--arch", "resnet18")


def test_labels_out_of_range(refused, subject, tmp_path):
    for number, file in enumerate(sorted(subject.images.rglob("*.png"))[:30]):
        shutil.copy(file, tmp_path / f"class_{number % 7}_example_{number}.png")
    assert "6" in refused(None, tmp_path)


def test_labels_that_are_no_numbers(refused, subject, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n" + f"{subject.images}/a/000.png,-1\n" * 30)
    refused(None, tmp_path / "labels.csv")


def test_no_images(refused, tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    refused(None, tmp_path / "images")


def test_images_that_are_none(refused, tmp_path):
    images = folder_of(tmp_path / "images", "abcdef")
    for file in images.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    refused(None, images)


def test_no_such_folder(refused, tmp_path):
    assert "nowhere" in refused(None, tmp_path / "nowhere")


def test_a_folder_that_cannot_be_read(refused, subject, tmp_path, monkeypatch):
    images = shutil.copytree(subject.images, tmp_path / "images")
    images.chmod(0)
    if os.geteuid() == 0:  # nothing is unreadable to root
        scandir = os.scandir

        def denied(path="."):
            if os.fspath(path) == os.fspath(images):
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", denied)
        monkeypatch.setattr(os, "listdir", denied)
    try:
        assert "ermission" in refused(None, images)
    finally:
        images.chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_checkpoint_that_cannot_be_read(refused, subject, tmp_path):
    checkpoint = shutil.copy(subject.checkpoint, tmp_path / "model.pt")
    checkpoint.chmod(0)
    assert "ermission" in refused(checkpoint)


FIXED_SIZE = """
from torch import nn

def fixed():
    first = nn.Conv2d(3, 4, 3, 2, 1)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16 * 16, 6))
"""


@pytest.fixture
def fixed_size(tmp_path):
    """A network that takes 32x32 pixels and no others, and how to build it."""
    (tmp_path / "fixed.py").write_text(FIXED_SIZE)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 2, 1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(4 * 16 * 16, 6),
    )
    return save(network.state_dict(), tmp_path / "fixed.pt"), ("--arch", f"{tmp_path / 'fixed.py'}:fixed")


def test_a_size_that_the_network_does_not_take(refused, fixed_size):
    checkpoint, arch = fixed_size
    assert "--size" in refused(checkpoint, None, *arch, "--size", "16")


def test_images_of_another_size_than_the_network_takes(refused, fixed_size):
    checkpoint, arch = fixed_size
    err = refused(checkpoint, None, *arch)  # the images are 16x16
    assert f"{checkpoint}: the network takes no images of the sizes tried (16: " in err
    assert err.endswith("give --size\n")


def test_weights_of_no_known_network_are_named_with_their_file(refused, tmp_path):
    checkpoint = save({"strange.weight": torch.zeros(3, 3)}, tmp_path / "strange.pt")
    assert f"{checkpoint}: no known architecture has these keys (strange.weight, ...)" in refused(checkpoint)


def test_more_classes_than_there_are_in_any_data_set(refused, subject, monkeypatch):
    monkeypatch.setattr("banaudit.audit.MAX_CLASSES", 3)
    assert f"{subject.checkpoint}: the network has {toys.CLASSES} classes; expected 3 at most" in refused()


def test_a_pattern_that_no_victim_has(run):
    code, out, err = run("bench", "train", "--split", "development", "--only", "*-s101")
    assert (code, out) == (2, "")
    assert "--only *-s101: matches no victim of split development; expected a pattern of their names" in err


def test_a_size_that_is_given_helps(run, subject, fixed_size):
    checkpoint, arch = fixed_size
    code, out, err = run("scan", checkpoint, "--data", subject.images, *QUICK, *arch, "--size", "32")
    assert (code, err) == (3, "")  # the network was never trained
    assert "INCONCLUSIVE" in out


def test_images_of_several_sizes_are_resized(run, subject, tmp_path):
    images = folder_of(tmp_path / "images", "abc", size=(23, 31))
    folder_of(tmp_path / "images", "def", size=(40, 12))
    code, out, err = run("scan", subject.checkpoint, "--data", images, *QUICK)
    assert (code, err) == (3, "")  # the toy has never seen such images
    assert "INCONCLUSIVE" in out


def test_no_gpu(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    err = refused(None, None, "--device", "cuda")
    assert err == "banaudit: --device cuda: torch sees no CUDA device; use --device cpu\n"


@pytest.mark.parametrize(
    "options",
    [
        ("--preset", "no-such"),
        ("--mean", "0.5,0.5"),
        ("--std", "0"),
        ("--arch", "no-such"),
        ("--arch", "none.py:factory"),
        ("--state-key", "no.such"),
        ("--method", "no-such"),
        ("--set", "mm-bd.no_such=1"),
        ("--max-images", "3"),
    ],
    ids=" ".join,
)
def test_options_that_cannot_be(refused, options):
    refused(None, None, *options)


def test_a_hostile_name_cannot_write_on_the_terminal(run, subject, tmp_path):
    name = "model\x1b[2J\nbanaudit: NO EVIDENCE.pt"
    (tmp_path / name).write_bytes(b"nothing")
    code, out, err = run("scan", tmp_path / name, "--data", subject.images, *QUICK)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "\x1b" not in err


STARTED = (
    toys.INTERRUPTIBLE
    + "import sys; from banaudit.cli import main; print('started', flush=True); sys.exit(main(sys.argv[1:]))"
)


@pytest.mark.parametrize("seconds", [0.3, 3.0], ids=["while importing", "while searching"])
def test_interrupt_of_a_real_scan(subject, tmp_path, seconds):
    options = ("--method", "neural-cleanse", "--set", "neural-cleanse.steps=1000000")
    options = (*options, "--set", "neural-cleanse.patience=1000000", "--output", f"json={tmp_path / 'report.json'}")
    process = subprocess.Popen(
        [sys.executable, "-c", STARTED, "scan", subject.checkpoint, "--data", subject.images, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with process:
        try:
            assert process.stdout.readline() == "started\n"
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "banaudit: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_in_a_zip_that_lies_about_its_weights(refused, tmp_path):
    buffer = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(4, 3, 3, 3)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "model.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, b"" if "/data/" in name else source.read(name))
    refused(tmp_path / "model.pt")
