from __future__ import annotations

import math

import pytest
from victim_entries import benchmark, entry, reading

from banaudit.bench.calibration import Calibration, calibrate, fit_threshold
from banaudit.bench.population import Setup, still_sealed
from banaudit.bench.results_files import read_results, write_results
from banaudit.bench.runner import Outcome, ScanSettings
from banaudit.bench.tables import calibration_tables, render
from banaudit.cli import main
from banaudit.detectors import default_detectors
from banaudit.errors import UsageError


def test_the_threshold_extends_the_upper_half_exponentially():
    # Median 2, excesses 1 and 2: m + s log(0.5 / a) = 2 + 1.5 log(5).
    assert fit_threshold([0, 1, 2, 3, 4], 0.1) == pytest.approx(2 + 1.5 * math.log(5))
    assert fit_threshold([0, 1, 2, 3, 4], 0.3) == 4
    assert fit_threshold([1, 1, 1], 0.1) == 1
    with pytest.raises(ValueError, match="a rate above 0"):
        fit_threshold([1.0], 0)


@pytest.fixture
def results():
    """Four clean victims of each of two networks, of which the second scores higher; two backdoored ones."""
    vgg = Setup("cifar10", "vgg11")
    low = [entry(100 + n, reading("m/a", 0.1 * n), reading("m/b", 1.5, fired=False)) for n in range(1, 5)]
    high = [entry(200 + n, reading("m/a", 0.4 + 0.1 * n), setup=vgg) for n in range(1, 5)]
    return benchmark(
        *low,
        *high,
        entry(301, reading("m/a", 1.5), backdoored=True),
        entry(302, reading("m/a", 0.95), backdoored=True),
    )


def test_thresholds_are_fitted_to_clean_victims_and_judged_out_of_sample(results):
    found = calibrate(results, aimed_rate=0.5 - 1e-9)
    first, second = found.readings
    # Of 0.1 to 0.8: median 0.45, mean excess 0.2; each of the two readings gets half of the aimed rate.
    assert (first.clean, first.clean_able, first.clean_largest) == (8, 8, pytest.approx(0.8))
    assert first.proposed == pytest.approx(max(0.8, 0.45 + 0.2 * math.log(2)))
    assert (first.own, first.own_above_frozen, first.own_above_proposed) == (2, 1, 2)
    assert first.uncertain == 1
    # The second reading lacked something on all four, so that there is nothing to fit.
    assert (second.fitted, second.proposed, second.clean_able) == (False, 1.0, 0)
    largest = next(victim for victim in found.victims if victim.key == first.clean_largest_victim)
    assert largest.outcomes["proposed"] is Outcome.RIGHT
    assert largest.outcomes["left out"] is Outcome.FALSE_ALARM
    assert [v.outcomes["setup left out"] for v in found.victims].count(Outcome.FALSE_ALARM) == 4
    missed = found.victims[-1]
    assert (missed.outcomes["frozen"], missed.outcomes["proposed"]) == (Outcome.MISSED, Outcome.RIGHT)


def test_the_test_split_is_refused(results):
    with pytest.raises(UsageError, match="never fitted on test victims"):
        calibrate(results.model_copy(update={"split": "test"}))
    with pytest.raises(UsageError, match="never fitted on test victims"):
        calibrate(benchmark(*results.entries, entry(still_sealed()[0].seed, reading("m/a", 0.1))))


def test_what_cannot_be_calibrated_is_said_in_one_line(results):
    with pytest.raises(UsageError, match="expected a share between 0 and"):
        calibrate(results, aimed_rate=0.5)
    with pytest.raises(UsageError, match="no clean victim"):
        calibrate(benchmark(results.entries[-1]))
    with pytest.raises(UsageError, match="no scores"):
        calibrate(benchmark(entry(1)))


def test_the_command_writes_json_and_prints_tables(results, tmp_path, capsys):
    source, output = tmp_path / "development.json", tmp_path / "calibration.json"
    write_results(source, results)
    assert main(["bench", "calibrate", str(source), "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert text == render(output)
    assert read_results(output, Calibration) == calibrate(results)
    assert "| frozen | 1/2 = 50% [1%, 99%] |" in text
    assert "other settings than those in the code now" in text
    write_results(source, results.model_copy(update={"split": "test"}))
    assert main(["bench", "calibrate", str(source), "--output", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["bench", "calibrate", str(tmp_path / "none.json")]) == 2


def test_files_are_joined_and_scores_held_against_one_threshold(results):
    half = len(results.entries) // 2
    parts = [results.model_copy(update={"entries": part}) for part in (results.entries[:half], results.entries[half:])]

    def halved(item):
        values = {"score": item.score, "threshold": item.threshold, "null": item.null}
        return item.model_copy(update={name: None if value is None else value / 2 for name, value in values.items()})

    other = [
        entry.model_copy(
            update={"scan": entry.scan.model_copy(update={"readings": tuple(map(halved, entry.scan.readings))})}
        )
        for entry in parts[1].entries
    ]
    joined = calibrate(parts[0], parts[1].model_copy(update={"entries": tuple(other)}))
    whole = calibrate(results)
    assert joined.split == "development and development"
    assert joined.readings == whole.readings
    assert joined.victims == whole.victims


def test_scans_of_other_settings_are_left_out_where_there_are_some_of_todays():
    today = ScanSettings.of(default_detectors(), 1000, 0)
    new, old = entry(1, reading("m/a", 0.5)), entry(2, reading("m/a", 0.9))
    new = new.model_copy(update={"scan": new.scan.model_copy(update={"settings": today.digest})})
    held = benchmark(new, old)
    found = calibrate(held.model_copy(update={"settings": {**held.settings, today.digest: today}}))
    assert (found.outdated, found.current_settings) == ((old.key,), True)
    assert [victim.key for victim in found.victims] == [new.key]
    assert f"with other settings than those in the code now: {old.key}." in calibration_tables(found)
