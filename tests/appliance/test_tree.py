"""The cache of trees, and what is said where none can be built. The trees prove themselves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.appliance import tree
from tests.appliance.tree import TreeError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "voiced"


def fill(folder: Path) -> None:
    (folder / "content").write_text("whole")


def fail(folder: Path) -> None:
    fill(folder)
    raise TreeError("no space left")


def never(folder: Path) -> None:
    pytest.fail("it is there already")


def test_a_folder_is_built_once_for_the_same_key() -> None:
    folder = tree.cached("base", "one", fill)
    assert (folder / "content").read_text() == "whole"
    assert tree.cached("base", "one", never) == folder
    assert tree.cached("base", "two", fill) != folder
    assert tree.cached("other", "one", fill) != folder


def test_what_was_not_built_to_its_end_is_not_there() -> None:
    with pytest.raises(TreeError, match="no space left"):
        tree.cached("base", "one", fail)
    assert (tree.cached("base", "one", fill) / "content").exists()


def test_what_nobody_asked_for_in_a_day_goes_when_another_is_built() -> None:
    old, used = tree.cached("base", "old", fill), tree.cached("base", "used", fill)
    other = tree.cached("other", "old", fill)
    long_ago = time.time() - 2 * tree.KEPT_S
    for folder in (old, used, other):
        os.utime(folder, (long_ago, long_ago))
    tree.cached("base", "used", never)
    tree.cached("base", "new", fill)
    assert not old.exists()
    assert used.exists()
    assert other.exists()


def test_a_machine_without_a_program_is_told_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert tree.missing({"sh": "dash"}) is None
    told = tree.missing({"sh": "dash", "no-such-program": "its-package"})
    assert told is not None
    assert told.endswith("apt-get install its-package")


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    told = tree.missing({"sh": "dash"})
    assert told is not None
    assert "root" in told


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(TreeError, match="sh -c.*: the disk is full"):
        tree._call("sh", "-c", "echo 'the disk is full' >&2; exit 3")
