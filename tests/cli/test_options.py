from __future__ import annotations

from typing import ClassVar, final

import pytest
from pydantic import PositiveFloat

import banaudit.detectors
from banaudit.cli.options import choose_detectors, parse_settings
from banaudit.detectors.base import Detector, Found
from banaudit.errors import UsageError


class Quiet(Detector):
    title: ClassVar[str] = "finds nothing"
    misses: ClassVar[str] = "everything"
    eps: PositiveFloat = 0.3
    steps: int = 10

    def search(self, model, samples, generator, meter):
        return Found([])

    def planned_images(self, num_classes, images):
        return 0


@final
class First(Quiet):
    name: ClassVar[str] = "first"


@final
class Second(Quiet):
    name: ClassVar[str] = "second"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(banaudit.detectors, "DETECTORS", {"first": First, "second": Second}, raising=False)
    monkeypatch.setattr(banaudit.detectors, "default_detectors", lambda: (First(),), raising=False)


def chosen(methods=None, *texts):
    return choose_detectors(methods, parse_settings(texts))


def test_nothing_asked_means_the_default():
    assert chosen() is None


def test_methods_and_settings():
    assert chosen("second, first", "first.eps=0.2") == (Second(), First(eps=0.2))
    assert chosen(None, "first.steps=3", "first.eps=1e-2") == (First(steps=3, eps=0.01),)


def test_default_and_all_stand_for_methods():
    assert chosen("default,second", "first.steps=3") == (First(steps=3), Second())
    assert chosen("all") == (First(), Second())


@pytest.mark.parametrize(
    ("methods", "texts", "expected"),
    [
        ("third", (), "--method third: no such method; there are first, second"),
        ("first,first", (), "--method first,first: names a method twice"),
        ("default,first", (), "--method default,first: names a method twice"),
        (None, ("first.eps",), "--set first.eps: expected METHOD.SETTING=VALUE, e.g. --set ban.eps=0.2"),
        (None, ("eps=1",), "--set eps=1: expected METHOD.SETTING=VALUE, e.g. --set ban.eps=0.2"),
        (None, ("first.eps=1", "first.eps=2"), "--set first.eps=2: first.eps is set twice; keep one of them"),
        (None, ("second.eps=1",), "--set second.eps: second is not among the methods that run (first)"),
        (None, ("first.mask=1",), "--set first.mask: no such setting; there are eps, steps"),
        (None, ("first.eps=-1",), "--set first.eps=-1: input should be greater than 0"),
        (None, ("first.steps=few",), "--set first.steps=few: input should be a valid integer"),
    ],
)
def test_mistakes_are_one_line(methods, texts, expected):
    with pytest.raises(UsageError) as caught:
        chosen(methods, *texts)
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_released_runs_alone():
    with pytest.raises(UsageError, match="--released runs BAN alone"):
        choose_detectors("first", {}, released=True)
