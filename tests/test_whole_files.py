"""Files written whole, alone or together: what a failure and a killed run leave behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from banaudit import whole_files
from banaudit.whole_files import is_same_file, try_writing, write_together, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_run_left_is_in_no_later_runs_way(tmp_path, monkeypatch):
    path = tmp_path / "report.json"

    class KilledError(BaseException):
        pass

    def kill(_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        with pytest.raises(KilledError):
            write_whole(path, b"lost")
    (left,) = names(tmp_path)
    assert left.endswith(".part")
    try_writing(path)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == sorted([left, "report.json"])


def test_files_that_are_written_get_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_whole(tmp_path / "whole", b"")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def refuse(monkeypatch, what, when):
    """Makes a step of the writing fail at its so-manieth time."""
    owner, name = {"flush": (os, "fsync"), "copy": (whole_files.shutil, "copy2"), "rename": (Path, "replace")}[what]
    right, calls = getattr(owner, name), []

    def step(*arguments):
        calls.append(arguments)
        if len(calls) == when:
            raise OSError(28, "No space left on device")
        return right(*arguments)

    monkeypatch.setattr(owner, name, step)


@pytest.mark.parametrize(("what", "when"), [("flush", 1), ("flush", 2), ("copy", 1), ("rename", 1), ("rename", 2)])
def test_files_that_belong_together_stay_the_old_ones_together(tmp_path, monkeypatch, what, when):
    files = [tmp_path / "account", tmp_path / "model"]
    for path in files:
        path.write_text(f"old {path.name}")
    refuse(monkeypatch, what, when)
    with pytest.raises(OSError, match="No space left"):
        write_together([(path, b"new") for path in files])
    assert [path.read_text() for path in files] == ["old account", "old model"]
    assert names(tmp_path) == ["account", "model"]


@pytest.mark.parametrize(("what", "when"), [("flush", 1), ("flush", 2), ("rename", 1), ("rename", 2)])
def test_of_new_files_that_belong_together_none_is_left_alone(tmp_path, monkeypatch, what, when):
    refuse(monkeypatch, what, when)
    with pytest.raises(OSError, match="No space left"):
        write_together([(tmp_path / "account", b"new"), (tmp_path / "model", b"new")])
    assert names(tmp_path) == []


def test_files_that_belong_together_replace_the_old_ones(tmp_path):
    (tmp_path / "account").write_text("old")
    write_together([(tmp_path / "account", b"one"), (tmp_path / "model", b"two")])
    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["one", "two"]
    assert names(tmp_path) == ["account", "model"]


def test_a_file_has_many_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    assert is_same_file(file, Path("file"))
    file.touch()
    os.link(file, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(file)
    assert is_same_file(tmp_path / "hard", tmp_path / "soft")
    (tmp_path / "other").touch()
    assert not is_same_file(file, tmp_path / "other")


def test_long_names_of_wide_characters_are_no_obstacle(tmp_path):
    path = tmp_path / ("\u6a21" * 80 + ".pt")
    try_writing(path)
    write_whole(path, b"model")
    assert path.read_bytes() == b"model"
    assert names(tmp_path) == [path.name]
