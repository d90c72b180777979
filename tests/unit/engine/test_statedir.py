"""What is kept belongs to one daemon at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from fswatchd.engine.statedir import StateDirectory
from fswatchd.errors import FswatchError


def test_a_second_daemon_is_told_that_there_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "lib" / "fswatchd"
    first, second = StateDirectory(path), StateDirectory(path)
    first.claim()
    with pytest.raises(FswatchError, match=f"another fswatchd uses {path}"):
        second.claim()
    second.release()
    with pytest.raises(FswatchError):
        second.claim()
    first.release()
    second.claim()
    second.release()


def test_it_is_made_for_root_alone(tmp_path: Path) -> None:
    kept = StateDirectory(tmp_path / "state")
    kept.claim()
    kept.release()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_what_cannot_be_had_is_left_to_the_store_to_say(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    StateDirectory(tmp_path / "file").claim()
    StateDirectory(tmp_path / "file" / "state").claim()
