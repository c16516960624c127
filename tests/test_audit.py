"""From a checkpoint and a folder to a report, and how findings become one verdict."""

import dataclasses
import json
import shutil
import time

import jsonschema
import pytest
import torch
import toys

import banaudit
from banaudit.architectures import SplitModel
from banaudit.architectures.base import SplitNetwork
from banaudit.audit import (
    NOT_CHECKED,
    Subject,
    combine,
    facts_of,
    inspect,
    judge,
    pick_device,
    prepare,
    scan,
)
from banaudit.data import CleanData
from banaudit.detectors.base import Found
from banaudit.detectors.mixtures import Mixtures
from banaudit.detectors.mm_bd import MMBD
from banaudit.detectors.pair_perturbation import PairPerturbation
from banaudit.detectors.targeted_noise import TargetedNoise
from banaudit.errors import ArchitectureError, CheckpointError, DataError, UnsafeCheckpointError, UsageError
from banaudit.meter import Meter
from banaudit.reports import json_text
from banaudit.results import Evidence, Finding, Reading, Report, Verdict

QUICK = (
    TargetedNoise(steps=3, search_images=12, mapping_images=16, read_images=24),
    MMBD(images=2, steps=4),
)
NORMALISATION = {"mean": (0.5,), "std": (0.25,)}


def evidence(score, *, fired, threshold=0.5, reading=Reading.ALL_TO_ONE, **more):
    return Evidence(reading=reading, measures="share", score=score, threshold=threshold, fired=fired, **more)


def finding(verdict, *readings, method="first", reason="because"):
    return Finding(method=method, title="a method", verdict=verdict, reason=reason, evidence=readings)


QUIET = finding(Verdict.NO_EVIDENCE, evidence(0.1, fired=False))
FIRED = finding(Verdict.BACKDOORED, evidence(0.6, fired=True, target=4), method="second")
LOUD = finding(Verdict.BACKDOORED, evidence(0.3, threshold=0.1, fired=True, reading=Reading.ALL_TO_ALL), method="third")
UNDECIDED = finding(Verdict.INCONCLUSIVE, method="fourth", reason="needs BatchNorm")
LATE = finding(Verdict.INCONCLUSIVE, method="fifth", reason="the time limit of 1 s ended during: noise")


@pytest.mark.parametrize(
    ("findings", "against", "verdict", "reason"),
    [
        ((QUIET, QUIET), (), Verdict.NO_EVIDENCE, "no reading of first, first fired"),
        ((QUIET, FIRED), (), Verdict.BACKDOORED, "second, all-to-one: score 0.6 above threshold 0.5"),
        ((FIRED, LOUD), (), Verdict.BACKDOORED, "third, all-to-all: score 0.3 above threshold 0.1"),
        ((QUIET, UNDECIDED), (), Verdict.INCONCLUSIVE, "fourth: needs BatchNorm"),
        ((LATE, UNDECIDED), (), Verdict.INCONCLUSIVE, "fifth: the time limit of 1 s ended during: noise"),
        ((UNDECIDED, FIRED), (), Verdict.BACKDOORED, "second, all-to-one: score 0.6 above threshold 0.5"),
        ((QUIET,), ("low accuracy", "few images"), Verdict.INCONCLUSIVE, "low accuracy"),
        (
            (FIRED,),
            ("low accuracy",),
            Verdict.INCONCLUSIVE,
            "low accuracy; note second, all-to-one: score 0.6 above threshold 0.5",
        ),
        ((), (), Verdict.INCONCLUSIVE, "no method ran"),
        ((), ("low accuracy",), Verdict.INCONCLUSIVE, "low accuracy"),
    ],
)
def test_one_verdict_of_many_findings(findings, against, verdict, reason):
    assert combine(findings, against)[:2] == (verdict, reason)


def test_the_strongest_reading_is_furthest_above_its_threshold():
    strongest = combine((FIRED, LOUD))[2]
    assert strongest == (LOUD, LOUD.evidence[0])
    assert combine((QUIET,))[2] is None


@pytest.mark.parametrize(("target", "kind"), [(1, Reading.SOURCE_TARGET), (2, Reading.ALL_TO_ONE)])
def test_a_reading_that_names_the_source_of_the_same_target_says_more(target, kind):
    all_to_one = finding(Verdict.BACKDOORED, evidence(9.0, fired=True, target=1))
    pair = finding(
        Verdict.BACKDOORED, evidence(0.7, fired=True, reading=Reading.SOURCE_TARGET, target=target, sources=(3,))
    )
    assert combine((all_to_one, pair))[2][1].reading is kind


def described(subject, **known):
    return Subject(subject.checkpoint, subject.images, **{**NORMALISATION, **known})


def scan_subject(subject, *, detectors=QUICK, seed=0, time_limit=None, listener=None, **known):
    return scan(
        described(subject, **known),
        detectors=detectors,
        seed=seed,
        device="cpu",
        time_limit=time_limit,
        listener=listener,
    )


@pytest.fixture(scope="module")
def report(subject):
    return scan_subject(subject, seed=3)


def test_a_report_says_what_was_judged_and_how(report, subject):
    assert report.verdict is not Verdict.INCONCLUSIVE
    assert report.clean_accuracy.accuracy > 0.9
    assert (report.clean_accuracy.images, report.clean_accuracy.floor) == (180, 0.6)
    assert report.checkpoint.path == str(subject.checkpoint)
    assert (report.checkpoint.format, report.architecture.name) == ("torch zip", "resnet8")
    assert (report.architecture.classes, report.architecture.source) == (6, "recognised")
    assert (report.preprocessing.size, report.preprocessing.mean) == (toys.SIDE, (0.5,) * 3)
    assert report.data.class_mapping == {name: label for label, name in enumerate("abcdef")}
    assert report.class_names == tuple("abcdef")
    ran = ["targeted-noise", "mm-bd", "joint-evidence"]
    assert [found.method for found in report.findings] == ran
    assert [line.partition(":")[0] for line in report.checked] == ran
    assert report.not_checked[-len(NOT_CHECKED) :] == NOT_CHECKED
    missed = [line.partition(":")[0] for line in report.not_checked[: -len(NOT_CHECKED)]]
    assert missed == ["known to be missed by targeted-noise", "known to be missed by mm-bd"]
    assert report.calibration.startswith("uncalibrated")
    assert report.p_value is None
    assert (report.seed, report.device, report.tool_version) == (3, "cpu", banaudit.__version__)


def test_a_report_survives_json_and_follows_its_schema(report):
    text = json_text.render(report)
    assert Report.model_validate_json(text) == report
    jsonschema.validate(json.loads(text), json_text.schema("report"))
    assert "safe" not in text.replace("unsafe", "").replace("safetensors", "")


def timeless(report):
    findings = tuple(found.model_copy(update={"seconds": 0.0}) for found in report.findings)
    return report.model_copy(update={"seconds": 0.0, "started": "", "findings": findings})


def test_same_seed_same_report(report, subject):
    assert timeless(scan_subject(subject, seed=3)) == timeless(report)


def test_preprocessing_is_found_when_nobody_says(subject):
    found = scan_subject(subject, mean=None, std=None, detectors=()).preprocessing
    assert found.source == "chosen by clean accuracy"
    assert len(found.tried) > 5


def test_without_a_method_there_is_no_verdict(subject):
    report = scan_subject(subject, detectors=())
    assert (report.verdict, report.reason) == (Verdict.INCONCLUSIVE, "no method ran")


def test_progress_is_told_and_ends_at_the_whole(subject):
    heard = []
    scan_subject(subject, listener=lambda what, share: heard.append((what, share)))
    shares = [share for what, share in heard if what.startswith(("targeted-noise", "maximum"))]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("moment", ["clean accuracy", "targeted-noise, restart 1"])
def test_at_the_time_limit_the_verdict_is_inconclusive(subject, moment, monkeypatch):
    clock = time.monotonic

    def listener(what, share):
        if what.startswith(moment):
            monkeypatch.setattr(time, "monotonic", lambda: clock() + 1000)

    report = scan_subject(subject, time_limit=100.0, listener=listener)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert f"the time limit of 100 s ended during: {moment}" in report.reason
    assert report.checked == ()
    assert (report.checkpoint.path, report.device) == (str(subject.checkpoint), "cpu")
    assert Report.model_validate_json(json_text.render(report)) == report


def rename_classes(source, target, renamed):
    """The same images with the class folders renamed."""
    for name in "abcdef":
        shutil.copytree(source / name, target / renamed[name])
    return target


def test_a_wrong_class_order_is_named_and_no_method_runs(subject, tmp_path):
    images = rename_classes(subject.images, tmp_path, dict(zip("abcdef", "bcdefa", strict=True)))
    report = scan_subject(dataclasses.replace(subject, images=images))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.findings == ()
    assert report.clean_accuracy.accuracy < 0.2
    assert report.clean_accuracy.label_permutation == {0: 5, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4}
    assert report.clean_accuracy.permuted_accuracy > 0.9
    assert "below the floor of 60%" in report.reason
    assert "the class order looks wrong: images of 0 'a' are answered 5 'f', images of 1 'b'" in report.reason
    assert report.target is None


@pytest.mark.parametrize("floor", [None, 0.2])
def test_two_classes_exchanged_are_named_above_the_floor(subject, tmp_path, floor):
    images = rename_classes(subject.images, tmp_path, dict(zip("abcdef", "bacdef", strict=True)))
    report = scan_subject(dataclasses.replace(subject, images=images), accuracy_floor=floor)
    assert report.clean_accuracy.accuracy >= report.clean_accuracy.floor
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.findings == ()
    assert report.reason.startswith(
        "the class order looks wrong: images of 0 'a' are answered 1 'b', images of 1 'b' are answered 0 'a'; "
    )
    assert report.reason.endswith("name that order with --classes")


class OneAnswer(toys.TinyNetwork):
    """A network that always answers the first class."""

    def head(self, features):
        return super().head(features) * 0 + torch.nn.functional.one_hot(torch.tensor(0), toys.CLASSES)


def test_a_network_with_one_answer_is_not_judged_by_images_of_that_class():
    images, labels = toys.draw_images(240, torch.Generator().manual_seed(2))
    kept = (labels == 0).nonzero().flatten().repeat(4).tolist() + list(range(36))
    uneven = CleanData(images[kept], labels[kept], toys.NAMES)
    model = SplitModel(OneAnswer(), (0.5,) * 3, (0.25,) * 3).eval()
    report = judge(model, uneven, detectors=QUICK)
    assert report.clean_accuracy.accuracy > report.clean_accuracy.floor
    assert (report.verdict, report.findings) == (Verdict.INCONCLUSIVE, ())
    assert report.reason.startswith("clean accuracy averaged over the classes, 16.7%, is below the floor of 60%")


def test_classes_read_unlike_well_are_a_caveat(subject):
    prepared = prepare(described(subject), device="cpu")
    uneven = prepared.accuracy.model_copy(update={"accuracy": 0.9, "balanced_accuracy": 0.7})
    report = judge(prepared.model, prepared.clean, accuracy=uneven, detectors=())
    assert report.caveats == (
        "clean accuracy is 90.0% over all images but 70.0% averaged over the classes: some classes are read much worse "
        "than others",
    )


def test_outputs_that_are_no_finite_numbers_are_a_caveat(subject):
    prepared = prepare(described(subject), device="cpu")
    some = prepared.accuracy.model_copy(update={"unanswered": 3})
    (caveat,) = judge(prepared.model, prepared.clean, accuracy=some, detectors=()).caveats
    assert caveat.startswith(f"the outputs of 3 of {some.images} clean images are no finite numbers")


def test_a_floor_of_the_callers_decides_whether_a_method_runs(planted, clean_data):
    wrong = CleanData(clean_data.images, torch.where(clean_data.labels < 3, 5, clean_data.labels), toys.NAMES)
    below = judge(planted, wrong, detectors=(MMBD(images=2, steps=4),))
    assert (below.verdict, below.findings) == (Verdict.INCONCLUSIVE, ())
    assert below.reason.startswith("clean accuracy")
    assert "below the floor of 60%" in below.reason
    assert judge(planted, wrong, detectors=(MMBD(images=2, steps=4),), accuracy_floor=0.3).findings


def test_class_folders_of_another_number_are_refused_in_one_line(subject, tmp_path):
    for name in "abcd":
        shutil.copytree(subject.images / name, tmp_path / name)
    with pytest.raises(DataError) as caught:
        scan_subject(dataclasses.replace(subject, images=tmp_path))
    assert "\n" not in str(caught.value)
    assert "6" in str(caught.value)


def test_what_cannot_be_judged_is_said_first(subject):
    prepared = prepare(described(subject), device="cpu")
    facts = prepared.loaded.facts.model_copy(update={"outputs": "probabilities"})
    loaded = dataclasses.replace(prepared.loaded, facts=facts, deterministic=False)
    found = facts_of(dataclasses.replace(prepared, loaded=loaded))
    assert found.inconclusive == ("the network answers differently to the same images: its answers cannot be compared",)
    assert found.caveats == ("the network returns probabilities; the scores before them were used",)


def test_few_images_are_no_basis(subject):
    report = scan_subject(subject, max_images=24)
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.reason.startswith("24 clean images for 6 classes; a verdict needs at least")


def test_a_missing_class_and_a_broken_file_are_caveats(subject, tmp_path):
    images = shutil.copytree(subject.images, tmp_path / "images")
    shutil.rmtree(images / "c")
    (images / "c").mkdir()
    (images / "a" / "000.png").write_bytes(b"not an image")
    report = scan_subject(dataclasses.replace(subject, images=images))
    assert any(caveat.startswith("1 images could not be read and were left out: ") for caveat in report.caveats)
    assert "1 classes have no clean images: 2" in report.caveats
    assert report.verdict is not Verdict.INCONCLUSIVE


PLAIN_NETWORK = """
from torch import nn

def plain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 6)
    )
"""


def test_a_network_without_batch_norm_gets_its_accuracy_and_no_verdict(subject, tmp_path):
    (tmp_path / "plain.py").write_text(PLAIN_NETWORK)
    scope = {}
    exec(PLAIN_NETWORK, scope)
    torch.manual_seed(0)  # some draws answer nearly always the same, and are refused for that
    torch.save(scope["plain"]().state_dict(), tmp_path / "plain.pt")
    report = scan_subject(
        dataclasses.replace(subject, checkpoint=tmp_path / "plain.pt"),
        arch=f"{tmp_path / 'plain.py'}:plain",
        accuracy_floor=0.0,
    )
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.reason == "targeted-noise: this method needs BatchNorm, and the network has none"
    assert report.clean_accuracy.images == 180
    assert [found.method for found in report.findings if found.verdict is Verdict.INCONCLUSIVE] == ["targeted-noise"]


def test_a_planted_backdoor_is_reported_with_its_target(sleeping, tiled_data):
    report = judge(sleeping, tiled_data, detectors=(TargetedNoise(),))
    assert report.verdict is Verdict.BACKDOORED
    assert (report.target, report.target_name, report.reading) == (toys.TARGET, "e", Reading.ALL_TO_ONE)
    assert report.reason.startswith("targeted-noise, all-to-one: score")
    assert (report.checkpoint, report.data) == (None, None)
    assert report.clean_accuracy.accuracy > 0.9


def test_a_clean_twin_shows_no_evidence(unplanted, tiled_data):
    report = judge(unplanted, tiled_data, detectors=(TargetedNoise(),))
    assert (report.verdict, report.target) == (Verdict.NO_EVIDENCE, None)
    assert report.reason == "no reading of targeted-noise fired"


def test_what_is_left_to_the_other_methods_is_said(unplanted, tiled_data):
    said = f"pair-perturbation was not asked: the network has {toys.CLASSES} classes, not 7 to 11"
    report = judge(unplanted, tiled_data)
    assert "pair-perturbation" not in {finding.method for finding in report.findings}
    assert said in report.not_checked


def test_classes_that_a_method_overlooks_are_a_caveat_and_leave_no_p_value():
    labels = torch.cat((torch.arange(450) % 9, torch.full((49,), 9)))
    images = 0.2 * torch.rand(len(labels), 1, 4, 4)
    images.flatten(1)[torch.arange(len(labels)), labels] = 1.0
    data = CleanData(images, labels, tuple("abcdefghij"))
    report = judge(SplitModel(TenPixelsNetwork(), (0.0,), (1.0,)).eval(), data, detectors=(PairPerturbation(),))
    said = (
        "pair-perturbation overlooks backdoors that images of class 9 alone trigger, as of each there are fewer than "
        "50 clean images"
    )
    assert f"{said}; give more" in report.caveats
    assert said in report.calibration
    assert report.p_value is None


@pytest.mark.parametrize("others", [(), (TargetedNoise(),)])
def test_a_method_of_the_users_choice_is_not_left_out(unplanted, tiled_data, others):
    report = judge(unplanted, tiled_data, detectors=(*others, PairPerturbation()))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.reason == (
        f"pair-perturbation: the network has {toys.CLASSES} classes, not 7 to 11; "
        "--set pair-perturbation.anywhere=true asks it all the same"
    )


def test_a_method_that_no_setting_makes_judge_says_what_it_needs(unplanted, tiled_data):
    report = judge(unplanted, tiled_data, detectors=(Mixtures(),))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert report.reason == f"mixtures: there are {len(tiled_data)} clean images, 500 are needed"


class TenPixelsNetwork(SplitNetwork):
    """Class k is the k-th pixel."""

    def features(self, inputs):
        return inputs.flatten(1)[:, :10]

    def head(self, features):
        return 8 * features


def test_too_few_images_for_a_method_are_a_caveat():
    labels = torch.arange(40) % 10
    images = 0.2 * torch.rand(40, 1, 4, 4)
    images.flatten(1)[torch.arange(40), labels] = 1.0  # a view
    data = CleanData(images, labels, tuple("abcdefghij"))
    report = judge(SplitModel(TenPixelsNetwork(), (0.0,), (1.0,)).eval(), data)
    mixtures, pairs = [text for text in report.caveats if text.startswith("not asked was ")]
    assert "mixtures, as there are 40 clean images, 500 are needed; give more images of each class" in mixtures
    assert "pair-perturbation, as 0 classes have 50 clean images and more, 7 are needed; give more" in pairs


def test_readings_that_name_different_targets_are_a_caveat(sleeping, tiled_data, monkeypatch):
    def two(self, model, samples, generator, meter):
        meter.spend("two", forward=1)
        return Found([evidence(0.6, fired=True, target=4), evidence(0.9, fired=True, target=2)])

    monkeypatch.setattr(MMBD, "search", two)
    report = judge(sleeping, tiled_data, detectors=(MMBD(),))
    assert report.target == 2
    assert "fired readings name different targets: 2, 4" in report.caveats


@pytest.mark.parametrize(("target", "told"), [(2, True), (4, False)])
def test_a_source_beside_a_reading_of_all_classes_is_a_caveat(sleeping, tiled_data, monkeypatch, target, told):
    def two(self, model, samples, generator, meter):
        meter.spend("two", forward=1)
        pair = evidence(0.9, fired=True, target=2, reading=Reading.SOURCE_TARGET, sources=(3,))
        return Found([pair, evidence(0.6, fired=True, target=target)])

    monkeypatch.setattr(MMBD, "search", two)
    report = judge(sleeping, tiled_data, detectors=(MMBD(),))
    assert (report.reading, report.sources, report.target) == (Reading.SOURCE_TARGET, (3,), 2)
    assert told == any("images of other classes than 3 may trigger" in caveat for caveat in report.caveats)


def test_a_meter_of_the_callers_sees_everything(unplanted, tiled_data):
    meter = Meter()
    report = judge(unplanted, tiled_data, detectors=QUICK, meter=meter)
    assert meter.forward_images == len(tiled_data) + sum(found.forward_images for found in report.findings)


@pytest.mark.parametrize("name", ["gpu", "meta", "cpu0", ""])
def test_unknown_devices(name):
    with pytest.raises(UsageError, match="expected auto, cpu, cuda or cuda:N"):
        pick_device(name)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device cuda: torch sees no CUDA device; use --device cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="--device cuda:1: torch sees 1 CUDA devices"):
        pick_device("cuda:1")


def test_inspection_names_the_architecture(subject, tmp_path):
    found = inspect(subject.checkpoint)
    assert (found.loadable, found.unsafe, found.architecture, found.classes) == (True, False, "resnet8", 6)
    torch.save({"a.weight": torch.zeros(3, 3), "a.bias": torch.zeros(3)}, tmp_path / "odd.pt")
    odd = inspect(tmp_path / "odd.pt")
    assert (odd.loadable, odd.architecture) == (True, None)
    with pytest.raises(CheckpointError):
        inspect(tmp_path / "none.pt")


def test_a_whole_module_is_refused_without_being_run(subject, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UnsafeCheckpointError, match="Linear"):
        scan_subject(dataclasses.replace(subject, checkpoint=tmp_path / "module.pt"))
    assert inspect(tmp_path / "module.pt").unsafe


def test_another_architecture_than_the_file_is_refused(subject):
    with pytest.raises(ArchitectureError):
        scan_subject(subject, arch="vgg16")


def test_few_classes_with_images_are_no_basis(subject, tmp_path):
    for name in "ab":
        shutil.copytree(subject.images / name, tmp_path / name)
    for name in "cdef":
        (tmp_path / name).mkdir()
    report = scan_subject(dataclasses.replace(subject, images=tmp_path))
    assert report.verdict is Verdict.INCONCLUSIVE
    assert "only 2 of 6 classes have clean images" in report.reason
