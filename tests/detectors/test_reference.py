"""What a network that saw nothing but the clean images finds alike, and what is left once that is taken off."""

import pytest
import torch
import toys

from banaudit.data import CleanData
from banaudit.detectors import reference
from banaudit.detectors.reference import beyond, lead_by_all, natural_closeness, on_unseen
from banaudit.errors import TimeLimitReached
from banaudit.meter import Meter


def alike_classes(count=120):
    """Six classes of tiles, the last of which is nearly the first."""
    data = toys.draw_tiles(count)
    images = data.images.clone()
    last, first = (data.labels == 5).nonzero().flatten(), (data.labels == 0).nonzero().flatten()
    images[last] = 0.7 * images[first] + 0.3 * images[last]
    return CleanData(images, data.labels, data.class_names)


def test_alike_classes_are_near_each_other(monkeypatch):
    monkeypatch.setattr(reference, "EPOCHS", 10)
    data = alike_classes()
    meter = Meter()
    torch.manual_seed(0)
    natural = natural_closeness(*data.split(0.5, torch.Generator().manual_seed(0)), torch.Generator(), meter)
    assert natural.shape == (6, 6)
    assert natural.diagonal().isnan().all()
    nearest = {divmod(int(place), 6) for place in natural.nan_to_num(-torch.inf).flatten().topk(2).indices}
    assert nearest == {(0, 5), (5, 0)}
    assert meter.forward_images == 0  # the audited network has no part in it


def test_references_that_name_the_frequent_class_know_nothing(monkeypatch):
    labels = torch.tensor([0] * 8 + [1, 2])
    data = CleanData(torch.zeros(10, 3, 4, 4), labels, ("a", "b", "c"))

    def first_class(images):
        return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), 3)

    monkeypatch.setattr(reference, "references", lambda *_: [(first_class, data)] * 2)
    _, known = on_unseen(data, data, torch.Generator(), Meter(), lambda logits, labels: logits.mean(0))
    assert known == pytest.approx(1 / 3)


def test_large_images_and_classes_without_images_are_no_obstacle(monkeypatch):
    monkeypatch.setattr(reference, "EPOCHS", 1)
    data = CleanData(torch.rand(9, 1, 70, 90), torch.tensor([0, 0, 0, 1, 1, 1, 3, 3, 3]), tuple("abcd"))
    natural = natural_closeness(data, data, torch.Generator().manual_seed(0), Meter())
    assert natural[:, 2].isnan().all()
    assert natural[2, 0].isfinite()


def test_a_time_limit_holds():
    data = toys.draw_tiles(24)
    with pytest.raises(TimeLimitReached, match="reference"):
        natural_closeness(data, data, torch.Generator(), Meter(time_limit=-1))


def test_a_line_through_the_natural_closeness_is_taken_off():
    natural = torch.arange(16.0).view(4, 4).fill_diagonal_(torch.nan)
    values = 3 * natural - 2
    values[1, 2] += 9
    values[0, 3] = torch.nan
    left = beyond(values, natural, torch.Generator())
    assert left[0, 3].isnan()
    assert float(left[1, 2]) == pytest.approx(9)
    others = left[~left.isnan()]
    assert others.abs().topk(2).values.tolist() == pytest.approx([9, 0], abs=1e-4)


def test_few_of_many_pairs_are_enough_for_the_line(monkeypatch):
    monkeypatch.setattr(reference, "SLOPES", 20)
    natural = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)).fill_diagonal_(torch.nan)
    left = beyond(0.5 * natural + 1, natural, torch.Generator().manual_seed(1))
    assert left[~left.isnan()].abs().max() < 1e-4


def test_where_nothing_differs_the_middle_is_taken_off():
    values = torch.tensor([[torch.nan, 1.0, 2.0], [3.0, torch.nan, 4.0], [5.0, 6.0, torch.nan]])
    left = beyond(values, torch.zeros(3, 3), torch.Generator())
    assert float(left[2, 1]) == pytest.approx(6 - 3)  # torch's median is the lower of the middle two


def test_the_lead_by_hand():
    one = torch.tensor([torch.nan, -1.0, -4.0, -5.0])
    other = torch.tensor([-7.0, 0.0, torch.nan, -2.0])
    assert lead_by_all(torch.stack((one, other))) == (pytest.approx(2.0), 1)
    assert lead_by_all(torch.stack((one, -other))) == (0.0, 0)  # the rulers put different values first
