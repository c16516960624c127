import time

import pytest

from banaudit.errors import TimeLimitReached
from banaudit.meter import Meter


def test_passes_are_counted():
    meter = Meter()
    meter.spend("noise", forward=3, backward=2)
    meter.spend("reading", forward=4)
    assert (meter.forward_images, meter.backward_images) == (7, 2)


def test_the_listener_hears_what_is_done_and_the_share_done():
    heard = []
    meter = Meter(planned_images=10, listener=lambda what, share: heard.append((what, share)))
    meter.spend("noise", forward=4)
    meter.spend("reading", forward=9)  # more than planned: the share stays a share
    assert heard == [("noise", 0.4), ("reading", 1.0)]


def test_without_a_plan_the_share_is_zero():
    heard = []
    Meter(listener=lambda _, share: heard.append(share)).spend("noise", forward=4)
    assert heard == [0.0]


def test_the_time_limit_ends_the_work_with_what_was_being_done():
    meter = Meter(time_limit=5.0, started=time.monotonic() - 6)
    with pytest.raises(TimeLimitReached, match=r"^the time limit of 5 s ended during: noise$"):
        meter.spend("noise", forward=1)
    assert meter.forward_images == 1


def test_within_the_limit_nothing_happens():
    Meter(time_limit=60.0).spend("noise", forward=1)


def test_work_aside_is_not_counted_but_told_and_ended_by_the_same_limit():
    heard = []
    meter = Meter(planned_images=10, time_limit=5.0, listener=lambda what, share: heard.append((what, share)))
    meter.spend("noise", forward=4)
    aside = meter.aside("another network")
    aside.spend("noise", forward=9)
    assert (heard[-1], meter.forward_images) == (("another network: noise", 0.4), 4)
    late = Meter(time_limit=5.0, started=time.monotonic() - 6).aside("another network")
    with pytest.raises(TimeLimitReached):
        late.spend("noise", forward=1)
