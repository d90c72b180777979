"""Which files are looked at that may never have reached the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fswatchd.helpers import salvage


def listed(root: Path, limit: int, since: float = 0.0) -> tuple[list[str], dict[str, Any]]:
    mount = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        found, answer = salvage.list_changed(mount, since, limit)
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
    assert found == ["b/newest", "m/new"]
    assert answer == {"found": 2, "unreadable": 0, "cut": True}


def test_all_that_changed_since_then_and_no_other(tmp_path: Path) -> None:
    changed_in_turn(tmp_path, "z/old", "a/new", "b/newest")
    since = (tmp_path / "a/new").stat().st_ctime
    found, answer = listed(tmp_path, 2, since)
    assert found == ["b/newest", "a/new"]
    assert answer == {"found": 2, "unreadable": 0, "cut": False}
