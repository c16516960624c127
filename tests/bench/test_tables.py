from __future__ import annotations

import pytest

from banaudit.bench.attacks import BadNets, WaNet
from banaudit.bench.attacks.labelling import AllToAll, AllToOne
from banaudit.bench.cost import PeakCost
from banaudit.bench.population import CIFAR, HARD_KINDS, clean, paper_scale
from banaudit.bench.results_files import write_results
from banaudit.bench.runner import (
    BenchmarkResults,
    Outcome,
    ScanRecord,
    ScanSettings,
    ScoredReading,
    VictimEntry,
    truth_of,
)
from banaudit.bench.speed import PlainSide, SpeedResult
from banaudit.bench.strata import kind_of
from banaudit.bench.tables import benchmark_tables, render, share, zoo_tables
from banaudit.bench.victims import VictimFacts
from banaudit.bench.zoo import ZooEntry, ZooResults
from banaudit.cli import main
from banaudit.errors import UsageError
from banaudit.results import Reading, Verdict

SETTINGS = ScanSettings(detectors={"m": {}}, images=100, seed=0, tool_version="1")


def scan(score, *, verdict=Verdict.NO_EVIDENCE, target=None, code="c"):
    reading = ScoredReading(
        key="m/all-to-one",
        reading=Reading.ALL_TO_ONE,
        score=score,
        threshold=0.5,
        fired=verdict is Verdict.BACKDOORED,
        target=target,
    )
    return ScanRecord(
        settings=SETTINGS.digest,
        code=code,
        verdict=verdict,
        reason="",
        target=target,
        accuracy=0.9,
        images=100,
        seconds=2,
        forward_images=1000,
        backward_images=10,
        device="cpu",
        threads=1,
        readings=(reading,),
    )


def victim(seed, outcome, score, *, attack=None, labelling=None, success=1.0, accuracy=0.9, kind=None):
    recipe = clean(CIFAR, seed) if kind is None else clean(CIFAR, seed, kind)
    recipe = recipe.model_copy(update={"attack": attack, "labelling": labelling})
    facts = VictimFacts(
        recipe=recipe,
        clean_accuracy=accuracy,
        attack_success=None if attack is None else success,
        mapping=labelling.mapping(10).tolist() if labelling else (),
        train_loss=0.1,
        seconds=1,
        torch_version="2",
    )
    verdict = Verdict.BACKDOORED if outcome in {Outcome.RIGHT, Outcome.FALSE_ALARM} else Verdict.NO_EVIDENCE
    if outcome is Outcome.RIGHT and attack is None:
        verdict = Verdict.NO_EVIDENCE
    return VictimEntry(
        key=recipe.key,
        victim=facts,
        truth=truth_of(facts),
        outcome=outcome,
        scan=scan(score, verdict=verdict, target=3),
    )


@pytest.fixture
def results():
    one = {"attack": BadNets(), "labelling": AllToOne(target=3)}
    return BenchmarkResults(
        split="development",
        clean_images="test",
        settings={SETTINGS.digest: SETTINGS},
        measures={"m/all-to-one": "certainty"},
        entries=(
            victim(1, Outcome.RIGHT, 0.9, **one),
            victim(2, Outcome.WRONG_TARGET, 0.8, **one),
            victim(3, Outcome.MISSED, 0.1, attack=WaNet(), labelling=AllToAll()),
            victim(4, Outcome.RIGHT, 0.95, success=0.5, **one),
            victim(5, Outcome.RIGHT, 0.2),
            victim(6, Outcome.FALSE_ALARM, 0.85, kind=HARD_KINDS[2]),
        ),
    )


def test_proportions_carry_counts_and_exact_intervals():
    assert share(0, 10) == "0/10 = 0% [0%, 31%]"
    assert share(3, 3) == "3/3 = 100% [29%, 100%]"
    assert share(0, 0) == "-"


def test_each_group_has_its_row_and_none_is_hidden(results):
    lines = benchmark_tables(results).splitlines()
    assert "| badnets, all-to-one | 2/2 = 100% [16%, 100%] | 1/2 = 50% [1%, 99%] | 0 |" in lines
    assert any(line.startswith("| wanet, all-to-all | 0/1 = 0%") for line in lines)
    assert any(line.startswith("| **all** | 2/3 = 67%") for line in lines)
    assert "| adversarially trained | 1/1 = 100% [3%, 100%] | 0/1 = 0% [0%, 98%] |" in lines
    assert "| plain | 0/1 = 0% [0%, 98%] | 0/1 = 0% [0%, 98%] |" in lines
    assert any(line.startswith("| resnet18, width 16 | 2/3") for line in lines)
    assert any(line.startswith("| cifar10 | 2/3") for line in lines)
    # 0.9 and 0.8 against 0.2 and 0.85: three of four pairs in order; with the all-to-all victim three of six.
    row = next(line for line in lines if line.startswith("| m/all-to-one | 0.750"))
    assert row.count("(2 against 2)") == row.count("0.500 [") == row.count("(3 against 2)") == 1


def test_victims_below_their_floor_are_named_and_left_out(results):
    text = benchmark_tables(results)
    weak = results.entries[3].key
    assert f"- {weak}: attack success 0.500 is below 0.9" in text
    poor = results.entries[0].model_copy(
        update={"victim": results.entries[0].victim.model_copy(update={"clean_accuracy": 0.86})}
    )
    text = benchmark_tables(results.model_copy(update={"entries": (poor, *results.entries[1:])}))
    assert "clean accuracy 0.860 is more than 0.03 below 0.900" in text


def test_kinds_of_clean_models_have_names():
    names = [kind_of(clean(CIFAR, 1, kind)) for kind in HARD_KINDS]
    assert kind_of(clean(CIFAR, 1)) == "plain"
    assert {kind_of(recipe) for recipe in paper_scale() if recipe.attack is None} == {"plain"}
    assert len(set(names)) == len(names)
    assert {"under-trained", "over-trained", "imbalanced classes"} <= set(names)


def test_scans_by_unlike_code_are_not_passed_over_in_silence(results):
    assert "Not all scans" not in benchmark_tables(results)
    other = results.entries[0].model_copy(update={"scan": scan(0.9, code="d")})
    assert "Not all scans" in benchmark_tables(results.model_copy(update={"entries": (other, *results.entries[1:])}))


def zoo_entry(file, truth, outcome, **facts):
    return ZooEntry(
        file=file,
        dataset="MNIST",
        attack="a|b",
        words="w",
        truth=truth,
        outcome=outcome,
        settings=SETTINGS.digest,
        **facts,
    )


@pytest.fixture
def zoo(results):
    backdoored, harmless = results.entries[0].truth, results.entries[4].truth
    accused = scan(0.9, verdict=Verdict.BACKDOORED, target=3)
    measured = {"manifest_accuracy": 0.9, "accuracy": 0.91, "accuracy_images": 10, "recognised": "mnist"}
    unjudged = scan(0.1, verdict=Verdict.INCONCLUSIVE)
    return ZooResults(
        settings={SETTINGS.digest: SETTINGS},
        entries=(
            zoo_entry("d/right.pth", backdoored, Outcome.RIGHT, scan=accused, **measured),
            zoo_entry("d/alarm.pth", harmless, Outcome.FALSE_ALARM, scan=accused, **measured | {"accuracy": 0.95}),
            zoo_entry("d/plain.pth", backdoored, Outcome.INCONCLUSIVE, scan=unjudged, batch_norms=0),
            zoo_entry("d/whole.pkl", backdoored, Outcome.REFUSED, offenders=("os.system",)),
        ),
    )


def test_the_zoo_is_shown_right_and_wrong_alike(zoo):
    text = zoo_tables(zoo)
    assert "development models" in text
    assert "- backdoored models judged, detected: 1/1 = 100% [3%, 100%]" in text
    assert "false alarms: 1/1 = 100% [3%, 100%]" in text
    assert "- inconclusive: 1 (1 of the networks have no BatchNorm)" in text
    assert "- refused without running them: 1" in text
    assert "within 1.5% of the manifest: 1 of 2" in text
    assert "| alarm.pth | w: a\\|b | backdoored | 3 / - | **false alarm** | m/all-to-one 0.9 |" in text
    assert "| whole.pkl | w: a\\|b | refused |" in text
    assert "| right.pth | **0.9 / 0.5, 3** |" in text


def test_tables_are_chosen_by_what_the_file_holds(results, zoo, tmp_path, capsys):
    path = tmp_path / "results.json"
    for record, title in ((results, "# Benchmark: development split"), (zoo, "# Verdicts on the zoo")):
        write_results(path, record)
        assert render(path).startswith(title)
    assert main(["bench", "table", str(path), "--output", str(tmp_path / "zoo.md")]) == 0
    assert (tmp_path / "zoo.md").read_text() == render(path)
    assert main(["bench", "table", str(path)]) == 0
    assert main(["bench", "table", str(path), "--output", str(path)]) == 2
    assert capsys.readouterr().out == render(path)
    path.write_text("[]")
    assert main(["bench", "table", str(path)]) == 2
    path.write_text('{"kind": "other"}')
    with pytest.raises(UsageError, match="kind 'other' is not known"):
        render(path)


def test_an_extrapolated_time_says_so(tmp_path):
    plain = PlainSide(
        seconds=100,
        forward_images=129000,
        backward_images=128000,
        peak_bytes=2**30,
        extrapolated=True,
        timed_share=0.02,
        timed_seconds=2,
        timed_forward_images=2560,
    )
    result = SpeedResult(
        network="resnet18 of width 64",
        model_note="note",
        classes=10,
        images=500,
        device="cpu",
        threads=2,
        torch_version="2",
        memory_note="resident",
        plain=plain,
        scan=PeakCost(seconds=8, forward_images=10, backward_images=5, peak_bytes=2**29),
        ratio=12.5,
        verdict=Verdict.NO_EVIDENCE,
        methods=(),
        economies=(),
    )
    path = tmp_path / "speed.json"
    write_results(path, result)
    text = render(path)
    assert "| 100.0 (extrapolated) | 129,000 | 128,000 | 1.00 |" in text
    assert "2.0% of the plain procedure's passes were timed" in text
    assert "**12.5x**" in text
