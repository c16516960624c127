from __future__ import annotations

import pytest
from victim_entries import SETTINGS, TARGET, benchmark, entry, reading

from banaudit.bench.attacks import AdapBlend
from banaudit.bench.attacks.labelling import AllToAll, AllToOne
from banaudit.bench.population import CHOSE_METHOD, CIFAR, HARD_KINDS, Setup, backdoored, clean
from banaudit.bench.published_detection import CLEAN, PUBLISHED, cell_of
from banaudit.bench.released import RELEASED_BAN
from banaudit.bench.runner import ScanSettings, ScoredReading, VictimEntry
from banaudit.bench.tables.methods import method_tables
from banaudit.bench.tables.side_by_side import FIRST_DEFAULT, side_by_side
from banaudit.detectors.ban import BAN
from banaudit.errors import UsageError


def named(victim: VictimEntry, method: str) -> VictimEntry:
    cost = victim.scan.methods[0].model_copy(update={"method": method})
    return victim.model_copy(update={"scan": victim.scan.model_copy(update={"methods": (cost,)})})


def test_counts_are_within_their_cells_and_the_average_is_the_paper_s():
    for published in PUBLISHED:
        for counts in published.rows.values():
            assert len(counts) == len(published.methods)
            assert all(0 <= count <= published.models for count in counts)
    first = PUBLISHED[0]
    for method, average in (("neural-cleanse", 60.56), ("tabor", 59.17), ("bti-dbf-star", 86.39), ("ban", 97.22)):
        column = first.methods.index(method)
        rights = [20 - row[column] if cell[2] == CLEAN else row[column] for cell, row in first.rows.items()]
        assert round(5 * sum(rights) / len(rights), 2) == average


def test_a_victim_is_nearest_to_one_cell_or_none():
    assert cell_of(clean(CIFAR, 1)) == ("CIFAR-10", "ResNet18", CLEAN)
    assert cell_of(clean(CIFAR, 1, HARD_KINDS[0])) is None
    assert cell_of(clean(Setup("mnist", "resnet18"), 1)) is None
    assert cell_of(clean(Setup("cifar10", "wrn-16"), 1)) is None
    assert cell_of(backdoored(CIFAR, 1, AdapBlend(), AllToOne(target=1))) == ("CIFAR-10", "ResNet18", "adap-blend")
    assert cell_of(backdoored(CIFAR, 1, AdapBlend(), AllToAll())) is None


def test_theirs_stand_beside_ours():
    results = benchmark(
        named(entry(1, reading("m/a", 2.0), backdoored=True), "ban"),
        named(entry(2, reading("m/a", 0.5), backdoored=True), "ban"),
        named(entry(3, reading("m/a", 0.5)), "ban"),
    )
    text = "\n\n".join(method_tables(results.entries))
    assert "| badnets, all-to-one | resnet18, width 16 | cifar10 | 1/2 = 50% [1%, 99%] | 1/2 = 50% [1%, 99%] |" in text
    assert "Not the same experiment" in text
    head = "| data set | network | attack | our victims | joint verdict, ours | ban, ours | *BAN, theirs* |"
    assert text.count(head) == 2
    assert "| CIFAR-10 | ResNet18 | badnets | cifar10, resnet18, width 16 | 1/2 = 50% [1%, 99%]" in text
    assert text.count("| *20/20* |") == 3  # over all data sets, Table 1, Table 2
    assert method_tables([]) == []


OTHERS = ScanSettings(detectors={"n": {}}, images=100, seed=0, tool_version="1")


def other(victim: VictimEntry, method: str, *readings: ScoredReading) -> VictimEntry:
    """The same victim scanned by one other method."""
    cost = victim.scan.methods[0].model_copy(update={"method": method, "seconds": 7})
    scan = victim.scan.model_copy(update={"settings": OTHERS.digest, "methods": (cost,), "readings": readings})
    return victim.model_copy(update={"scan": scan})


def test_methods_of_several_files_stand_beside_the_joint_verdict_of_the_first():
    found, missed, clear = entry(1, reading("m/a", 2.0), backdoored=True), entry(2, backdoored=True), entry(3)
    only_elsewhere = entry(4, reading("n/a", 2.0), backdoored=True)
    others = benchmark(
        other(found, "n", reading("n/a", 2.0, target=TARGET + 1)),
        other(missed, "n", reading("n/a", 2.0)),
        other(clear, "n", reading("n/a", 0.5)),
        other(only_elsewhere, "n", reading("n/a", 2.0)),
        split="test",
    ).model_copy(update={"settings": {OTHERS.digest: OTHERS}})
    text = side_by_side([benchmark(found, missed, clear, split="test"), others])
    assert "3 victims" in text
    assert "The joint verdict is that of m." in text
    half, none = "1/2 = 50% [1%, 99%]", "0/1 = 0% [0%, 98%]"
    assert f"| joint verdict | {half} | {half} | {none} |" in text
    assert f"| m | {half} | {half} | {none} |" in text
    # It accuses both, one of them of the wrong class.
    assert f"| n | 2/2 = 100% [16%, 100%] | {half} | {none} | 0/3 = 0% [0%, 71%] | 7.0 |" in text
    assert "Victims of the test" in text
    same = text.split("### The same victims")[1].split("###")[0]
    assert f"| n | {half} | 2/2 = 100% [16%, 100%] | 0 | 1 | {none} | {none} |" in same


def test_notes_are_shown_of_methods_outside_the_joint_verdict():
    victim = entry(1, reading("m/a", 2.0, note="of the default"), backdoored=True)
    others = benchmark(other(victim, "n", reading("n/a", 0.5, note="keeps 97%"), reading("n/b", 0.5)), split="test")
    text = side_by_side([benchmark(victim), others.model_copy(update={"settings": {OTHERS.digest: OTHERS}})])
    assert f"| {victim.key} | n/a | 0.5 / 1, {TARGET} | keeps 97% |" in text
    assert "of the default" not in text
    assert "n/b |" not in text
    assert "What the searches noted" not in side_by_side([benchmark(victim)])


def test_a_method_is_not_blind_on_victims_that_chose_its_rule():
    seed = min(CHOSE_METHOD["pair-perturbation"])
    chosen, fresh = entry(seed, backdoored=True), entry(2, backdoored=True)
    pair = ScanSettings(detectors={"pair-perturbation": {}}, images=100, seed=0, tool_version="1")
    scans = []
    for victim in (chosen, fresh):
        scanned = other(victim, "pair-perturbation", reading("pair-perturbation/a", 2.0))
        scan = scanned.scan.model_copy(update={"settings": pair.digest})
        scans.append(scanned.model_copy(update={"scan": scan}))
    others = benchmark(*scans, split="test").model_copy(update={"settings": {pair.digest: pair}})
    text = side_by_side([benchmark(chosen, fresh, split="test"), others])
    blind, everyone = text.split("### All victims")
    assert "| pair-perturbation | 1/1 = 100%" in blind
    assert "| joint verdict | 0/2 = 0%" in blind
    assert "| pair-perturbation | 2/2 = 100%" in everyone


def test_all_victims_are_shown_by_the_scans_of_today():
    then = ScanSettings(detectors={"m": {"threshold": 1}}, images=100, seed=0, tool_version="1")
    victim = entry(1, reading("m/a", 2.0), backdoored=True)
    old = entry(1, reading("m/a", 0.5), backdoored=True)
    old = old.model_copy(update={"scan": old.scan.model_copy(update={"settings": then.digest})})
    opened_then = benchmark(old, split="test").model_copy(update={"settings": {then.digest: then}})
    first = benchmark(entry(2, backdoored=True), split="test")
    blind, everyone = side_by_side([first, opened_then, benchmark(victim, split="opened")]).split("### All victims")
    assert "| m | 0/2 = 0%" in blind
    assert "| m | 1/2 = 50%" in everyone


def test_default_scans_from_before_a_method_joined_are_still_joint_verdicts():
    older, today, alone = (
        ScanSettings(detectors={name: {} for name in names}, images=100, seed=0, tool_version="1")
        for names in ((*FIRST_DEFAULT, "m"), (*FIRST_DEFAULT, "m", "new"), ("ban", "new"))
    )

    def scanned(victim, settings):
        return victim.model_copy(update={"scan": victim.scan.model_copy(update={"settings": settings.digest})})

    files = [
        benchmark(scanned(entry(seed, reading("m/a", 2.0), backdoored=True), settings), split="test").model_copy(
            update={"settings": {settings.digest: settings}}
        )
        for seed, settings in enumerate((today, older, alone), start=1)
    ]
    assert "| joint verdict | 2/2 = 100%" in side_by_side(files)


def test_a_method_that_few_classes_are_asked_belongs_to_the_joint_verdict():
    both = ScanSettings(detectors={"m": {}, "p": {}}, images=100, seed=0, tool_version="1")

    def asked_both(victim, *readings):
        cost = victim.scan.methods[0].model_copy(update={"method": "p"})
        readings = (*victim.scan.readings, *readings)
        scan = {"settings": both.digest, "methods": (*victim.scan.methods, cost), "readings": readings}
        return victim.model_copy(update={"scan": victim.scan.model_copy(update=scan)})

    fresh = asked_both(entry(1, reading("m/a", 0.5), backdoored=True), reading("p/a", 0.5, note="unseen"))
    many = entry(2, reading("m/a", 0.5), backdoored=True, setup=Setup("gtsrb32", "vgg11"))
    then = entry(3, reading("m/a", 2.0), backdoored=True)
    files = [benchmark(fresh, many, split="test"), benchmark(then, split="test")]
    unused = ScanSettings(detectors={"m": {}, "z": {}}, images=100, seed=0, tool_version="1")
    files[0] = files[0].model_copy(update={"settings": {item.digest: item for item in (SETTINGS, both, unused)}})
    text = side_by_side(files)
    assert "that of m, p (p not of every network, or not yet when the older scans were made)." in text
    assert "| joint verdict | 1/3 = 33%" in text
    assert "| p | 0/1 = 0%" in text
    assert "unseen" not in text


def test_what_was_asked_more_than_the_joint_verdict_is_none():
    more = ScanSettings(detectors={"m": {}, "z": {}}, images=100, seed=0, tool_version="1")
    accused = entry(2, reading("z/a", 2.0))
    scan = accused.scan.model_copy(update={"settings": more.digest})
    others = benchmark(accused.model_copy(update={"scan": scan})).model_copy(update={"settings": {more.digest: more}})
    assert side_by_side([benchmark(entry(1)), others]).startswith("# Methods side by side\n\n1 victims")


def test_development_victims_are_not_shown_as_blind():
    assert "Victims of the test" not in side_by_side([benchmark(entry(1))])


def test_files_that_do_not_belong_together_are_refused():
    pool = benchmark(entry(1)).model_copy(update={"clean_images": "pool"})
    with pytest.raises(UsageError, match="one source"):
        side_by_side([benchmark(entry(1)), pool])
    with pytest.raises(UsageError, match="no scans"):
        side_by_side([benchmark(), benchmark(entry(1))])


def test_what_a_method_could_not_judge_is_inconclusive_and_stays():
    misread = entry(1, backdoored=True, unjudged=True)
    misread = misread.model_copy(update={"scan": misread.scan.model_copy(update={"methods": ()})})
    text = side_by_side([benchmark(misread, entry(2, reading("m/a", 2.0), backdoored=True), split="test")])
    assert "2 victims" in text
    half, no_clean = "1/2 = 50% [1%, 99%]", "-"
    for name in ("joint verdict", "m"):
        assert f"| {name} | {half} | {half} | {no_clean} | {half} |" in text


def test_ban_as_released_has_a_column_of_its_own():
    ours, theirs = BAN(), BAN.released()
    (here, there) = (ScanSettings.of((detector,), images=100, seed=0) for detector in (ours, theirs))
    files = []
    for settings, threshold in ((here, 0.7), (there, 0.5)):
        scanned = named(entry(1, reading("ban/negative mask", 0.6, threshold), backdoored=True), "ban")
        scan = scanned.scan.model_copy(update={"settings": settings.digest})
        results = benchmark(scanned.model_copy(update={"scan": scan}), split="test")
        files.append(results.model_copy(update={"settings": {settings.digest: settings}}))
    text = side_by_side(files)
    none, one = "0/1 = 0% [0%, 98%]", "1/1 = 100% [3%, 100%]"
    assert f"| ban | {none} |" in text
    assert f"| {RELEASED_BAN} | {one} |" in text
    first = text.split("### Beside the paper's Table 1")[1]
    assert "| ban, ours | ban, released, ours | *BAN, theirs* |" in first
    assert f"| {none} | {one} | *20/20* |" in first


def test_cells_of_the_paper_are_shown_over_all_data_sets():
    results = benchmark(
        named(entry(1, reading("m/a", 2.0), backdoored=True), "tabor"),
        named(entry(2, reading("m/a", 0.5), backdoored=True, setup=Setup("mnist", "preact_resnet18")), "tabor"),
        named(entry(3, reading("m/a", 0.5), setup=Setup("mnist", "wrn-16"), kind=HARD_KINDS[0]), "mm-bd"),
    )
    text = "\n\n".join(method_tables(results.entries))
    cells = text.split("### Cells of Tables 1 and 2")[1].split("###")[0]
    half, none = "1/2 = 50% [1%, 99%]", "0/1 = 0% [0%, 98%]"
    assert "| network | attack | joint verdict, ours | mm-bd, ours | tabor, ours | *Tabor, theirs* |" in cells
    assert f"| ResNet18 | badnets | {half} | - | {half} | *20/20* |" in cells
    assert f"| WRN | clean | {none} | {none} | - | - |" in cells
