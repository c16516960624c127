"""Recorded scans at thresholds that were raised since."""

from __future__ import annotations

import pytest
from victim_entries import benchmark, entry, reading

from banaudit.bench.cost import MethodCost
from banaudit.bench.rejudge import rejudged
from banaudit.bench.results_files import need_results, write_results
from banaudit.bench.runner import BenchmarkResults, Outcome, ScanSettings
from banaudit.bench.zoo import ZooEntry, ZooResults
from banaudit.cli import main
from banaudit.detectors import MMBD, NeuralCleanse
from banaudit.detectors.pair_perturbation import PairPerturbation
from banaudit.detectors.universal_perturbation import UniversalPerturbation
from banaudit.results import Reading, Verdict

THEN = (MMBD(threshold=2.0), NeuralCleanse(threshold=2.0))
NOW = (MMBD(threshold=4.0), NeuralCleanse(threshold=4.0))


def scanned(seed, margin, patch, *, backdoored=False, fired=None, detectors=THEN):
    """A victim whose two methods found these scores for class 3, and nothing for the other."""
    readings = [
        reading(f"{name}/all-to-one", score, 2.0, fired=fired, per_class=(0.0, 0.0, 0.0, score))
        for name, score in (("mm-bd", margin), ("neural-cleanse", patch))
    ]
    victim = entry(seed, *readings, backdoored=backdoored)
    costs = tuple(
        MethodCost(method=name, verdict=Verdict.BACKDOORED, reason="", seconds=1, forward_images=1, backward_images=1)
        for name in ("mm-bd", "neural-cleanse")
    )
    settings = ScanSettings.of(detectors, 100, 0)
    scan = victim.scan.model_copy(update={"methods": costs, "settings": settings.digest})
    return victim.model_copy(update={"scan": scan}), settings


def results_of(*victims):
    entries, settings = zip(*victims, strict=True)
    return benchmark(*entries).model_copy(update={"settings": {item.digest: item for item in settings}})


def test_a_raised_threshold_unfires_and_joint_evidence_is_taken_from_the_record():
    before = results_of(scanned(1, 3.0, 1.0), scanned(2, 3.5, 4.5, backdoored=True), scanned(3, 5.0, 0.0))
    after = rejudged(before, NOW)
    assert [item.outcome for item in before.entries] == [Outcome.FALSE_ALARM, Outcome.RIGHT, Outcome.FALSE_ALARM]
    assert [item.outcome for item in after.entries] == [Outcome.RIGHT, Outcome.RIGHT, Outcome.FALSE_ALARM]
    joint = [item.scan.readings[-1] for item in after.entries]
    assert [item.key for item in joint] == ["joint-evidence/all-to-one"] * 3
    assert [item.score for item in joint] == pytest.approx(
        [(0.6**2 + 0.36875**2) ** 0.5, (0.6**2 + 1.659375**2) ** 0.5, 1.25]
    )
    assert after.entries[1].scan.target == 3
    assert [item.threshold for item in after.entries[0].scan.readings] == [4.0, 4.0, 1.4]
    assert set(after.settings) == {after.entries[0].scan.settings, before.entries[0].scan.settings}
    assert {item.scan.scanned_with for item in after.entries} == {before.entries[0].scan.settings}
    assert "joint-evidence/all-to-one" in after.measures


def test_what_a_reading_lacked_besides_its_threshold_it_lacks_still():
    after = rejudged(results_of(scanned(1, 9.0, 0.0, fired=False)), NOW)
    first, *_, joint = after.entries[0].scan.readings
    assert (first.fired, joint.fired, joint.score) == (False, False, 0.6)


def test_a_reason_against_any_verdict_outlasts_a_method_that_could_not_judge():
    victim, settings = scanned(1, 5.0, 0.0)
    silent = victim.scan.methods[1].model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": "no BatchNorm"})
    methods = (victim.scan.methods[0], silent)

    def again(reason):
        update = {"verdict": Verdict.INCONCLUSIVE, "reason": reason, "methods": methods}
        recorded = victim.model_copy(update={"scan": victim.scan.model_copy(update=update)})
        return rejudged(results_of((recorded, settings)), NOW).entries[0].scan

    kept = again("too few images; note mm-bd, all-to-one: score 9 above threshold 2")
    assert kept.verdict is Verdict.INCONCLUSIVE
    assert kept.reason == "too few images; note mm-bd, all-to-one: score 5 above threshold 4"
    assert again("neural-cleanse: no BatchNorm").verdict is Verdict.BACKDOORED


def of_a_pair(seed, then, score, *more):
    """A clean victim scanned by pair perturbation, with its settings."""
    pair = reading("pair-perturbation/source-target", score, 0.1, kind=Reading.SOURCE_TARGET, sources=(1,))
    victim, settings = entry(seed, pair, *more), ScanSettings.of((then,), 1000, 0)
    cost = victim.scan.methods[0].model_copy(update={"method": "pair-perturbation"})
    scan = victim.scan.model_copy(update={"methods": (cost,), "settings": settings.digest})
    return victim.model_copy(update={"scan": scan}), settings


def test_a_raised_threshold_of_pairs_counts_too():
    then, now = (PairPerturbation(threshold=threshold) for threshold in (0.1, 0.2))
    after = rejudged(results_of(of_a_pair(1, then, 0.15), of_a_pair(2, then, 0.22)), (now,))
    assert [item.outcome for item in after.entries] == [Outcome.RIGHT, Outcome.FALSE_ALARM]
    assert [item.scan.readings[0].threshold for item in after.entries] == [0.2, 0.2]


def test_the_lead_of_a_pair_that_no_noise_was_held_against_stays_as_it_was_judged():
    then, now = PairPerturbation(threshold=0.1), PairPerturbation(threshold=1.5)
    key = "pair-perturbation/confirmed by noise"
    confirmed = reading(key, 0.4, 0.3, kind=Reading.SOURCE_TARGET, sources=(1,))
    after = rejudged(results_of(of_a_pair(1, then, 0.4), of_a_pair(2, then, 0.4, confirmed)), (now,))
    assert [item.scan.readings[0].fired for item in after.entries] == [True, False]
    assert [item.outcome for item in after.entries] == [Outcome.FALSE_ALARM, Outcome.FALSE_ALARM]


def test_what_joint_evidence_alone_accuses_stays_where_nature_was_not_asked(monkeypatch):
    monkeypatch.setattr("banaudit.agreement.JOINT_THRESHOLD", 1.0)  # both fired then; today's thresholds leave it alone
    victim, few = scanned(1, 3.5, 4.0)
    many = few.model_copy(update={"images": 1000})
    asked = victim.model_copy(update={"scan": victim.scan.model_copy(update={"settings": many.digest})})
    assert rejudged(results_of((asked, many)), NOW).entries == (asked,)
    judged = rejudged(results_of((victim, few)), NOW).entries[0]  # of few images nature cannot be known
    assert [item.key for item in judged.scan.readings if item.fired] == ["joint-evidence/all-to-one"]


def test_a_scan_of_few_images_is_held_against_what_they_are_asked():
    (victim, settings) = scanned(1, 3.0, 1.0)  # a hundred images of ten classes: too few for pairs
    after = rejudged(results_of((victim, settings)), (*NOW, PairPerturbation()))
    assert after.entries[0].outcome is Outcome.RIGHT
    assert set(after.settings[after.entries[0].scan.settings].detectors) == {"mm-bd", "neural-cleanse"}


def test_a_method_without_any_finite_score_stays_as_it_was():
    victim, settings = scanned(1, 3.0, 1.0)
    readings = tuple(item.model_copy(update={"score": None}) for item in victim.scan.readings)
    recorded = victim.model_copy(update={"scan": victim.scan.model_copy(update={"readings": readings})})
    found = rejudged(results_of((recorded, settings)), NOW).entries[0].scan
    assert {cost.verdict for cost in found.methods} == {Verdict.BACKDOORED}


def margin_and_patch(seed=0):
    """One victim, scanned by two methods at once, and by one of them and the other."""
    both = scanned(1, 3.5, 4.5, backdoored=True)
    victim, settings = both
    halves = []
    for name in settings.detectors:
        alone = settings.model_copy(update={"detectors": {name: settings.detectors[name]}, "seed": seed})
        methods = tuple(cost for cost in victim.scan.methods if cost.method == name)
        readings = tuple(item for item in victim.scan.readings if item.key.startswith(name))
        update = {"settings": alone.digest, "methods": methods, "readings": readings, "code": name, "seconds": 1.0}
        scan = victim.scan.model_copy(update=update)
        halves.append(results_of((victim.model_copy(update={"scan": scan}), alone)))
        seed = 0
    return results_of(both), *halves


def test_scans_by_different_methods_are_put_together():
    both, margin, patch = margin_and_patch()
    wanted = rejudged(both, NOW).entries[0].scan
    for first, second in ((margin, patch), (patch, margin)):
        after = rejudged(first, NOW, (results_of(scanned(2, 9.0, 9.0)), second))
        (found,) = after.entries
        assert (found.scan.readings, found.scan.reason) == (wanted.readings, wanted.reason)
        assert [cost.method for cost in found.scan.methods] == [cost.method for cost in wanted.methods]
        assert found.outcome is Outcome.RIGHT
        assert (found.scan.seconds, found.scan.forward_images, found.scan.backward_images) == (2.0, 1001, 11)
        assert found.scan.code in {"mm-bd+neural-cleanse", "neural-cleanse+mm-bd"}
        assert set(found.scan.scanned_with.split("+")) == {
            item.scan.settings for item in margin.entries + patch.entries
        }
        assert set(found.scan.scanned_with.split("+")) | {found.scan.settings} == set(after.settings)
    assert rejudged(after, NOW, (patch,)) == after


def test_scans_of_another_training_are_not_and_a_zoo_takes_no_victims(tmp_path):
    _, margin, patch = margin_and_patch()
    facts = patch.entries[0].victim
    for changed, same in (({"seconds": 9.0}, False), ({"clean_accuracy": 0.8}, True)):
        trained = patch.entries[0].model_copy(update={"victim": facts.model_copy(update=changed)})
        other = patch.model_copy(update={"entries": (trained,)})
        assert (rejudged(margin, NOW, (other,)).entries == margin.entries) is same
    zoo, added = tmp_path / "zoo.json", tmp_path / "patch.json"
    write_results(zoo, ZooResults())
    write_results(added, patch)
    assert main(["bench", "rejudge", str(zoo), "--add", str(added)]) == 2


def of_files(results):
    """The scans of victims as those of a zoo's files, and one file that was refused."""
    (victim,), facts = results.entries, {"dataset": "cifar10", "attack": "none", "words": "clean"}
    facts |= {"truth": victim.truth, "settings": victim.scan.settings}
    scanned_file = ZooEntry(**facts, file="a", outcome=victim.outcome, scan=victim.scan)
    refused = ZooEntry(**facts, file="b", outcome=Outcome.REFUSED)
    return ZooResults(settings=results.settings, entries=(scanned_file, refused))


def test_scans_of_a_zoo_are_put_together_file_by_file():
    both, margin, patch = map(of_files, margin_and_patch())
    after = rejudged(margin, NOW, (patch,))
    found, refused = after.entries
    wanted = rejudged(both, NOW).entries[0].scan
    assert (found.scan.readings, found.scan.reason) == (wanted.readings, wanted.reason)
    assert (refused.outcome, refused.settings) == (Outcome.REFUSED, found.settings)
    assert rejudged(after, NOW, (patch,)) == after
    for other in ({"file": "c"}, {"dataset": "mnist"}, {"accuracy": 0.1}, {"scan": None, "outcome": Outcome.FAILED}):
        elsewhere = patch.model_copy(update={"entries": (patch.entries[0].model_copy(update=other),)})
        assert rejudged(margin, NOW, (elsewhere,)).entries == margin.entries


def test_scans_with_another_seed_or_of_other_images_are_not():
    _, margin, patch = margin_and_patch(seed=1)
    assert rejudged(margin, NOW, (patch,)) == margin
    assert rejudged(margin, NOW) == margin
    _, margin, patch = margin_and_patch()
    compressed = margin.entries[0].model_copy(update={"condition": "quality 50"})
    margin = margin.model_copy(update={"entries": (compressed,)})
    assert rejudged(margin, NOW, (patch,)).entries == margin.entries


def test_twice_is_as_good_as_once_and_todays_scans_stay():
    once = rejudged(results_of(scanned(1, 3.0, 1.0)), NOW)
    assert rejudged(once, NOW) == once


@pytest.mark.parametrize(
    "now", [(MMBD(threshold=1.0), NOW[1]), (MMBD(threshold=4.0, steps=7), NOW[1]), (NOW[0],)], ids=str
)
def test_other_settings_and_lower_thresholds_are_left_as_they_are(now):
    before = results_of(scanned(1, 3.0, 1.0))
    assert rejudged(before, now) == before


def test_the_command_changes_files_in_place_and_names_what_it_leaves(tmp_path, capsys):
    path = tmp_path / "development.json"
    write_results(path, results_of(scanned(1, 3.0, 1.0)))  # not of the default methods: left as it is
    before = path.read_bytes()
    assert main(["bench", "rejudge", str(path)]) == 0
    assert "stays false alarm, its record does not say what today's scan finds" in capsys.readouterr().err
    assert main(["bench", "rejudge", str(path), "--add", str(path)]) == 0
    assert path.read_bytes() == before
    assert need_results(path, BenchmarkResults).entries[0].outcome is Outcome.FALSE_ALARM


def test_a_zoo_is_judged_anew_and_what_was_inconclusive_for_other_reasons_stays(tmp_path):
    old, settings = scanned(1, 3.0, 1.0)
    unread = old.scan.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": "too few images"})
    facts = {"dataset": "cifar10", "attack": "none", "words": "clean", "truth": old.truth, "settings": settings.digest}
    before = ZooResults(
        settings={settings.digest: settings},
        entries=(
            ZooEntry(**facts, file="a", outcome=old.outcome, scan=old.scan),
            ZooEntry(**facts, file="b", outcome=Outcome.INCONCLUSIVE, scan=unread),
            ZooEntry(**facts, file="c", outcome=Outcome.REFUSED),
        ),
    )
    after = rejudged(before, NOW)
    assert [item.outcome for item in after.entries] == [Outcome.RIGHT, Outcome.INCONCLUSIVE, Outcome.REFUSED]
    assert after.entries[1].scan.reason == "too few images"
    assert {item.settings for item in after.entries} < set(after.settings)
    path = tmp_path / "zoo.json"
    write_results(path, before)
    assert main(["bench", "rejudge", str(path)]) == 0
    path.write_text('{"kind": "speed"}')
    assert main(["bench", "rejudge", str(path)]) == 2


def followed(score, threshold, restarts, note, *, lacking=(), **settings_then):
    """A victim that universal perturbation alone was asked about, with settings of today but for these."""
    now = UniversalPerturbation(**settings_then)
    settings = ScanSettings.of([now], 100, 0)
    then = {name: value for name, value in settings.detectors[now.name].items() if name not in lacking}
    settings = settings.model_copy(update={"detectors": {now.name: then}})
    lead = reading("universal-perturbation/all-to-one", score, threshold, per_class=(0.0, score))
    lead = lead.model_copy(
        update={"note": note, "restarts": restarts, "agreement": 1.0 if len(restarts) > 1 else None, "fired": False}
    )
    cost = MethodCost(
        method=now.name, verdict=Verdict.NO_EVIDENCE, reason="", seconds=1, forward_images=1, backward_images=1
    )
    victim = entry(1, lead, backdoored=True)
    scan = victim.scan.model_copy(update={"methods": (cost,), "settings": settings.digest})
    return results_of((victim.model_copy(update={"scan": scan}), settings))


@pytest.mark.parametrize(
    ("restarts", "note", "threshold", "fired"),
    [
        ((0.3, 0.35), "2% after 8 steps, 0% after 8 steps", 0.208, True),
        ((0.3,), "2% after 8 steps", 0.208, False),  # today a second path would be followed; it is not known where to
        ((0.3, 0.35), "60% after 6 steps, 2% after 8 steps", 0.4, False),
    ],
)
def test_a_threshold_falls_where_no_image_had_arrived(restarts, note, threshold, fired):
    before = followed(0.3, 0.4, restarts, note, lacking={"unreached_share", "relied_on"})
    (found, *_) = rejudged(before, [UniversalPerturbation()]).entries[0].scan.readings
    assert (found.threshold, found.fired) == (pytest.approx(threshold), fired)


def test_a_scan_that_does_not_say_how_many_images_arrived_stays_as_it_is():
    before = followed(0.3, 0.4, (0.3, 0.35), "", lacking={"unreached_share", "relied_on"})
    assert rejudged(before, [UniversalPerturbation()]).entries == before.entries


@pytest.mark.parametrize("other", [{}, {"pair_threshold": 1.0}])
def test_a_scan_of_today_is_not_held_against_rounded_shares(other):
    before = followed(0.2485, 0.2496, (0.2485, 0.25), "12% after 8 steps, 12% after 8 steps", **other)  # 12.4 %
    (found, *_) = rejudged(before, [UniversalPerturbation()]).entries[0].scan.readings
    assert (found.threshold, found.fired) == (0.2496, False)
