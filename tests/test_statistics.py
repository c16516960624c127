import math

import pytest
import torch

from banaudit.statistics import (
    SPREAD_FLOOR,
    auroc,
    auroc_interval,
    clopper_pearson,
    mad,
    median,
    median_margin,
    outlier_scores,
)

scipy_stats = pytest.importorskip("scipy.stats")


def test_median_of_an_even_count_is_between_the_middle_two():
    assert median(torch.tensor([4.0, 1.0, 3.0, 2.0])).item() == 2.5
    assert median(torch.tensor([[3.0, 1.0, 2.0], [9.0, 9.0, 0.0]])).tolist() == [2.0, 9.0]


def test_the_median_margin_by_hand():
    logits = torch.tensor([[5.0, 1.0, 4.0], [0.0, 7.0, 1.0], [2.0, -1.0, -8.0]])  # leads of 1, 6 and 3
    assert median_margin(logits) == 3.0


@pytest.mark.parametrize("count", [1, 2, 9, 10])
def test_mad_agrees_with_scipy(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    expected = scipy_stats.median_abs_deviation(values.numpy(), scale=1 / 1.4826)
    assert mad(values).item() == pytest.approx(expected, abs=1e-12)


def test_outlier_scores_leave_the_value_out():
    # Without the last: median 3, absolute deviations 2 1 0 1 2, so a MAD of 1.4826
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 10.0], dtype=torch.float64)
    scores = outlier_scores(values, torch.arange(6))
    assert float(scores[5]) == pytest.approx(7 / 1.4826)


def test_outlier_scores_do_not_believe_a_tiny_spread():
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5], dtype=torch.float64)
    assert float(outlier_scores(values, torch.arange(5))[4]) == pytest.approx(0.5 / SPREAD_FLOOR)


def test_outlier_scores_compare_with_the_finalists_only():
    values = torch.tensor([-9.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert float(outlier_scores(values, torch.tensor([1, 2, 3]))[3]) == pytest.approx(1 / SPREAD_FLOOR)


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (97, 100), (9_731, 10_000), (1, 100_000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_exact_interval_agrees_with_scipy(successes, trials, confidence):
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert clopper_pearson(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 3), (4, 3)])
def test_interval_of_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
        clopper_pearson(successes, trials)


def test_auroc_agrees_with_the_rank_test():
    generator = torch.Generator().manual_seed(0)
    positives = torch.randint(0, 20, (50,), generator=generator).float()
    negatives = torch.randint(0, 15, (70,), generator=generator).float()
    expected = scipy_stats.mannwhitneyu(positives.numpy(), negatives.numpy()).statistic / (50 * 70)
    assert auroc(positives, negatives) == pytest.approx(expected)


def test_auroc_at_its_ends():
    assert auroc(torch.tensor([2.0, math.inf]), torch.tensor([0.0, 1.0])) == 1.0
    assert auroc(torch.tensor([0.0]), torch.tensor([1.0])) == 0.0
    assert auroc(torch.ones(3), torch.ones(2)) == 0.5


@pytest.mark.parametrize("positives", [[], [math.nan]])
def test_auroc_of_what_cannot_be_ranked(positives):
    with pytest.raises(ValueError, match="expected"):
        auroc(torch.tensor(positives), torch.tensor([1.0]))


def test_the_interval_of_an_area_keeps_its_width_where_the_groups_are_parted():
    low, high = auroc_interval(1.0, 10, 10)
    assert high == 1.0
    assert 0.5 < low < 0.9
    assert auroc_interval(1.0, 100, 100)[0] > low
    assert auroc_interval(1.0, 10, 10, confidence=0.5)[0] > low


def test_the_interval_of_an_area_ends_where_its_own_error_reaches_the_observed_one():
    area, count = 0.8, 25
    for end in auroc_interval(area, count, count):
        shared = (1 - end) / (2 - end) + end / (1 + end)
        error = math.sqrt(end * (1 - end) * (1 + (count - 1) * shared)) / count
        assert abs(area - end) == pytest.approx(1.959964 * error, rel=1e-5)
    mirrored = auroc_interval(1 - area, count, count)
    assert mirrored == pytest.approx(tuple(1 - end for end in reversed(auroc_interval(area, count, count))))
    with pytest.raises(ValueError, match="counts of at least 1"):
        auroc_interval(0.5, 0, 3)
