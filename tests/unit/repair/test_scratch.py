"""Which kernel lines are about a clone of ours."""

from __future__ import annotations

import time

import pytest

from fswatchd.repair import scratch


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> int:
    since = time.monotonic_ns()
    use = scratch._Use("loop7", since, since + 1_000_000_000)
    monkeypatch.setattr(scratch, "_uses", [use])
    return since


def test_a_line_written_while_the_device_was_ours(used: int) -> None:
    assert scratch.is_ours("loop7", used)
    assert scratch.is_ours("loop7", used + 1_000_000_000)


def test_the_same_name_before_and_after_is_somebody_elses(used: int) -> None:
    assert not scratch.is_ours("loop7", used - 1_000_000_000)
    assert not scratch.is_ours("loop7", used + 2_000_000_000)
    assert not scratch.is_ours("loop8", used)
