"""Which files are looked at that may never have reached the disk."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fswatchd.helpers import changed, salvage


def listed(root: Path, limit: int) -> tuple[list[str | None], int]:
    mount = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        found, unreadable = changed.walked(mount, {"limit": limit})
    finally:
        os.close(mount)
    return [one.path for one in found], unreadable


def changed_in_turn(root: Path, *names: str) -> None:
    """Each later than the one before, by the clock of the filesystem."""
    last = 0
    for name in names:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        while path.stat().st_ctime_ns <= last:
            path.chmod(0o600)
        last = path.stat().st_ctime_ns


def test_where_there_are_too_many_the_newest_are_looked_at(tmp_path: Path) -> None:
    """What was written last is what may be missing, wherever it lies."""
    changed_in_turn(tmp_path, "z/old", "a/older-than-the-next", "m/new", "b/newest")
    found, unreadable = listed(tmp_path, 2)
    assert found == ["b/newest", "m/new", "a/older-than-the-next"]  # by which it knows of more
    assert unreadable == 0


def test_what_cannot_be_read_costs_itself_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An inode that is damaged is often why there is anything to repair."""
    changed_in_turn(tmp_path, "a/one", "b/two", "c/three")
    real = os.scandir

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self._entry = entry

        def __getattr__(self, name: str) -> Any:
            return getattr(self._entry, name)

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            if self._entry.name == "two":
                raise OSError(74, "Bad message")
            return self._entry.stat(follow_symlinks=follow_symlinks)

    @contextmanager
    def scandir(directory: int) -> Iterator[Iterator[Entry]]:
        with real(directory) as found:
            yield (Entry(entry) for entry in found)

    monkeypatch.setattr(os, "scandir", scandir)
    assert listed(tmp_path, 9) == (["c/three", "a/one"], 1)


def test_names_are_found_by_inodes_as_far_as_there_are_any(tmp_path: Path) -> None:
    changed_in_turn(tmp_path, "a/one", "b/other")
    (tmp_path / "b" / "link").symlink_to("other")
    inode = (tmp_path / "b/other").stat().st_ino
    unsaved = [
        salvage.Unsaved(1, "known", changed.Changed(0.0, 1, 0)),
        salvage.Unsaved(2, "", changed.Changed(0.0, inode, 0)),
        salvage.Unsaved(3, "", changed.Changed(0.0, 1 << 40, 0)),
    ]
    mount = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        named = list(salvage._named(mount, unsaved, time.monotonic() + 60))
        late = list(salvage._named(mount, unsaved, 0.0))
    finally:
        os.close(mount)
    assert [each.name for each in named] == ["known", "b/other", f"#{1 << 40}"]
    assert sorted(each.size for each in late) == [1, 2, 3]
