import math

import pytest
import torch
import torch.nn.functional as F

from banaudit.data import CleanData
from banaudit.detectors.base import Samples
from banaudit.detectors.targeted_paths import (
    SHORTLIST,
    Paths,
    follow,
    lead,
    margins_towards,
    pair_lead,
    path_towards,
    planned_images,
)
from banaudit.errors import UnsupportedModelError

NAN = math.nan


def test_margin_is_the_target_minus_the_best_other():
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 1.0, 3.0]])
    assert margins_towards(logits, 1).tolist() == [3.0, -3.0]
    assert margins_towards(logits, 2).tolist() == [-3.0, -1.0]
    assert logits[0].tolist() == [1.0, 5.0, 2.0]


START = torch.full((4, 4), -4.0).fill_diagonal_(NAN)


def test_lead_by_hand():
    # Target means 1, 2, 9 and 3: median 2.5, which gained 6.5; first minus second 9 - 3.
    margins = torch.tensor([1.0, 2.0, 9.0, 3.0])[:, None].expand(4, 4).clone().fill_diagonal_(NAN)
    found = lead(margins, START)
    assert (found.score, found.target) == (pytest.approx(6 / 6.5), 2)
    assert found.null == pytest.approx((3 - 2) / 6.5)  # the second over the third
    torch.testing.assert_close(found.per_class, torch.tensor([1.0 - 9, 2 - 9, 9 - 3, 3 - 9]) / 6.5)


def test_the_unit_is_at_least_the_distance_to_go():
    # The median class has gained 1 of the 4 it has to gain.
    margins = torch.tensor([-3.0, -3.0, -1.0, -3.0])[:, None].expand(4, 4).clone().fill_diagonal_(NAN)
    assert lead(margins, START).score == pytest.approx(2 / 4)


def test_lead_does_not_depend_on_the_scale_of_the_logits():
    margins = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).fill_diagonal_(NAN)
    assert lead(10 * margins, 10 * START).score == pytest.approx(lead(margins, START).score)


def test_dropped_classes_carry_the_lowest_bar():
    margins = torch.tensor([1.0, NAN, 9.0, 3.0])[:, None].expand(4, 4).clone().fill_diagonal_(NAN)
    found = lead(margins, START)
    assert found.target == 2
    assert found.score == pytest.approx(6 / 7)  # the median of 1, 9 and 3 is 3, which gained 7
    assert found.per_class[1] == found.per_class.min()


def test_a_path_that_overflows_is_not_taken_for_a_dropped_class(clean_data):
    class Overflow:
        def zero(self):
            return torch.zeros(1)

        def logits(self, images, noise, what):
            del what
            return torch.cat([images.flatten(1)[:, :5], noise.expand(len(images), 1) / 0 * 0], dim=1)

        def descend(self, noise, gradient, step):
            del gradient, step
            return noise

    with pytest.raises(UnsupportedModelError, match="not finite"):
        follow(
            Overflow(),
            Samples(clean_data, clean_data),
            steps=2,
            search_images=8,
            read_images=8,
            generator=torch.Generator().manual_seed(0),
            what="",
        )


def test_pair_lead_by_hand():
    # All pairs gain 4 but target 2 gains 5, source 1 gains one more everywhere, and the pair 1 -> 3 another 6.
    gain = torch.full((4, 4), 4.0)
    gain[2] += 1
    gain[:, 1] += 1
    gain[3, 1] += 6
    margins = (START + gain).fill_diagonal_(NAN)
    found = pair_lead(Paths(margins, START, reach=1.0, steps=8))
    assert (found.source, found.target) == (1, 3)
    # Residuals: 6 for the pair, 0 for the rest; the unit is what the median target gains, 4.
    assert found.score == pytest.approx(6 / 4)


def test_what_a_source_gives_to_all_targets_is_no_lead_of_a_pair():
    start = torch.full((6, 6), -4.0)
    gain = torch.full((6, 6), 4.0)
    gain[:, 1] += 1
    gain[3, 1] += 6
    gain[2, 0] += 3  # the runner-up is of another source
    found = pair_lead(Paths((start + gain).fill_diagonal_(NAN), start.fill_diagonal_(NAN), reach=1.0, steps=8))
    assert (found.source, found.target) == (1, 3)
    assert found.score == pytest.approx((6 - 3) / 4)


class LogitShift:
    """One number for each class, added to the logits ``gain`` times over; a step is one up or down by sign."""

    def __init__(self, gain):
        self.gain = torch.tensor(gain)
        self.passes = 0

    def zero(self):
        return torch.zeros(len(self.gain))

    def random(self, step, generator):
        return step * (2.0 * torch.randint(0, 2, (len(self.gain),), generator=generator) - 1)

    def logits(self, images, perturbation, what):
        assert what == "paths"
        self.passes += len(images)
        return 4.0 * F.one_hot(images.flatten().long(), len(self.gain)) + self.gain * perturbation

    def descend(self, perturbation, gradient, step):
        return perturbation - gradient.sign()


def labelled(classes, each):
    """Images of one pixel that is their label."""
    labels = torch.arange(classes).repeat(each)
    data = CleanData(labels.float().view(-1, 1, 1, 1), labels, tuple(map(str, range(classes))))
    return Samples(data, data)


def paths(shift, samples, *, steps):
    return follow(
        shift,
        samples,
        steps=steps,
        search_images=12,
        read_images=20,
        generator=torch.Generator().manual_seed(0),
        what="paths",
    )


def test_paths_by_hand():
    shift = LogitShift([1.0, 1.0, 1.0, 1.0])
    found = paths(shift, labelled(4, 5), steps=2)
    # Each step: the target one up, the others one down. Margin at first -4, then 2 - (4 - 2) = 0.
    torch.testing.assert_close(found.start, START, equal_nan=True)
    torch.testing.assert_close(found.margins, torch.zeros(4, 4).fill_diagonal_(NAN), equal_nan=True)
    assert (found.reach, found.steps) == (0.0, 2)
    assert shift.passes == planned_images(4, steps=2, search_images=12, read_images=20)


def test_a_path_by_itself_goes_as_far_as_it_is_told():
    shift, images = LogitShift([1.0, 1.0, 1.0, 1.0]), labelled(4, 5).search.images
    assert path_towards(shift, images, 2, steps=3, what="paths").tolist() == [-3.0, -3.0, 3.0, -3.0]
    assert shift.passes == 3 * 20
    with pytest.raises(UnsupportedModelError, match="no gradient leads towards class 2"):
        path_towards(LogitShift([0.0] * 4), images, 2, steps=3, what="paths")


def test_paths_stop_once_the_median_class_is_reached():
    found = paths(LogitShift([1.0, 1.0, 2.0, 1.0]), labelled(4, 5), steps=9)
    assert (found.reach, found.steps) == (1.0, 3)  # the margin after three steps is 3 - (4 - 3) = 2
    expected = lead(found.margins, found.start)
    # Target 2 rises by 2 a step: 6 against 4 - 3 after three; its own logit falls by 2, which moves no other margin
    assert expected.target == 2
    assert float(found.margins[2].nanmean()) == pytest.approx(5.0)
    assert expected.score == pytest.approx((5 - (2 + 2 + 5) / 3) / ((2 + 2 + 5) / 3 + 4))


def test_many_classes_are_cut_to_a_shortlist_with_the_leader_in_it():
    classes = 3 * SHORTLIST
    shift = LogitShift([1.0] * 20 + [1.3] + [1.0] * (classes - 21))
    # Far from saturation after three steps: logits of the labels are 4, so scale the steps down.
    shift.gain = shift.gain / 4
    found = paths(shift, labelled(classes, 1), steps=6)
    alive = (~found.margins.nanmean(dim=1).isnan()).nonzero().flatten().tolist()
    assert len(alive) == SHORTLIST
    assert lead(found.margins, found.start).target == 20
    planned = planned_images(classes, steps=6, search_images=12, read_images=20)
    assert planned / 2 <= shift.passes <= 2 * planned
    assert planned < planned_images(SHORTLIST, steps=6, search_images=12, read_images=20) * 3


def test_a_crowd_of_classes_needs_no_more_images_than_there_are():
    found = paths(LogitShift([0.1] * (SHORTLIST + 1)), labelled(SHORTLIST + 1, 1), steps=3)
    assert found.steps == 3


def test_the_cost_of_a_class_falls_with_their_number():
    def cost(classes):
        return planned_images(classes, steps=8, search_images=48, read_images=160) / classes

    assert cost(10) > cost(43) > cost(200)
