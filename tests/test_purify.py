from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, final

import jsonschema
import pytest
import torch
from PIL import Image
from pydantic import PrivateAttr
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from toys import INTERRUPTIBLE, found_by

from banaudit import preflight, relapse
from banaudit.after_repair import (
    Accuracies,
    _verdict,
)
from banaudit.architectures import load_network
from banaudit.audit import Subject
from banaudit.data import CleanData
from banaudit.demo import examples
from banaudit.detectors import Detector, default_detectors
from banaudit.detectors.base import Found
from banaudit.errors import BanauditError, DataError, UnsupportedModelError, UsageError
from banaudit.mitigations import BANFineTuning, FeatureFlip, FineTuning
from banaudit.purify import (
    _part_images,
    _require_enough,
    _require_suspicion,
    _scanned_again,
    _suspected,
    purify,
)
from banaudit.reports import json_text, repair, scan, terminal
from banaudit.results import EXIT_CODES, Evidence, Reading, Repair, UnlearnedChange, Verdict

pytestmark = pytest.mark.usefixtures("short_probe")

TARGET = 3


@final
class Oracle(Detector):
    """Says what it is told to, one answer a scan."""

    name: ClassVar[str] = "oracle"
    title: ClassVar[str] = "a double for tests"
    misses: ClassVar[str] = "everything"

    _answers: list[bool] = PrivateAttr(default_factory=list)

    def search(self, model, samples, generator, meter):
        fired = self._answers.pop(0)
        return Found(
            [
                Evidence(
                    reading=Reading.ALL_TO_ONE,
                    measures="none",
                    score=float(fired),
                    threshold=0.5,
                    fired=fired,
                    target=TARGET if fired else None,
                )
            ]
        )

    def planned_images(self, num_classes, images):
        return 0


@pytest.fixture
def demo():
    with examples() as models:
        yield models[0]


def subject(demo, **known):
    return Subject(**{"model": demo.model, "data": demo.images, "mean": demo.mean, "std": demo.std, **known})


def run(demo, out, *answers, known=None, mitigation=None, **settings):
    oracle = Oracle()
    oracle._answers.extend(answers)
    return purify(
        subject(demo, **{"max_images": 100, **(known or {})}),
        out,
        mitigation=mitigation or FineTuning(epochs=1, learning_rate=1e-4, batch_size=32),
        detectors=[oracle],
        device="cpu",
        **{"max_drop": 0.5, **settings},
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def exchange_classes(demo, folder, one, other):
    """The demo's images, with the folders of two classes exchanged."""
    names = {one: other, other: one}
    for source in demo.images.iterdir():
        if source.is_dir():
            shutil.copytree(source, folder / names.get(source.name, source.name))
    return folder


@pytest.mark.parametrize("floor", [None, 0.01])
def test_exchanged_classes_are_not_taught(demo, tmp_path, floor):
    one, other = sorted(path.name for path in demo.images.iterdir() if path.is_dir())[:2]
    images = exchange_classes(demo, tmp_path / "images", one, other)
    with pytest.raises(DataError, match=f"the class order looks wrong: images of . '{one}' are answered . '{other}'"):
        run(demo, tmp_path / "out", True, False, known={"data": images, "accuracy_floor": floor}, force=True)
    assert files(tmp_path) == ["images"]


def test_the_floor_holds_in_both_scans(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "default_floor", lambda classes: 1.1)
    record = run(demo, tmp_path / "out", True, False, known={"accuracy_floor": 0.3})
    assert record.before.findings
    assert record.after.findings
    assert (record.before.clean_accuracy.floor, record.after.clean_accuracy.floor) == (0.3, 0.3)


def test_nothing_is_repaired_that_no_method_could_judge(demo, tmp_path):
    with pytest.raises(UsageError, match=r"no method speaks against the model, .*\(no method ran\).*--force"):
        purify(subject(demo, max_images=100), tmp_path / "out", detectors=[], device="cpu")
    assert files(tmp_path) == []


def test_output_whose_name_is_no_text(demo, tmp_path):
    out = tmp_path / os.fsdecode(b"rep\xff.safetensors")
    assert run(demo, out, True, False).written
    assert load(out.read_bytes()).keys() == load_file(demo.model).keys()
    assert json.loads(out.with_name(f"{out.name}.json").read_text(encoding="ascii"))["path"] == str(out)


@pytest.mark.parametrize(
    ("classes", "images", "apart"),
    [(10, 1000, True), (10, 900, False), (250, 1000, False), (250, 4000, True), (700, 6000, True)],
)
def test_untouched_images_are_scanned_alone_only_where_a_scan_would_take_them(classes, images, apart):
    names = tuple(map(str, range(classes)))
    data = CleanData(torch.zeros(images, 1, 2, 2), torch.arange(images) % classes, names)
    parts = _part_images(data, 0)
    again = _scanned_again(parts, accused_by("mm-bd"), default_detectors())
    assert (len(again) <= len(parts.untouched)) is apart
    assert (again is parts.scan) is not apart
    assert len(parts.scan) == min(len(data), max(1000, 10 * classes))  # as many as every default method needs
    assert int(torch.bincount(again.labels, minlength=classes).min()) >= 2


def accused_by(*methods):
    return SimpleNamespace(findings=[SimpleNamespace(method=name, verdict=Verdict.BACKDOORED) for name in methods])


@pytest.mark.parametrize(
    ("images", "methods", "apart"),
    [
        (1200, ["pair-perturbation"], False),
        (2000, ["pair-perturbation"], True),
        (1200, ["mm-bd"], True),
        (1200, ["mm-bd", "pair-perturbation"], False),
        (1200, [], True),
    ],
)
def test_no_method_that_accused_is_left_out_of_the_second_scan(images, methods, apart):
    data = CleanData(torch.zeros(images, 1, 2, 2), torch.arange(images) % 10, tuple("abcdefghij"))
    parts = _part_images(data, 0)
    again = _scanned_again(parts, accused_by(*methods), default_detectors())
    assert again is (parts.rescan if apart else parts.scan)
    assert len(again) == (images // 4 if apart else 1000)


def test_methods_of_the_users_choice_all_scan_again():
    data = CleanData(torch.zeros(1200, 1, 2, 2), torch.arange(1200) % 10, tuple("abcdefghij"))
    parts = _part_images(data, 0)
    assert _scanned_again(parts, found_by("mm-bd", "pair-perturbation"), default_detectors()) is parts.rescan
    chosen = [detector for detector in default_detectors() if detector.name in {"mm-bd", "pair-perturbation"}]
    assert _scanned_again(parts, found_by("mm-bd", "pair-perturbation"), chosen) is parts.scan


def test_a_method_that_no_number_of_images_suits_costs_no_untouched_scan():
    data = CleanData(torch.zeros(1200, 1, 2, 2), torch.arange(1200) % 6, tuple("abcdef"))
    parts = _part_images(data, 0)
    chosen = [detector for detector in default_detectors() if detector.name in {"mm-bd", "pair-perturbation"}]
    assert _scanned_again(parts, found_by("mm-bd", "pair-perturbation"), chosen) is parts.rescan


def test_the_probe_takes_all_classes_where_a_reading_of_them_fired_too():
    def fired(reading, target, sources=()):
        return SimpleNamespace(fired=True, reading=reading, target=target, sources=sources)

    def report(*readings):
        return SimpleNamespace(
            target=2,
            sources=(0,),
            reading=Reading.SOURCE_TARGET,
            mapping=None,
            class_names=tuple("abcd"),
            findings=[SimpleNamespace(evidence=readings)],
        )

    pair = fired(Reading.SOURCE_TARGET, 2, (0,))
    assert _suspected(report(pair)) == ({0: 2}, Reading.SOURCE_TARGET)
    assert _suspected(report(pair, fired(Reading.ALL_TO_ONE, 3))) == ({0: 2}, Reading.SOURCE_TARGET)
    assert _suspected(report(pair, fired(Reading.ALL_TO_ONE, 2))) == ({0: 2, 1: 2, 3: 2}, Reading.ALL_TO_ONE)


def test_record_tells_of_few_untouched_images(demo, tmp_path, monkeypatch):
    monkeypatch.setattr("banaudit.purify.compare", lambda *_: Accuracies(0.9, 0.9, 0.4))
    record = run(demo, tmp_path / "out", True, False)
    assert any("untouched images are too few to tell" in caveat for caveat in record.caveats)


def test_record_counts_the_epochs_before_an_interruption(demo, tmp_path):
    mitigation = FineTuning(epochs=3, learning_rate=1e-4, batch_size=32)
    whole = run(demo, tmp_path / "whole", True, False, mitigation=mitigation)
    assert not any(item.earlier for item in whole.epochs)

    def stop(what, _):
        if what.startswith("epoch 3/3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(demo, tmp_path / "out", True, False, mitigation=mitigation, listener=stop)
    state = tmp_path / ".out.purify"
    saved = torch.load(state, weights_only=True)
    torch.save({**saved, "seconds": 7200.0}, state)
    record = run(demo, tmp_path / "out", True, False, mitigation=mitigation)
    assert [item.earlier for item in record.epochs] == [True, True, False]
    assert record.forward_images == whole.forward_images
    assert record.backward_images == whole.backward_images
    assert 7200 < record.seconds < 7200 + 3600


@pytest.mark.parametrize(("named", "aimed_at"), [(None, TARGET), (1, 1)])
def test_repair_of_one_class_is_aimed_where_the_scan_points(demo, tmp_path, named, aimed_at):
    mitigation = FeatureFlip(target=named, warm_up=1, steps=1, width=4)
    record = run(demo, tmp_path / "out.safetensors", True, False, mitigation=mitigation)
    assert record.made.settings["target"] == aimed_at
    assert f"features of class {aimed_at}" in record.epochs[0].what


@final
class Mapped(Detector):
    """Accuses every model of a target for each class."""

    name: ClassVar[str] = "mapped"
    title: ClassVar[str] = "a double for tests"
    misses: ClassVar[str] = "everything"

    def search(self, model, samples, generator, meter):
        mapping = {label: (label + 1) % samples.num_classes for label in range(samples.num_classes)}
        return Found(
            [
                Evidence(
                    reading=Reading.ALL_TO_ALL, measures="none", score=1.0, threshold=0.5, fired=True, mapping=mapping
                )
            ]
        )

    def planned_images(self, num_classes, images):
        return 0


def test_what_repairs_one_class_is_not_let_at_a_target_for_each(demo, tmp_path):
    with pytest.raises(UsageError, match="a target for each; use another method"):
        purify(
            subject(demo, max_images=100),
            tmp_path / "out",
            mitigation=FeatureFlip(),
            detectors=[Mapped()],
            device="cpu",
        )
    assert files(tmp_path) == []


@pytest.mark.parametrize(("each", "enough"), [(2, False), (3, True)])
def test_a_repair_takes_three_images_of_a_class(each, enough):
    labels = torch.arange(30).repeat_interleave(each)
    data = CleanData(torch.zeros(len(labels), 1, 2, 2), labels, tuple(str(label) for label in range(30)))
    parts = _part_images(data, 0)
    if enough:
        _require_enough(parts, Path("images"))
        return
    with pytest.raises(DataError, match="60 images of 30 classes are too few for a repair"):
        _require_enough(parts, Path("images"))


def test_repaired_file_is_a_drop_in(demo, tmp_path):
    before = hashlib.sha256(demo.model.read_bytes()).hexdigest()
    told = []
    out = tmp_path / "out.safetensors"
    record = run(demo, out, True, False, listener=lambda what, share: told.append((what, share)))
    assert hashlib.sha256(demo.model.read_bytes()).hexdigest() == before == record.parent.sha256
    assert files(tmp_path) == ["out.safetensors", "out.safetensors.json"]
    assert (record.verdict, record.written, EXIT_CODES[record.verdict]) == (Verdict.NO_EVIDENCE, True, 0)
    assert record.sha256 == hashlib.sha256(out.read_bytes()).hexdigest() == record.after.checkpoint.sha256
    old, new = load_file(demo.model), load_file(out)
    assert old.keys() == new.keys()
    assert all(old[key].dtype == new[key].dtype and old[key].shape == new[key].shape for key in old)
    assert not all(torch.equal(old[key], new[key]) for key in old)
    load_network(dict(old)).network.load_state_dict(new, strict=True)
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["banaudit"])["parent_sha256"] == before
    account = json.loads((tmp_path / "out.safetensors.json").read_text())
    jsonschema.validate(account, json_text.schema("repair"))
    assert Repair.model_validate(account) == record
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert 0.75 < shares[-1] <= 1
    assert any(what.startswith("epoch 1/1, loss") for what, _ in told)


def test_images_have_one_use_each(demo, tmp_path):
    record = run(demo, tmp_path / "out", True, False)
    made = record.made
    assert made.training_images + made.selection_images + made.untouched_images == record.before.data.used


@pytest.mark.parametrize(
    ("answers", "expected"), [((True, True), Verdict.BACKDOORED), ((True, False), Verdict.NO_EVIDENCE)]
)
def test_verdict_is_that_of_the_second_scan(demo, tmp_path, answers, expected):
    record = run(demo, tmp_path / "out", *answers)
    assert record.verdict is expected
    assert record.written
    shown = terminal.render(repair.document(record), terminal.plain_console())
    assert expected.value.upper() in shown
    assert f"all-to-one: 1 (fired) before, {'1 (fired)' if answers[1] else '0'} after (threshold 0.5)" in shown
    # A long path is broken anywhere, within the word too.
    assert "safe" not in "".join(shown.lower().split()).replace("safetensors", "")


@pytest.mark.parametrize(
    ("again", "expected"),
    [(("ban",), Verdict.INCONCLUSIVE), (("ban", "mm-bd"), Verdict.NO_EVIDENCE), (("mm-bd",), Verdict.NO_EVIDENCE)],
)
def test_methods_that_the_repair_trains_against_do_not_clear_its_result_by_themselves(demo, tmp_path, again, expected):
    after = run(demo, tmp_path / "out", True, False).after
    (finding, *_) = after.findings
    after = after.model_copy(update={"findings": tuple(finding.model_copy(update={"method": name}) for name in again)})
    verdict, reason = _verdict(after, None, BANFineTuning.trains_against)
    assert verdict is expected
    assert ("scanned by ban alone" in reason) == (expected is Verdict.INCONCLUSIVE)


def test_a_backdoor_that_comes_back_is_an_accusation(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(relapse, "THRESHOLDS", {Reading.ALL_TO_ONE: -1.0})
    record = run(demo, tmp_path / "out", True, False)
    assert record.after.verdict is Verdict.NO_EVIDENCE
    assert (record.verdict, record.written) == (Verdict.BACKDOORED, True)
    assert record.reason == "the backdoor comes back after a few steps of fine-tuning"


def test_an_input_that_can_only_be_read_is_enough(demo, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    model = Path(shutil.copy(demo.model, folder / "model.safetensors"))
    model.chmod(0o444)
    folder.chmod(0o555)
    try:
        record = run(demo, tmp_path / "out", True, False, known={"model": model})
    finally:
        folder.chmod(0o755)
    assert record.written
    assert files(folder) == ["model.safetensors"]


def test_the_report_says_what_does_not_count_and_what_was_tried(demo, tmp_path):
    record = run(demo, tmp_path / "out", True, False)
    (finding,) = (item for item in record.before.findings if item.evidence and item.evidence[0].fired)
    held_back = finding.evidence[0].model_copy(update={"fired": False, "label": "by the mask"})
    before = record.before.model_copy(update={"findings": (finding.model_copy(update={"evidence": (held_back,)}),)})
    changes = (UnlearnedChange(kind="patch", target=1), UnlearnedChange(kind="perturbation", target=1))
    attempts = ("strength 1 of 5: given up", "strength 2 of 5: kept")
    made = record.made.model_copy(update={"attempts": attempts, "unlearned": changes})
    told = record.model_copy(update={"before": before, "made": made})
    shown = " ".join(terminal.render(repair.document(told), terminal.plain_console()).split())
    assert "by the mask: 1 (does not count) before, 0 after (threshold 0.5)" in shown
    assert "attempts strength 1 of 5: given up strength 2 of 5: kept" in shown
    name = scan.class_name(record.before, 1)
    assert f"unlearned a patch that leads to {name}, its mask far smaller than any for another class" in shown
    assert f"small changes of all pixels that lead to {name}, far sooner than to any other class" in shown


def test_the_report_passes_on_what_both_scans_say_of_themselves(demo, tmp_path):
    record = run(demo, tmp_path / "out", True, False)
    before, after = (
        scanned.model_copy(update={"caveats": ("few images", caveat)})
        for scanned, caveat in ((record.before, "low accuracy"), (record.after, "lower accuracy"))
    )
    told = record.model_copy(update={"before": before, "after": after, "caveats": ("seen images",)})
    (row,) = (row for part in repair.document(told).sections for row in part.blocks if row.label == "caveats")
    assert row.texts == (
        "seen images",
        "scan before: few images",
        "scan before: low accuracy",
        "scan after: lower accuracy",
    )


def test_no_evidence_needs_force(demo, tmp_path):
    with pytest.raises(UsageError, match=r"no evidence of a backdoor.*--force"):
        run(demo, tmp_path / "out", False)
    assert files(tmp_path) == []
    record = run(demo, tmp_path / "out", False, False, force=True)
    assert record.written
    assert record.relapse is None


def test_missed_budget_writes_nothing(demo, tmp_path):
    record = run(
        demo, tmp_path / "out", True, mitigation=FineTuning(epochs=1, learning_rate=2.0, momentum=0.0), max_drop=0.0
    )
    assert (record.verdict, record.written, record.path) == (Verdict.INCONCLUSIVE, False, None)
    assert "--max-drop" in record.reason
    assert files(tmp_path) == []
    assert "NOT REPAIRED" in terminal.render(repair.document(record), terminal.plain_console())


def test_existing_output(demo, tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        run(demo, out, True, False)
    assert out.read_text() == "mine"
    assert run(demo, out, True, False, force=True).written
    assert load_file(out)


def test_bad_places(demo, tmp_path):
    with pytest.raises(UsageError, match="No such file or directory"):
        run(demo, tmp_path / "no" / "out", True, False)
    with pytest.raises(UsageError, match="is the input itself"):
        run(demo, demo.model, True, False, force=True)


def test_full_disk(demo, tmp_path, monkeypatch):
    written = []

    def fill(number):
        written.append(number)
        if len(written) == 2:  # the first is the state after the epoch
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(UsageError, match="No space left on device"):
        run(demo, tmp_path / "out", True, False)
    assert files(tmp_path) == [".out.purify"]


def test_fewer_images_than_classes(demo, tmp_path):
    folder = tmp_path / "few"
    for name in sorted(path.name for path in demo.images.iterdir())[:3]:
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / name / "a.png")
    with pytest.raises(BanauditError) as caught:
        purify(subject(demo, data=folder), tmp_path / "out", device="cpu")
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == ["few"]


def test_network_that_misreads_its_images(demo, tmp_path):
    with pytest.raises(DataError, match="below the floor"):
        purify(subject(demo, mean=(0.0,), std=(0.001,)), tmp_path / "out", device="cpu")


def test_network_without_batch_norm(demo, tmp_path):
    code = tmp_path / "net.py"
    code.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10))\n"
    )
    save_file({"2.weight": torch.rand(10, 48), "2.bias": torch.rand(10)}, tmp_path / "m.safetensors")
    with pytest.raises(
        UnsupportedModelError, match=r"m.safetensors: ban: this method needs BatchNorm.* these fit: fine-tuning"
    ):
        run(
            demo,
            tmp_path / "out",
            True,
            False,
            known={"model": tmp_path / "m.safetensors", "arch": f"{code}:make", "accuracy_floor": 0.0},
            mitigation=BANFineTuning(),
        )


SCRIPT = """
import sys
from pathlib import Path
from banaudit.audit import Subject
from banaudit.demo import examples
from banaudit.detectors import TargetedNoise
from banaudit.mitigations import FineTuning
from banaudit.purify import purify
with examples() as models:
    demo = models[0]
    subject = Subject(demo.model, demo.images, mean=demo.mean, std=demo.std, max_images=100)
    purify(subject, Path(sys.argv[1]), mitigation=FineTuning(epochs=500), force=True, max_drop=1.0, detectors=[],
           device="cpu")
"""


def test_killed_midway(tmp_path):
    numbers = {"killed": signal.SIGKILL, "interrupted": signal.SIGINT}
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", INTERRUPTIBLE + SCRIPT, str(tmp_path / name)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in numbers
    }
    for name, process in processes.items():
        state, deadline = tmp_path / f".{name}.purify", time.monotonic() + 60
        while not state.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(numbers[name])
        assert process.wait(timeout=30) != 0
        assert not (tmp_path / name).exists()
        assert not (tmp_path / f"{name}.json").exists()
        assert torch.load(state, weights_only=True)["states"]
        told = second_call(tmp_path / name)
        assert int(told.split("epoch ")[1].split("/")[0]) > 1
        assert state.exists()


def second_call(out):
    """What the first epoch of the same call is that a killed one made."""

    class Enough(Exception):  # noqa: N818 - stands for the end of the process
        pass

    def stop(what, _):
        if what.startswith("epoch ") and "/500" in what:
            raise Enough(what)

    with examples() as models, pytest.raises(Enough) as stopped:
        purify(
            subject(models[0], max_images=100),
            out,
            mitigation=FineTuning(epochs=500),
            force=True,
            max_drop=1.0,
            detectors=[],
            device="cpu",
            listener=stop,
        )
    return str(stopped.value)


@pytest.mark.parametrize("verdicts", [(), (Verdict.INCONCLUSIVE,), (Verdict.INCONCLUSIVE, Verdict.NO_EVIDENCE)])
def test_a_model_that_no_method_speaks_against_is_not_repaired(verdicts):
    findings = tuple(SimpleNamespace(verdict=verdict) for verdict in verdicts)
    before = SimpleNamespace(verdict=Verdict.INCONCLUSIVE, reason="no method fits", findings=findings)
    with pytest.raises(UsageError, match="no method speaks against the model"):
        _require_suspicion(before, "model.pt")


def test_an_accusation_beside_a_method_that_cannot_judge_is_enough():
    findings = tuple(SimpleNamespace(verdict=verdict) for verdict in (Verdict.INCONCLUSIVE, Verdict.BACKDOORED))
    _require_suspicion(SimpleNamespace(verdict=Verdict.INCONCLUSIVE, reason="", findings=findings), "model.pt")


@pytest.mark.parametrize(
    ("problem", "kept"), [(UnsupportedModelError("nothing to prune"), False), (UsageError("disk full"), True)]
)
def test_a_state_that_leads_nowhere_is_not_left_behind(demo, tmp_path, monkeypatch, problem, kept):
    def repair(self, job):
        job.progress.save({})
        raise problem

    monkeypatch.setattr(FineTuning, "repair", repair)
    with pytest.raises(type(problem)):
        run(demo, tmp_path / "out", True, False)
    assert files(tmp_path) == ([".out.purify"] if kept else [])
