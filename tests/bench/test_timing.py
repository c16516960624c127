from __future__ import annotations

import copy
import functools
import time
from typing import ClassVar, final

import pytest
import torch
from stand_ins import Accuser

from banaudit.bench import timing
from banaudit.bench.published_timing import SECONDS
from banaudit.bench.released import RELEASED_BAN
from banaudit.bench.results_files import read_results
from banaudit.bench.tables import render
from banaudit.bench.tables.timing import timing_tables
from banaudit.bench.timing import (
    DEFAULT_SCAN,
    RepairTimingEntry,
    TimedOn,
    TimingEntry,
    TimingResults,
    every_detector,
    time_methods,
    time_repairs,
)
from banaudit.cli import main
from banaudit.detectors import DETECTORS
from banaudit.detectors.base import Detector
from banaudit.errors import UnsupportedModelError, UsageError
from banaudit.mitigations import CLP, BANDistillation, FeatureFlip, FineTuning
from banaudit.results import Verdict

BATCH = 10

trained = functools.cache(timing.synthetic_model)


@pytest.fixture(autouse=True)
def _trained_once(monkeypatch):
    monkeypatch.setattr(timing, "synthetic_model", trained)


@final
class Slow(Detector):
    """Works through so many batches for each class, each as long as it is told."""

    name: ClassVar[str] = "slow"
    title: ClassVar[str] = "is slow"
    needs: ClassVar[str] = ""
    misses: ClassVar[str] = ""
    batches_a_class: int = 10
    seconds_a_batch: float = 0.05
    seconds_before: float = 0.0
    plan: float = 1.0
    """Share of its batches that it plans for."""

    def planned_images(self, num_classes, images):
        return round(self.plan * num_classes * self.batches_a_class * BATCH)

    def search(self, model, samples, generator, meter):
        meter.spend("getting ready", forward=0)
        time.sleep(self.seconds_before)
        for _ in range(samples.num_classes * self.batches_a_class):
            meter.spend("waiting", forward=BATCH, backward=BATCH // 2)
            time.sleep(self.seconds_a_batch)
        raise UnsupportedModelError("it waited for nothing")


def run(path, *, classes=(4, 6), budget=timing.BUDGET, **settings):
    return time_methods(path, TimedOn("vgg11", 4, 60, classes, budget, "cpu"), scan=[Accuser(target=1)], **settings)


def run_repairs(path, *, budget, **settings):
    return time_repairs(path, TimedOn("vgg11", 4, 60, (4,), budget, "cpu"), **settings)


def test_every_method_is_timed_on_each_model_beside_the_default_scan(tmp_path):
    told = []
    path = tmp_path / "timing.json"
    results = run(path, detectors={"accuser": Accuser(target=1)}, progress=told.append)
    assert [(entry.method, entry.classes) for entry in results.entries] == [
        (DEFAULT_SCAN, 4),
        ("accuser", 4),
        (DEFAULT_SCAN, 6),
        ("accuser", 6),
    ]
    assert read_results(path, TimingResults) == results
    assert len(told) == 4
    assert set(results.accuracy) == {4, 6}
    scan, alone = results.entries[:2]
    assert scan.forward_images == 60 + alone.forward_images  # a scan measures clean accuracy too
    assert alone.backward_images == 2
    assert min(scan.peak_bytes, alone.peak_bytes) > 2**20
    assert {entry.timed_share for entry in results.entries} == {1.0}
    assert all(entry.seconds == entry.timed_seconds for entry in results.entries)


def test_a_method_over_its_budget_is_stopped_and_the_rest_computed(tmp_path):
    slow = Slow(batches_a_class=1000)
    results = run(tmp_path / "timing.json", classes=(4,), budget=1.0, detectors={"slow": slow})
    entry = results.entries[1]
    assert 0 < entry.timed_share < 0.01
    assert entry.forward_images == 4 * 1000 * BATCH
    assert entry.backward_images == pytest.approx(entry.forward_images / 2, rel=1e-3)
    assert 1.0 < entry.timed_seconds < 60
    computed = entry.timed_seconds / entry.timed_share
    assert 0.8 * computed < entry.seconds <= 1.01 * computed  # what came before the first pass is not multiplied
    done = round(entry.timed_share * 4 * 1000)
    assert done * slow.seconds_a_batch <= entry.timed_seconds  # the batch that was booked last was not computed


def test_what_is_stopped_after_all_its_plan_is_not_taken_for_whole(tmp_path):
    slow = Slow(batches_a_class=1000, plan=1e-6)
    results = run(tmp_path / "timing.json", classes=(4,), budget=0.3, detectors={"slow": slow})
    entry = results.entries[1]
    assert (entry.timed_share, entry.stopped, entry.whole) == (1.0, True, False)
    assert "at least " in timing_tables(results)
    assert "## Without a verdict" not in timing_tables(results)


def test_what_comes_before_the_first_pass_counts_once_and_against_no_budget(tmp_path):
    slow = Slow(batches_a_class=1000, seconds_a_batch=0.01, seconds_before=2.0)
    entry = run(tmp_path / "timing.json", classes=(4,), budget=0.5, detectors={"slow": slow}).entries[1]
    assert entry.timed_seconds >= 2.5
    assert 2.5 < entry.seconds < 0.5 * entry.timed_seconds / entry.timed_share


def test_a_method_that_cannot_judge_is_not_taken_for_one_that_was_stopped(tmp_path):
    results = run(
        tmp_path / "timing.json",
        classes=(4,),
        budget=600,
        detectors={"slow": Slow(seconds_a_batch=0, batches_a_class=1)},
    )
    entry = results.entries[1]
    assert (entry.verdict, entry.timed_share, entry.forward_images) == (Verdict.INCONCLUSIVE, 1.0, 4 * BATCH)
    assert "## Without a verdict" in timing_tables(results)
    assert "slow, 4 classes: it waited for nothing" in timing_tables(results)


def test_a_budget_that_ends_before_the_first_batch_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--budget 1e-09: slow"):
        run(tmp_path / "timing.json", classes=(4,), budget=1e-9, detectors={"slow": Slow(seconds_a_batch=0.5)})


def test_a_model_that_learned_too_little_is_refused(tmp_path, monkeypatch):
    def untrained(*arguments):
        model, clean = copy.deepcopy(trained(*arguments))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        return model, clean

    monkeypatch.setattr(timing, "synthetic_model", untrained)
    with pytest.raises(UsageError, match="--width 4 --classes 6: clean accuracy"):
        run(tmp_path / "timing.json", classes=(6,), detectors={})


def test_repairs_are_timed_like_methods(tmp_path):
    path = tmp_path / "timing.json"
    chosen = [
        FineTuning(epochs=2, batch_size=16),
        FineTuning(epochs=10**6, batch_size=16),
        FeatureFlip(batch_size=10**6),
        BANDistillation(epochs=10**6, batch_size=16),
    ]
    results = run_repairs(path, mitigations=chosen, budget=1.0)
    whole, long, flip, distilled = results.repairs
    assert read_results(path, TimingResults) == results
    assert (whole.method, whole.timed_share, whole.problem) == ("fine-tuning", 1.0, "")
    assert whole.seconds == whole.timed_seconds
    assert whole.backward_images == 2 * 56  # of the 15 images of a class one chooses
    assert 0 < long.timed_share < 0.01
    assert long.forward_images > 10**6 * 60
    assert long.backward_images == pytest.approx(10**6 * 56, rel=0.1)  # what only reads images comes first, and once
    assert long.seconds > 1000 * long.timed_seconds
    assert distilled.forward_images > 10**6 * 4 * 56  # the first strength: ascent, noisy, clean, teacher
    text = render(path)
    assert "## Images passed through the network" in text
    assert "Figure 4" not in text
    assert ("## Without a repair" in text) == bool(flip.problem)


def test_all_registered_methods_and_the_released_one_are_listed():
    assert list(every_detector()) == [*DETECTORS, RELEASED_BAN]
    assert set(SECONDS) <= set(every_detector())


def entry(method, classes, seconds, share=1.0):
    return TimingEntry(
        method=method,
        classes=classes,
        verdict=Verdict.NO_EVIDENCE,
        reason="",
        seconds=seconds,
        forward_images=1000,
        backward_images=500,
        peak_bytes=2**29,
        timed_share=share,
        timed_seconds=seconds * share,
    )


def results_of(*entries):
    return TimingResults(
        network="n",
        model_note="Note",
        images=500,
        device="cpu",
        threads=2,
        torch_version="2",
        memory_note="the most",
        budget=600,
        seed=0,
        accuracy={10: 0.9},
        entries=entries,
    )


def test_the_table_states_growth_and_shares_and_the_papers_seconds():
    text = timing_tables(
        results_of(
            entry(DEFAULT_SCAN, 10, 20.0),
            entry(DEFAULT_SCAN, 200, 50.0),
            entry("feature-re", 10, 100.0),
            entry("feature-re", 200, 2000.0, share=0.3),
            entry(RELEASED_BAN, 10, 5.0),
        )
    )
    assert "| default scan | 20.0 | 50.0 | 2.5x | - | - |" in text
    assert "| feature-re | 100.0 | 2,000 computed (30.0%) | 20.0x | 297.74 | - |" in text
    assert f"| {RELEASED_BAN} | 5.0 | - | - | 55.95 | 1,132.85 |" in text
    assert "200 against 10 (20.0x the classes)" in text
    assert "| feature-re | 1,000 + 500 | 1,000 + 500 computed |" in text
    assert "| feature-re | 0.50 | 0.50 |" in text
    assert "Without a verdict" not in text


def test_a_repair_that_failed_is_no_whole_one():
    def repair(classes, seconds, problem=""):
        cost = {"seconds": seconds, "forward_images": 10, "backward_images": 5, "peak_bytes": 2**29}
        return RepairTimingEntry(
            method="anp", classes=classes, problem=problem, timed_share=1.0, timed_seconds=seconds, **cost
        )

    results = results_of().model_copy(update={"repairs": (repair(10, 2.0, "nothing to prune"), repair(43, 300.0))})
    text = timing_tables(results)
    assert "| anp | 2.0 until it failed | 300.0 | - |" in text
    assert "| anp | 10 + 5 until it failed | 10 + 5 |" in text
    assert "anp, 10 classes: nothing to prune" in text


def test_the_command_measures_and_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timing, "every_detector", lambda: {"accuser": Accuser(target=1)})
    monkeypatch.setattr("banaudit.audit.default_detectors", lambda: (Accuser(target=1),))
    path = tmp_path / "timing.json"
    command = ["bench", "timing", "--arch", "vgg11", "--width", "4", "--images", "60", "--output", str(path)]
    assert main([*command, "--classes", "3", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == render(path)
    monkeypatch.setattr(timing, "MITIGATIONS", {"clp": CLP})
    assert main([*command, "--classes", "3", "--device", "cpu", "--repairs"]) == 0
    assert "| clp |" in capsys.readouterr().out
    assert main([*command, "--classes", "3,3"]) == 2
    assert "--classes 3,3" in capsys.readouterr().err
