"""Which files are looked at that may never have reached the disk."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from fswatchd.helpers import changed, salvage


def listed(root: Path, limit: int, since: float = 0.0) -> tuple[list[str | None], dict[str, Any]]:
    mount = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        found, answer = changed.walked(mount, {"since": since, "limit": limit})
    finally:
        os.close(mount)
    return [one.path for one in found], answer


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
    found, answer = listed(tmp_path, 2)
    assert found == ["b/newest", "m/new", "a/older-than-the-next"]  # by which it knows of more
    assert answer == {"unreadable": 0}


def test_all_that_changed_since_then_and_no_other(tmp_path: Path) -> None:
    changed_in_turn(tmp_path, "z/old", "a/new", "b/newest")
    since = (tmp_path / "a/new").stat().st_ctime
    found, answer = listed(tmp_path, 2, since)
    assert found == ["b/newest", "a/new"]
    assert answer == {"unreadable": 0}


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
