from __future__ import annotations

import pytest
from victim_entries import benchmark

from banaudit.bench.attacks import BadNets, Blend, Bpp
from banaudit.bench.attacks.labelling import AllToAll, AllToOne
from banaudit.bench.population import CHOSE_REPAIR, CIFAR, HARD_KINDS, Setup, backdoored, clean
from banaudit.bench.published_repairs import AVERAGES, BEFORE, TABLE_7, published
from banaudit.bench.repair_results import (
    Behaviour,
    Relapse,
    RepairEntry,
    RepairMeasured,
    RepairResults,
    RepairSetup,
    Rescan,
)
from banaudit.bench.results_files import write_results
from banaudit.bench.tables import render, render_several, repair_tables
from banaudit.bench.tables.repairs import joined, upper_percentile
from banaudit.bench.victims import VictimFacts
from banaudit.cli import main
from banaudit.errors import UsageError
from banaudit.mitigations import DEFAULT, BANFineTuning, BTIDBFUnlearning, FineTuning
from banaudit.relapse import THRESHOLDS
from banaudit.results import Reading, UnlearnedChange, Verdict


def setup(mitigation):
    return RepairSetup(
        method=mitigation.name, settings=mitigation.settings(), max_drop=0.02, test_images=2000, tool_version="1"
    )


BAN, PLAIN, WEAK = setup(BANFineTuning()), setup(FineTuning()), setup(BANFineTuning(noise_weight=0.2))
ONE = AllToOne(target=3)
BADNETS = backdoored(CIFAR, 1, BadNets(), ONE)
BLEND = backdoored(CIFAR, 2, Blend(), ONE)
BPP = backdoored(CIFAR, 3, Bpp(), ONE)
BPP_ALL = backdoored(Setup("cifar10", "vgg11"), 4, Bpp(), AllToAll())
CLEAN = clean(CIFAR, 5)
SMOOTHED = clean(CIFAR, 6, HARD_KINDS[0])
FAILING = backdoored(CIFAR, 7, BadNets(), ONE)


def facts(recipe, success=1.0):
    return VictimFacts(
        recipe=recipe,
        clean_accuracy=0.82,
        attack_success=None if recipe.attack is None else success,
        train_loss=0.1,
        seconds=1,
        torch_version="2",
    )


def rescan(verdict, reading, relapsed):
    return Rescan(
        settings="s",
        code="c",
        verdict=verdict,
        reason="r",
        scores={},
        images=1000,
        images_apart=True,
        relapse=(Relapse(reading=reading, before_repair=0.9, after_repair=0.1, relapsed=relapsed),),
        seconds=30,
        forward_images=1,
        backward_images=1,
    )


def entry(recipe, made, accuracy, success=None, *, amount="5 %", seed=0, within=True, scan=None):
    images = {"5 %": 2500, "1 %": 500}[amount]
    return RepairEntry(
        victim=recipe.key,
        setup=made.digest,
        amount=amount,
        images=images,
        asked=images,
        seed=seed,
        repair=RepairMeasured(
            code="c",
            before=Behaviour(accuracy=0.8, attack_success=None if success is None else 1.0),
            after=Behaviour(accuracy=accuracy, attack_success=success),
            test_images=2000,
            success_images=1800,
            within_budget=within,
            kept_epoch=25,
            losses=(1.0,),
            accuracies=(0.8,),
            accuracy_before=0.8,
            augmentation="none",
            training_images=2250,
            selection_images=250,
            device="cpu",
            threads=1,
            seconds=100,
            forward_images=168750,
            backward_images=168750,
        ),
        rescan=scan,
    )


@pytest.fixture
def results():
    repaired, accused = Verdict.NO_EVIDENCE, Verdict.BACKDOORED
    entries = (
        entry(BADNETS, BAN, 0.79, 0.02, scan=rescan(repaired, Reading.ALL_TO_ONE, 0.6)),
        entry(BADNETS, BAN, 0.78, 0.12, seed=1, scan=rescan(repaired, Reading.ALL_TO_ONE, 0.6)),
        entry(BADNETS, PLAIN, 0.81, 0.9, scan=rescan(accused, Reading.ALL_TO_ONE, 0.9)),
        entry(BADNETS, PLAIN, 0.80, 0.9, seed=1),
        entry(BLEND, BAN, 0.80, 0.30, within=False),
        entry(BLEND, PLAIN, 0.81, 1.0),
        entry(BPP, BAN, 0.80, 0.01),
        entry(BPP, PLAIN, 0.81, 0.04),
        entry(BPP, BAN, 0.79, 0.05, amount="1 %"),
        entry(BPP, PLAIN, 0.80, 0.20, amount="1 %"),
        entry(BPP, WEAK, 0.81, 0.03),
        entry(BPP_ALL, BAN, 0.80, 0.01),
        entry(BPP_ALL, PLAIN, 0.81, 0.02),
        entry(CLEAN, BAN, 0.78, scan=rescan(repaired, Reading.ALL_TO_ONE, 0.4)),
        entry(SMOOTHED, BAN, 0.81, scan=rescan(accused, Reading.ALL_TO_ONE, 0.5)),
        entry(FAILING, BAN, 0.81, 0.5),
        RepairEntry(
            victim=CLEAN.key,
            setup=PLAIN.digest,
            amount="5 %",
            images=2500,
            asked=2500,
            seed=0,
            problem="needs something else",
        ),
    )
    return RepairResults(
        split="development",
        setups={made.digest: made for made in (BAN, PLAIN, WEAK)},
        victims=(*map(facts, (BADNETS, BLEND, BPP, BPP_ALL, CLEAN, SMOOTHED)), facts(FAILING, success=0.5)),
        entries=entries,
    )


def section(text, title):
    start = text.index(f"\n{title}\n")
    end = text.find("\n## ", start + len(title))
    return text[start : end if end > 0 else None].splitlines()


def test_methods_stand_side_by_side(results):
    lines = section(repair_tables(results), "## Side by side")
    assert "| attack | victims | before | ban | fine-tuning |" in lines
    row = next(line for line in lines if line.startswith("| badnets, all-to-one |"))
    assert row == (
        "| badnets, all-to-one | 1 | 80.00 / 100.00 | 78.50 ± 0.71 / 7.00 ± 7.07 | 80.50 ± 0.71 / 90.00 ± 0.00 |"
    )
    assert any(line.startswith("| **all** | 4 |") for line in lines)
    # Fine-tuning leaves 4 and 2 % of Bpp, 90 and 100 % of the others.
    assert any(line.startswith("| **cured by fine-tuning** | 2 |") for line in lines)
    assert any(line.startswith("| **not cured by fine-tuning** | 2 |") for line in lines)
    assert any("| badnets, all-to-one; cifar10, resnet18, width 16 |" in line for line in lines)


def test_a_column_of_other_settings_than_the_default_says_so(results):
    told = "of other settings than the default's for ban noise_weight=0.2"
    assert told not in repair_tables(results)
    only_weak = results.model_copy(
        update={"entries": tuple(item for item in results.entries if item.setup != BAN.digest)}
    )
    assert told in repair_tables(only_weak)


def test_repairs_that_were_not_aimed_are_told_from_those_that_were():
    unaimed = setup(BTIDBFUnlearning())
    aimed = unaimed.model_copy(update={"aimed": True})
    results = RepairResults(
        split="test",
        setups={made.digest: made for made in (unaimed, aimed)},
        victims=(facts(BADNETS), facts(BLEND)),
        entries=(
            entry(BADNETS, unaimed, 0.8, 0.9),
            entry(BLEND, unaimed, 0.8, 0.9),
            entry(BADNETS, aimed, 0.8, 0.1),
        ),
    )
    text = repair_tables(results)
    assert "| badnets, all-to-one | 1 | 80.00 / 100.00 | 80.00 / 10.00 |" in text
    assert "bti-dbf-unlearning not aimed" in text


def test_settings_that_came_or_went_are_not_the_default():
    gone = BAN.model_copy(update={"settings": {**BAN.settings, "former": True}})
    missing = BAN.model_copy(update={"settings": {key: v for key, v in BAN.settings.items() if key != "eps"}})
    entries = tuple(
        entry(BADNETS, made, 0.8, 0.1, seed=seed)
        for made, times in ((gone, 2), (missing, 2), (BAN, 1))
        for seed in range(times)
    )
    results = RepairResults(
        split="whole-test",
        setups={made.digest: made for made in (gone, missing, BAN)},
        victims=(facts(BADNETS),),
        entries=entries,
    )
    lines = section(repair_tables(results), "## Other settings")
    assert any("ban former=True" in line for line in lines)
    assert any("ban no eps" in line for line in lines)


def test_victims_that_chose_settings_are_named():
    chose = backdoored(CIFAR, min(CHOSE_REPAIR), BadNets(), ONE)
    default = setup(DEFAULT())
    entries = (entry(BADNETS, default, 0.8, 0.1), entry(chose, default, 0.8, 0.1), entry(chose, PLAIN, 0.8, 0.1))
    known = RepairResults(
        split="whole-test",
        setups={made.digest: made for made in (default, PLAIN)},
        victims=(facts(BADNETS), facts(chose)),
        entries=entries,
    )
    assert f"some of {DEFAULT.name}'s, on {chose.key}." in repair_tables(known)
    other = known.model_copy(update={"entries": (entries[0], entries[2])})  # other repairs of it have no such settings
    assert "but for some of" not in repair_tables(other)
    # Of the two victims, 10 % are left of each; only the one that chose nothing is in the table of those.
    title = f"## {DEFAULT.name} on victims that chose none of its settings"
    assert any(line.startswith("| badnets, all-to-one | 1 | 10.00 |") for line in section(repair_tables(known), title))
    assert title not in repair_tables(other)


def test_what_is_left_and_what_it_cost(results):
    lines = section(repair_tables(results), "## Method by method")
    # Two repairs: 2 and 12 % left, 1 and 2 points lost, each 2 points below fine-tuning with the same seed.
    assert "| badnets, all-to-one | 2 | 7.00 ± 7.07 | 12.00 | 1 | 1.50 ± 0.71 | 2.00 | 2.00 ± 0.00 | 2/2 |" in lines
    assert "| blend, all-to-one | 1 | 30.00 | 30.00 | 1 | 0.00 | 0.00 | 1.00 | 0/1 |" in lines


def test_theirs_stand_beside_ours(results):
    lines = section(repair_tables(results), "## Beside the paper")
    row = next(line for line in lines if line.startswith("| blend, all-to-one |"))
    assert "80.00 / 30.00; theirs 92.72 / 4.10 (T3); 92.61 / 1.04 (T11)" in row
    row = next(line for line in lines if line.startswith("| **mean of these 3 of 5 all-to-one attacks**"))
    assert "theirs 92.44 / 2.88 (T3)" in row
    # The means of 78.5, 80 and 80, and of 7, 30 and 1.
    assert "| 79.50 / 12.67; theirs" in row
    row = next(line for line in lines if line.startswith("| **mean of these 1 of 3 all-to-all attacks**"))
    assert "theirs 93.23 / 1.38 (T5)" in row
    assert any("another scale" in line for line in lines)


def test_clean_victims_repaired_by_mistake(results):
    lines = section(repair_tables(results), "## Clean victims repaired by mistake")
    assert "| plain | ban | 1 | 80.00 | 2.00 | 2.00 | 1/1 | 0/1 = 0% [0%, 98%] |" in lines
    assert any(line.startswith("| **all** | ban | 2 | 80.00 ± 0.00 | 0.50 ± 2.12 | 2.00 | 2/2 | 1/2") for line in lines)


def test_what_was_unlearned_is_held_against_the_target(results):
    def told(item, *changes):
        found = tuple(UnlearnedChange(kind=kind, target=target) for kind, target in changes)
        return item.model_copy(update={"repair": item.repair.model_copy(update={"unlearned": found})})

    assert "What was unlearned" not in repair_tables(results)
    first, second, *others = results.entries
    entries = (told(first, ("patch", 3), ("perturbation", 3)), told(second, ("patch", 1)), *others)
    entries = tuple(
        told(item, ("perturbation", 3)) if item.victim in {CLEAN.key, BPP_ALL.key} and item.repair else item
        for item in entries
    )
    text = section(repair_tables(results.model_copy(update={"entries": entries})), "## What was unlearned")
    assert "| badnets, all-to-one | 4 | 1 | 1 | 1 | 0 |" in text
    assert "| bpp, all-to-all | 2 | 0 | 0 | 0 | 2 |" in text
    assert "| clean | 2 | 0 | 0 | 0 | 1 |" in text


def test_how_often_what_is_left_is_called_repaired(results, monkeypatch):
    monkeypatch.setitem(THRESHOLDS, Reading.ALL_TO_ONE, 0.5)
    text = repair_tables(results)
    lines = section(text, "## What the tool says of its own repairs")
    # Left: 12 % (scanned, not accused, but the probe finds 0.6) and 30 % (over the budget, so not scanned).
    row = next(line for line in lines if line.startswith("| ban |"))
    assert row.startswith("| ban | 2 of 5 | 1 | 1/1 = 100% [3%, 100%] | 0/1 = 0% [0%, 98%] | 0/1")
    row = next(line for line in lines if line.startswith("| fine-tuning |"))
    assert row.startswith("| fine-tuning | 3 of 5 | 0 | 0/1 = 0% [0%, 98%] |")
    lines = section(text, "## Relapse probe")
    beside = "1/1, median 60% | 1/1, median 60%"
    assert f"| ban | all-to-one | 2: 45.0% | 50.0% | 50% | 0/2, median 45% | {beside} |" in lines
    monkeypatch.setitem(THRESHOLDS, Reading.ALL_TO_ONE, 0.7)
    lines = section(repair_tables(results), "## What the tool says of its own repairs")
    row = next(line for line in lines if line.startswith("| ban |"))
    assert row.startswith("| ban | 2 of 5 | 1 | 1/1 = 100% [3%, 100%] | 1/1 = 100% [3%, 100%] | 1/1")


def test_less_data_and_other_settings(results):
    text = repair_tables(results)
    lines = section(text, "## Fewer clean images")
    assert any("The 1 victims" in line for line in lines)
    assert "| bpp, all-to-one | 5 % | 2,500 | 1 | 80.00 / 1.00, largest 1.0 | 81.00 / 4.00, largest 4.0 |" in lines
    assert "| bpp, all-to-one | 1 % | 500 | 1 | 79.00 / 5.00, largest 5.0 | 80.00 / 20.00, largest 20.0 |" in lines
    lines = section(text, "## Other settings")
    assert (
        "| ban noise_weight=0.2 | bpp, all-to-one; 5 % | 1 | 81.00 / 3.00 | 80.00 / 1.00 | 93.26 ± 0.14 / 2.53 ± 0.93 |"
    ) in lines


def test_what_does_not_count_is_named(results):
    text = repair_tables(results)
    assert f"- {FAILING.key}: attack success 0.500 is below 0.9" in text
    assert FAILING.key not in "\n".join(section(text, "## Every victim"))
    assert f"- fine-tuning on {CLEAN.key}: needs something else" in text
    assert "Not all repairs" not in text


def test_a_pool_that_is_too_small_is_said(results):
    short = results.entries[0].model_copy(update={"images": 1000})
    text = repair_tables(results.model_copy(update={"entries": (short, *results.entries[1:])}))
    assert "1,000 of cifar10 (the pool has no 2,500)" in text


def test_an_empty_file_gives_tables_all_the_same(results, tmp_path):
    path = tmp_path / "repair.json"
    write_results(path, results)
    assert render(path) == repair_tables(results)
    write_results(path, RepairResults(split="test"))
    assert "No repairs." in render(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "many"], "expected a number of images or a share"),
        (["--images", "5%,5%"], "names an amount twice"),
        (["--method", "ban,ban"], "names a method twice"),
        (["--method", "ban", "--set", "fine-tuning.epochs=3"], "fine-tuning is not among the methods that run (ban)"),
        (["--set", "ban.epochs=0"], "--set ban.epochs=0:"),
        ([], "none of these victims is trained"),
    ],
)
def test_the_commands_mistakes_are_told(tmp_path, capsys, arguments, message):
    out = ["--output", str(tmp_path / "repair.json"), "--cache", str(tmp_path), "--device", "cpu"]
    assert main(["bench", "repair", "--split", "development", *out, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_percentile_that_holds_for_a_new_value():
    assert upper_percentile([]) is None
    assert upper_percentile([0.2, 0.9, 0.1]) == 0.9
    assert upper_percentile([float(value) for value in range(1, 20)]) == 19
    assert upper_percentile([float(value) for value in range(1, 40)]) == 38


def test_the_papers_averages():
    for kind, (accuracy, success) in {"all-to-one": (92.43, 2.21), "all-to-all": (92.61, 1.21)}.items():
        cells = [published(attack, kind, "ban")[0] for attack in AVERAGES[kind]]
        assert sum(cell.accuracy for cell in cells) / len(cells) == pytest.approx(accuracy, abs=0.006)
        assert sum(cell.success for cell in cells) / len(cells) == pytest.approx(success, abs=0.006)
    assert [(cell.table, cell.success) for cell in published("blend", "all-to-one", "ban")] == [(3, 4.10), (11, 1.04)]
    assert [cell.table for cell in published("blend", "all-to-one", BEFORE)] == [3]
    assert published("blend", "derangement", "ban") == ()
    assert published("ssdt", "source-target", "ban")[0].success == 0.90
    assert len(TABLE_7) == 10


def test_several_files_make_one_table(results, tmp_path):
    half = len(results.entries) // 2
    parts = [
        results.model_copy(update={"entries": results.entries[:half], "split": "test"}),
        results.model_copy(update={"entries": results.entries[half - 1 :], "split": "opened"}),
    ]
    whole = joined(parts)
    assert sorted(map(repr, whole.entries)) == sorted(map(repr, results.entries))
    assert whole.split == "test and opened"
    for number, part in enumerate(parts):
        write_results(tmp_path / f"{number}.json", part)
    assert render_several([tmp_path / "0.json", tmp_path / "1.json"]) == repair_tables(whole)
    assert "Some of these are development models" in repair_tables(whole)
    scans = tmp_path / "scans.json"
    write_results(scans, benchmark())
    with pytest.raises(UsageError, match="files of bench run alone, or of bench repair alone"):
        render_several([tmp_path / "0.json", scans])
