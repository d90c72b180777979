"""How long a source that is flooded keeps the loop to itself."""

from __future__ import annotations

import itertools
import time

import pytest

from fswatchd import sources


def turns(monkeypatch: pytest.MonkeyPatch, each_s: float) -> int:
    """How many items are taken at once where each takes so long."""
    clock = itertools.count(100.0, each_s)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    return sum(1 for _ in sources.batch())


def test_items_that_take_long_leave_the_loop_to_others_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert turns(monkeypatch, 0.004) == 3
    assert turns(monkeypatch, 1.0) == 1


def test_items_that_take_no_time_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert turns(monkeypatch, 0.0) == 256
